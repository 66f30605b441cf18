"""Does a user's text show the manner and temper that a profile claims? The offline stand-in for a judge.

    reader = MannerReader().fit(corpus.train)
    reader.recovered([d.user_turns for d in simulated], [claims(t) for t in targets])

The paper's Val.Score and SC.Score ask a language model for 1 to 5 (`judges`). Here the population's truth is at
hand: a reader that knows training users alone names each attribute from the text, and what it names is held
against what the profile claims. That gives a share, 0 to 1, which is not a judge's scale.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.surface import measure_style
from usp_lab.users import STYLE, TRAITS

ATTRIBUTES = (*TRAITS, *STYLE, "patience")
_RIDGE = 30.0


def claims(dialogue: Dialogue) -> dict[str, str]:
    """Return what the subjective half of a population dialogue's own profile claims: attribute -> value.

    Raises:
        UspError: a dialogue that is not the population's.
    """
    if not dialogue.truth:
        raise UspError(
            f"{dialogue.id} is not of the population, so what its profile claims of manner is not known as "
            "values; score it with a judge"
        )
    z, shown = dialogue.truth["user"], dialogue.truth["expressed"]
    return {a: z[a] for a in ATTRIBUTES if a in shown}


class MannerReader:
    """Names temper and manner from a user's turns: ridge regression on habits, words and word pairs.

    One regression an attribute value; the value named is the one that stands out most from its base rate, so
    that the common value has no advantage. Learned on training users.

    Args:
        words: size of the vocabulary of words and pairs.
    """

    def __init__(self, words: int = 1500) -> None:
        self.words = words

    def fit(self, dialogues: Sequence[Dialogue]) -> "MannerReader":
        """Learn from the population's training dialogues.

        Raises:
            UspError: fewer than 50 dialogues with a truth.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        known = [d for d in dialogues if d.truth and any(t.strip() for t in d.user_turns)]
        if len(known) < 50:
            raise UspError(
                f"{len(known)} dialogues whose users are known; reading manner needs 50 of the population, give more"
            )
        self.vectorizer_ = TfidfVectorizer(
            ngram_range=(1, 2), max_features=self.words, token_pattern=r"\w[\w']*|\.{2,}|[^\w\s]", sublinear_tf=True, min_df=3
        ).fit(["\n".join(d.user_turns) for d in known])  # fmt: skip
        raw = self._raw([d.user_turns for d in known])
        self.mean_, self.scale_ = raw.mean(axis=0), raw.std(axis=0) + 1e-6
        x = self._features([d.user_turns for d in known])
        self.values_ = [
            (a, v) for a in ATTRIBUTES for v in sorted({d.truth["user"][a] for d in known})
        ]
        y = np.array([[d.truth["user"][a] == v for a, v in self.values_] for d in known], float)
        self.base_ = y.mean(axis=0)
        self.weights_ = np.linalg.solve(
            x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ (y - self.base_)
        )
        return self

    def name(self, texts: Sequence[Sequence[str]]) -> list[dict[str, str]]:
        """Return the value of each attribute that a user's turns suggest, one dict a text."""
        if not len(texts):
            return []
        spread = np.sqrt(self.base_ * (1 - self.base_)) + 1e-6
        scores = self._features(texts) @ self.weights_ / spread
        out = []
        for line in scores:
            best: dict[str, tuple[float, str]] = {}
            for (a, v), s in zip(self.values_, line, strict=True):
                best[a] = max(best.get(a, (-math.inf, "")), (s, v))
            out.append({a: v for a, (_, v) in best.items()})
        return out

    def recovered(
        self, texts: Sequence[Sequence[str]], told: Sequence[Mapping[str, str]]
    ) -> list[float]:
        """Share of each profile's claims that the reader names from the user's turns; 0 to 1, higher is better.

        NaN for a user who says nothing and for a profile without a claim.

        Args:
            texts: one list of user turns a dialogue.
            told: what the profiles claim, attribute -> value (`claims`).
        """
        return [
            float(np.mean([named[a] == v for a, v in claimed.items()]))
            if claimed and any(t.strip() for t in turns)
            else math.nan
            for turns, named, claimed in zip(texts, self.name(texts), told, strict=True)
        ]

    def _features(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        grams = self.vectorizer_.transform(["\n".join(t) for t in texts]).toarray()
        return np.hstack([(self._raw(texts) - self.mean_) / self.scale_, grams * math.sqrt(10)])

    @staticmethod
    def _raw(texts: Sequence[Sequence[str]]) -> np.ndarray:
        rows = [[*measure_style(t).values(), len(t)] for t in texts]
        return np.nan_to_num(np.array(rows, float))
