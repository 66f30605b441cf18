"""Scripted assistants of known helpfulness.

An assistant is anything with ``reply(batch, seeds) -> list[Utterance | str]``, where a batch is a
list of dialogues (messages) that end with a user turn. The scripted ones answer out of the
population's tables, help with a known probability, and say in ``Utterance.meta`` what they did, so
that goals met and annoyance have a truth. They read the text alone (never the user's hidden state),
so they also serve trained simulators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from usp_lab.chat import Message, Utterance, is_closing
from usp_lab.errors import UspError
from usp_lab.goals import Intent, fill, goal_finder, goal_of, read_slots
from usp_lab.users import tables

# What an assistant does when it does not help (weights), and how often four graded assistants help.
FAILURES = {"vague": 0.5, "wrong": 0.2, "refuse": 0.15, "rude": 0.15}
HELPFULNESS = {"good": 0.95, "fair": 0.75, "poor": 0.45, "bad": 0.15}
_TAKES_UP = 0.6  # how often a reply begins with what was asked, as assistants will
_SURE = 1.1  # the least score of an ask in a turn that sounds like a goodbye


@dataclass(frozen=True)
class ScriptedAssistant:
    """Helps with probability ``helpfulness`` at each request; else is vague, wrong or unkind."""

    helpfulness: float
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.helpfulness <= 1:
            raise UspError(f"helpfulness must lie between 0 and 1, not {self.helpfulness}")

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Answer the last user turn of each dialogue; same dialogue and seed, same reply."""
        user_turns = [[m["content"] for m in messages if m["role"] == "user"] for messages in batch]
        before = [_last_meta(messages) for messages in batch]
        known = [meta.get("topic") for meta in before]
        asked = goal_finder().find([turns[-1] for turns in user_turns], known)
        out = []
        for turns, meta, intent, seed in zip(user_turns, before, asked, seeds, strict=True):
            rng = Random(f"assistant/{seed}/{len(turns)}")
            closing = (
                len(turns) > 1
                and is_closing(turns[-1])
                and (intent is None or intent.score < _SURE)
            )
            if intent is None and meta.get("kind") in FAILURES and meta["goal"]:
                intent = Intent(
                    meta["topic"], meta["goal"]
                )  # not helped last time: still the same request
            if closing or (intent is None and len(turns) > 1):
                out.append(self.welcome(meta, rng))
                continue
            if intent is None:
                out.append(self.at_a_loss(rng))
                continue
            slots = read_slots(turns, intent.topic, Random(f"slots/{seed}"))
            out.append(self.respond(intent, slots, meta, rng))
        return out

    def welcome(self, meta: dict, rng: Random) -> Utterance:
        """Answer a turn that asks nothing: thanks and goodbyes."""
        kind = "parting" if meta.get("kind") in FAILURES else "welcome"
        text = rng.choice(tables()["reactions"]["assistant"][kind]["text"])
        return Utterance(
            text, {"kind": "welcome", "topic": meta.get("topic"), "goal": None, "met": []}
        )

    def at_a_loss(self, rng: Random) -> Utterance:
        """Answer an opening that asks for nothing in the tables."""
        text = rng.choice(tables()["reactions"]["assistant"]["vague"]["text"])
        return Utterance(
            text, {"kind": "vague", "topic": None, "goal": None, "met": [], "text": text}
        )

    def respond(
        self, intent: Intent, slots: dict[str, str], before: dict, rng: Random
    ) -> Utterance:
        """Help or fail. ``before``: the meta of the assistant's previous reply, {} at the opening."""
        say = tables()["reactions"]["assistant"]
        goal = goal_of(intent.topic, intent.goal)
        failed_before = before.get("kind") in FAILURES
        if rng.random() >= self.helpfulness:
            return self._fail(intent, goal, slots, before, rng)
        if intent.answer is not None:
            answer = goal["answer"][intent.answer]
            filled = {**slots, **_answer_slots(answer, before, intent, rng)}
            text, kind, met, i = (
                fill(answer["follow"]["reply"], filled),
                "follow",
                [],
                intent.answer,
            )
        else:
            i = rng.randrange(len(goal["answer"]))
            answer = goal["answer"][i]
            filled = {**slots, **_answer_slots(answer, {}, intent, rng)}
            text, kind, met = (
                fill(answer["reply"], filled),
                "answer",
                [goal["key"], *filter(None, [answer.get("also")])],
            )
            bare, text = text, _taking_up(goal, slots, text, rng)
            if failed_before and rng.random() < 0.5:
                text = f"{rng.choice(say['sorry']['text'])} {text}"
            elif text == bare and rng.random() < 0.25:
                text = f"{rng.choice(say['lead']['text'])} {text}"
            if rng.random() < 0.12:
                text = f"{text} {rng.choice(say['check_back']['text'])}"
        meta = {
            "kind": kind,
            "topic": intent.topic,
            "goal": goal["key"],
            "answer": i,
            "slots": filled,
            "met": met,
        }
        return Utterance(text, meta)

    def _fail(
        self, intent: Intent, goal: dict, slots: dict[str, str], before: dict, rng: Random
    ) -> Utterance:
        kind, met = rng.choices(list(FAILURES), list(FAILURES.values()))[0], []
        if kind == "wrong":  # the answer to another goal, which is thereby met in passing
            other = rng.choice(
                [g for g in tables()["topics"][intent.topic]["goal"] if g["key"] != goal["key"]]
            )
            answer, met = rng.choice(other["answer"]), [other["key"]]
            text = fill(answer["reply"], {**slots, **_answer_slots(answer, {}, intent, rng)})
        else:
            texts = (
                goal["vague"]
                if kind == "vague" and rng.random() < 0.6
                else tables()["reactions"]["assistant"][kind]["text"]
            )
            text = rng.choice(
                [t for t in (fill(t, slots) for t in texts) if t != before.get("text")]
            )
        said = _taking_up(goal, slots, text, rng) if kind in ("wrong", "vague") else text
        return Utterance(
            said,
            {"kind": kind, "topic": intent.topic, "goal": goal["key"], "met": met, "text": text},
        )


def _taking_up(goal: dict, slots: dict[str, str], text: str, rng: Random) -> str:
    """Return a reply, mostly behind words that repeat what was asked; `text` may miss the point."""
    if rng.random() >= _TAKES_UP:
        return text
    words = rng.choice(tables()["reactions"]["assistant"]["take_up"]["text"])
    return f"{fill(words.replace('{title}', goal['title']), slots)} {text}"


def scripted(name: str) -> ScriptedAssistant:
    """Return one of the graded assistants: good, fair, poor, bad."""
    if name not in HELPFULNESS:
        raise UspError(f"no scripted assistant {name!r}; choose one of {', '.join(HELPFULNESS)}")
    return ScriptedAssistant(HELPFULNESS[name], name)


def _answer_slots(answer: dict, before: dict, intent: Intent, rng: Random) -> dict[str, str]:
    """Values for an answer's own slots; a follow-up keeps those that the answer before it named."""
    last = tuple(before.get(k) for k in ("topic", "goal", "answer"))  # topics share names of goals
    if intent.answer is not None and last == (intent.topic, intent.goal, intent.answer):
        return {k: before["slots"][k] for k in answer["slots"]}
    return {k: rng.choice(values) for k, values in answer["slots"].items()}


def _last_meta(messages: Sequence[Message]) -> dict:
    return next((m.get("meta", {}) for m in reversed(messages) if m["role"] == "assistant"), {})
