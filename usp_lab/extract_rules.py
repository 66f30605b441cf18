"""Profiles by rules: what a user says or lets slip of themselves, met by patterns. Offline, and honest.

    RuleExtractor().extract(dialogues)                # -> [Extracted(profile=...), ...]

``profiling/rules.toml`` holds the patterns, written from general knowledge of English. A rule's ``stated`` patterns
meet what says it outright ("my husband", "I work as"), its ``hinted`` ones what makes it likely. What the rules cannot
see: whatever is said in words that nobody thought of, irony, and who is meant ("my daughter" may be a story's). They
are silent rather than bold: an attribute that nothing points to is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from usp_lab.data import Dialogue
from usp_lab.profiles import Claim, Evidence, Objective, Profile, Subjective, Trait
from usp_lab.read_goals import goals
from usp_lab.read_style import habits
from usp_lab.rules import STATED, fingerprint
from usp_lab.statements import codes_of, own_words, said
from usp_lab.users import FACTS, TRAITS

ONE = ("age", "gender", "place")  # of which a user has one


@dataclass(frozen=True)
class Extracted:
    """What an extractor made of one dialogue: a profile, or why there is none.

    ``cut`` is how many user turns were left out because they did not fit; ``usage`` says so of
    nothing here, since extractors at an endpoint count their own.
    """

    profile: Profile | None = None
    error: str = ""
    cut: int = 0


class RuleExtractor:
    """Reads profiles by rules.

    Args:
        hints: take what is merely likely, too; without, only what is stated.
        goals: how many goals a dialogue at the most.
    """

    name = "rules"

    def __init__(self, hints: bool = True, goals: int = 4) -> None:
        self.hints, self.goals = hints, goals

    def __repr__(self) -> str:
        return f"RuleExtractor(hints={self.hints}, goals={self.goals}, rules={fingerprint()})"

    def extract(self, dialogues: Sequence[Dialogue]) -> list[Extracted]:
        """Return a profile for each dialogue, from its user turns alone."""
        return [Extracted(self.profile(d.user_turns)) for d in dialogues]

    def profile(self, turns: Sequence[str]) -> Profile:
        """Return what a user's turns tell."""
        found: dict[str, dict[str, list[tuple[float, Evidence]]]] = {}
        for i, turn in enumerate(turns):
            for sentence in own_words(turn):
                for attribute, value, sure in said(sentence):
                    if self.hints or sure >= STATED:
                        quoted = sure, Evidence(turn=i, quote=sentence[:200])
                        found.setdefault(attribute, {}).setdefault(value, []).append(quoted)
        facts = {a: claims(a, found[a]) for a in FACTS if a in found}
        traits = {a: t for a in TRAITS if a in found and (t := _trait(found[a]))}
        return Profile(
            objective=Objective(**facts, goals=goals(turns, self.goals)),
            subjective=Subjective(**traits, style=habits(turns)),
        )


def claims(attribute: str, found: dict[str, list[tuple[float, Evidence]]]) -> list[Claim]:
    """Return the claims on one attribute, surest first, without those that another makes needless.

    Args:
        attribute: one of the nine.
        found: value -> (confidence, evidence) of each sentence that tells it.
    """
    made = [
        Claim(value=v, evidence=_distinct(e), confidence=_sure([s for s, _ in e]))
        for v, e in found.items()
    ]
    made.sort(key=lambda c: -c.confidence)
    if attribute in ONE:
        return made[:1]
    codes = {c.value: codes_of(attribute, c.value) for c in made}
    return [  # "have children" says nothing beside "have teenagers"
        c for c in made if not any(codes[o.value] and codes[o.value] < codes[c.value] for o in made)
    ]


def _trait(found: dict[str, list[tuple[float, Evidence]]]) -> Trait | None:
    """Return the level that more sentences speak for; None where they are even."""
    low, high = len(found.get("low", ())), len(found.get("high", ()))
    if low == high:
        return None
    level = "high" if high > low else "low"
    evidence = [e for _, e in found[level]]
    return Trait(level=level, evidence=evidence, confidence=min(0.9, 0.5 + 0.1 * abs(high - low)))


def _distinct(found: list[tuple[float, Evidence]]) -> list[Evidence]:
    return list({(e.turn, e.quote): e for _, e in found}.values())


def _sure(confidences: Sequence[float]) -> float:
    """Return the confidence of the best reason, a little more for each further one."""
    return round(min(0.97, max(confidences) + 0.03 * (len(confidences) - 1)), 2)
