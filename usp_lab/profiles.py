"""What is known of a user: the schema, its JSON, and the two-paragraph text that simulators are told.

    profile = Profile.from_text("You have two sons.\\n\\nYou write in lower case.")
    profile.objective.family       # -> [Claim(value="have two sons", ...)]
    profile.to_text()              # -> the very text
    split_profile(text)            # -> (objective, subjective)

Objective facts are nine attributes that hold in every scene, and what is wanted in this one; subjective
characteristics are the Big Five and the language style (arXiv 2502.18968, section 3). Only two of the
nine are named there; the other seven are our choice, the same as the population's.
"""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from usp_lab.errors import UspError
from usp_lab.users import STYLE, TRAITS

HABITS = (*STYLE, "patience", "other")
Level = Literal["low", "mid", "high"]


class _Part(BaseModel):
    """Part of a profile: fixed once made, and nothing in it that the schema does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Evidence(_Part):
    """Words of the user that a claim rests on: which user turn (from 0), and a quote of it."""

    turn: int = Field(ge=0)
    quote: str = Field(min_length=1)


class Claim(_Part):
    """One thing said of the user.

    Attributes:
        value: what follows "You", e.g. "work as a nurse"; of a goal what is wanted ("how to prune roses").
        evidence: what it rests on; empty for what was read out of a profile's text.
        confidence: 0 to 1, as its extractor says; 1 for what a text says.
    """

    value: str = Field(min_length=1)
    evidence: list[Evidence] = []
    confidence: float = Field(default=1.0, ge=0, le=1)


class Trait(_Part):
    """A level of one of the Big Five, and what it rests on."""

    level: Level
    evidence: list[Evidence] = []
    confidence: float = Field(default=1.0, ge=0, le=1)


class Habit(Claim):
    """A habit of writing; ``habit`` is one of `HABITS`."""

    habit: Literal[HABITS] = "other"


class Objective(_Part):
    """Objective facts. An attribute without a claim is unknown; ``other`` is what fits none."""

    age: list[Claim] = []
    gender: list[Claim] = []
    occupation: list[Claim] = []
    education: list[Claim] = []
    place: list[Claim] = []
    family: list[Claim] = []
    social: list[Claim] = []
    routine: list[Claim] = []
    experience: list[Claim] = []
    goals: list[Claim] = []
    details: list[Claim] = []
    other: list[Claim] = []


class Subjective(_Part):
    """Subjective characteristics: the Big Five, where known, and language style."""

    openness: Trait | None = None
    conscientiousness: Trait | None = None
    extraversion: Trait | None = None
    agreeableness: Trait | None = None
    neuroticism: Trait | None = None
    style: list[Habit] = []
    other: list[Claim] = []


class Profile(_Part):
    """What is known of one user.

    ``text``, where there is one, is the profile in words, to the letter: a `to_text` after a `from_text` gives it
    back. What is derived from a profile by other means than its text must drop it
    (``profile.model_copy(update={"text": None})``).
    """

    objective: Objective = Objective()
    subjective: Subjective = Subjective()
    text: str | None = None

    @classmethod
    def from_text(cls, text: str) -> "Profile":
        """Read a profile's text, sentence by sentence; any string will do.

        Attributes are told by the rules of `statements` in the first person; a sentence that they
        do not know is kept in ``other``.
        """
        from usp_lab.profile_text import read_text

        return read_text(text)

    def to_text(self) -> str:
        """Return the profile in two paragraphs, objective facts first: ``text``, or a template's."""
        if self.text is not None:
            return self.text
        from usp_lab.polish import TemplatePolisher

        return TemplatePolisher().polish(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Profile":
        """Read a profile's JSON.

        Raises:
            UspError: it is no profile; says where.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UspError(f"not a profile: {flaws(error)}; give what to_json writes") from None

    def to_json(self) -> str:
        """Return the profile as JSON, `from_json`'s inverse."""
        return self.model_dump_json()

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        return not any(True for _ in self.claims()) and not (self.text or "").strip()

    def claims(self) -> Iterator[tuple[str, Claim | Trait]]:
        """Yield (attribute, claim) in the schema's order; a habit of style as itself ("casing")."""
        for name in Objective.model_fields:
            yield from ((name, c) for c in getattr(self.objective, name))
        for name in TRAITS:
            if trait := getattr(self.subjective, name):
                yield name, trait
        yield from ((h.habit, h) for h in self.subjective.style)
        yield from (("other", c) for c in self.subjective.other)


def flaws(error: ValidationError, most: int = 3) -> str:
    """Return what is wrong with data, field by field, in a sentence."""
    said = [
        f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}, saw {e['input']!r:.60}"
        for e in error.errors()
    ]
    more = f"; and {len(said) - most} more" if len(said) > most else ""
    return "; ".join(said[:most]) + more


# --- two halves -----------------------------------------------------------------------------------

# Words of the second paragraph. Not a model: it only has to find the seam where the blank line is missing.
_MANNER = re.compile(
    r"\b(?:messages?|tone|style|communicat\w*|writ(?:e|es|ing) (?:in|with|short|long|messages)|typos?|punctuat\w*|lower ?case|"
    r"capital\w*|grammar|spelling|vocabulary|phras\w+|sentences|wording|slang|emojis?|exclamation|concise\w*|verbos\w*|"
    r"polite\w*|courte\w+|formal\w*|informal\w*|casual\w*|blunt\w*|direct(?:ness|ly)?|straightforward\w*|curt\w*|friendly|"
    r"personality|trait\w*|temperament|character|openness|open-minded|conscientious\w*|extrovert\w*|extraver\w*|introver\w*|"
    r"agreeable\w*|neurotic\w*|emotional\w*|anxious\w*|calm\w*|patien\w*|impatien\w*|curios\w*|curious\w*|inquisitive\w*|"
    r"creativ\w*|imaginative\w*|organi[sz]ed|methodical\w*|meticulous\w*|analytical\w*|detail-oriented|reserved|outgoing|"
    r"assertive\w*|demanding|skeptical\w*|sceptical\w*|humou?r\w*|playful\w*|worr\w+|greet\w*|tend to|come across|"
    r"interactions?|expressive\w*|attitude|demeano\w+|mindset|wordy|words|letters|spel(?:l|lt)|mistype\w*|typing|abbreviat\w*|shorthand|"
    r"you (?:often |always |never |usually |rarely |mostly )*(?:write|type|sound|ask|say|explain|put|greet|hint|open|close|sign off)"
    r"(?! for| (?:a |an )?(?:books?|code|novels?|reports?|about))|closing marks|niceties|pleasantries|(?:your|plain) questions?(?! turn))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+|\n+")


def split_profile(text: str) -> tuple[str, str]:
    """Split a profile's text into its objective and its subjective half, each stripped.

    A blank line is the seam. Where there are several, or none, the seam is the place after which most is
    about manner and before which least is; no word is lost or doubled.

    >>> split_profile("You live in Rome.\\n\\nYou are curt.\\n")
    ('You live in Rome.', 'You are curt.')
    >>> split_profile("You live in Rome. Your tone is friendly.")
    ('You live in Rome.', 'Your tone is friendly.')
    """
    text = text.strip()
    parts = [p for p in re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", text) if p.strip()]
    if len(parts) == 2:
        return parts[0].strip(), parts[1].strip()
    glue = "\n\n"
    if len(parts) < 2:  # one paragraph: lines, else sentences
        parts = [p for p in text.split("\n") if p.strip()]
        glue = "\n"
        if len(parts) == 2:
            return parts[0].strip(), parts[1].strip()
        if len(parts) < 2:
            parts, glue = sentences(text), " "
    seam = _seam(parts)
    return glue.join(parts[:seam]).strip(), glue.join(parts[seam:]).strip()


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, blank ones left out.

    >>> sentences("You write u. Always! ok")
    ['You write u.', 'Always!', 'ok']
    """
    return [s.strip() for s in _SENTENCE.split(text.strip()) if s and s.strip()]


def _seam(parts: list[str]) -> int:
    """Return how many parts belong to the first half."""
    manner = [1 if _MANNER.search(p) else -1 for p in parts]
    gain = [sum(manner[k:]) - sum(manner[:k]) for k in range(len(parts) + 1)]
    if len(parts) == 1:  # a lone paragraph is one half or the other
        return 0 if manner[0] > 0 else 1
    return max(range(len(gain)), key=lambda k: (gain[k], k))
