"""Are inferred profiles true? Against the population's truth, and against what people wrote of themselves.

    quality({"rules": profiles}, dialogues, "known")  # -> a tidy table of precision and recall
    against_statements(profiles, dialogues)           # -> supported, contradicted, not covered

A claim is right when it agrees with the user's value *and* the dialogue expresses that attribute: what happens to be true but
shows nowhere is invented. A claim may be coarser than the population's values ("have children"): it is right
when the user's value is among those that agree with it (`statements.codes_of`).
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.data import Dialogue
from usp_lab.profile_claims import HABITS, Found, found_of, read_claims
from usp_lab.profiles import Evidence, Profile, sentences
from usp_lab.read_goals import content
from usp_lab.rules import STATED
from usp_lab.statements import codes_of, said
from usp_lab.tidy import owners, row
from usp_lab.users import FACTS, TRAITS

GROUPS = {"facts": FACTS, "traits": TRAITS, "style": HABITS, "goals": ("goals",)}
METRICS = {"claim": "extract_precision", "item": "extract_recall", "true": "extract_true"}
PHRASINGS = {"known": "test", "sealed": "test_new_phrasings"}


# --- against the population's truth -----------------------------------------------------------------


def judge(dialogue: Dialogue, profile: Profile | None) -> list[tuple[str, str, bool, bool]]:
    """Return (attribute, kind, good, stated) rows of one dialogue.

    Of kind "claim": one a claim, good when it is right; of kind "true": good when it is true of the user. Of kind "item": one an attribute that the dialogue expresses and one a
    goal that it asks for, good when some claim gets it. A goal is right when the user did ask for something at the turn
    it rests on; a profile whose goals rest on no turn is not judged on goals.
    """
    expressed, z, rows, got = set(dialogue.truth["expressed"]), dialogue.truth["user"], [], set()
    for f in read_claims(profile) if profile else ():
        if f.attribute == "goals":
            continue
        right = f.attribute in expressed and agrees(f, z)
        got |= {f.attribute} if right else set()
        sure = f.confidence >= STATED
        rows.append((f.attribute, "claim", right, sure))
        rows.append((f.attribute, "true", agrees(f, z), sure))
    rows += [(a, "item", a in got, False) for a in sorted(expressed)]
    return rows + _goals(dialogue.truth, profile)


def agrees(found: Found, z: Mapping[str, str]) -> bool:
    """Tell whether a claim is true of the user, whether or not the dialogue shows it."""
    return z[found.attribute].lower() in {c.lower() for c in found.codes}


def _goals(truth: Mapping, profile: Profile | None) -> list[tuple[str, str, bool, bool]]:
    goals = profile.objective.goals if profile else []
    if profile and not any(g.evidence for g in goals):
        return []
    asked: dict[str, set[int]] = {}
    for i, turn in enumerate(truth["turns"]):
        if turn["goal"]:
            asked.setdefault(turn["goal"], set()).add(i)
    named = [{e.turn for e in g.evidence} for g in goals]
    claims = [("goals", "claim", any(t & at for at in asked.values()), False) for t in named]
    return claims + [("goals", "item", any(t & at for t in named), False) for at in asked.values()]


@lru_cache(maxsize=1)
def _group() -> dict[str, str]:
    return {a: g for g, names in GROUPS.items() for a in names}


def quality(
    found: Mapping[str, Sequence[Profile | None]],
    dialogues: Sequence[Dialogue],
    phrasings: str,
    unit: str = "user",
) -> pd.DataFrame:
    """Return precision and recall per extractor, by attribute and by group, with 95 % intervals over users.

    Precision is the share of claims that are right; recall the share of expressed attributes that some claim gets right. The
    group "stated" holds the facts that an extractor is sure of (confidence >= 0.9): explicit statements. It has no
    recall, for nobody knows which of the population's asides count as explicit. ``extract_true`` is the share of claims that are
    true of the user, whether or not the dialogue is said to show them.

    Args:
        found: extractor -> a profile for each dialogue, None where it failed (all it expresses is missed then).
        dialogues: of the population.
        phrasings: "known" or "sealed", for the arms' names.
        unit: what is resampled.

    Returns:
        metric, arm (``<extractor>_<phrasings>_<group or attribute>``), value, low, high, n, unit; and
        extractor, phrasings, part.
    """
    rows, users = [], owners(dialogues)
    for extractor, profiles in found.items():
        pairs = enumerate(zip(dialogues, profiles, strict=True))
        judged = [(i, *r) for i, (d, p) in pairs for r in judge(d, p)]
        table = pd.DataFrame(judged, columns=["dialogue", "attribute", "kind", "good", "stated"])
        for part, mask in _parts(table).items():
            about = {"extractor": extractor, "phrasings": phrasings, "part": part}
            for kind, metric in METRICS.items():
                own = table[mask & (table["kind"] == kind)]
                if (kind == "item" and part == "stated") or (kind == "true" and part == "goals"):
                    continue
                where = own["dialogue"].to_numpy(int)
                good = np.bincount(where, own["good"].to_numpy(float), len(users))
                total = np.bincount(where, minlength=len(users)).astype(float)
                estimate = _counted(stats.ratio(good, total, users, unit), total)
                arm = f"{extractor}_{phrasings}_{part}"
                rows.append(row(metric, arm, estimate, better="higher", **about))
    return pd.DataFrame(rows)


def _parts(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return which rows belong to each group, to stated facts, to each attribute."""
    group, attribute = table["attribute"].map(_group()), table["attribute"]
    parts = {"stated": (group == "facts") & (table["stated"] | (table["kind"] == "item"))}
    parts |= {g: group == g for g in GROUPS}
    return parts | {a: attribute == a for a in (*FACTS, *TRAITS, *HABITS)}


def _counted(e: stats.Estimate, denominators: np.ndarray) -> stats.Estimate:
    """Return an estimate whose n is the number of claims, or of expressed attributes."""
    n = int(denominators.sum())
    value = (e.value, e.low, e.high) if n else (math.nan,) * 3
    return stats.Estimate(*value, n, e.unit)


def shortfall(
    profiles: Sequence[Profile | None], dialogues: Sequence[Dialogue], stated: bool = False
) -> pd.DataFrame:
    """Return the facts that were claimed and count as wrong, alike ones together, with what they rest on.

    Whether the words were misread, or do say what was claimed in a sentence that is meant to show something else, no
    rule can tell: it has to be read.

    Args:
        profiles: with evidence.
        dialogues: of the population.
        stated: only facts that the extractor is sure of.

    Returns:
        attribute, claim, meant_for (the attribute that the population wrote the sentence to show, "" for none), n, true (how
        many are true of the user, though not among what the dialogue is said to show), example.
    """
    rows = []
    for d, p in zip(dialogues, profiles, strict=True):
        for attribute, claim in p.claims() if p else ():
            f = found_of(attribute, claim) if attribute in FACTS else None
            if f is None or (stated and f.confidence < STATED):
                continue
            true = agrees(f, d.truth["user"])
            if not (true and attribute in d.truth["expressed"]):
                quote = claim.evidence[0].quote if claim.evidence else ""
                meant = {m for e in claim.evidence for m in _meant_for(d, e)}
                rows.append((attribute, claim.value, ", ".join(sorted(meant)), int(true), quote))
    table = pd.DataFrame(rows, columns=["attribute", "claim", "meant_for", "true", "example"])
    grouped = table.groupby(["attribute", "claim", "meant_for"])
    out = grouped.agg(n=("true", "size"), true=("true", "sum"), example=("example", "first"))
    return out.reset_index()


def _meant_for(dialogue: Dialogue, evidence: Evidence) -> set[str]:
    """Return the attributes that the population wrote a sentence to show."""
    own, meant = content(evidence.quote), set()
    for shown in dialogue.truth["evidence"]:
        words = content(shown["text"])
        enough = max(1, 0.5 * min(len(own), len(words)))
        if shown["turn"] == evidence.turn and len(own & words) >= enough:
            meant.add(shown["attr"])
    return meant


# --- against what people wrote of themselves ------------------------------------------------------------------

_SHARED = 0.5  # share of a claim's words of content that a statement must have to support it


def against_statements(
    profiles: Sequence[Profile | None], dialogues: Sequence[Dialogue]
) -> pd.DataFrame:
    """Return shares of fact claims that statements written of the person support, contradict or do not cover.

    For iKAT rows: their ``profile`` is a list of statements in the first person, independent of the dialogue and not
    exhaustive, so "not covered" is no error. Supported: the rules read the same value out of a statement, or half of the claim's
    words of content stand in one. Contradicted: of an attribute of which one has one (age, gender, place), or of
    occupation, the statements tell another value. A rule of thumb, read with the dialogues beside it.

    Returns:
        metric ``statements``, arm (supported, contradicted, not_covered), value, low, high, n, unit.
    """
    counts = []
    for p, d in zip(profiles, dialogues, strict=True):
        told = sentences(d.profile)
        verdicts = [_verdict(a, c.value, told) for a, c in p.claims() if a in FACTS] if p else []
        counts.append([verdicts.count(v) for v in ("supported", "contradicted", "not_covered")])
    counts = np.array(counts, float).reshape(-1, 3)
    total = counts.sum(axis=1)
    return pd.DataFrame(
        [
            row("statements", arm, _counted(stats.ratio(counts[:, i], total), total))
            for i, arm in enumerate(("supported", "contradicted", "not_covered"))
        ]
    )


def _verdict(attribute: str, value: str, told: Sequence[str]) -> str:
    read = [codes_of(a, v) or {v} for s in told for a, v, _ in said(s) if a == attribute]
    own, words = codes_of(attribute, value) or {value}, content(value)
    if any(own & codes for codes in read):
        return "supported"
    if read and attribute in ("age", "gender", "place", "occupation"):
        return "contradicted"
    shared = words and any(len(words & content(s)) >= _SHARED * len(words) for s in told)
    return "supported" if shared else "not_covered"


def is_statements(dialogue: Dialogue) -> bool:
    """Tell whether a dialogue is iKAT's: statements of a person, written beside the conversation."""
    return dialogue.source.startswith("ikat")
