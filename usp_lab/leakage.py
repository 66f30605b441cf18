"""How much of a simulator's fidelity is the future that leaks in through the profile?

USP infers a profile from the very dialogue that it then reconstructs (arXiv 2502.18968), so that a
profile names goals that are yet to be raised (arXiv 2605.11519). The audit builds profiles from less
by one extractor, tells them to one simulator, and scores the same turns under all: those after the
third, which no profile of the first three turns has seen.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.arms import another_user
from usp_lab.chat import END_TOKEN, Message, with_profile
from usp_lab.data import Corpus, Dialogue
from usp_lab.errors import UspError
from usp_lab.scorers import turn_nll
from usp_lab.simulate import turn_seed
from usp_lab.splits import split_groups, without_leaks
from usp_lab.tidy import owners, row

KNOWN = 3  # user turns that come before those that are scored
ARMS = ("first_1", "first_2", "first_3", "whole", "sibling", "prior", "shuffled", "empty")
_TRAINED = ("first_1", "first_2", "first_3", "whole", "sibling", "empty")  # and "prior", if any

Build = Callable[[Sequence[Dialogue]], Sequence[str]]  # dialogues -> a profile of each


def sides(
    corpus: Corpus, n: int, seed: int = 0, share: float = 0.3
) -> tuple[list[Dialogue], list[Dialogue], list[Dialogue], list[Dialogue]]:
    """Return (training, validation, test users' dialogues, those of them that are scored).

    None is scored where no two users have a dialogue that is long enough.

    Of the population so many test users are drawn that ``n`` dialogues with a sibling can be scored.
    A file whose test split has fewer is split anew, ``share`` of it for testing: few dialogues are
    long enough.

    Args:
        corpus: what was loaded.
        n: dialogues scored at the most.
        seed: of the draw and of the split.
        share: of a file's dialogues.
    """
    if corpus.is_population:
        from usp_lab.synthetic import draw

        parts = {"train": corpus.train, "validation": corpus.validation}
        parts, _ = without_leaks(parts | {"test": draw("test", 4 * n, seed)})
        found = scored(parts["test"])
        pairs = zip(found, siblings(found, parts["test"]), strict=True)
        targets = [t for t, sibling in pairs if sibling is not None][:n]
    else:
        parts = dict(corpus.splits)
        if len(scored(corpus.test)) < n:
            everything = [d for split in parts.values() for d in split]
            parts = split_groups(everything, seed, {"test": share, "validation": 0.03})
        targets = scored(parts["test"], n)
    if len({d.user_id or d.id for d in targets}) < 2:  # too few to compare with another user
        targets = []
    return parts["train"], parts["validation"], parts["test"], targets


def beginning(dialogue: Dialogue, turns: int) -> Dialogue:
    """Return a dialogue up to and with its first ``turns`` user turns and what answers them."""
    users = [k for k, m in enumerate(dialogue.messages) if m["role"] == "user"]
    end = users[turns] if turns < len(users) else len(dialogue.messages)
    return dialogue.model_copy(update={"messages": dialogue.messages[:end], "truth": None})


def siblings(targets: Sequence[Dialogue], everybody: Sequence[Dialogue]) -> list[Dialogue | None]:
    """Return for each target another dialogue of the same user, None where there is none."""
    of: dict[str, list[Dialogue]] = {}
    for d in everybody:
        if d.user_id is not None:
            of.setdefault(d.user_id, []).append(d)
    others = ([d for d in of.get(t.user_id, ()) if d.id != t.id] for t in targets)
    return [next(iter(own), None) for own in others]


def profiles(
    arm: str,
    targets: Sequence[Dialogue],
    everybody: Sequence[Dialogue],
    build: Build,
    prior: Callable[[Dialogue], str] | None = None,
    seed: int = 0,
) -> list[str | None]:
    """Return what an arm's simulator is told of each target; None where the arm has nothing.

    Args:
        arm: one of `ARMS`.
        targets: dialogues that are scored.
        everybody: dialogues among which a user's others are looked for.
        build: the one extractor.
        prior: a profile drawn without a look at the dialogue, in the extractor's words.

    Raises:
        UspError: an unknown arm.
    """
    if arm == "empty":
        return [""] * len(targets)
    if arm == "whole":
        return list(build([beginning(t, len(t.messages)) for t in targets]))
    if arm.startswith("first_"):
        return list(build([beginning(t, int(arm[6:])) for t in targets]))
    if arm == "shuffled":
        whole = profiles("whole", targets, everybody, build)
        return [whole[i] for i in another_user(targets, seed)]
    if arm == "prior":
        return [prior(t) if prior else None for t in targets]
    if arm == "sibling":
        found = siblings(targets, everybody)
        there = [beginning(d, len(d.messages)) for d in found if d is not None]
        texts = iter(build(there) if there else [])
        return [None if d is None else next(texts) for d in found]
    raise UspError(f"no arm {arm!r} in the leakage audit; choose one of {', '.join(ARMS)}")


def mixed(
    train: Sequence[Dialogue],
    build: Build,
    seed: int = 0,
    prior: Callable[[Dialogue], str] | None = None,
) -> list[Dialogue]:
    """Give each training dialogue the profile of an arm drawn at random.

    A simulator trained on these knows short profiles, long ones, another dialogue's, one drawn
    beforehand and none, so that no arm is strange to it: `shuffled` is told a `whole`, and needs no
    training of its own. Dialogues whose arm has nothing for them get the empty one.

    Args:
        train: training dialogues.
        build: the one extractor.
        seed: of the arms drawn.
        prior: as in `profiles`; without it no dialogue gets that arm.
    """
    arms = (*_TRAINED, "prior") if prior else _TRAINED
    drawn = [Random(f"{seed}/{d.id}").choice(arms) for d in train]
    told: dict[str, str] = {}
    for arm in arms:
        own = [d for d, a in zip(train, drawn, strict=True) if a == arm]
        for d, text in zip(own, profiles(arm, own, train, build, prior), strict=True):
            told[d.id] = text or ""
    return [d.model_copy(update={"profile": told[d.id], "truth": None}) for d in train]


# --- what is scored --------------------------------------------------------------------------------


def scored(dialogues: Sequence[Dialogue], n: int | None = None) -> list[Dialogue]:
    """Return dialogues with a user turn after the first three, n at the most."""
    return [d for d in dialogues if d.n_turns > KNOWN][:n]


def likelihoods(simulator, targets: Sequence[Dialogue], told: Sequence[str | None]) -> np.ndarray:
    """Return (nats, tokens) of each target's turns after the third, shape (n, 2); NaN if not told."""
    out = np.full((len(targets), 2), np.nan)
    rows = [i for i, p in enumerate(told) if p is not None]
    contexts = [with_profile(targets[i].messages, told[i]) for i in rows]
    for i, turns in zip(rows, turn_nll(simulator, contexts), strict=True):
        out[i] = np.sum(turns[KNOWN:], axis=0)
    return out


def written(
    simulator,
    targets: Sequence[Dialogue],
    told: Sequence[str | None],
    seed: int = 0,
    most: int | None = None,
) -> list[list[str]]:
    """Write turns after the third anew in their true context, ``most`` a dialogue; [] if not told, "" for an end.

    The seed of a turn is the same under every arm.
    """
    batch: list[list[Message]] = []
    place: list[tuple[int, int]] = []
    for i, (t, profile) in enumerate(zip(targets, told, strict=True)):
        if profile is None:
            continue
        messages = with_profile(t.messages, profile)
        users = [k for k, m in enumerate(messages) if m["role"] == "user"]
        for turn, k in list(enumerate(users))[KNOWN:][:most]:
            if simulator.room(messages[:k]) >= 0:
                batch.append(messages[:k])
                place.append((i, turn))
    seeds = [turn_seed(seed, 0, f"{targets[i].id}/leakage", turn) for i, turn in place]
    out = [[""] * len(t.user_turns[KNOWN:][:most]) for t in targets]
    for (i, turn), text in zip(place, simulator.generate(batch, seeds), strict=True):
        out[i][turn - KNOWN] = "" if text == END_TOKEN else text
    return [[] if p is None else turns for turns, p in zip(out, told, strict=True)]


def likeness(
    judge, targets: Sequence[Dialogue], turns: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Compare written turns with the true ones: {metric: (sum, turns) per target, shape (n, 2)}.

    Metrics are those of `authenticity.Judge` at utterance level. A turn that was not written is left
    out; a target without one is NaN.
    """
    pairs = [
        (i, text, true)
        for i, (t, own) in enumerate(zip(targets, turns, strict=True))
        for text, true in zip(own, t.user_turns[KNOWN:], strict=False)
        if text
    ]
    scores = judge.score([[a] for _, a, _ in pairs], [[b] for _, _, b in pairs], "utterance")
    of = np.array([i for i, *_ in pairs], int)
    out = {}
    for metric in ("sem_sim", "style_sim"):
        value, keep = scores[metric], ~np.isnan(scores[metric])
        sums = np.bincount(of[keep], value[keep], len(targets))
        count = np.bincount(of[keep], minlength=len(targets)).astype(float)
        out[metric] = np.where(count[:, None] > 0, np.stack([sums, count], 1), np.nan)
    return out


# --- what comes out --------------------------------------------------------------------------------


def lookahead_share(
    whole: np.ndarray,
    first: np.ndarray,
    empty: np.ndarray,
    users: Sequence[str],
    unit: str = "user",
    seed: int = 0,
) -> stats.Estimate:
    """Estimate (m_whole - m_first_3) / (m_whole - m_empty) of a metric m over the same dialogues.

    The share of what a profile is worth that only one with a look ahead gives. 0: a profile of what has been
    said so far does as well; 1: it is all look-ahead. Below 0 or above 1 where the arms' order is
    another; wide where the profile is worth little. Resampled by user, all three arms together.

    Args:
        whole, first, empty: (sum, weight) of the metric per dialogue, shape (n, 2); a dialogue with a
            NaN in any is left out.

    >>> x = np.ones((2, 2))
    >>> lookahead_share(4 * x * [1, 0.25], 3 * x * [1, 1 / 3], 2 * x * [1, 0.5], ["a", "b"]).value
    0.5
    """

    def share(a, b, c, d, e, f):
        return (a / b - c / d) / (a / b - e / f)

    columns = [np.asarray(x, float)[:, k] for x in (whole, first, empty) for k in (0, 1)]
    return stats.of_sums(columns, share, users, unit, seed)


def estimates(
    found: Mapping[str, Mapping[str, np.ndarray]],
    targets: Sequence[Dialogue],
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Summarise the audit as a tidy table: each metric per arm, ``arm_minus_empty``, and the share.

    Args:
        found: metric -> arm -> (sum, weight) per target, shape (n, 2). ``nll`` is in nats a token, lower
            is better; the others are cosines.

    Returns:
        metric, arm, value, low, high, n, unit, better. ``lookahead_share`` has the metrics as arms.
    """
    users, rows = owners(targets), []
    for metric, arms in found.items():
        if "empty" not in arms:  # nothing was scored
            continue
        better = "lower" if metric == "nll" else "higher"
        empty = arms["empty"]
        for arm, x in arms.items():
            rows.append(row(metric, arm, stats.ratio(*x.T, users, unit, seed), better=better))
            if arm != "empty":
                gain = stats.ratio_difference(x.T, empty.T, users, unit, seed)
                rows.append(row(metric, f"{arm}_minus_empty", gain, better=better))
        share = lookahead_share(arms["whole"], arms["first_3"], empty, users, unit, seed)
        rows.append(row("lookahead_share", metric, share, better=""))
    return pd.DataFrame(
        rows, columns=["metric", "arm", "value", "low", "high", "n", "unit", "better"]
    )
