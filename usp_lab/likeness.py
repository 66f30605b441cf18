"""Entailment without a download: how alike a premise and a fact are, calibrated on validation users.

scorer = OfflineScorer(sentence_encoder()).fit(calibration(corpus.validation))
entailment = Entailment(scorer)
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from usp_lab.entailment import Bag, Pair
from usp_lab.errors import UspError
from usp_lab.facts import core, kind_of
from usp_lab.utterances import content

_BLOCK = 20_000  # pairs whose embeddings are held at once, 30 MB a side


class OfflineScorer:
    """Closeness in meaning and in words, weighed by a logistic regression: a stand-in for NLI.

    It sees likeness, not logic ("no children" is like "children"), and says how probable a fact is where
    half of the pairs asked about are true. What a fact is (a wish, a topic, or about the user) shifts the
    scale, since wishes name what they are about and facts of a user seldom do.

    Args:
        encoder: `encoders.SentenceEncoder`, or anything with its ``encode``.
        name: of the encoder, for the identity.
    """

    FEATURES = ("cosine", "letters", "request", "topic")

    def __init__(self, encoder, name: str = "minilm") -> None:
        self.encoder, self.name = encoder, name
        self.weights_: np.ndarray | None = None
        self._vectors: dict[str, np.ndarray] = {}

    @property
    def identity(self) -> str:
        """The encoder's name and what was learned."""
        learned = hashlib.sha256(np.asarray(self.weights_).round(6).tobytes())
        return f"offline {self.name} {learned.hexdigest()[:12]}"

    def fit(self, bags: Sequence[Bag], rounds: int = 3) -> "OfflineScorer":
        """Learn from texts that are known to support a fact or not to.

        Which of a text's premises does so is not told: in each round a bag stands for its best premise
        by the weights so far, so that what is learned fits the maximum that `Entailment.support` takes.

        Args:
            bags: as `evidence.calibration` makes them.
            rounds: how often the best premises are looked up.

        Raises:
            UspError: bags of one kind alone.
        """
        from sklearn.linear_model import LogisticRegression

        labels = np.array([b.label for b in bags])
        if not labels.any() or labels.all():
            raise UspError(
                f"{len(bags)} texts and facts to calibrate on, all of one kind; give dialogues of several users"
            )
        bags = [b for b in bags if b.premises]
        labels = np.array([b.label for b in bags])
        pairs = [(p, b.fact) for b in bags for p in b.premises]
        x = self.features(pairs)
        edges = np.cumsum([0, *(len(b.premises) for b in bags)])
        order = x[:, 0] + x[:, 1]  # to begin with, meaning and shared words weigh alike
        for _ in range(rounds):
            best = [a + int(order[a:b].argmax()) for a, b in zip(edges, edges[1:], strict=False)]
            model = LogisticRegression(class_weight="balanced", C=10.0, max_iter=2000)
            model.fit(x[best], labels)
            self.weights_ = np.append(model.coef_[0], model.intercept_)
            order = x @ self.weights_[:-1]
        return self

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return P(fact | premise) of each pair.

        Raises:
            UspError: not fitted.
        """
        if self.weights_ is None:
            raise UspError("the offline entailment scorer has not learned anything; call fit first")
        if not len(pairs):
            return np.zeros(0)
        return 1 / (1 + np.exp(-(self.features(pairs) @ self.weights_[:-1] + self.weights_[-1])))

    def features(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return what the scorer sees of each pair, shape (pairs, `FEATURES`)."""
        self._embed({core(t) for pair in pairs for t in pair})
        blocks = range(0, len(pairs), _BLOCK)
        return np.concatenate([self._block(pairs[i : i + _BLOCK]) for i in blocks])

    def _block(self, pairs: Sequence[Pair]) -> np.ndarray:
        a = np.stack([self._vectors[core(p)] for p, _ in pairs])
        b = np.stack([self._vectors[core(f)] for _, f in pairs])
        cosine = np.nan_to_num((a * b).sum(axis=1))
        kinds = np.array([kind_of(f) for _, f in pairs])
        letters = [_letters(p, f) for p, f in pairs]
        return np.column_stack([cosine, letters, kinds == "request", kinds == "topic"])

    def _embed(self, texts: set[str]) -> None:
        new = sorted(texts - self._vectors.keys())
        if new:
            self._vectors.update(zip(new, self.encoder.encode(new), strict=True))


def _letters(premise: str, fact: str) -> float:
    """Return how much of a fact's content words a premise spells: their letters in threes, which outlive typos."""
    wanted = _threes(core(fact))
    return len(wanted & _threes(core(premise))) / len(wanted) if wanted else 0.0


@lru_cache(maxsize=100_000)
def _threes(text: str) -> frozenset[str]:
    return frozenset(f" {w} "[i : i + 3] for w in content(text) for i in range(len(w)))
