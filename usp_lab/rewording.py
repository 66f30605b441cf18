"""Dialogues about things that never were, so that a profile generator learns to copy what it has not met.

A small model that reads few topics learns their words by heart, and writes one of these where it meets another. In
a reworded dialogue every rarer word that the user's turns and the profile's objective half share is exchanged, in both,
for an English word drawn at random: what the profile says can then only be copied.
"""

import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from usp_lab.data import Dialogue
from usp_lab.profiles import split_profile
from usp_lab.read_goals import STOP_WORDS
from usp_lab.spelling import words

_WORD = re.compile(r"[A-Za-z]{3,}")
_COMMON = 0.1  # share of profiles from which a word belongs to how profiles are put


def reworded(dialogues: Sequence[Dialogue], share: float, seed: int = 0) -> list[Dialogue]:
    """Return the dialogues, a share of them reworded; which ones, and how, depends on seed and id alone.

    Args:
        dialogues: with profiles; their own count of words tells what is common in profiles.
        share: 0 to 1.
        seed: of the draw.
    """
    counts = Counter(w for d in dialogues for w in _lower(d.profile or ""))
    common = {w for w, n in counts.items() if n > _COMMON * len(dialogues)} | STOP_WORDS
    new = sorted(words())
    return [
        _exchanged(d, common, new, Random(f"reword/{seed}/{d.id}"))
        if d.profile and Random(f"{seed}/{d.id}/reworded").random() < share
        else d
        for d in dialogues
    ]


def _lower(text: str) -> set[str]:
    return {w.lower() for w in _WORD.findall(text)}


def _exchanged(d: Dialogue, common: set[str], new: list[str], rng: Random) -> Dialogue:
    objective, _ = split_profile(d.profile)
    shared = sorted((_lower(objective) & _lower(" ".join(d.user_turns))) - common)
    others = {w: rng.choice(new) for w in shared}

    def other(found: re.Match[str]) -> str:
        word = others.get(found[0].lower(), found[0])
        return word.capitalize() if found[0][0].isupper() else word

    messages = [
        m | {"content": _WORD.sub(other, m["content"])} if m["role"] == "user" else m
        for m in d.messages
    ]
    return d.model_copy(update={"messages": messages, "profile": _WORD.sub(other, d.profile)})
