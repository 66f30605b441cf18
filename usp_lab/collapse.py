"""Diversity metrics put to the test: whose words come in the place of real users', and what the metrics then say.

Two breaks. `collapse`: a share of what is said becomes one outsider's (mode collapse). `foreign`: it
becomes the assistant's, whom no user sounds like.

stand_ins = {"collapse": outsider(validation, targets), "foreign": as_assistant(targets)}
judge(calibrate(encoder, targets, stand_ins, twins, openings), MEANT, LOWER_IS_BETTER)
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import distributions
from usp_lab.adv import adv_distances
from usp_lab.data import Dialogue
from usp_lab.distributions import FEWEST, PRDC, Unscorable
from usp_lab.diversity import Cloud, turn_cloud, user_sides, whole_dialogues
from usp_lab.metrics import mean_known, pairwise_difference
from usp_lab.tidy import owners
from usp_lab.variety import intraclass, trait_values
from usp_lab.verdicts import Score, respond

# What each break must move. Others need not see it: precision asks whether what is said is real, and
# one real user's turns are; nor do an assistant's turns lack variety.
MEANT = {
    "collapse": "mauve recall coverage vendi_ratio adv first_turn_diversity between_share".split(),
    "foreign": "mauve precision density adv".split(),
}
LOWER_IS_BETTER = ("adv",)


def _or_nan(names: Sequence[str], statistics: Callable[[], Mapping[str, float]]) -> dict:
    try:
        return dict(statistics())
    except Unscorable:
        return dict.fromkeys(names, math.nan)


def turns_score(
    real: Cloud, others: Cloud, k: int = 5, seeds: Sequence[int] = range(5), seed: int = 0
) -> Score:
    """Return a score of mauve (as it is, small-sample bias and all), precision, recall, density and coverage.

    Args:
        real: turns; its items are those of the score.
        others: what comes in the place of each user's turns, one at random. A user who has none there
            keeps the turns.
        k, seeds: as in `diversity.AgainstReal`.
        seed: of what comes in whose place.
    """
    rng, own = np.random.default_rng(seed), np.arange(len(real.x))
    extra, back = np.unique(others.x, axis=0, return_inverse=True)  # an outsider's come often
    mine = {u: [len(own) + b for b, o in zip(back, others.users, strict=True) if o == u] for u in set(others.users)}  # fmt: skip
    places = np.array([rng.choice(mine.get(u, [i])) for i, u in enumerate(real.users)], int)
    pool = np.concatenate([real.x, extra])
    near, number = distributions.distances(pool, pool), distributions.bucket_number(len(own) // 2)
    labels = distributions.buckets(pool, min(number, len(pool)), seeds)

    def score(said: np.ndarray, gone: np.ndarray) -> dict[str, float]:
        g, r = np.where(gone, places, own)[said], own[~said]
        parts = near[np.ix_(r, r)], near[np.ix_(g, g)], near[np.ix_(r, g)]
        area = {"mauve": math.nan}
        if min(len(g), len(r)) >= FEWEST:
            area = {"mauve": distributions.mauve_of(labels, g, r)}
        return area | _or_nan(list(PRDC), lambda: distributions.prdc_of(*parts, k))

    return score


def vendi_score(real: np.ndarray, others: np.ndarray) -> Score:
    """Return a score of vendi_ratio; items are dialogues, ``others`` what comes in the place of each."""

    def score(said: np.ndarray, gone: np.ndarray) -> dict[str, float]:
        sides = np.where(gone[:, None], others, real)[said], real[~said]
        mixed, rest = (x[np.isfinite(x).all(axis=1)] for x in sides)
        n = min(len(mixed), len(rest))  # it grows with n

        def ratio() -> dict[str, float]:
            return {"vendi_ratio": distributions.vendi(mixed[:n]) / distributions.vendi(rest[:n])}

        return _or_nan(["vendi_ratio"], ratio)

    return score


def adv_score(intact: np.ndarray, replaced: np.ndarray) -> Score:
    """Return a score of adv from distances (`adv.adv_distances`) before and after, shape (n,) each."""

    def score(said: np.ndarray, gone: np.ndarray) -> dict[str, float]:
        return {"adv": mean_known(np.where(gone, replaced, intact)[said])}

    return score


def openings_score(openings: Sequence[Sequence[str]]) -> Score:
    """Return a score of first_turn_diversity; items are openings, target by target, and a target's first comes in place of its others."""
    ends = np.cumsum([0, *map(len, openings)])

    def score(said: np.ndarray, gone: np.ndarray) -> dict[str, float]:
        found = []
        for own, start, end in zip(openings, ends, ends[1:], strict=False):
            if said[start:end].any():
                kept = [own[0] if g else o for o, g in zip(own, gone[start:end], strict=True)]
                found.append(pairwise_difference(kept))
        return {"first_turn_diversity": mean_known(found)}

    return score


def traits_score(values: np.ndarray, others: np.ndarray, users: Sequence[Hashable]) -> Score:
    """Return a score of between_share, the mean over traits that vary.

    Args:
        values: traits of each dialogue (`variety.trait_values`), shape (n, traits).
        others: traits of what comes in the place of each.
        users: whose each dialogue is.
    """

    def score(said: np.ndarray, gone: np.ndarray) -> dict[str, float]:
        mixed = np.where(gone[:, None], others, values)
        rows = np.flatnonzero(said & np.isfinite(mixed).all(axis=1))
        whose = [users[i] for i in rows]
        each = [
            _or_nan(["it"], lambda c=c: {"it": intraclass(c, whose)})["it"] for c in mixed[rows].T
        ]
        return {"between_share": mean_known(each)}

    return score


# --- breaking on purpose -------------------------------------------------------------------------


def outsider(
    dialogues: Sequence[Dialogue], targets: Sequence[Dialogue], seed: int = 0
) -> list[Dialogue]:
    """Return for each target one of the dialogues of the first user of ``dialogues``, drawn at random."""
    users = owners(dialogues)
    own = [d for d, u in zip(dialogues, users, strict=True) if u == users[0]]
    drawn = np.random.default_rng(seed).integers(len(own), size=len(targets))
    return [own[i] for i in drawn]


def as_assistant(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Return dialogues whose user says what the assistant replied; without a turn where it never did."""
    out = []
    for d in dialogues:
        replies = [m["content"] for m in d.messages if m["role"] == "assistant"]
        said = [{"role": r, "content": t} for t in replies for r in ("user", "assistant")]
        out.append(d.model_copy(update={"messages": said}))
    return out


def calibrate(
    encoder,
    targets: Sequence[Dialogue],
    stand_ins: Mapping[str, Sequence[Dialogue]],
    again: Sequence[Dialogue],
    openings: Sequence[Sequence[str]],
    k: int = 5,
    seeds: Sequence[int] = range(5),
    seed: int = 0,
) -> pd.DataFrame:
    """Break what users say at growing doses, and ask every metric (`respond`).

    Args:
        encoder: `encoders.SentenceEncoder`.
        targets: real dialogues.
        stand_ins: break -> for each target, the dialogue that comes in its place.
        again: each target's user once more, a twin or a simulator: what ADV starts from.
        openings: of several targets, several each.
        k, seeds: as in `diversity.AgainstReal`.
        seed: of halves and replacements.

    Returns:
        As `respond`, with a column ``break``.
    """
    users, real = owners(targets), turn_cloud(encoder, targets, owners(targets))
    sides, values = user_sides(encoder, targets), trait_values([d.user_turns for d in targets])
    drawn = [t for t, own in enumerate(openings) for _ in own]
    found = {"collapse": [respond(openings_score(openings), drawn, seed=seed)]}
    for broken, those in stand_ins.items():
        maps = {"again": whole_dialogues(encoder, again), broken: whole_dialogues(encoder, those)}
        gaps, _ = adv_distances(whole_dialogues(encoder, targets), maps)
        turns = turn_cloud(encoder, those, users)
        traits = trait_values([d.user_turns for d in those])
        found[broken] = [
            respond(turns_score(real, turns, k, seeds, seed), real.users, seed=seed),
            respond(vendi_score(sides, user_sides(encoder, those)), users, seed=seed),
            respond(adv_score(gaps["again"], gaps[broken]), users, seed=seed),
            respond(traits_score(values, traits, users), users, seed=seed),
            *found.get(broken, []),
        ]
    return pd.concat([part.assign(**{"break": b}) for b, parts in found.items() for part in parts])
