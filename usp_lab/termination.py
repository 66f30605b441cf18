"""Does the user end here? Termination F1, teacher-forced at every decision of real dialogues.

After each reply the user decides: go on, or end, in silence or with a closing turn that asks for
nothing more. Every arm is asked the same: how probable is an end here (`endings`)? A threshold
chosen on validation users turns that into yes or no. The metric is UserLM's (arXiv 2510.06552).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.calibration import equal_bins
from usp_lab.chat import is_closing
from usp_lab.data import Dialogue
from usp_lab.tidy import row


def ending(dialogue: Dialogue) -> tuple[int, bool]:
    """Return (place, seen): where the user ended, as the number of messages before that decision.

    That is before the first of the last closing turns, or after the last reply. On the population
    the truth says whether the last turn was a goodbye; elsewhere `chat.is_closing` does. Not seen
    where the record breaks off after a user turn that is no goodbye.
    """
    users = [k for k, m in enumerate(dialogue.messages) if m["role"] == "user"]
    byes = 0
    if dialogue.truth:
        byes = int(dialogue.truth["stop"] == "said goodbye")
    else:
        while byes < len(users) - 1 and is_closing(dialogue.messages[users[-1 - byes]]["content"]):
            byes += 1
    if byes:
        return users[-byes], True
    return len(dialogue.messages), dialogue.messages[-1]["role"] == "assistant"


def decisions(dialogues: Sequence[Dialogue]) -> pd.DataFrame:
    """List the decisions of dialogues after the first user turn, in order.

    Returns:
        dialogue (its index), user (or the dialogue's id), turn (user turns before it), place
        (messages before it), ended (1.0 or 0.0), said (the user's next turn, "" for silence),
        hazard (the population's own probability of ending, NaN where it is not known).
    """
    rows = []
    for i, d in enumerate(dialogues):
        end, seen = ending(d)
        places = [k for k in range(1, end + 1) if d.messages[k - 1]["role"] == "assistant"]
        hazards = d.truth["hazard"][1:] if d.truth else [math.nan] * len(places)
        for k, hazard in zip(places, hazards, strict=True):
            ended = float(seen and k == end)
            said = d.messages[k]["content"] if k < len(d.messages) else ""
            turn = sum(m["role"] == "user" for m in d.messages[:k])
            rows.append((i, d.user_id or d.id, turn, k, ended, said, hazard))
    columns = ["dialogue", "user", "turn", "place", "ended", "said", "hazard"]
    return pd.DataFrame(rows, columns=columns)


def look_ahead(dialogues: Sequence[Dialogue], at: pd.DataFrame) -> np.ndarray:
    """Return the true hazard as one sees it who knows which goals the user will have raised.

    USP's profiles are inferred from the whole dialogue and name its goals, so that a simulator is
    told what is yet to come (arXiv 2605.11519): while a goal that will be raised has not been, the
    end is not here, and the probability is 0. The population only.
    """
    out = []
    for i, turn, hazard in zip(at["dialogue"], at["turn"], at["hazard"], strict=True):
        truth = dialogues[i].truth
        raised = {t["goal"] for t in truth["turns"][:turn]}
        out.append(hazard if raised >= set(truth["asked"]) else 0.0)
    return np.array(out)


# --- from yes and no to F1 -----------------------------------------------------------------------


def best_threshold(scores: Sequence[float], ended: Sequence[float]) -> float:
    """Return the threshold whose F1 is highest: an end is said where score >= threshold.

    It lies half-way below the lowest score that is taken; NaN where no decision is an end.
    ``ended`` may hold probabilities: then it is the highest expected F1,
    2 sum(p taken) / (taken + sum(p)), which for true probabilities no rule can pass
    (Lipton et al., arXiv 1402.1892).

    >>> best_threshold([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1])
    0.4
    """
    s, y = np.asarray(scores, float), np.asarray(ended, float)
    s, y = s[~np.isnan(s)], y[~np.isnan(s)]
    if not y.sum() > 0:
        return math.nan
    values, rank = np.unique(-s, return_inverse=True)  # highest score first
    taken = np.bincount(rank).cumsum()
    f1 = 2 * np.bincount(rank, weights=y).cumsum() / (taken + y.sum())
    best = int(np.argmax(f1 >= f1.max() - 1e-12))
    below = values[best + 1] if best + 1 < len(values) else values[best]
    return float(-(values[best] + below) / 2)


def _counts(ended: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what F1 is the ratio of, per decision: 2 TP and 2 TP + FP + FN."""
    return 2 * ended * said, ended + said


def f1(
    ended: Sequence[float],
    said: Sequence[float],
    users: Sequence[str],
    unit: str = "user",
    seed: int = 0,
) -> stats.Estimate:
    """Estimate termination F1 = 2 TP / (2 TP + FP + FN); 0 to 1, higher is better. Resampled by user.

    Args:
        ended: per decision, whether the user ended (1 or 0).
        said: whether the arm says so, or how probable that is (expected counts); NaN where it could not be asked, which is left out of n.
        users: whose decision it is.

    >>> f1([1, 0, 0, 1], [1, 1, 0, 0], ["a", "b", "c", "d"]).value
    0.5
    """
    ended, said = np.asarray(ended, float), np.asarray(said, float)
    return stats.ratio(*_counts(ended, said), list(users), unit, seed)


def f1_difference(
    ended: Sequence[float],
    first: Sequence[float],
    second: Sequence[float],
    users: Sequence[str],
    unit: str = "user",
    seed: int = 0,
) -> stats.Estimate:
    """Estimate the difference of two arms' `f1` over the decisions that both could be asked."""
    y, a, b = (np.asarray(x, float) for x in (ended, first, second))
    return stats.ratio_difference(_counts(y, a), _counts(y, b), list(users), unit, seed)


def skill(
    ended: Sequence[float],
    said: Sequence[float],
    best: Sequence[float],
    users: Sequence[str],
    unit: str = "user",
    seed: int = 0,
) -> stats.Estimate:
    """Estimate how much of what can be gained in F1 an arm gains: (F1 - F1_always) / (F1_best - F1_always).

    F1_always is had for nothing, by calling every decision an end. 0: no better than that; 1: as good
    as ``best``; it can lie outside. Over the decisions that both were asked, resampled by user, all
    three together.

    Args:
        ended, said, users: as in `f1`.
        best: whether the reference says so.

    >>> round(skill([1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], ["a", "b", "c", "d"]).value, 6)
    0.4
    """
    y, own, top = (np.asarray(x, float) for x in (ended, said, best))
    columns = [c for x in (own, top, np.ones(len(y))) for c in _counts(y, x)]

    def share(a, b, c, d, e, f):
        return (a / b - e / f) / (c / d - e / f)

    return stats.of_sums(columns, share, list(users), unit, seed)


def skills(
    at: pd.DataFrame,
    said: Mapping[str, Sequence[float]],
    unit: str = "user",
    best: str = "bayes",
    seed: int = 0,
) -> pd.DataFrame:
    """Return `skill` of every arm but the two references as a tidy table, metric ``termination_skill``.

    Args:
        at: `decisions`.
        said: yes or no per arm, ``best`` among them.
    """
    ended, users = at["ended"].to_numpy(), at["user"].tolist()
    shown = [arm for arm in said if arm not in (best, "always_stop")]
    scored = {arm: skill(ended, said[arm], said[best], users, unit, seed) for arm in shown}
    return pd.DataFrame(
        [row("termination_skill", arm, e, better="higher") for arm, e in scored.items()]
    )


def say(scores: Sequence[float], threshold: float) -> np.ndarray:
    """Return 1 where a score reaches the threshold, else 0; NaN where either is NaN."""
    scores = np.asarray(scores, float)
    return np.where(np.isnan(scores + threshold), np.nan, scores >= threshold)


def reliability(
    scores: Sequence[float],
    ended: Sequence[float],
    users: Sequence[str],
    unit: str = "user",
    bins: int = 6,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how often users ended by how probable it was called, in bins of equal size.

    Returns:
        predicted (mean score of the bin), value (share that ended), low, high, n, unit. Equal scores
        share a bin; decisions without a score are left out.
    """
    table = pd.DataFrame({"score": scores, "ended": ended, "user": list(users)}).dropna()
    if not len(table):
        return pd.DataFrame(columns=["predicted", "value", "low", "high", "n", "unit"])
    rows = []
    for _, own in table.groupby(equal_bins(table["score"], bins)):
        e = stats.mean(own["ended"], own["user"].tolist(), unit, seed)
        rows.append({"predicted": own["score"].mean(), **e.as_dict()})
    return pd.DataFrame(rows)


def estimates(
    at: pd.DataFrame,
    scores: Mapping[str, Sequence[float]],
    said: Mapping[str, Sequence[float]],
    unit: str = "user",
    reference: str = "usp_end",
    seed: int = 0,
) -> pd.DataFrame:
    """Summarise a split as a tidy table (metric, arm, value, low, high, n, unit, better).

    Args:
        at: its `decisions`.
        scores: P(end) per arm: gives ``termination_f1_spoken`` (F1 of ending as often as the arm does
            by itself, without a threshold), ``termination_auc``, ``mean_p_end`` (and the real share).
        said: yes or no per arm: gives ``termination_f1``.
        reference: the arm whose F1 the others' is taken from (``a_minus_b``).
    """
    ended, users, rows = at["ended"].to_numpy(), at["user"].tolist(), []

    def put(metric: str, arm: str, estimate: stats.Estimate, better: str = "higher") -> None:
        rows.append(row(metric, arm, estimate, better=better))

    for arm, says in said.items():
        put("termination_f1", arm, f1(ended, says, users, unit, seed))
    for arm in (a for a in said if a != reference and reference in said):
        gain = f1_difference(ended, said[reference], said[arm], users, unit, seed)
        put("termination_f1", f"{reference}_minus_{arm}", gain)
    for arm, score in scores.items():
        put("termination_f1_spoken", arm, f1(ended, score, users, unit, seed))
        put("termination_auc", arm, stats.auc(score, ended, users, unit, seed))
    for arm, score in {**scores, "real": ended}.items():
        put("mean_p_end", arm, stats.mean(score, users, unit, seed), "")
    return pd.DataFrame(rows)
