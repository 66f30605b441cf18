"""A profile's text, read back into attributes: what `Profile.from_text` does."""

import re
from functools import lru_cache

from usp_lab.extract_rules import claims
from usp_lab.persona import first_person
from usp_lab.profiles import (
    Claim,
    Evidence,
    Habit,
    Objective,
    Profile,
    Subjective,
    Trait,
    sentences,
    split_profile,
)
from usp_lab.read_style import clauses
from usp_lab.rules import trait_patterns
from usp_lab.statements import said
from usp_lab.users import FACTS, TRAITS


@lru_cache(maxsize=1)
def _clauses() -> dict[str, tuple[str, str]]:
    """Return what a template says -> (trait or habit, its value)."""
    groups = (*clauses()["trait"].items(), *clauses()["style"].items())
    return {
        clause.lower(): (name, value) for name, said in groups for value, clause in said.items()
    }


_TASK = re.compile(
    r"\b(?:want to (?:find out|know)|ask about|look for|above all|questions turn on|thinking about|brings you here|come to talk|help with|"
    r"looking for|concern is|interested in|seek(?:ing)?|goal is|you want)\b",
    re.IGNORECASE,
)


def read_text(text: str) -> Profile:
    """Read a profile's text; what no rule knows goes to ``other`` of its half."""
    objective, subjective = split_profile(text)
    facts: dict[str, list[Claim]] = {}
    for part in _parts(objective):
        _file(part, facts)
    traits: dict[str, Trait] = {}
    style, other = [], []
    for part in _parts(subjective):
        clause = _clause(part)
        name, value = _clauses().get(clause.lower(), ("", ""))
        levels = {(a, lv) for a, lv, p in trait_patterns() if p.search(first_person(part))}
        if name in TRAITS:
            traits.setdefault(name, Trait(level=value))
        elif name:
            style.append(Habit(habit=name, value=clause))
        elif levels:
            traits = {a: Trait(level=lv) for a, lv in sorted(levels)} | traits
        else:
            other.append(Claim(value=clause))
    return Profile(
        objective=Objective(**facts),
        subjective=Subjective(**traits, style=style, other=other),
        text=text,
    )


def _parts(half: str) -> list[str]:
    """Return a half's sentences, cut where "and you" begins anew."""
    return [
        p.strip(" .!") for s in sentences(half) for p in re.split(r",? and (?=you(?:r|'re)?\b)", s) if p.strip(" .!")
    ]  # fmt: skip


def _clause(part: str) -> str:
    return re.sub(r"^you (?=\w)", "", part, flags=re.IGNORECASE)


def _file(part: str, facts: dict[str, list[Claim]]) -> None:
    """Put a sentence of the first half where it belongs, under every attribute that it tells."""
    if _TASK.search(part):
        facts.setdefault("goals", []).append(Claim(value=_clause(part)))
        return
    told = dict.fromkeys((a, v) for a, v, _ in said(first_person(part)) if a in FACTS)
    for attribute in dict.fromkeys(a for a, _ in told):
        values = [v for a, v in told if a == attribute]
        sure = {v: [(1.0, Evidence(turn=0, quote="-"))] for v in values}
        kept = [c.value for c in claims(attribute, sure)]
        facts.setdefault(attribute, []).extend(Claim(value=v) for v in kept)
    if not told:
        facts.setdefault("other", []).append(Claim(value=_clause(part)))
