"""What a profile claims, attribute by attribute, read from its fields or from its text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from usp_lab.persona import first_person
from usp_lab.profiles import Profile, Trait, sentences
from usp_lab.read_style import clauses
from usp_lab.statements import codes_of, said
from usp_lab.users import FACTS, STYLE, TRAITS, tables

HABITS = (*STYLE, "patience")


@dataclass(frozen=True)
class Found:
    """One claim about one dialogue: attribute, values of the population that agree, confidence, turns."""

    attribute: str
    codes: frozenset[str]
    confidence: float
    turns: tuple[int, ...] = ()


def read_claims(profile: Profile) -> list[Found]:
    """Return a profile's claims in the population's terms.

    A structured profile is read by attribute; one that is text alone (the distilled generator's, the population's own) by the
    population's wording of its profiles where it uses that, else as `Profile.from_text` reads it.
    """
    if profile.text is not None and not any(c.evidence for _, c in profile.claims()):
        return list(dict.fromkeys(_from_text(profile.text)))
    return [f for attribute, claim in profile.claims() if (f := found_of(attribute, claim))]


def found_of(attribute: str, claim) -> Found | None:
    """Return one structured claim in the population's terms, None where they have none for it."""
    turns = tuple(e.turn for e in claim.evidence)
    if isinstance(claim, Trait):
        return Found(attribute, frozenset({claim.level}), claim.confidence, turns)
    if attribute in HABITS:
        codes = frozenset(k for k, v in clauses()["style"][attribute].items() if v == claim.value)
        return Found(attribute, codes, claim.confidence, turns)
    if attribute == "goals":
        return Found(attribute, frozenset(), claim.confidence, turns)
    if attribute not in FACTS:
        return None
    codes = codes_of(attribute, claim.value)
    if not codes or attribute == "place":  # words of one's own, as a language model's
        spoken = first_person(f"You {claim.value}.")
        read = [codes_of(a, v) for a, v, _ in said(spoken) if a == attribute]
        codes = min((c for c in read if c), key=len, default=codes)
    return Found(attribute, codes, claim.confidence, turns)


@lru_cache(maxsize=1)
def _wordings() -> dict[str, tuple[str, str]]:
    """Return the population's wording of its profiles: clause in lower case -> (attribute, value)."""
    t, out = tables(), {}
    places = {n["name"] for n in t["attributes"]["place"]["names"]}
    for attribute in FACTS:
        if attribute == "place":
            for fact in t["attributes"]["place"]["fact"]:
                out |= {_plain(fact.replace("{place}", p)): ("place", p) for p in places}
            continue
        for value, entry in t["attributes"][attribute].items():
            out |= {_plain(f): (attribute, value) for f in entry["fact"]}
    for group, names in (("trait", TRAITS), ("style", HABITS)):
        for name in names:
            table = t["manner"][group].get(name) or t["manner"]["style"][name]
            for value, entry in table.items():
                out |= {_plain(f): (name, value) for f in entry["fact"]}
    return out


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def _from_text(text: str) -> Iterator[Found]:
    left = []
    for sentence in sentences(text):
        parts = _known_parts(sentence)
        yield from (Found(a, frozenset({v.lower() if a == "place" else v}), 1.0) for a, v in parts)
        if not parts:
            left.append(sentence)
    rest = Profile.from_text(" ".join(left)) if left else Profile()
    for attribute, claim in rest.claims():
        if attribute != "goals" and (f := found_of(attribute, claim)):
            yield f


def _known_parts(sentence: str) -> list[tuple[str, str]]:
    """Return what a sentence says in the population's wording, one or two clauses of it."""
    known, whole = _wordings(), _plain(sentence)
    if whole in known:
        return [known[whole]]
    for m in re.finditer(r",? and ", sentence):
        halves = _plain(sentence[: m.start()]), _plain(sentence[m.end() :])
        if halves[0] in known and halves[1] in known:
            return [known[h] for h in halves]
    return []
