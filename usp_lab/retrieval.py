"""Arm ``retrieval``: the nearest real turn.

RetrievalSimulator(corpus.train).generate([[system_message(profile)]], seeds=[0])
"""

import hashlib
from collections.abc import Sequence
from random import Random

import numpy as np

from usp_lab.chat import Message, Utterance, profile_of, system_message
from usp_lab.data import Dialogue
from usp_lab.errors import UspError

# What counts in a first look (TF-IDF cosines): the last reply, the turn before it, the first turn,
# the profile. Then how much the second look (sentence embeddings) weighs against it.
_REPLY, _TURN, _OPENING, _PROFILE, _EMBEDDED = 1.0, 0.7, 0.5, 0.5, 1.0
_LEFT = Utterance("", {"left": True})


class RetrievalSimulator:
    """Arm ``retrieval``: says what a real user said in the nearest training context; needs no GPU.

    Contexts are compared in two steps: TF-IDF cosines over all of them, sentence embeddings over
    the best. Where the real user left, so does the simulator. A turn is not said twice.

    Args:
        train_dialogues: to take turns from; a target among them is found again, so give others.
        encoder: anything with `encoders.SentenceEncoder`'s ``encode``; the packaged MiniLM when None.
        k: a seeded choice among so many nearest; 1 is always the nearest.
        shortlist: how many contexts the embeddings look at; 0 does without them.

    Raises:
        UspError: no training dialogue, or k or shortlist out of range.
    """

    name = "retrieval"
    given = (
        "real users' training turns, and the target's profile (without one, its true first turn)"
    )

    def __init__(
        self, train_dialogues: Sequence[Dialogue], encoder=None, *, k: int = 3, shortlist: int = 6
    ) -> None:
        dialogues = [d for d in train_dialogues if d.messages]
        if not dialogues:
            raise UspError("retrieval has no training dialogue to take turns from; give some")
        if k < 1 or 0 < shortlist < k or shortlist < 0:
            raise UspError(
                f"k={k} and shortlist={shortlist}; give k of at least 1 and a shortlist of 0 (no "
                "embeddings) or at least k"
            )
        self.k, self.shortlist, self._encoder = k, shortlist, encoder
        self._index(dialogues)

    def __repr__(self) -> str:
        encoder = (getattr(self._encoder, "name", None) or "minilm") if self.shortlist else "none"
        return f"RetrievalSimulator({self._fingerprint}, {encoder}, {self.k}, {self.shortlist})"

    def _index(self, dialogues: Sequence[Dialogue]) -> None:
        """Vectorise each distinct text once; a row is a context, after a reply or before any."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        place: dict[str, int] = {}

        def known(text: str) -> int:
            return place.setdefault(text, len(place))

        openings, rows = [], []
        for d in dialogues:
            first, profile = known(d.opening), known(d.profile or "")
            openings.append((profile, d.opening))
            for i, m in enumerate(d.messages):
                if i and m["role"] == "assistant":
                    said = d.messages[i + 1]["content"] if i + 1 < len(d.messages) else ""
                    before = known(d.messages[i - 1]["content"])
                    rows.append((known(m["content"]), before, first, profile, said))
        self._texts = list(place)
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        vectors = self._vectorizer.fit_transform([t or "." for t in self._texts])
        self._openings = openings
        self._opening_profiles = vectors[[p for p, _ in openings]]
        self._rows = rows
        columns = list(zip(*rows, strict=True))[:4] if rows else [[]] * 4
        self._blocks = [vectors[list(c)].tocsr() for c in columns]
        digest = hashlib.sha256(repr((self._texts, openings, rows)).encode())
        self._fingerprint = digest.hexdigest()[:12]

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the profile's system message, or (without one) the target's true first turn.

        Raises:
            UspError: a target with neither.
        """
        if isinstance(target, str):
            return [system_message(target)]
        if target.profile is not None:
            return [system_message(target.profile)]
        if not target.messages:
            raise UspError(
                f"{target.id} has neither a profile nor a first turn to retrieve from; give one"
            )
        return [{"role": "user", "content": target.opening}]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Return the turn of a near context for each dialogue.

        ``meta`` has the similarity; an empty text is leaving where that user left.
        """
        looks = [self._shortlist(m) for m in batch]
        out = []
        for (rows, scores, turns), seed in zip(self._second_look(batch, looks), seeds, strict=True):
            if not len(rows):
                out.append(_LEFT)  # a real user has nothing more to say
                continue
            # Rounded, so that which texts an encoder saw together decides nothing.
            order = np.lexsort((rows, -np.round(scores, 4)))[: self.k]
            weights = np.exp(8 * (scores[order] - scores[order[0]]))
            i = Random(f"retrieval/{seed}").choices(order.tolist(), weights.tolist())[0]
            near = {"similarity": round(float(scores[i]), 3)}
            out.append(Utterance(turns[i], near if turns[i] else near | {"left": True}))
        return out

    def _shortlist(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return (rows, scores, what was said there) of the best contexts by TF-IDF."""
        profile = profile_of(messages) or ""
        turns = [m for m in messages if m["role"] != "system"]
        if not turns:
            scores = self._cosines(profile, self._opening_profiles)
            candidates = [text for _, text in self._openings]
        else:
            users = [m["content"] for m in turns if m["role"] == "user"]
            texts = (turns[-1]["content"], users[-1], users[0], profile)
            weights = (_REPLY, _TURN, _OPENING, _PROFILE)
            scores = np.zeros(len(self._rows), np.float32)
            for text, weight, block in zip(texts, weights, self._blocks, strict=True):
                scores += weight * self._cosines(text, block)
            scores /= sum(weights)
            candidates = [r[-1] for r in self._rows]
        said = {m["content"].lower() for m in turns if m["role"] == "user"}
        rows, kept = [], set()
        for i in np.argsort(-scores, kind="stable").tolist():
            text = candidates[i].lower()
            if text not in said and text not in kept:
                rows.append(i)
                kept.add(text)
            if len(rows) == max(self.shortlist, self.k):
                break
        return np.array(rows, int), scores[rows], [candidates[i] for i in rows]

    def _cosines(self, text: str, block) -> np.ndarray:
        return (block @ self._vectorizer.transform([text]).T).toarray()[:, 0]

    def _second_look(self, batch, looks):
        """Add the embeddings' cosine: of the last replies, or of the profile with an opening.

        Short texts alone: they take a tenth of the time that whole contexts do.
        """
        if not self.shortlist:
            return looks
        pairs = [self._pairs(m, look) for m, look in zip(batch, looks, strict=True)]
        texts = list(dict.fromkeys(t for query, near in pairs for t in (query, *near) if near))
        vectors = dict(zip(texts, np.nan_to_num(self._encode(texts)), strict=True)) if texts else {}
        out = []
        for (rows, scores, turns), (query, near) in zip(looks, pairs, strict=True):
            closeness = np.array([vectors[query] @ vectors[t] for t in near], np.float32)
            out.append((rows, (scores + _EMBEDDED * closeness) / (1 + _EMBEDDED), turns))
        return out

    def _pairs(self, messages: Sequence[Message], look) -> tuple[str, list[str]]:
        """Return what the second look compares: a text of the dialogue with one a context."""
        rows, _, turns = look
        if all(m["role"] == "system" for m in messages):
            return profile_of(messages) or "", turns
        return messages[-1]["content"], [self._texts[self._rows[i][0]] for i in rows]

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        if self._encoder is None:
            from usp_lab.models import sentence_encoder

            self._encoder = sentence_encoder()
        return self._encoder.encode(texts)
