"""How old someone says they are, and the bands of the population that an age lies in."""

import re
from collections.abc import Iterator

from usp_lab.rules import HINTED, STATED

BANDS = {"18-24": (18, 24), "25-34": (25, 34), "35-49": (35, 49), "50-64": (50, 64), "65+": (65, 120)}  # fmt: skip
_NUMBER = r"(?P<n>[1-9]\d|eighteen|nineteen|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?)"
_AGED = [
    rf"\b(?:i'?m|i am|am|i've turned|i turned|i just turned|i'm turning|turning|i'm nearly|i'm almost|i'm only|i'm just) {_NUMBER}(?:[- ]years?[- ]old| years? of age| y/?o)?(?=[.,;!)]|$| and\b| now\b| so\b| but\b| years?\b| with\b| living\b|[- ]year)",
    rf"\b(?:i'?m|i am|as) an? {_NUMBER}[- ]years?[- ]old\b",
    rf"\bmy age is {_NUMBER}\b",
    rf"\b(?:at|aged) {_NUMBER},? (?:i|you)\b",
    r"\b(?:i'?m|i am)? ?in (?:my|your) (?P<part>early |mid[- ]?|late )?(?P<ten>twent|thirt|fort|fift|sixt|sevent|eight|ninet|[2-9]0'?)(?:ies|s)\b",
]
_AGED = [re.compile(p, re.IGNORECASE) for p in _AGED]
_HINTS_OF_AGE = {
    "are in your late teens or early twenties": r"\b(?:freshers'? week|gap year|my (?:dorm|roommate at college)|(?:just|only) (?:left|finished) (?:high )?school|first (?:place|flat|room) (?:of my own|away from home)|moved out of my parents'?|first (?:year|term|semester) (?:at|of) (?:uni\w*|college)|my first (?:proper |real )?job|still live with my parents)\b",
    "are in your late twenties or early thirties": r"\b(?:turn(?:ed|ing)? thirty|my thirtieth|all my friends are getting (?:married|engaged)|since i (?:left|finished) uni\w*)\b",
    "are between thirty-five and fifty": r"\b(?:mid-?life|turn(?:ed|ing)? forty|my fortieth)\b",
    "are in your fifties or early sixties": r"\b(?:before i retire|(?:until|till) (?:my )?retirement|years? (?:off|from|to) (?:my )?(?:pension|retirement)|turn(?:ed|ing)? (?:fifty|sixty)|my (?:fiftieth|sixtieth)|menopaus\w+|when i was (?:a kid|small|young|a boy|a girl) (?:in the (?:sixties|seventies|60s|70s)))\b",
    "are over sixty-five": r"\b(?:pensioners?'?|at my (?:time of life|age)|senior (?:citizen|discount|card)|bus pass|in my (?:young|younger) days|in my day|when i was young|my great-?grand\w+|(?:in|of) the (?:fifties|1950s|war)|turn(?:ed|ing)? (?:seventy|eighty)|my (?:seventieth|eightieth)|an old (?:man|woman|lady) like me)\b",
}
_HINTS_OF_AGE = {v: re.compile(p, re.IGNORECASE) for v, p in _HINTS_OF_AGE.items()}
_UNITS = "one two three four five six seven eight nine".split()
_TENS = {"twent": 20, "thirt": 30, "fort": 40, "fift": 50, "sixt": 60, "sevent": 70, "eight": 80, "ninet": 90}  # fmt: skip


def ages(text: str) -> Iterator[tuple[str, str, float]]:
    """Yield ("age", value, confidence) where a sentence tells its writer's age."""
    for pattern in _AGED:
        if found := pattern.search(text):
            groups = found.groupdict()
            if number := groups.get("n"):
                if 14 <= (years := _number(number)) < 110:
                    yield "age", f"are {years} years old", STATED
            else:
                ten = groups["ten"].lower().rstrip("'")
                tens = _TENS.get(ten) or int(ten)
                part = (groups["part"] or "").strip("- ").lower()
                word = next(w for w, n in _TENS.items() if n == tens) + "ies"
                yield "age", f"are in your {part} {word}".replace("  ", " "), STATED
            return
    for value, pattern in _HINTS_OF_AGE.items():
        if pattern.search(text):
            yield "age", value, HINTED
            return


def _number(word: str) -> int:
    if word.isdigit():
        return int(word)
    if word.lower() in ("eighteen", "nineteen"):
        return {"eighteen": 18, "nineteen": 19}[word.lower()]
    ten, *unit = re.split(r"[- ]", word.lower())
    return _TENS[ten.removesuffix("y")] + (_UNITS.index(unit[0]) + 1 if unit else 0)


_SPOKEN_BANDS = dict(zip(_HINTS_OF_AGE, BANDS, strict=True))


def bands(value: str) -> frozenset[str]:
    """Return the bands that an age as `ages` says it may lie in."""
    if value in _SPOKEN_BANDS:
        return frozenset({_SPOKEN_BANDS[value]})
    if found := re.fullmatch(r"are (\d+) years old", value):
        low = high = int(found[1])
    elif found := re.fullmatch(r"are in your (early |mid |late )?(\w+)ies", value):
        ten = _TENS.get(found[2], 0)
        low, high = {"early ": (0, 3), "mid ": (4, 6), "late ": (7, 9)}.get(found[1], (0, 9))
        low, high = ten + low, ten + high
    else:
        return frozenset()
    return frozenset(b for b, (a, z) in BANDS.items() if a <= high and low <= z)
