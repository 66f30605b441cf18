"""What a user asks for, named in a few words of the second person, without a model.

    goals(["How do I get my cat to eat?", "thanks. and what about water"])
    # -> [Claim(value="how to get your cat to eat", ...), Claim(value="water", ...)]

A request that has a known form becomes "how to ...", "what ...", "help to ..."; of any other its words of content are
named. What a user wants without asking for it is not seen.
"""

import re
from collections.abc import Sequence

from usp_lab.chat import is_closing
from usp_lab.profiles import Claim, Evidence, sentences
from usp_lab.read_style import clauses

STOP_WORDS = frozenset(
    """a about above actually advise after again all almost also although always am an and another any anyone anything are aren't around as ask asked at away back be because been
    before being best better both but by can can't cannot could couldn't did didn't do does doesn't doing don't done down during each either else enough even ever every
    everything explain few find first for from get getting give go going good got had has have haven't having he hello help her here hers hey hi him his how however i'd i'll
    i'm i've idea if in instead into is isn't it it's its just keep kind know last least less let let's like little long look looking lot lots made make makes many may maybe me mean
    might mine more most much must my myself need needs never new next nice no not nothing now of off often oh okay on once one only onto or other our ours out over own people
    perhaps please put quite rather really right said same say see seem shall she should since so some someone something sometimes soon sorry still such suggest sure take tell
    than thank thanks that that's the their them then there there's therefore these they thing things think this those though through to together too toward try two under until up upon
    us use used using very want wanted was wasn't way we well went were what what's when where whether which while who whom whose why will with within without won't would
    wouldn't yes yet you you're your yours""".split()
)
MOST = 4  # goals a dialogue
_WORDS = 16  # of a goal
_ASKS = re.compile(
    r"\?|\b(?:how|what|which|where|when|why|who|whether|can you|could you|would you|will you|please|tell me|explain|"
    r"give me|show me|list|write|help|recommend|suggest|i (?:want|need|would like|'d like|am looking|'m looking))\b",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:\W*(?:hi|hiya|hey|heya|hello|good (?:morning|afternoon|evening|day)|ok|okay|so|well|and|but|also|right|oh|thanks|thank you|great|please|"
    r"quick (?:question|one)|just|alright|sure|yes|no|hm+|another question for you|then|now|there)\b(?! (?:many|much|long|to|far|do|can)\b)[\s,.:;!-]*)+",
    re.IGNORECASE,
)
_WH = r"how|what|which|where|when|why|who|whether"
_ME = r"(?:i|we|you|one|u)"
_KINDLY = r"(?:please |kindly |also |just |be so (?:kind|good) as to |be (?:kind|good) enough to )"
# (a request's form, what it becomes); the first that fits a sentence is taken.
_FORMS = [
    (rf"(?:do|would) you (?:happen to )?know ((?:{_WH})\b.+)", r"\1"),
    (rf"(?:tell me|explain|show me|know|understand|find out|wondering|wonder|ask|figure out|is|say|about)\b(?: to me)?,? ((?:{_WH})\b.+)", r"\1"),
    (rf"^(how|where|when|what) (?:do|can|could|should|would|must|shall|might|did) {_ME} (?!need\b)(?:best |go about |even |just )?(.+)", r"\1 to \2"),
    (rf"^((?:which|what|how (?:much|many|long|often|far|big|hot|deep|high|old))\b[\w' -]*?) (?:do|can|could|should|would|must|shall) {_ME} (?!need\b)(.+)", r"\1 to \2"),
    (r"^(what|which|who|where|when|why|how) (is|are|was|were|'s|does|do|did|has|have|can|could|should|will|would|makes?|happens?) (.+)", r"\1 \2 \3"),
    (rf"^((?:{_WH})\b.+)", r"\1"),
    (rf"^(?:can|could|would|will) (?:you|u) {_KINDLY}*(?:help me (?:to |with )?|tell me (?:about |more about )?|give me |show me |recommend |suggest |explain |describe )(.+)", r"\1"),
    (rf"^(?:can|could|would|will) (?:you|u) {_KINDLY}*(.+)", r"help to \1"),
    (r"^(?:please )?(?:give me|show me|tell me about|tell me|explain|describe|recommend|suggest|list|name) (.+)", r"\1"),
    (r"^(?:please )?((?:write|compose|draft|translate|summari[sz]e|rewrite|correct|create|make|generate|plan|compare|find|fix|solve|calculate)\b.+)", r"help to \1"),
    (r"\b(?:i|we)(?:'d| would)? (?:want|need|like|love|am looking|'m looking|hope|have) (?:some )?(?:help|advice|tips|information|info|ideas) (?:with|on|about|for) (.+)", r"\1"),
    (r"\b(?:i|we)(?:'d| would)? (?:want|need|like|love|hope|plan|am trying|'m trying) to (?!know|ask|find out)(.+)", r"how to \1"),
    (r"\b(?:i|we)(?:'m| am|'re| are) looking for (.+)", r"\1"),
    (r"^(is|are|was|were) there (.+)\?", r"whether there \1 \2"),
    (r"^(can|could|should|will|would|may|must) (i|we|it|they|he|she|this|that|these) (.+)\?", r"whether \2 \1 \3"),
    (r"^(?:do|did) (?!you\b|u\b)(.+)\?", r"whether \1"),
]  # fmt: skip
_FORMS = [(re.compile(p, re.IGNORECASE), to) for p, to in _FORMS]
_FOLLOWS = re.compile(
    r"\s*(?:[,;(]|\b(?:because|since i|and (?:also|then)|thanks|please)\b).*$", re.I
)
_SWAPS = {"i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "we": "you", "us": "you", "our": "your", "ours": "yours", "i'm": "you are", "i've": "you have", "i'd": "you would", "i'll": "you will", "we're": "you are", "we've": "you have", "am": "are", "u": "you", "ur": "your"}  # fmt: skip
_SHORT = re.compile(r"(?<![\w'])([a-z/0-9]+)(?![\w'])", re.IGNORECASE)


def goals(turns: Sequence[str], most: int = MOST) -> list[Claim]:
    """Return what a user asks for, in order, one thing once.

    Args:
        turns: the user's texts.
        most: goals at the most; the first ones are kept.
    """
    found: list[Claim] = []
    for i, turn in enumerate(turns):
        named = None if is_closing(turn) else _request(turn, only=not found)
        if named is None:
            continue
        words = content(named[0])
        if not words or any(_same(words, content(c.value)) for c in found):
            continue
        evidence = [Evidence(turn=i, quote=named[1][:200])]
        found.append(Claim(value=named[0], evidence=evidence, confidence=named[2]))
    return found[:most]


def content(text: str) -> set[str]:
    """Return a text's words of content, in lower case.

    >>> sorted(content("How to prune the old roses?"))
    ['old', 'prune', 'roses']
    """
    words = re.findall(r"[a-z]{3,}", text.lower())
    return {w for w in words if w not in STOP_WORDS}


def _same(a: set[str], b: set[str]) -> bool:
    return len(a & b) >= 0.5 * min(len(a), len(b))


def _request(turn: str, only: bool) -> tuple[str, str, float] | None:
    """Return (goal, sentence, confidence) of the first request of a turn.

    Args:
        turn: a user's text.
        only: nothing is asked so far: a short text without a request is taken for one.
    """
    for sentence in sentences(turn[:1500]):
        plain = _LEAD.sub("", written_out(sentence)).strip()
        if not _ASKS.search(plain) or len(content(plain)) < 1:
            continue
        for form, to in _FORMS:
            if found := form.search(plain):
                goal = second_person(_trimmed(found.expand(to)))
                goal = re.sub(rf"^(?:{_WH})\b", lambda m: m[0].lower(), goal, flags=re.IGNORECASE)
                # The verb that opened the sentence stands inside it now.
                goal = re.sub(r"^whether \w+ [A-Z](?=[a-z])", lambda m: m[0].lower(), goal)
                if len(goal.split()) > 1 and content(goal):
                    return goal, sentence, 0.7
        if named := _keywords(plain):
            return named, sentence, 0.5
    first = next(iter(sentences(turn)), "")
    named = (
        _keywords(_LEAD.sub("", written_out(first))) if only and len(first.split()) <= 12 else ""
    )
    return (named, first, 0.4) if named else None


def _trimmed(text: str) -> str:
    text = text.strip().rstrip(".?!,;: ")
    if len(text.split()) > 6:
        head = _FOLLOWS.sub("", text)
        text = head if len(head.split()) > 3 else text
    return " ".join(text.split()[:_WORDS]).rstrip(".?!,;: ")


def _keywords(text: str) -> str:
    """Return up to five words of content in order, as a list."""
    words = [w for w in re.findall(r"[A-Za-z][\w'-]+", text) if content(w)]
    return ", ".join(dict.fromkeys(w if w.isupper() else w.lower() for w in words[:5]))


def written_out(text: str) -> str:
    """Write a user's shorthand and missing apostrophes out: "hw r u, im ok" -> "hw are you, i'm ok"."""
    table = clauses()["shorthand"]
    text = text.replace("\u2019", "'")
    return _SHORT.sub(lambda m: table.get(m[1].lower(), m[1]), text)


def second_person(text: str) -> str:
    """Say to a user what the user says: "how my cat likes me" -> "how your cat likes you".

    >>> second_person("whether I'm late with my tax return")
    'whether you are late with your tax return'
    """
    return re.sub(
        r"[\w']+", lambda m: m[0] if m[0] == "US" else _SWAPS.get(m[0].lower(), m[0]), text
    )
