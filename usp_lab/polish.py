"""From attributes to two fluent paragraphs in the second person, by a template.

A polisher has ``polish(profile) -> text``; `polish_llm.LlmPolisher` asks a language model.
"""

from collections.abc import Sequence
from typing import Protocol

from usp_lab.profiles import Claim, Profile
from usp_lab.read_style import clauses
from usp_lab.users import FACTS, TRAITS

_JOINED = 2  # statements a sentence
_TASKS = (  # (the claim begins so, what goes before such claims); the last fits all
    (("how ", "what ", "which ", "where ", "when ", "why ", "who ", "whether "), "You want to find out"),
    (("help ",), "You want"),
    (("",), "You ask about"),
)  # fmt: skip


class NotPolished(Exception):
    """A polisher could not make a text of a profile; one dialogue has failed, others go on."""


class Polisher(Protocol):
    """What makes a profile's text out of its attributes."""

    def polish(self, profile: Profile) -> str:
        """Return two paragraphs, objective facts first.

        Raises:
            NotPolished: no text could be made.
        """


class TemplatePolisher:
    """Says every claim once, in the schema's order.

    Args:
        least: confidence below which a claim is left out.
    """

    name = "template"

    def __init__(self, least: float = 0.0) -> None:
        self.least = least

    def __repr__(self) -> str:
        return f"TemplatePolisher(least={self.least})"

    def polish(self, profile: Profile) -> str:
        """Return two paragraphs; a half that nothing is known of is empty."""
        o, s = profile.objective, profile.subjective
        facts = [c for a in FACTS for c in getattr(o, a)] + o.other
        first = [*_sentences(self._kept(facts)), *_task(self._kept(o.goals), self._kept(o.details))]
        traits = [
            Claim(value=clauses()["trait"][name][t.level], confidence=t.confidence)
            for name in TRAITS
            if (t := getattr(s, name))
        ]
        manner = self._kept([*traits, *s.style, *s.other])
        return f"{' '.join(first)}\n\n{' '.join(_sentences(manner))}".strip()

    def _kept(self, claims: Sequence[Claim]) -> list[str]:
        return [c.value.strip().rstrip(".") for c in claims if c.confidence >= self.least]


def _sentences(values: Sequence[str]) -> list[str]:
    """Return sentences of up to two statements: "You a, and you b."."""
    pairs = [values[i : i + _JOINED] for i in range(0, len(values), _JOINED)]
    return [f"{', and '.join([_you(p[0]), *map(_lower_you, p[1:])])}." for p in pairs]


def _you(value: str) -> str:
    """Return a statement that begins with "You", unless it is a sentence of its own."""
    return value if value[:1].isupper() else f"You {value}"


def _lower_you(value: str) -> str:
    said = _you(value)
    return said[0].lower() + said[1:] if said.startswith(("You ", "Your ")) else said


def _task(goals: Sequence[str], details: Sequence[str]) -> list[str]:
    out, left = [], list(goals)
    for begins, frame in _TASKS:
        own = [g for g in left if g.lower().startswith(begins)]
        left = [g for g in left if g not in own]
        whole = [g for g in own if g[:1].isupper()]
        named = [g for g in own if g not in whole]
        if named:
            out.append(f"{frame} {_listed(named)}.")
        out += [f"{g}." for g in whole]
    return out + ([f"What matters here: {_listed(details)}."] if details else [])


def _listed(items: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
