"""Whom reinforcement plays, and when: real profiles of training users, or virtual ones far from all of them.

The paper's targets are the 5,000 of 1,000,000 sampled profiles that are least similar to the training set (arXiv
2502.18968, section 4, as reported). Halves are embedded apart and a virtual profile's embedding is their normalised
mean, so that a million of them cost no embedding (`far`).
"""

from collections.abc import Sequence

import numpy as np

from usp_lab.data import Corpus, Dialogue
from usp_lab.errors import UspError
from usp_lab.profiles import split_profile
from usp_lab.simulate import as_targets


def targets_of(
    corpus: Corpus,
    n: int = 0,
    virtual: int = 0,
    encoder: str = "minilm",
    reducer: str = "umap",
    seed: int = 0,
) -> list[Dialogue]:
    """Return n targets, drawn from training dialogues or chosen among virtual profiles.

    Args:
        corpus: training dialogues with profiles.
        n: how many (0: all).
        virtual: virtual profiles drawn from a `ProfileSampler` of the training profiles; the n least similar to any
            of these are returned, farthest first. 0: real profiles.
        encoder, reducer: of the sampler (`ProfileSampler`).
        seed: of the draw.

    Raises:
        UspError: no profile; fewer than two profiles of two halves for virtual ones, fewer accepted than n.
    """
    told = [d for d in corpus.train if d.profile]
    if not told:
        raise UspError("no training dialogue has a profile to be played; build profiles first")
    if not virtual:
        order = np.random.default_rng(seed).permutation(len(told))
        return [told[i] for i in order[: n or None]]
    profiles = sorted({d.profile for d in told})
    return as_targets(_far(profiles, n, virtual, encoder, reducer, seed))


def _far(
    profiles: list[str], n: int, virtual: int, encoder: str, reducer: str, seed: int
) -> list[str]:
    from usp_lab.far import joint, least_similar
    from usp_lab.models import sentence_encoder
    from usp_lab.sampling import ProfileSampler
    from usp_lab.virtual import draw

    whole = [p for p in profiles if all(split_profile(p))]
    if len(whole) < 2:
        raise UspError(f"{len(whole)} profiles have two halves; virtual ones need two at least")
    sampler = ProfileSampler(encoder=encoder, reducer=reducer, random_state=seed).fit(whole)
    made = draw(sampler, virtual, random_state=seed)
    if not 0 < n <= len(made.texts):
        raise UspError(
            f"n={n} targets of {len(made.texts)} virtual profiles; choose 1 to {len(made.texts)}"
        )
    halves = [
        sentence_encoder(encoder).encode([split_profile(p)[k] for p in whole]) for k in (0, 1)
    ]
    chosen, _ = least_similar(*halves, made.pairs, joint(*halves), n, seed)
    return [made.texts[i] for i in chosen]


def order(n: int, places: int, seed: int) -> list[int]:
    """Return which target is played when: shuffled passes over all, the same in every process.

    >>> sorted(order(3, 6, 0))
    [0, 0, 1, 1, 2, 2]
    """
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(n) for _ in range(-(-places // n))]
    return np.concatenate(passes)[:places].tolist()


def dealt(step: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return a step's targets so that its halves, quarters, ... have as much to do: processes take their shares in turn.

    Dialogues about long profiles take more turns, and the slowest process decides how long a step takes. It is one
    order for any number of processes, so that they draw alike.

    >>> dealt([0, 1, 2, 3], sizes=[10, 40, 30, 20])
    [1, 0, 2, 3]
    """
    if len(step) < 2 or len(step) % 2:
        return list(step)
    falling = sorted(step, key=lambda i: -sizes[i])
    hands = falling[0::4] + falling[3::4], falling[1::4] + falling[2::4]
    return [i for hand in hands for i in dealt(hand, sizes)]
