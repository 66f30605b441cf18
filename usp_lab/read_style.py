"""Habits of writing, read off a user's turns by their marks; unremarkable ones are not mentioned.

The marks are general English (``profiling/clauses.toml``); shares and thresholds were chosen on training users of
the population. What they cannot see: irony, dialect, a style that differs from topic to topic.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources

from usp_lab.chat import is_closing
from usp_lab.profiles import Evidence, Habit
from usp_lab.spelling import long_words, typos

TERSE, WORDY = (
    15.5,
    25.0,
)  # words a turn below, above which the population's messages are short, long
_LOWER = 0.6  # share of turns that begin in lower case
_UNSTOPPED, _EXCLAIMS, _DOTS = 0.6, 0.34, 0.34  # shares of turns with these marks
_SLIPS, _CARELESS = 0.012, 0.085  # mistyped words a long word
_SHORTHAND = 0.34  # share of turns
_FORMAL = 0.5  # share of turns; a friendly word in fewer than
_WARM = 0.25  # is curt
_QUOTES = 3  # turns a habit's evidence quotes at most


@lru_cache(maxsize=1)
def clauses() -> dict:
    """Return the table of clauses and marks."""
    path = resources.files("usp_lab") / "profiling" / "clauses.toml"
    return tomllib.loads(path.read_text("utf-8"))


@lru_cache(maxsize=64)
def _mark(group: str, name: str) -> re.Pattern[str]:
    return re.compile(clauses()[group][name], re.IGNORECASE)


def habits(turns: Sequence[str]) -> list[Habit]:
    """Return the habits that a user's turns show, each with the turns that show it.

    Args:
        turns: a user's texts in order.
    """
    turns = [t.replace("\u2019", "'").strip() for t in turns]
    if not any(turns):
        return []
    found = [read(turns) for read in _READERS]
    return [_habit(turns, *f) for f in found if f]


_Found = tuple[str, str, float, list[int]] | None  # habit, value, confidence, turns


def _habit(turns: Sequence[str], habit: str, value: str, confidence: float, at: list[int]) -> Habit:
    said = clauses()["style"][habit][value]
    evidence = [Evidence(turn=i, quote=turns[i][:160]) for i in at[:_QUOTES] if turns[i]]
    return Habit(habit=habit, value=said, evidence=evidence, confidence=confidence)


def _where(turns: Sequence[str], test: Callable[[str], object]) -> tuple[list[int], float]:
    at = [i for i, t in enumerate(turns) if test(t)]
    return at, len(at) / len(turns)


def _asking(turns: Sequence[str]) -> list[int]:
    """Return the turns that are no goodbye: everybody's goodbye is short."""
    return [i for i, t in enumerate(turns) if t and not is_closing(t)] or list(range(len(turns)))


def _length(turns: Sequence[str]) -> _Found:
    at = _asking(turns)
    words = sum(len(turns[i].split()) for i in at) / len(at)
    value = "terse" if words < TERSE else "wordy" if words > WORDY else "medium"
    sure = 0.5 if 12 < words < 19 or 22 < words < 27 else 0.8
    return "length", value, sure, at


def _casing(turns: Sequence[str]) -> _Found:
    at, share = _where(turns, lambda t: t[:1].islower())
    letters = [c for t in turns for c in t if c.isalpha()]
    capitals = sum(c.isupper() for c in letters) / max(len(letters), 1)
    return ("casing", "lower", 0.9, at) if share >= _LOWER and capitals < 0.02 else None


def _punctuation(turns: Sequence[str]) -> _Found:
    dots, share = _where(turns, lambda t: re.search(r"\.\.|\u2026", t))
    if share >= _DOTS:
        return "punctuation", "dots", 0.9, dots
    exclaims, share = _where(turns, lambda t: "!" in re.sub(r"^\w+( \w+)?!", "", t))
    if share >= _EXCLAIMS and sum(t.count("!") for t in turns) > 1:
        return "punctuation", "exclaiming", 0.8, exclaims
    bare, share = _where(turns, lambda t: t[-1:].isalnum())
    return ("punctuation", "none", 0.8, bare) if share >= _UNSTOPPED else None


def _typos(turns: Sequence[str]) -> _Found:
    wrong = [typos(t) for t in turns]
    rate = sum(map(len, wrong)) / max(sum(map(long_words, turns)), 1)
    if rate < _SLIPS:
        return None
    at = [i for i, w in enumerate(wrong) if w]
    return "typos", "careless" if rate >= _CARELESS else "slips", 0.7, at


def _politeness(turns: Sequence[str]) -> _Found:
    formal, share = _where(turns, _mark("marks", "formal").search)
    whole = sum(len(_mark("marks", "whole").findall(t)) for t in turns)
    short = sum(len(_mark("marks", "contracted").findall(t)) for t in turns)
    if (formal and share >= _FORMAL and whole >= short) or (formal and whole > 2 * short + 1):
        return "politeness", "formal", 0.75, formal
    warm, share = _where(turns, _mark("marks", "warm").search)
    if share < _WARM:
        return "politeness", "curt", 0.6, [i for i in range(len(turns)) if i not in warm]
    return "politeness", "friendly", 0.6, warm


def _directness(turns: Sequence[str]) -> _Found:
    at = _asking(turns)
    round_ = [i for i in at if _mark("marks", "roundabout").search(turns[i])]
    if len(round_) >= max(1, 0.4 * len(at)):
        return "directness", "roundabout", 0.6, round_
    blunt = [i for i in at if _mark("marks", "blunt").search(turns[i]) and i not in round_]
    asked = any(_mark("marks", "asks").search(turns[i]) for i in at)
    return (
        ("directness", "blunt", 0.6, blunt) if len(blunt) >= 0.5 * len(at) and not asked else None
    )


def _abbreviations(turns: Sequence[str]) -> _Found:
    at, share = _where(turns, _mark("marks", "texting").search)
    marks = sum(len(_mark("marks", "texting").findall(t)) for t in turns)
    sure = share >= _SHORTHAND and marks > 1
    return ("abbreviations", "texting", 0.85, at) if sure else None


def _opening(turns: Sequence[str]) -> _Found:
    for name, words in clauses()["openings"].items():
        if re.match(rf"\W*(?:{words})\b", turns[0], re.IGNORECASE):
            return "opening", name, 0.95, [0]
    return None


def _filler(turns: Sequence[str]) -> _Found:
    counts = {name: _where(turns, _mark("fillers", name).search) for name in clauses()["fillers"]}
    name, (at, share) = max(counts.items(), key=lambda x: x[1][1])
    return ("filler", name, min(0.95, 0.5 + share), at) if share >= 0.25 else None


def _signoff(turns: Sequence[str]) -> _Found:
    last = re.split(r"(?<=[.!?\u2026])\s+|\n+|,\s+(?=\w+$)", turns[-1])[1:][-1:]
    for name, words in clauses()["signoffs"].items():
        if last and re.fullmatch(rf"(?:{words})\W*", last[0], re.IGNORECASE):
            return "signoff", name, 0.7, [len(turns) - 1]
    return None


def _patience(turns: Sequence[str]) -> _Found:
    complains, _ = _where(turns, _mark("marks", "complaint").search)
    gives_up = bool(_mark("marks", "giving_up").search(turns[-1])) and len(turns[-1].split()) < 25
    if not complains and not gives_up:
        return None  # nothing tried it
    if len(complains) >= 3:
        return "patience", "long", 0.6, complains
    short = gives_up and not complains
    return ("patience", "short", 0.5, [len(turns) - 1]) if short else None


_READERS = (_length, _casing, _punctuation, _typos, _politeness, _directness, _abbreviations, _opening, _filler, _signoff, _patience)  # fmt: skip
