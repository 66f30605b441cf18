"""Atomic facts: what a profile says of its user, and what a user's turns ask for and give away.

    profile_facts("You have two sons. You are thinking about damp and want to find out who inspects a wall.")
    dialogue_facts(dialogue.messages)

Both come as verb phrases whose subject is the user ("has two sons", "wants to know who inspects a wall"),
so that one side can be held against the other. By rules here, by a language model in `facts_llm`. Objective
facts only, as the DPC of the paper (arXiv 2502.18968) has it: manner and temper are no atomic facts.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from usp_lab.chat import Message
from usp_lab.persona import first_person, read_persona, someone_who
from usp_lab.profiles import split_profile
from usp_lab.utterances import content, read_turn, sentences

WANTS, THINKS = "wants to know ", "is thinking about "
KINDS = ("request", "topic", "self")  # what a fact is about: a wish, its subject, the user
_CORE = re.compile(
    r"^(?:the user(?:'s)? )?(?:(?:also )?(?:wants|asks|needs|seeks) (?:to know|to find out|for|about|whether)? ?|is thinking about )?",
    re.IGNORECASE,
)
_UNIT = 600  # characters of one premise at the most, about 150 tokens: encoders cut at 128 to 512
_LONG = 25  # words of a sentence that is cut at its conjunctions


@dataclass(frozen=True)
class Fact:
    """One thing said of a user.

    Attributes:
        text: a verb phrase whose subject is the user, or "their ...".
        kind: one of `KINDS`.
        turn: the user turn that says it, from 0; -1 for a profile's.
    """

    text: str
    kind: str
    turn: int = -1

    @property
    def sentence(self) -> str:
        """The fact as a sentence, which is what entailment is asked about.

        >>> Fact("their kids are small", "self").sentence, Fact("has a dog", "self").sentence
        ("The user's kids are small", 'The user has a dog')
        """
        if self.text.startswith("their "):
            return f"The user's {self.text[6:]}"
        return f"The user {self.text}"


@dataclass(frozen=True)
class Facts:
    """The facts of one text; where there are none, ``reason`` says why it cannot be scored."""

    items: tuple[Fact, ...] = ()
    reason: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The facts as sentences."""
        return tuple(f.sentence for f in self.items)


@lru_cache(maxsize=50_000)
def profile_facts(profile: str | None) -> Facts:
    """Split a profile's objective half into facts: its clauses, its topic, each thing it wants to know.

    >>> profile_facts("You have two sons. You are thinking about jam and want to find out what it costs.").sentences
    ('The user has two sons', 'The user is thinking about jam', 'The user wants to know what it costs')
    """
    text, out = split_profile(profile or "")[0], []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+|;\s+", text):
        for part in _parts(sentence.strip()):
            out += _of_sentence(part)
    items = tuple(dict.fromkeys(f for f in out if f.kind == "request" or content(core(f.text))))
    if items:
        return Facts(items)
    empty = "no objective half in the profile" if (profile or "").strip() else "no profile"
    return Facts(reason="no fact in the profile" if text else empty)


def _parts(sentence: str) -> list[str]:
    if len(sentence.split()) <= _LONG or read_persona(sentence).wants:
        return [sentence] if sentence else []
    cut = re.split(r", (?:and|but|while|whereas|who|which) (?=\w+ \w+ \w+)", sentence)
    return [c if i == 0 else _with_subject(c) for i, c in enumerate(cut)]


def _with_subject(clause: str) -> str:
    """Give back its subject to a clause that was cut off: "own a dog" -> "You own a dog"."""
    return (
        clause
        if re.match(r"(?:you|your|the|this|they|he|she)\b", clause, re.I)
        else f"You {clause}"
    )


def _of_sentence(sentence: str) -> list[Fact]:
    persona = read_persona(sentence)
    out = [Fact(_of_user(f.clause), "self") for f in persona.facts]
    if persona.topic:
        out.append(Fact(THINKS + third_person(first_person(persona.topic)), "topic"))
    out += [Fact(WANTS + third_person(w), "request") for w in persona.wants]
    if not out and len(sentence.split()) > 1:  # a form that the reader does not know: kept whole
        out.append(Fact(_of_user(first_person(sentence.rstrip(".!? "))), "self"))
    return out


def _of_user(clause: str) -> str:
    """Return a first-person clause as a phrase whose subject is the user."""
    clause = re.sub(r"^i\b", "I", clause.strip())
    if (phrase := someone_who(clause)) and not _NO_VERB.match(clause):
        return phrase
    text = third_person(clause)
    text = text[:1].lower() + text[1:]
    return text if text.startswith("their ") else f"says that {text}"


def third_person(text: str) -> str:
    """Turn what I say into what is said of the user.

    >>> third_person("My kids wake me up"), third_person("how long I should wait")
    ('their kids wake them up', 'how long they should wait')
    """
    for pattern, new in _SWAPS:
        text = pattern.sub(new, text)
    return text


_NO_VERB = re.compile(r"I (?:either|neither|rely)\b")  # what follows is no verb
_SWAPS = [
    (re.compile(rf"\b(?:{old})\b", re.IGNORECASE), new)
    for old, new in (
        ("i'm|i am|im", "they are"), ("i've|ive", "they have"), ("i'd", "they would"), ("i'll", "they will"), ("i was", "they were"),
        ("we're", "they are"), ("we've", "they have"), ("myself|ourselves", "themselves"), ("mine|ours", "theirs"), ("my|our", "their"),
        ("(?-i:[Mm]e|us)", "them"), ("(?<![.'])i(?![.'])|we", "they"),
    )
]  # fmt: skip


def dialogue_facts(messages: Sequence[Message]) -> Facts:
    """Return what the user's turns ask for and tell of the user, each thing once.

    Greetings, thanks, push-back and reactions to a reply are left out. An assistant's turns are read
    for one purpose alone: a statement made of the reply's words is a reaction to it.

    >>> dialogue_facts([{"role": "user", "content": "hi! my girls are four. any idea what to cook?"}]).sentences
    ("The user's girls are four", 'The user wants to know what to cook')
    """
    out, reply, turn = {}, "", 0
    for m in messages:
        if m["role"] == "assistant":
            reply = m["content"]
        elif m["role"] == "user":
            for kind, text in read_turn(m["content"], reply):
                fact = _said(kind, text, turn)
                out.setdefault(fact.text.lower(), fact)
            turn += 1
    reason = "" if out else ("no fact in the user's turns" if turn else "no user turn")
    return Facts(tuple(out.values()), reason)


def _said(kind: str, text: str, turn: int) -> Fact:
    if kind == "self":
        return Fact(_of_user(text), kind, turn)
    text = third_person(text[:1].lower() + text[1:] if text[1:2].islower() else text)
    return Fact(WANTS + _INVERTED.sub(r"\1 \3 \2 ", _DO.sub(r"\1 \2 ", text)), kind, turn)


# "how should they wait" -> "how they should wait", "where do they go" -> "where they go".
_ASKED = r"^((?:how|what|which|where|when|why|whom?)\b(?: [\w-]+){0,2}?)"
_INVERTED = re.compile(
    rf"{_ASKED} (should|can|could|would|will|must|is|are|was|has) (they|it|that|this|one|there) ",
    re.I,
)
_DO = re.compile(rf"{_ASKED} do (they|you|people|we) ", re.IGNORECASE)


def core(text: str) -> str:
    """Return a fact without the words that all facts share.

    >>> core("The user wants to know how to plaster"), core("The user has two sons")
    ('how to plaster', 'has two sons')
    """
    return _CORE.sub("", text, count=1) or text


def kind_of(text: str) -> str:
    """Return the kind of a fact by its words, as it is where only its text is at hand.

    >>> kind_of("The user wants to know why"), kind_of("The user has a dog")
    ('request', 'self')
    """
    text = re.sub(r"^the user(?:'s)? ", "", text, flags=re.IGNORECASE)
    if text.startswith(THINKS.strip()):
        return "topic"
    return "request" if re.match(r"(?:also )?(?:wants|asks|needs|seeks)\b", text) else "self"


def premises(turns: Sequence[str]) -> list[tuple[int, str]]:
    """Return (turn, sentence) of all that may support a fact by itself.

    Sentence by sentence, since a fact is not drowned by its neighbours then (SummaC, Laban et al., TACL 2022).
    Whole turns beside them changed no AUC by 0.003 on development users. A very long sentence comes in pieces.
    """
    return list(
        dict.fromkeys(
            (i, piece)
            for i, turn in enumerate(turns)
            for text in sentences(turn)
            for piece in textwrap.wrap(text, _UNIT)
        )
    )


class RuleFacts:
    """Reads facts by the rules of this module, of many texts at once."""

    identity = "rules"

    def profiles(self, profiles: Sequence[str | None]) -> list[Facts]:
        """Return each profile's facts (`profile_facts`)."""
        return [profile_facts(p) for p in profiles]

    def dialogues(self, dialogues: Sequence[Sequence[Message]]) -> list[Facts]:
        """Return each dialogue's facts (`dialogue_facts`)."""
        return [dialogue_facts(m) for m in dialogues]
