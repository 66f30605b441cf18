"""A profile's sentences as their person would recite them: in the first person, and behind "someone who".

read_persona("You live on your own. Your concern is a tax return, above all how to file it.")
"""

import re
from dataclasses import dataclass
from functools import lru_cache

_WH = r"(?:how|what|which|whether|why|where|when|who|whom|whose)\b"
_WANTS = re.compile(
    r"\b(?:want to (?:find out|know)|ask about|look for|above all|questions turn on [^:]+:) (?P<wants>.+)",
    re.IGNORECASE,
)
_NEXT = rf"(?<!\bwhat)(?:, and |, | and )(?={_WH}(?! one\b| and\b))"  # not "what and when to feed"
_TOPIC = re.compile(
    r"\b(?:thinking about|brings you here is|talk about|questions turn on|conversation about|concern is|"
    r"help with:?|advice (?:on|about)|questions about|looking for) "
    r"(?P<topic>.+?)(?: and want to|; you |, and you |: | you look |, above all|\.|$)",
    re.IGNORECASE,
)
_NOUN = re.compile(
    r"An? (?:[\w'-]+ ){1,4}(?:who|with|that|interested|looking|from|working|living|trying)\b"
)
_ABOUT = re.compile(
    r"\b(thinking about|brings you here|come to talk|questions turn|conversation about|concern is)\b"
)
_THIRD = re.compile(
    r"(?P<who>(?:(?:The|This) (?:user|person)|User|He|She)\b|(?=(?:Wants|Needs|Likes|Prefers|Asks|Hopes|Seeks)\b))"
    r" ?(?:is|has|\w+s)\b",
    re.IGNORECASE,
)
_VERB = re.compile(r"\b(is|are|was|were|has|have|can|should|must|will|goes|slips)\b")
_ADVERB = (
    r"(?:(?:never|always|often|seldom|still|also|only|just|now|once|both|even|mostly|\w{2,}ly) )*"
)
# "you" stands for "I" after these words and before those; after these verbs and prepositions it is "me".
_SUBJECT_AFTER = (
    "and but or that what where when whenever wherever whatever while if because as since once before after until than "
    "which whose so far who whom"
).split()
_SUBJECT_BEFORE = (
    "are were have had do did can could will would must should may might cannot never".split()
)
_OBJECT_AFTER = (
    "sees see leaves leave keeps keep draw draws attract attracts upset upsets get gets need needs tell tells bring "
    "brings let lets make makes take takes ask asks help helps give gives gave put puts off rattle around by with for "
    "to at from of on about in near behind than like owe owes is among between worry worries suit suits find follow follows pay pays known know ripped carry "
    "carries tire tires love loves"
).split()
_FIXED = {
    "am": "is", "have": "has", "do": "does", "were": "was", "don't": "doesn't", "haven't": "hasn't", "'m": "is", "'ve": "has",
}  # fmt: skip
# Past and modal verbs, which the third person leaves as they are; so it does those in -ed.
_SAME = frozenset(
    "was left went did came served spent lost paid fought gave got taught took made grew brought had told began became "
    "wrote chose built bought sold met kept held found knew thought won ran saw can could will would must should may "
    "might cannot can't won't wouldn't".split()
)
_LITERAL = re.compile(
    r"(?<=say )you know\b|(?<=add )you know\b|(?<=a )you know\b|^You know(?= is)|(?<=write )u for you|(?<=a )thank you"
)


@dataclass(frozen=True)
class Fact:
    """One thing that a profile says, e.g. "I have two sons", "has two sons", "" ("As a nurse ...")."""

    clause: str
    who: str = ""
    noun: str = ""


@dataclass(frozen=True)
class Persona:
    """What a profile says of its person, and what it says the person wants."""

    facts: tuple[Fact, ...]
    wants: tuple[str, ...]
    topic: str | None


@lru_cache(maxsize=4096)
def read_persona(profile: str) -> Persona:
    """Read a profile in the second person (as ours and the release's), or in the first or third.

    ``wants`` are the questions that a profile's task sentence lists ("what ... and how ..."); facts
    are its other sentences, cut where "and you" begins anew.
    """
    facts, wants, topic = [], [], None
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", profile.strip()):
        sentence = re.sub(r"^[A-Z][\w ]{2,30}: ", "", sentence.strip()).rstrip(".!? ")
        found = _TOPIC.search(sentence)
        if found and not topic:
            topic = found["topic"].rstrip(",;")
        asked = _WANTS.search(sentence)
        task = _ABOUT.search(sentence)
        if asked and (task or re.match(_WH, asked["wants"])):
            wants += [first_person(w) for w in re.split(_NEXT, asked["wants"])]
        elif not task:
            for part in re.split(r", and (?=you(?:r)?\b)", sentence):
                fact = _fact(part)
                facts += [fact] if fact else []
    return Persona(tuple(dict.fromkeys(facts)), tuple(dict.fromkeys(wants)), topic)


def _fact(text: str) -> Fact | None:
    words = text.split()
    if not 3 <= len(words) <= 30 or "?" in text:
        return None
    if third := _THIRD.match(text):
        text = _from_third(text[third.end("who") :].strip())
    if _NOUN.match(text):
        noun = text[0].lower() + text[1:]
        return Fact(f"I am {noun}", "", noun) if " you" not in text.lower() else None
    if third or re.match(r"I\b|My\b|We\b|Our\b", text):
        clause = text
    elif re.search(r"\byou(r|rs|rself)?\b", text, re.IGNORECASE):
        clause = first_person(text)
    elif len(words) < 12 and _VERB.search(text):
        clause = text[0].lower() + text[1:]  # "There is usually a lol somewhere"
    else:
        return None
    if not clause.startswith(("I ", "I'")):
        clause = clause[0].lower() + clause[1:]
    noun = re.match(r"I am (an? .+)$", clause)
    plain = not re.search(r",|;|\b(and|but|or)\b", clause)
    noun = noun[1] if noun and plain and not re.search(r"\b(my|me|I)\b", noun[1]) else ""
    return Fact(clause, someone_who(clause) if plain and clause[0] == "I" else "", noun)


def _from_third(text: str) -> str:
    """Turn "prefers x", said of a user, into "I prefer x"."""
    verb, rest = re.match(r"(\w+)(.*)", text).groups()
    verb = verb.lower()
    fixed = {"is": "am", "has": "have", "does": "do", "was": "was"}
    if verb not in fixed:
        verb = re.sub(r"ies$", "y", verb)
        verb = re.sub(r"(?<=[sxz])es$|(?<=[cs]h)es$|(?<!s)s$", "", verb)
    rest = re.sub(r"\b(their|his|her)\b", "my", rest)
    rest = re.sub(r"\b(they|he|she) (are|is)\b", "I am", rest)
    rest = re.sub(r"\b(they|he|she)\b", "I", rest)
    return f"I {fixed.get(verb, verb)}{rest}"


def first_person(text: str) -> str:
    """Turn what is said of "you" into what I say of myself.

    >>> first_person("Your household is you and the person you love")
    'My household is me and the person I love'
    """
    literal = _LITERAL.search(text)
    if literal:
        before, after = text[: literal.start()], text[literal.end() :]
        return (
            (first_person(before) if before else "")
            + f'"{literal[0].lower()}"'
            + (first_person(after) if after else "")
        )
    tokens = re.split(r"(\W+)", text)
    words, gaps, out = tokens[::2], [*tokens[1::2], ""], []
    for i, word in enumerate(words):
        before = words[i - 1].lower() if i else ""
        after = words[i + 1].lower() if i + 1 < len(words) else ""
        low = word.lower()
        if low in ("your", "yours", "yourself"):
            word = {"your": "my", "yours": "mine", "yourself": "myself"}[low]
            word = word.capitalize() if i == 0 else word
        elif low == "you":
            ends = not after or not gaps[i].isspace()
            inverted = before in ("do", "did", "are", "have") and ends
            subject = (
                i == 0
                or inverted
                or (before in _SUBJECT_AFTER and not ends)
                or (after in _SUBJECT_BEFORE and before not in _OBJECT_AFTER)
                or (not ends and before not in _OBJECT_AFTER)
            )
            both = before == "of" and i > 1 and words[i - 2] in ("two", "three", "both")
            word = "us" if both else "I" if subject else "me"
        elif low in ("are", "were") and (
            (before == "you" and out[-1] == "I")
            or (before in ("and", "but", "or") and words[0].lower() == "you")
        ):
            word = {"are": "am", "were": "was"}[low]
        out.append(word)
    text = "".join(w + g for w, g in zip(out, gaps, strict=True))
    return re.sub(r"^I and (my [\w ]+?) (?=meet|share|live|run|work|are)", r"\1 and I ", text)


def someone_who(clause: str) -> str:
    """Turn "I never bother with my hat" into "never bothers with their hat"; "" where it will not go.

    >>> someone_who("I live off the land I farm")
    'lives off the land they farm'
    """
    found = re.match(rf"I(?P<adverbs> {_ADVERB}|(?='))(?P<verb>[\w']+)(?P<rest>.*)$", clause)
    if not found:
        return ""
    adverbs, verb, rest = found["adverbs"].strip(), found["verb"], found["rest"]
    rest = re.sub(r"\bI (am|was)\b", lambda m: {"am": "they are", "was": "they were"}[m[1]], rest)
    swaps = {"I": "they", "my": "their", "me": "them", "myself": "themselves", "mine": "theirs"}
    rest = re.sub(r"\b(I|my|me|myself|mine)\b", lambda m: swaps[m[1]], rest)
    return " ".join(filter(None, [adverbs, _third(verb)])) + rest


def _third(verb: str) -> str:
    if verb in _FIXED:
        return _FIXED[verb]
    if verb in _SAME or (verb.endswith("ed") and verb not in ("need", "feed")):
        return verb
    if re.search(r"(?:[sxzo]|ch|sh)$", verb):
        return f"{verb}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", verb) + "s"
