"""Scripted assistants of known helpfulness, and the finder that understands what a user's turn asks for.

An assistant is anything with ``reply(batch, seeds) -> list[Utterance | str]``, where a batch is a list of dialogues (messages) that end with a user
turn. The scripted ones answer out of the population's tables, help with a known probability, and say in ``Utterance.meta`` what they did, so that goals
met and annoyance have a truth. They read the text alone (never the user's hidden state), so they also serve trained simulators.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from usp_lab.chat import Message, Utterance, is_closing
from usp_lab.errors import UspError
from usp_lab.users import tables

# What an assistant does when it does not help (weights), and how often four graded assistants help.
FAILURES = {"vague": 0.5, "wrong": 0.2, "refuse": 0.15, "rude": 0.15}
HELPFULNESS = {"good": 0.95, "fair": 0.75, "poor": 0.45, "bad": 0.15}
_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n+")
_IN_TOPIC, _FOUND = 1.35, 0.34  # bonus of the topic on the table; the least similarity that counts as an ask


def fill(text: str, slots: dict[str, str]) -> str:
    """Put slot values into a table's text, with a capital at its start."""
    text = re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], text)
    return text[:1].upper() + text[1:]


def goal_of(topic: str, key: str) -> dict:
    """Return a goal's table."""
    return next(g for g in tables()["topics"][topic]["goal"] if g["key"] == key)


@dataclass(frozen=True)
class Intent:
    """What a user's turn asks for: a goal of a topic, or (``answer`` set) the follow-up question on that answer."""

    topic: str
    goal: str
    answer: int | None = None
    score: float = 1.0


class GoalFinder:
    """Finds the goal that a turn asks for by character n-grams against every phrasing in the tables.

    It is the population's truth checker for goals; `01_data` reports its accuracy on turns whose goal is known.
    """

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        entries, self.intents = [], []
        for topic in tables()["topics"].values():
            for goal in topic["goal"]:
                asks = [t for r in ("blunt", "plain", "roundabout", "later", "push") for t in goal[r]]
                entries += [(t, Intent(topic["key"], goal["key"])) for t in asks]
                follows = [(a["follow"]["ask"], i) for i, a in enumerate(goal["answer"])]
                entries += [(t, Intent(topic["key"], goal["key"], i)) for t, i in follows]
        self._values = {key: sorted(map(str.lower, sum(t["slots"].values(), [])), key=len, reverse=True) for key, t in tables()["topics"].items()}
        self.intents = [intent for _, intent in entries]
        self._topics = np.array([i.topic for i in self.intents])
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
        self._matrix = self._vectorizer.fit_transform([re.sub(r"\{\w+\}", " ", t) for t, _ in entries]).T.tocsc()

    def find(self, texts: Sequence[str], topics: Sequence[str | None] | None = None) -> list[Intent | None]:
        """Return per turn the intent it expresses, or None. ``topics``: the topic on the table, where one is."""
        topics = topics or [None] * len(texts)
        parts = [self._parts(text, topic) for text, topic in zip(texts, topics, strict=True)]
        flat = [p for group in parts for p in group]
        if not flat:
            return [None] * len(texts)
        scores = (self._vectorizer.transform(flat) @ self._matrix).toarray()
        out, row = [], 0
        for group, topic in zip(parts, topics, strict=True):
            best = scores[row : row + len(group)].max(axis=0)
            row += len(group)
            if topic is not None:
                best = np.where(self._topics == topic, best * _IN_TOPIC, best)
            i = int(best.argmax())
            intent = self.intents[i]
            found = best[i] >= _FOUND
            out.append(Intent(intent.topic, intent.goal, intent.answer, float(best[i])) if found else None)
        return out

    def _parts(self, text: str, topic: str | None) -> list[str]:
        text = re.sub(r"\s+", " ", text.strip())
        for value in self._values.get(topic, ()):  # a slot's value says nothing about the goal
            text = re.sub(re.escape(value), " ", text, flags=re.IGNORECASE)
        parts = dict.fromkeys([text, *_SENTENCE.split(text)])
        return [p for p in parts if len(p) > 3] or [text]


@lru_cache(maxsize=1)
def goal_finder() -> GoalFinder:
    """Return the one finder of this process (a second to build)."""
    return GoalFinder()


@lru_cache(maxsize=1)
def _slot_values() -> dict[str, list[tuple[str, str, re.Pattern]]]:
    out = {}
    for key, topic in tables()["topics"].items():
        pairs = [(name, v) for name, values in topic["slots"].items() for v in values]
        pairs.sort(key=lambda p: -len(p[1]))
        out[key] = [(n, v, re.compile(rf"(?<!\w){re.escape(v)}(?!\w)", re.IGNORECASE)) for n, v in pairs]
    return out


def read_slots(texts: Sequence[str], topic: str, default: Random) -> dict[str, str]:
    """Return the topic's slots as the user's turns name them; what they do not name is drawn."""
    slots = {name: default.choice(values) for name, values in tables()["topics"][topic]["slots"].items()}
    text, named = "\n".join(texts), set()
    for name, value, pattern in _slot_values()[topic]:
        if name not in named and pattern.search(text):
            slots[name] = value
            named.add(name)
    return slots


@dataclass(frozen=True)
class ScriptedAssistant:
    """Helps with probability ``helpfulness`` at each request; otherwise it is vague, off the point, unwilling or rude."""

    helpfulness: float
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.helpfulness <= 1:
            raise UspError(f"helpfulness must lie between 0 and 1, not {self.helpfulness}")

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Answer the last user turn of each dialogue; the same dialogue and seed always get the same reply."""
        user_turns = [[m["content"] for m in messages if m["role"] == "user"] for messages in batch]
        before = [_last_meta(messages) for messages in batch]
        known = [meta.get("topic") for meta in before]
        asked = goal_finder().find([turns[-1] for turns in user_turns], known)
        out = []
        for turns, meta, intent, seed in zip(user_turns, before, asked, seeds, strict=True):
            rng = Random(f"assistant/{seed}/{len(turns)}")
            if is_closing(turns[-1]) and (intent is None or intent.score < 2 * _FOUND):
                out.append(self.welcome(meta, rng))
                continue
            if intent is None and meta.get("goal") and meta["kind"] not in ("answer", "follow", "welcome"):
                intent = Intent(meta["topic"], meta["goal"])  # not helped last time: still the same request
            if intent is None:
                out.append(self.welcome(meta, rng))
                continue
            slots = read_slots(turns, intent.topic, Random(f"slots/{seed}"))
            out.append(self.respond(intent, slots, meta, rng))
        return out

    def welcome(self, meta: dict, rng: Random) -> Utterance:
        """Answer a turn that asks nothing: thanks and goodbyes."""
        kind = "parting" if meta.get("kind") in FAILURES else "welcome"
        text = rng.choice(tables()["reactions"]["assistant"][kind]["text"])
        return Utterance(text, {"kind": "welcome", "topic": meta.get("topic"), "goal": None, "met": []})

    def respond(self, intent: Intent, slots: dict[str, str], before: dict, rng: Random) -> Utterance:
        """Help or fail. ``before`` is the meta of this assistant's previous reply ({} at the opening)."""
        say = tables()["reactions"]["assistant"]
        goal = goal_of(intent.topic, intent.goal)
        failed_before = before.get("kind") in FAILURES
        if rng.random() >= self.helpfulness:
            return self._fail(intent, goal, slots, before, rng)
        if intent.answer is not None:
            answer = goal["answer"][intent.answer]
            filled = {**slots, **_answer_slots(answer, before, intent, rng)}
            text, kind, met, i = fill(answer["follow"]["reply"], filled), "follow", [], intent.answer
        else:
            i = rng.randrange(len(goal["answer"]))
            answer = goal["answer"][i]
            filled = {**slots, **_answer_slots(answer, {}, intent, rng)}
            text, kind, met = fill(answer["reply"], filled), "answer", [goal["key"], *filter(None, [answer.get("also")])]
            if failed_before and rng.random() < 0.5:
                text = f"{rng.choice(say['sorry']['text'])} {text}"
            elif rng.random() < 0.25:
                text = f"{rng.choice(say['lead']['text'])} {text}"
            if rng.random() < 0.12:
                text = f"{text} {rng.choice(say['check_back']['text'])}"
        meta = {"kind": kind, "topic": intent.topic, "goal": goal["key"], "answer": i, "slots": filled, "met": met}
        return Utterance(text, meta)

    def _fail(self, intent: Intent, goal: dict, slots: dict[str, str], before: dict, rng: Random) -> Utterance:
        kind, met = rng.choices(list(FAILURES), list(FAILURES.values()))[0], []
        if kind == "wrong":  # the answer to another goal, which is thereby met in passing
            other = rng.choice([g for g in tables()["topics"][intent.topic]["goal"] if g["key"] != goal["key"]])
            answer, met = rng.choice(other["answer"]), [other["key"]]
            text = fill(answer["reply"], {**slots, **_answer_slots(answer, {}, intent, rng)})
        else:
            texts = goal["vague"] if kind == "vague" and rng.random() < 0.6 else tables()["reactions"]["assistant"][kind]["text"]
            text = rng.choice([t for t in (fill(t, slots) for t in texts) if t != before.get("text")])
        return Utterance(text, {"kind": kind, "topic": intent.topic, "goal": goal["key"], "met": met, "text": text})


def scripted(name: str) -> ScriptedAssistant:
    """Return one of the graded assistants: good, fair, poor, bad."""
    if name not in HELPFULNESS:
        raise UspError(f"no scripted assistant {name!r}; choose one of {', '.join(HELPFULNESS)}")
    return ScriptedAssistant(HELPFULNESS[name], name)


def _answer_slots(answer: dict, before: dict, intent: Intent, rng: Random) -> dict[str, str]:
    """Values for an answer's own slots; a follow-up keeps those that the answer before it named."""
    if before.get("answer") == intent.answer and before.get("goal") == intent.goal and intent.answer is not None:
        return {k: before["slots"][k] for k in answer["slots"]}
    return {k: rng.choice(values) for k, values in answer["slots"].items()}


def _last_meta(messages: Sequence[Message]) -> dict:
    return next((m.get("meta", {}) for m in reversed(messages) if m["role"] == "assistant"), {})
