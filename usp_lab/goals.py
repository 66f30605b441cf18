"""What turns of the population's users ask for: the goals' tables, and the finder that reads them off text.

It is the population's truth checker for goals, and how scripted assistants understand a turn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np

from usp_lab.surface import TEXTING
from usp_lab.users import tables

_SENTENCE, _WORD = re.compile(r"(?<=[.?!])\s+"), re.compile(r"[a-z0-9/]+")
# Weight of shared n-gram mass against cosine, of the topic's best phrasing, of named slot values, of
# the topic on the table; the least score that counts as an ask.
_MASS, _TOPIC, _NAMED, _IN_TOPIC, _FOUND = 0.4, 0.15, 0.3, 1.6, 0.55


def fill(text: str, slots: dict[str, str]) -> str:
    """Put slot values into a table's text, with a capital at its start."""
    text = re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], text)
    return text[:1].upper() + text[1:]


def goal_of(topic: str, key: str) -> dict:
    """Return a goal's table."""
    return next(g for g in tables()["topics"][topic]["goal"] if g["key"] == key)


@dataclass(frozen=True)
class Intent:
    """What a turn asks for: a goal of a topic, or (``answer`` set) the follow-up on that answer."""

    topic: str
    goal: str
    answer: int | None = None
    score: float = 1.0


def plain(text: str) -> str:
    """Return text as it is compared: lower case, no apostrophes, texting shorthand written out."""
    text = re.sub(r"\s+", " ", text.strip().lower().replace("'", ""))
    return _WORD.sub(lambda m: _longhand().get(m[0], m[0]), text)


@lru_cache(maxsize=1)
def _longhand() -> dict[str, str]:
    return {short: long.replace("'", "") for long, short in reversed(TEXTING.items())}


class GoalFinder:
    """Finds the goal that a turn asks for, by character n-grams against every phrasing.

    A phrasing's score is a mean of its best cosine with one to three sentences of the turn and of
    the share of its n-grams' mass that the whole turn holds (found even if nothing is punctuated);
    it grows with the topic's slot values in the turn and with how well anything else of the topic,
    asides included, matches. It is the population's truth checker for goals; `01_data` reports its
    accuracy on turns whose goal is known.
    """

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts, self._intents, starts, self._values = [], [], [], {}
        for topic in tables()["topics"].values():
            starts.append(len(texts))
            for goal in topic["goal"]:
                asks = [
                    t for r in ("blunt", "plain", "roundabout", "later", "push") for t in goal[r]
                ]
                asks.append(goal["title"])  # as profiles, and requests made of it, name the goal
                follows = [a["follow"]["ask"] for a in goal["answer"]]
                texts += asks + follows
                self._intents += [Intent(topic["key"], goal["key"])] * len(asks)
                self._intents += [Intent(topic["key"], goal["key"], i) for i in range(len(follows))]
            asides = [t for a in topic["aside"] for t in a["text"]]
            texts, self._intents = texts + asides, self._intents + [None] * len(asides)
            for value in (v for values in topic["slots"].values() for v in values):
                self._values.setdefault(tuple(_WORD.findall(plain(value))), set()).add(
                    len(starts) - 1
                )
        self._topics, self._lengths = (
            list(tables()["topics"]),
            sorted({len(v) for v in self._values}),
        )
        self._starts, self._sizes = np.array(starts), np.diff([*starts, len(texts)])
        self._asks = np.array([i is not None for i in self._intents])
        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32
        )
        matrix = self._vectorizer.fit_transform([plain(re.sub(r"\{\w+\}", " ", t)) for t in texts])
        self._cosine, self._mass = matrix.T.tocsr(), matrix.power(2).T.tocsr()

    def find(
        self, texts: Sequence[str], topics: Sequence[str | None] | None = None
    ) -> list[Intent | None]:
        """Return per turn the intent it expresses, or None; ``topics``: those on the table."""
        topics, out = topics or [None] * len(texts), []
        for i in range(0, len(texts), 64):  # bounds memory
            for text, topic, score in zip(
                texts[i : i + 64], topics[i : i + 64], self._scores(texts[i : i + 64]), strict=True
            ):
                of_topic = np.maximum.reduceat(score, self._starts)
                weight = 1 + _NAMED * self._named(text)
                if topic is not None:
                    weight[self._topics.index(topic)] *= _IN_TOPIC
                score = (
                    (score + _TOPIC * np.repeat(of_topic, self._sizes))
                    * np.repeat(weight, self._sizes)
                    * self._asks
                )
                best = int(score.argmax())
                intent = self._intents[best]
                out.append(
                    replace(intent, score=float(score[best])) if score[best] >= _FOUND else None
                )
        return out

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the similarity of every text with every phrasing, shape (texts, phrasings)."""
        parts = [_parts(plain(t)) for t in texts]
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        vectors = self._vectorizer.transform([p for group in parts for p in group])
        cosine = np.maximum.reduceat((vectors @ self._cosine).toarray(), starts)
        whole = vectors[starts]
        whole.data[:] = 1.0
        return (1 - _MASS) * cosine + _MASS * (whole @ self._mass).toarray()

    def _named(self, text: str) -> np.ndarray:
        """Return per topic whether the text names its slot values: 1 for one no other topic has."""
        words, out = _WORD.findall(plain(text)), np.zeros(len(self._topics), np.float32)
        for n in self._lengths:
            for i in range(len(words) - n + 1):
                topics = list(self._values.get(tuple(words[i : i + n]), ()))
                out[topics] = np.maximum(out[topics], 1 / max(len(topics), 1))
        return out


def _parts(text: str) -> list[str]:
    """Return the text and its runs of one to three sentences."""
    sentences = [s for s in _SENTENCE.split(text) if s]
    runs = [
        " ".join(sentences[i : i + n]) for n in (1, 2, 3) for i in range(len(sentences) - n + 1)
    ]
    return list(dict.fromkeys([text, *runs]))


@lru_cache(maxsize=1)
def goal_finder() -> GoalFinder:
    """Return the one finder of this process (a second to build)."""
    return GoalFinder()


@lru_cache(maxsize=128)
def _slot_words(topic: str) -> list[tuple[str, str, list[str]]]:
    pairs = [
        (name, v) for name, values in tables()["topics"][topic]["slots"].items() for v in values
    ]
    return [(n, v, _WORD.findall(plain(v))) for n, v in sorted(pairs, key=lambda p: -len(p[1]))]


def read_slots(texts: Sequence[str], topic: str, default: Random) -> dict[str, str]:
    """Return the topic's slots as the turns name them, one slip a word; the rest is drawn."""
    slots = {
        name: default.choice(values) for name, values in tables()["topics"][topic]["slots"].items()
    }
    words, named = _WORD.findall(plain(" ".join(texts))), set()
    for same in (str.__eq__, _alike):
        for name, value, wanted in _slot_words(topic):
            spans = range(len(words) - len(wanted) + 1)
            if name not in named and any(all(map(same, words[i:], wanted)) for i in spans):
                slots[name] = value
                named.add(name)
    return slots


def _alike(word: str, wanted: str) -> bool:
    """Tell whether a word is the wanted one, but for letters exchanged, dropped or doubled once."""
    if word == wanted or min(len(word), len(wanted)) < 4 or word[0] != wanted[0]:
        return word == wanted
    if len(word) == len(wanted):
        return sorted(word) == sorted(wanted)
    long, short = sorted((word, wanted), key=len, reverse=True)
    return len(long) == len(short) + 1 and any(
        long[:i] + long[i + 1 :] == short for i in range(1, len(long))
    )
