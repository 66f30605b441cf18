"""Does a dialogue say what a profile says, and the other way round? DP.P, DP.R, DPC, P.Cover.

    scores = score(dialogues, profiles, entailment)      # one row a dialogue
    estimates({"true": scores}, unit="user")             # tidy rows with intervals

The paper's profile metrics (arXiv 2502.18968): split profile and dialogue into atomic facts and let entailment
check each against the other side. On simulated dialogues, against the profile that was to be shown, they are its
r-DP.P, r-DP.R and r-DPC. Objective facts only; the subjective half is `manner`'s and `judges`'.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.data import Dialogue
from usp_lab.entailment import Entailment
from usp_lab.facts import Facts, RuleFacts, premises
from usp_lab.tidy import row
from usp_lab.utterances import content, keywords

SHARES = ("dp_p", "dp_r", "dpc", "p_cover")


def f1(p: float, r: float) -> float:
    """Harmonic mean of two shares, 0 to 1: 0 where both are 0, NaN where one is.

    >>> round(f1(0.8689, 0.8224), 4), f1(0.0, 0.0), f1(1.0, math.nan)
    (0.845, 0.0, nan)
    """
    return 0.0 if p == r == 0 else 2 * p * r / (p + r)


def score(
    dialogues: Sequence[Dialogue],
    profiles: Sequence[str | Facts | None],
    entailment: Entailment,
    reader=None,
    threshold: float = 0.5,
) -> pd.DataFrame:
    """Score dialogues against profiles, one row a dialogue.

    ``dp_p``: share of the profile's facts that one of the user's sentences supports; ``dp_r``: share
    of the dialogue's facts that one of the profile's facts supports; ``dpc``: `f1` of that dialogue's own two
    shares, for comparing single dialogues; ``p_cover``: see `cover`. All 0 to 1, higher is more consistent. A
    fact is supported where its best premise's probability reaches ``threshold``; facts that cannot be judged
    count on neither side. A share without a fact to judge is NaN, and ``reason`` says why.

    Args:
        dialogues: real or simulated; only user turns are scored.
        profiles: as many: texts, or facts that were read or altered before.
        entailment: who judges.
        reader: `facts.RuleFacts` (when None) or `facts_llm.LLMFacts`.
        threshold: least probability of a supported fact.

    Returns:
        user, dialogue, dp_p, dp_r, dpc, p_cover, profile_facts, dialogue_facts, reason.
    """
    reader = reader or RuleFacts()
    texts = [p for p in profiles if not isinstance(p, Facts)]
    read = iter(reader.profiles(texts))
    told = [p if isinstance(p, Facts) else next(read) for p in profiles]
    said = reader.dialogues([d.messages for d in dialogues])
    turns = [[text for _, text in premises(d.user_turns)] for d in dialogues]
    forth = entailment.support(turns, [t.sentences for t in told])
    back = entailment.support([t.sentences for t in told], [s.sentences for s in said])
    rows = []
    for d, t, s, p, r in zip(dialogues, told, said, forth, back, strict=True):
        dp_p, dp_r = _share(p.probability, threshold), _share(r.probability, threshold)
        rows.append(
            {
                "user": d.user_id or d.id, "dialogue": d.id, "dp_p": dp_p, "dp_r": dp_r, "dpc": f1(dp_p, dp_r),
                "p_cover": cover(t, d.user_turns), "profile_facts": len(t.items), "dialogue_facts": len(s.items),
                "reason": _reason(dp_p, dp_r, t, s, d.user_turns),
            }
        )  # fmt: skip
    columns = ["user", "dialogue", *SHARES, "profile_facts", "dialogue_facts", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _share(probability: np.ndarray, threshold: float) -> float:
    known = probability[~np.isnan(probability)]
    return float((known >= threshold).mean()) if len(known) else math.nan


def _reason(dp_p: float, dp_r: float, told: Facts, said: Facts, turns: Sequence[str]) -> str:
    if not math.isnan(dp_p + dp_r):
        return ""
    silent = "" if any(t.strip() for t in turns) else "no user turn"
    return told.reason or silent or said.reason or "longer than the entailment model reads"


def cover(profile: Facts, turns: Sequence[str]) -> float:
    """P.Cover: share of the profile's keywords that surface in the user's text (arXiv 2502.18968); 0 to 1.

    Keywords are the distinct stems of the content words of the profile's objective facts; which the paper takes is
    not published. High is not simply better: it can mean copying, which people do not do, so read it beside the
    real dialogues' own. NaN for a profile without a keyword and for a user who says nothing.

    >>> from usp_lab.facts import profile_facts
    >>> cover(profile_facts("You farm sheep near Leeds."), ["the sheep got out again"])
    0.3333333333333333
    """
    wanted = keywords([f.text for f in profile.items]) - keywords(["is thinking about says that"])
    said = {w for t in turns for w in content(t)}
    if not wanted or not any(t.strip() for t in turns):
        return math.nan
    return len(wanted & said) / len(wanted)


# --- corpus level -------------------------------------------------------------------------------------


def dpc(
    p: Sequence[float],
    r: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> stats.Estimate:
    """DPC: `f1` of the mean DP.P and the mean DP.R over dialogues (arXiv 2502.18968); 0 to 1, higher is better.

    The paper's published figures show that it is the F1 of the corpus means and not the mean of F1s. A dialogue
    whose one share is NaN counts in the other's mean; one without either is left out, and not counted in n.

    Args:
        p, r: one share each a dialogue.
        clusters, unit, seed: what is resampled, together for both means.

    >>> dpc([1.0, 0.5], [0.5, 0.5]).value, dpc([1.0, math.nan], [0.5, 0.5]).value
    (0.6, 0.6666666666666666)
    """
    return stats.of_sums(share_sums(p, r), dpc_of_sums, clusters, unit, seed)


def dpc_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> stats.Estimate:
    """Difference of two `dpc`s over the same dialogues, first minus second, resampled together; -1 to 1.

    >>> dpc_difference(([1.0], [1.0]), ([0.5], [0.5])).value
    0.5
    """

    def difference(*sums):
        return dpc_of_sums(*sums[:4]) - dpc_of_sums(*sums[4:])

    columns = [*share_sums(*first), *share_sums(*second)]
    return stats.of_sums(columns, difference, clusters, unit, seed)


def share_sums(p: Sequence[float], r: Sequence[float]) -> list[np.ndarray]:
    """Return the columns whose sums give two means: shares and counts, NaN where neither is known."""
    p, r = np.asarray(p, float), np.asarray(r, float)
    columns = [np.nan_to_num(p), ~np.isnan(p) * 1.0, np.nan_to_num(r), ~np.isnan(r) * 1.0]
    neither = np.isnan(p) & np.isnan(r)
    return [np.where(neither, np.nan, c) for c in columns]


def dpc_of_sums(p, n, r, m):
    """Return `f1` of the means of two columns, given the four sums of `share_sums`, numbers or arrays."""
    p, r = p / n, r / m
    return 2 * p * r / np.where(p + r == 0, 1.0, p + r)


def estimates(scores: Mapping[str, pd.DataFrame], unit: str, seed: int = 0) -> pd.DataFrame:
    """Summarise `score`'s rows per arm: dpc, dp_p, dp_r, p_cover, their intervals by resampling users."""
    out = []
    for arm, s in scores.items():
        users = s["user"].tolist()
        out.append(row("dpc", arm, dpc(s["dp_p"], s["dp_r"], users, unit, seed), better="higher"))
        for metric in ("dp_p", "dp_r", "p_cover"):
            better = "" if metric == "p_cover" else "higher"
            out.append(row(metric, arm, stats.mean(s[metric], users, unit, seed), better=better))
    return pd.DataFrame(out)


def differences(
    scores: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], unit: str, seed: int = 0
) -> pd.DataFrame:
    """Estimate the difference in DPC of pairs of arms over the same dialogues, for the pairs that are there."""
    out = []
    for a, b in pairs:
        if a in scores and b in scores:
            first, second = ((scores[x]["dp_p"], scores[x]["dp_r"]) for x in (a, b))
            users = scores[a]["user"].tolist()
            out.append(
                row("dpc", f"{a}_minus_{b}", dpc_difference(first, second, users, unit, seed))
            )
    return pd.DataFrame(out)


def dpc_auc(
    true: pd.DataFrame, shuffled: pd.DataFrame, unit: str = "user", seed: int = 0
) -> stats.Estimate:
    """AUC of one dialogue's own DPC for telling its own profile from another user's; 0 to 1, 0.5 is chance.

    Dialogues whose DPC is NaN are left out. Resampled by user, a dialogue's two scores together.
    """
    both = pd.concat([true, shuffled])
    labels = [True] * len(true) + [False] * len(shuffled)
    return stats.auc(both["dpc"], labels, both["user"].tolist(), unit, seed)


# --- one dialogue looked at ---------------------------------------------------------------------------


def supports(
    dialogue: Dialogue, profile: str | Facts | None, entailment: Entailment, reader=None
) -> pd.DataFrame:
    """Return where a dialogue supports each fact of a profile: fact, kind, turn, premise, probability, in order.

    ``turn`` is the user turn of the best premise; -1 where there is none.
    """
    reader = reader or RuleFacts()
    told = profile if isinstance(profile, Facts) else reader.profiles([profile])[0]
    turns = premises(dialogue.user_turns)
    found = entailment.support([[text for _, text in turns]], [told.sentences])[0]
    rows = [
        (f.text, f.kind, turns[k][0] if k >= 0 else -1, turns[k][1] if k >= 0 else "", p)
        for f, p, k in zip(told.items, found.probability, found.premise, strict=True)
    ]
    return pd.DataFrame(rows, columns=["fact", "kind", "turn", "premise", "probability"])


def turn_notes(dialogue: Dialogue, found: pd.DataFrame, threshold: float = 0.5) -> list[str]:
    """Return one line a message for `bubbles.show_dialogue`: which facts of the profile a user turn supports."""
    notes, turn = [], 0
    held = found[found["probability"] >= threshold]
    for m in dialogue.messages:
        own = held[held["turn"] == turn]["fact"] if m["role"] == "user" else ()
        notes.append("supports: " + "; ".join(own) if len(own) else "")
        turn += m["role"] == "user"
    return notes
