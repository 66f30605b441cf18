"""What the sentences of a user's turn do: ask for something, tell of the user, or neither.

    read_turn("hi! my girls cant do hills. any idea which area to stay in")
    -> [("self", "my girls cant do hills"), ("request", "which area to stay in")]

Rules for English as people type it, without capitals or full stops too. Greetings, thanks, reactions to a
reply and push-back are neither. They see words, not irony, and miss requests that name nothing.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from usp_lab.chat import is_closing
from usp_lab.metrics import words
from usp_lab.style import FUNCTION_WORDS
from usp_lab.surface import TEXTING

# Words that ask, thank or judge without saying what about.
_EMPTY = frozenset(
    """advise advice advise again answer anyone anybody anything anyway appreciate ask asked asking asks
    begin best better bit bother can can't come could count day days definite describe detail details
    different direct each explain explanation fact favour feel figure fill find first fine follow following
    forward further generally get getting give given glad go going good got grateful great guidance guess
    happy hear hello hear help helpful helps hey hi hint hope hoping huge idea ideas imagine info
    information inquiry interest interesting issue item kind kindly know knowing known last later learn let
    light like line list little long look looking lot love lovely make many matter maybe mean mention mind
    month more most much name need needed new next nice nobody note number obliged offer oh okay one ones
    opinion option part people perhaps permit person pick piece please pleased point pointer pointers
    precise problem proper question questions quick quickly read ready real recommend regard reply
    respond right said same say saying second see sense shed short show simple small somebody someone
    something sorry sort specific speak start straight stuff subject suggest suggestion suggestions sure
    take talk tell telling thank thanks thing things think thought thoughts time times told topic tricky
    trouble true try trying turn understand use useful usual usually vague version view want wanted wants
    way week weeks wish wished wonder wondered wondering word words work works worth write wrong yes you
    chance cheers pardon hmm um ugh wow ouch nope yep ah ha oops sorted noted clear fair concrete real rest
    circles tone manners example definite narrow near view quite stuck moment""".split()
)  # fmt: skip
_WH = r"(?:how|what(?! with)|which|whether|why|where|when|whom?|whose)\b"
# "what to check where would you begin": a second question without words of its own, typed without a stop.
_TAIL = re.compile(
    r"[ ,]+(?:(?:what|where|how) (?:would|do|should|did) (?:you|i)\b(?! \w+ \w+ \w+ \w+)|so here i am\b).*$",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:(?:hello|hi|hey|hiya|good (?:morning|afternoon|evening|day)|dear \w+|there|ok|okay|right|well|so|and|also|but|"
    r"then|now|next|oh|ah|hmm|um|please|sorry|thanks|thank you|great|yes|no|anyway|honestly|actually|basically|"
    r"to be honest|by the way|btw|tbh|again|once more|also|quick (?:question|one)|(?:one|my|another|second|last|next|other|"
    r"quick|short)(?: more| last| quick)? (?:question|thing|one)|question|haha|lol|short version)\b[ ,.:;!\-]*)+(?=\w)",
    re.IGNORECASE,
)
_SURE = re.compile(
    rf"(?:how (?:to|much|many|long|often|far|\w+ (?:to|is|are|for))|{_WH}(?: \w+)? (?:to|is|are|do|does|should|can|could|would|will))\b|"
    r"(?:what|who|how|where|when)'s\b|how\b|why\b(?! not)|which (?!is\b)|what (?!an? |i |you )|who (?!knows|cares)",
    re.IGNORECASE,
)
# What stands before the matter of a request.
_FRAME = re.compile(
    r"\b(?:(?:can|could|would|will|might|may) (?:you|i) (?:(?:please|kindly|also|just|maybe|perhaps|possibly|quickly) )*"
    r"(?:tell me|explain(?: to me)?|say|advise(?: me)?(?: on)?|ask(?: you)?(?: about)?|know|show me|let me know|describe|help me(?: to)?(?: find out| understand)?)|"
    r"(?:do|would) you (?:happen to )?know|are you able to (?:say|tell me|explain)|"
    r"tell me|let me know|explain(?: to me)?|spell out|i(?:'d| would| should| do)? (?:(?:also|just|really|still) )*"
    r"(?:like|want|need|wish|love|hope) to (?:know|find out|ask|learn|understand|hear|see)(?: about)?|"
    r"i(?:'m| am|'ve been| have been)? (?:(?:still|just|also|really) )*(?:trying to (?:find out|understand|work out|figure out)|wonder(?:ing|ed)?|asking|asked)(?: about)?|"
    r"(?:any|no) (?:idea|ideas|tips?|advice|suggestions?|thoughts?|clue|hints?)(?: on| about| for| of)?|"
    r"i (?:don't|do not|can't|cannot)(?: \w+)? (?:know|understand|decide|work out|figure out|find out)|"
    r"what i(?:'d| would)? (?:like to|want to|need to|really want to) know is|all i want to know is|my question (?:is|was))[ ,:]+",
    re.IGNORECASE,
)
_INQUIRY = re.compile(
    r"(?:\b(?:tell|say|ask|asks|asked|asking|know|knows|knew|explain|wonder(?:ing|ed)?|find out|found out|idea|question|understand|see|decide|"
    r"out|over|anywhere|about|on|of|and|it's|it is|that's|there's|there is|is|was|stood|riddle(?: to me)?)|[:,;])\s*$",
    re.IGNORECASE,
)
_AUX = re.compile(
    r"^(?:is|are|was|were|do|does|did|can|could|should|shall|would|will|has|have|must|am|isn't|aren't|don't|doesn't|can't|won't) "
    r"(?:i|you|we|they|he|she|it|this|that|these|those|there|the|a|an|my|our|your|people|any|some|all|one|[\w'-]+ \w+)\b",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"^(?:give|list|make|create|recommend|suggest|write|rewrite|summari[sz]e|translate|generate|compare|fix|convert|calculate|"
    r"compute|design|draft|plan|describe|provide|find|show|help|act|name|check|correct|edit|improve|prove|solve|analy[sz]e|discuss|outline|"
    r"define|classify|extract|pretend|imagine|teach|advise)\b(?! (?:up|it a)\b)",
    re.IGNORECASE,
)
_NEED = re.compile(
    r"\bi(?:'m| am|'d| would|'ve| have)? (?:(?:just|really|still|also|badly|been|currently) )*"
    r"(?:(?:need|want|like|looking|hoping|hope|love|after|searching)(?: for)?)\b(?! (?:it|that|this|to)\b)",
    re.IGNORECASE,
)
_SELF = re.compile(
    r"\b(?:i|i'm|i've|i'd|i'll|im|ive|me|my|mine|myself|we|we're|we've|us|our|ours)\b",
    re.IGNORECASE,
)
_PUSHBACK = re.compile(
    r"\b(?:(?:that|this|it)(?:'s| is| does| did|doesn't| was)? ?(?:not|n't)? (?:quite )?(?:answer|what i (?:asked|meant|was after)|not what)|"
    r"(?:didn't|did not|haven't|have not|not) (?:really |quite |actually |even )?(?:answer|ask)\w*|my question|your (?:answer|reply)|you(?:'re| are| keep| seem| appear| have|'ve) "
    r"(?:\w+ )?(?:going|dodging|evading|misread|misunderst\w+|mistaken|answered|mixed|confused|skipped)|be (?:more |a bit more )?(?:specific|precise|polite|civil)|"
    r"too (?:vague|general)|none the wiser|shall we|let's (?:keep|try)|(?:the )?same (?:thing|answer|reply|non-answer)|(?:i'm|i am|still) (?:none the wiser|lost|no wiser)|no wiser|"
    r"(?:i|i'm|i am|i was|i had|i'd) (?:\w+ )?(?:asked|asking|meant|hoping for|hoped for|enquiring)|asked (?:this|that|you|a few)|"
    r"(?:getting|becoming|growing) (?:\w+ ){0,2}(?:frustrat\w+|tired|tiresome|exasperated)|losing patience|my patience|patient|wast(?:e|ing) (?:of )?(?:my )?time|"
    r"no progress|not getting anywhere|getting anywhere|wires crossed|circles|disappoint\w+|frustrat\w+|unsatisfactory|rephrase|put it another way|read (?:it|that) again)\b",
    re.IGNORECASE,
)  # fmt: skip
_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|has|had|have|do|does|did|can|will|would|could|should|shall|may|might|must|get|gets|got|go|goes|came|comes|"
    r"keeps?|takes?|makes?|says?|said|lets?|gave|gives?|turned|turns|needs?|wants?|he|she|they|it|who)|'s|'re|'ll|'ve|'d|n't)\b",
    re.IGNORECASE,
)
_REACTION = re.compile(
    r"^(?:(?:oh|ok|okay|ah|right|well|great|good|perfect|lovely|brilliant|super|nice|fine|yes|no|sure|thanks?|cool)\b[ ,.!]*)*"
    r"(?:i (?:see|get it|remain|beg|trust|should be|would be|was polite|agree|understand|appreciate|thank|bet|like that|hadn't|had not|shall|'ll|will|can do|can manage|can live|could do|might|think)|i'll|i'd better|that|this|it|sounds|makes|"
    r"you(?:'re| are|'ve| have)?|those|these|then|thank|thanks|much obliged|\w+ (?:sounds|makes|suits|works|fits|seems|will do|it is)|fair|understood|noted|hope)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(?<=[.!?\u2026])[\"')]*\s+|\n+|\s+(?:-|\u2013|\u2014)\s+")
_AND_I = re.compile(r",? (?:and|but) (?=(?:i|i'm|i've|my|we|our|we're)\b)|; ", re.IGNORECASE)
_SHORT = {v: k for k, v in TEXTING.items() if len(v) > 1} | {"ur": "your"}
_LETTERS = {v: k for k, v in TEXTING.items() if len(v) == 1}
_APOSTROPHE = {
    "im": "I'm", "ive": "I've", "dont": "don't", "doesnt": "doesn't", "didnt": "didn't", "cant": "can't", "wont": "won't", "isnt": "isn't",
    "whats": "what's", "thats": "that's", "theres": "there's", "youre": "you're", "couldnt": "couldn't", "wasnt": "wasn't", "havent": "haven't", "lets": "let's",
}  # fmt: skip
_TOKEN = re.compile(r"[\w'/]+")


def plain(text: str) -> str:
    """Write texting shorthand and lost apostrophes out: "wat r u after" -> "what are you after".

    Single letters stand for words only where other shorthand does.
    """
    text = text.replace("\u2019", "'")
    short = any(t.lower() in _SHORT for t in _TOKEN.findall(text))

    def long(m: re.Match) -> str:
        w = m[0].lower()
        return _SHORT.get(w) or _APOSTROPHE.get(w) or (_LETTERS.get(w) if short else None) or m[0]

    text = _TOKEN.sub(long, text)
    text = re.sub(r"(?<!\bis )(?<!\bam )(?<!\bare )(?<!\bwas )\b[Ii]ll (?=[a-z])", "I'll ", text)
    return re.sub(r"\b[Ii]d (?=like|love|rather|want|need|be|have|been|say|prefer)", "I'd ", text)


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return a word without its commonest endings: "walls" -> "wall", "inspecting" -> "inspect"."""
    word = re.sub(r"'(?:s|re|ve|d|ll|m|t)?$", "", word)
    for ending, new in (
        ("ies", "y"),
        ("sses", "ss"),
        ("ing", ""),
        ("ed", ""),
        ("es", "e"),
        ("s", ""),
    ):
        if (
            word.endswith(ending)
            and len(word) - len(ending) >= 3
            and not word.endswith(("ss", "us"))
        ):
            word = word[: -len(ending)] + new
            break
    word = word[:-1] if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "ls" else word
    return word[:-1] if len(word) > 4 and word[-1] == "e" else word


@lru_cache(maxsize=200_000)
def content(text: str) -> tuple[str, ...]:
    """Return the stems of a text's content words, in order: function words and empty words are left out.

    >>> content("Could you tell me who should inspect the walls?")
    ('inspect', 'wall')
    """
    return tuple(
        stem(w)
        for w in words(plain(text))
        if w.replace("'", "") not in FUNCTION_WORDS and w not in FUNCTION_WORDS and w not in _EMPTY
    )


def sentences(turn: str) -> list[str]:
    """Split a turn into sentences, each written out (`plain`)."""
    return [s.strip() for s in _ENDS.split(plain(turn)) if s and re.search(r"\w", s)]


def read_turn(turn: str, reply: str = "") -> list[tuple[str, str]]:
    """Return what a turn asks for and tells of its user: ("request" or "self", the matter).

    Args:
        turn: as typed.
        reply: what the assistant said before it. A statement made of its words is a reaction to it
            and tells nothing of the user.
    """
    if is_closing(turn):
        return []
    out = []
    for sentence in sentences(turn):
        for part in _AND_I.split(sentence):
            out += _read(part.strip(" ,;"), set(content(reply)))
    return list(dict.fromkeys(out))


def _read(text: str, heard: set[str]) -> list[tuple[str, str]]:
    asks = "?" in text[-4:]
    bare = _TAIL.sub("", _LEAD.sub("", text.rstrip("?!. \"'")))
    frame = _FRAME.search(bare)
    if frame and content(bare[frame.end() :]):
        before = bare[: frame.start()]
        return (_tell(before, heard) if len(before.split()) > 3 else []) + [
            ("request", bare[frame.end() :].strip(" ,:"))
        ]
    for wh in re.finditer(rf"\b{_WH}", bare, re.IGNORECASE):
        clause, first = bare[wh.start() :], not bare[: wh.start()].strip()
        if not content(clause) or len(clause.split()) < 3:
            continue
        sure = asks or _SURE.match(clause)
        if (first and sure) or (
            not first
            and _INQUIRY.search(bare[: wh.start()])
            and (sure or not _SELF.match(clause[wh.end() - wh.start() :].strip()))
        ):
            return [("request", clause)]
    if asks or _AUX.match(bare):
        return [("request", bare)] if content(bare) and not _PUSHBACK.search(text) else []
    need = _NEED.search(bare)
    if need and content(bare[need.end() :]) and not _PUSHBACK.search(text):
        return [("request", bare[need.end() :].strip())]
    if (_ORDER.match(bare) or re.search(r"\b(?:please|help)$", bare)) and content(bare):
        return (
            []
            if _PUSHBACK.search(text)
            else [("request", re.sub(r",? (?:please|help)$", "", bare))]
        )
    return _tell(bare, heard) or _fragment(bare, heard)


def _fragment(text: str, heard: set[str]) -> list[tuple[str, str]]:
    """Return a request typed as a bare phrase, "restaurants in Porto worth the money"."""
    said = content(text)
    if len(said) < 2 or _VERB.search(text) or _SELF.search(text) or _PUSHBACK.search(text):
        return []
    reaction = _REACTION.match(text) or sum(s in heard for s in said) * 3 > len(said)
    return [] if reaction else [("request", text)]


def _tell(text: str, heard: set[str]) -> list[tuple[str, str]]:
    """Return a statement that tells of the user, unless it is a reaction or about the reply."""
    said = content(text)
    if len(said) < 2 or not _SELF.search(text) or _PUSHBACK.search(text) or _REACTION.match(text):
        return []
    if sum(s in heard for s in said) * 3 > len(said):
        return []
    return [("self", text.strip(" ,;:"))]


def keywords(texts: Sequence[str]) -> frozenset[str]:
    """Return the stems of all content words of some texts."""
    return frozenset(s for t in texts for s in content(t))
