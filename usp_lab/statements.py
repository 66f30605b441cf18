"""What a sentence tells of its writer, by rules: facts, and leanings of the Big Five.

list(said("My wife and I live in Leeds."))     # -> [("family", "have a partner", 0.9), ...]
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from usp_lab.ages import ages, bands
from usp_lab.chat import is_closing
from usp_lab.profiles import sentences
from usp_lab.read_goals import written_out
from usp_lab.rules import HINTED, STATED, job_patterns, place_patterns, rules, trait_patterns
from usp_lab.spelling import corrected

_LONG = 120  # words of a turn above which only its ends count: what is pasted is not of the user


_QUOTED = re.compile(r"```.*?```|\"[^\"\n]{15,}\"|\u201c[^\u201d]{15,}\u201d|^>.*$", re.S | re.M)
_TO_ORDER = re.compile(  # after these, "I" may be anyone
    r"\b(?:(?:write|compose|draft|create|generate|make up)\b.{0,40}\b(?:story|poem|essay|letter|script|dialogue|song|tweet|e-?mail|"
    r"post|review|joke|rap|scene|cv|resume|cover letter|monologue|conversation)|act (?:as|like)|pretend|role-?play|imagine (?:you|that|i)|"
    r"you are an? \w+|translate|summari[sz]e|paraphrase|proof-?read|rephrase|rewrite|answer the following|correct (?:this|the following))\b",
    re.IGNORECASE,
)


def own_words(turn: str) -> Iterator[str]:
    """Yield the sentences of a turn in which a user may speak of themselves.

    Quotations and code are left out, and what follows an order for text; of a long turn, most of which is likely
    pasted, the first and last two sentences are kept.
    """
    said = sentences(_QUOTED.sub(" ", turn))
    if len(turn.split()) > _LONG:
        said = said[:2] + said[2:][-2:]
    for sentence in said:
        if _TO_ORDER.search(sentence):
            return
        if not is_closing(sentence):  # "I'll ask my neighbour, bye."
            yield sentence


_ASKS = re.compile(
    r"\?|\b(?:how (?:to|do|does|can|could|should|long|much|many|often|far|big)|(?:tell|show|give) me|explain|do you know|"
    r"(?:can|could|would) you|(?:what|which|where|when|why|who) (?:is|are|do|does|to|should|can|would)|what's|should i|"
    r"(?:want|need|like) to know|wonder\w*|find out|any (?:idea|tips|advice))\b",
    re.IGNORECASE,
)


_OF_ME = re.compile(r"\b(?:i|i'm|i've|i'd|me|my|mine|myself|we|we're|we've|us|our|here)\b|^as an? ", re.IGNORECASE)  # fmt: skip
_CODE = re.compile(r"[{};=<>\\]|\w\(|->|::|\w+\.\w+\(")


def said(sentence: str) -> Iterator[tuple[str, str, float]]:
    """Yield (attribute, value, confidence) of all that a user's sentence tells of them.

    A sentence without the writer in it tells nothing of them. A request names what it is about, so it counts for what is
    stated alone: "how do I sterilise the baby food jars".
    """
    plain = corrected(written_out(sentence))
    if not _OF_ME.search(plain) or _CODE.search(plain):
        return
    asks = _ASKS.search(plain)
    for attribute, value, sure in _met(plain):
        if not asks or sure >= STATED:
            yield attribute, value, sure


def _met(plain: str) -> Iterator[tuple[str, str, float]]:
    for rule in rules():
        for pattern, sure in ((rule.stated, STATED), (rule.hinted, HINTED)):
            if pattern and any(not _another(plain, m) for m in pattern.finditer(plain)):
                yield rule.attribute, rule.value, sure
                break
    yield from _jobs(plain)
    yield from ages(plain)
    yield from _places(plain)
    for attribute, level, pattern in trait_patterns():
        if pattern.search(plain):
            yield attribute, level, HINTED


_NOT_ME = re.compile(
    r"(?:\b(?:not|never|isn'?t|wasn'?t|no longer|don'?t have|haven'?t got|without|if (?:i|we|you)(?: were| was)?|wish(?: i| we)?(?: had| was| were)?|"
    r"want(?:s|ed)? to (?:be|become)|would like to (?:be|become)|going to be(?:come)?|instead of|imagine|suppose|"
    r"(?:his|her|their|your|you(?:'re| are)?|someone(?:'s)?|friend'?s?|he|she|they))\s+)(?:\w+\s+)?$",
    re.IGNORECASE,
)


def _another(text: str, found: re.Match[str]) -> bool:
    """Tell whether what was found is denied, wished for, or someone else's."""
    return bool(_NOT_ME.search(text[: found.start()]))


def _jobs(text: str) -> Iterator[tuple[str, str, float]]:
    for value, retired, _, pattern in job_patterns():
        for m in pattern.finditer(text):
            if not _another(text, m):
                if m["retired"] and retired:
                    yield "occupation", retired, STATED
                elif not m["was"]:
                    yield "occupation", value, STATED


_NO_PLACE = frozenset(
    "I Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August September October November "
    "December English German French Spanish Italian Chinese Japanese Python Java Excel Word Google Microsoft Apple Windows Minecraft Year The A An My Christmas Easter".split()
)


def _places(text: str) -> Iterator[tuple[str, str, float]]:
    patterns, known = place_patterns()
    for pattern, sure in patterns:
        found = pattern.search(text)
        if not found or _another(text, found):
            continue
        name = found["place"].strip(" .,")
        if name.split()[0] in _NO_PLACE:
            continue
        if name.lower() in known:
            name = known[name.lower()]
        yield "place", f"live in {name}", sure
        return


@lru_cache(maxsize=4096)
def codes_of(attribute: str, value: str) -> frozenset[str]:
    """Return the population's values that agree with a claim; empty where none does.

    An age agrees with the band it lies in, a place with its own name.
    """
    if attribute == "place":
        return frozenset({value.removeprefix("live in ").lower()})
    if attribute == "age":
        return bands(value)
    codes = {r.value: r.codes for r in rules() if r.attribute == attribute}
    if attribute == "occupation":
        for v, retired, own, _ in job_patterns():
            codes[v] = codes.get(v, frozenset()) | own
            if retired.startswith("are a retired"):
                codes[retired] = frozenset(c for c in own if c.startswith("retired"))
    return codes.get(value, frozenset())
