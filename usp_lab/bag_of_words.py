"""The baseline that any reader of text must be held against: words and letters counted, a logistic regression."""

from collections.abc import Sequence

import numpy as np

from usp_lab.detector_training import Utterances


class BagOfWords:
    """The baseline that any detector must be held against: words and letters counted, a logistic regression."""

    def fit(self, utterances: Utterances) -> "BagOfWords":
        """Learn from training utterances."""
        self.model_ = classifier().fit(utterances.texts, utterances.human)
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return P(human) of each text, shape (n,)."""
        return self.model_.predict_proba(list(texts))[:, 1] if len(texts) else np.zeros(0)


def counters(most: int, letters: tuple[int, int]) -> list:
    """Return counters of words and of letters' n-grams, of so many features each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    how = {"sublinear_tf": True, "max_features": most, "dtype": np.float32}
    return [
        TfidfVectorizer(ngram_range=(1, 2), **how),
        TfidfVectorizer(analyzer="char_wb", ngram_range=letters, lowercase=False, **how),
    ]


def classifier():
    """Return a logistic regression over both, not fitted yet."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    model = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
    return make_pipeline(make_union(*counters(50_000, (2, 4))), model)
