"""What the population's users have to say besides their requests, and how parts of a turn fit together."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

from usp_lab.users import FACTS, TRAITS, tables, texts

_TOPICAL, _OF_TRAIT = 12.0, 0.8  # weights of asides on the topic and of traits; a fact's is 1
_LOOSE = {"gender": 0.4, "place": 0.7}  # facts whose asides seldom have to do with the matter


@dataclass(frozen=True)
class Task:
    """What a user wants in one dialogue: topic, goals in order, slots, which phrasings to use."""

    kind: str
    z: dict[str, str]
    topic: str
    goals: tuple[str, ...]
    slots: dict[str, str]
    sealed: bool = False  # sealed phrasings (never trained on) instead of the open ones
    phrasings: int = 0  # at most so many of a list's open phrasings, for a smaller world; 0: all

    def phrases(self, texts: Sequence[str], share: float = 0.0) -> Sequence[str]:
        """Return the open or the sealed part of a list; ``share`` is sealed, at least one."""
        cut = len(texts) - max(1, round(len(texts) * share))
        return texts[cut:] if self.sealed else texts[: min(self.phrasings or cut, cut)]


class Part(NamedTuple):
    """A sentence or two of a turn; role: ask, aside, take, ack, react, tone, bye or sign."""

    role: str
    text: str

    @property
    def tag(self) -> str:
        """Return what the filler tables call it: its role, or "question" where it asks."""
        return (
            "question" if self.role in ("ask", "react") and self.text.endswith("?") else self.role
        )


def add_filler(
    parts: list[Part], filler: str, values: Sequence[str], opening: bool, rng: Random
) -> bool:
    """Put the user's filler word where it fits; False where it fits nowhere in this turn.

    ``values`` keep their capital at a part's start (see `lower_first`).
    """
    words = tables()["manner"]["style"]["filler"][filler]
    starts = [
        i
        for i, p in enumerate(parts)
        if p.tag in words["start_on"] and _fits(words, parts, i, opening)
    ]
    ends = [i for i, p in enumerate(parts) if p.tag in words["end_on"]]
    if not starts and not ends:
        return False
    at_start = bool(starts) and (not ends or rng.random() < 0.6)
    i = rng.choice(starts if at_start else ends)
    role, text = parts[i]
    if at_start:
        parts[i] = Part(role, f"{rng.choice(words['start'])} {lower_first(text, values)}")
    else:
        parts[i] = Part(role, text[:-1] + rng.choice(words["end"]) + text[-1])
    return True


def _fits(words: dict, parts: Sequence[Part], i: int, opening: bool) -> bool:
    """Tell whether a filler may start part i: some open a turn, others follow a remark."""
    if parts[i].text.startswith("And "):
        return False
    if words.get("at") == "first":
        return i == 0 and not opening
    if words.get("at") == "after":
        return i > 0 and parts[i - 1].role != "tone"
    return i > 0 or not opening


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Return the words that the tables mostly capitalise inside sentences: names, months, "I"."""
    inside: Counter[str] = Counter()
    for text in texts(tables()):
        inside.update(re.findall(r"(?<=[a-z,] )[A-Za-z][A-Za-z0-9']*", text))
        inside.update(
            re.findall(r"^[A-Z][A-Za-z0-9']*(?=(?: [A-Z][a-z]+)*$)", text)
        )  # a slot's value
    return frozenset(w for w in inside if w[0].isupper() and inside[w] > inside[w.lower()]) | {
        "Mum",
        "Gran",
        "Grandma",
    }


def lower_first(text: str, values: Sequence[str] = ()) -> str:
    """Return text with a small first letter, unless it begins with a name or a slot's value."""
    first = re.match(r"[A-Za-z0-9']*", text)[0].split("'")[0]
    keep = (
        first in names()
        or first[1:2].isupper()
        or not first
        or any(text.startswith(v) for v in values)
    )
    return text if keep else text[0].lower() + text[1:]


def asides(task: Task) -> list[tuple[str, list[str], float]]:
    """Return (attribute, phrasings, weight) for all that could slip; the topic's own weigh most."""
    z, t = task.z, tables()
    out = [
        (a["attr"], a["text"], _TOPICAL)
        for a in t["topics"][task.topic]["aside"]
        if z[a["attr"]] == a["value"]
    ]
    for f in FACTS:
        shows = (
            t["attributes"]["place"]["show"] if f == "place" else t["attributes"][f][z[f]]["show"]
        )
        out.append((f, shows, _LOOSE.get(f, 1.0)))
    out += [(a, t["manner"]["trait"][a][z[a]]["show"], _OF_TRAIT) for a in TRAITS if z[a] != "mid"]
    return out
