"""Style without topic: an embedding of manner, an author verifier, and what both are checked with."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from usp_lab.errors import UspError
from usp_lab.scorers import cosine, meaning

# Function words (closed classes) carry style, not topic: Mosteller & Wallace 1964, Stamatatos 2009.
FUNCTION_WORDS = frozenset(
    """a about above after again against all also although am an and any anyone anything are around as at away be because been before being below between both but by
    can cannot could did do does doing done down during each either else enough even ever every few for from further get go got had has have having he her here hers him his
    how however i if in indeed instead into is it its itself just least less let like may maybe me might mine more most much must my myself neither never no nobody none nor
    not nothing now of off often on once one only onto or other our ours out over own perhaps please quite rather really same shall she should since so some somebody someone
    something still such than that the their them then there these they this those though through thus to together too toward under until up upon us very was we well were what
    whatever when where whether which while who whom whose why will with within without would yes yet you your yours im ive id ill dont doesnt didnt cant wont isnt wasnt
    arent thats whats its theres hes shes were youre theyre u ur r pls plz thx ok okay k lol haha hi hey hello thanks thank cheers tbh btw gonna wanna kinda sorta honestly
    actually basically anyway anyhow""".split()
)
_TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+")


def distort(text: str) -> str:
    """Hide what a text is about and keep how it is written (Stamatatos, EACL 2017).

    Content words become x, or X with a capital; figures become #.

    >>> distort("Honestly, which 'tram' goes to Belem at 10?")
    "Honestly, which 'x' x to X at #?"
    """
    return _TOKEN.sub(lambda m: _masked(m[0]), text)


@lru_cache(maxsize=100_000)
def _masked(token: str) -> str:
    if token.isdecimal():
        return "#"
    if re.sub("['\u2019]", "", token).lower() in FUNCTION_WORDS:
        return token
    return "X" if token[0].isupper() else "x"


class StyleScorer:
    """A style embedding and an author verifier that see manner and not topic.

    Features: character n-grams of topic-masked text (Stamatatos 2009 and 2017), which hold the function
    words and the punctuation; lengths, casing, marks, and the share of words that training texts do not
    know. Fisher's linear discriminants, learned on training authors, turn them into an embedding in
    which one author's texts lie together: within-author covariance pooled and shrunk (Ledoit & Wolf
    2004, but by 0.1 at least), each direction weighted by how reliably it tells authors apart
    (probabilistic LDA, Ioffe, ECCV 2006). The cosine is Style-Sim; a threshold chosen on validation
    pairs makes it an author verifier (AVA).

    Attributes:
        dimensions_: size of the embedding, less than ``dimensions`` for few authors.
        note_: how few authors changed the settings; "" where they did not.
    """

    def __init__(
        self, dimensions: int = 24, ngrams: int = 350, least_shrinkage: float = 0.1
    ) -> None:
        self.dimensions, self.ngrams, self.least_shrinkage = dimensions, ngrams, least_shrinkage

    def fit(self, texts: Sequence[Sequence[str]], authors: Sequence[Hashable]) -> "StyleScorer":
        """Learn from training users' turns.

        Args:
            texts: one list of turns a text.
            authors: who wrote it; only authors of two texts and more teach anything.

        Raises:
            UspError: fewer than three authors with two texts.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import StandardScaler

        written = Counter(a for t, a in zip(texts, authors, strict=True) if _said(t))
        pairs = [(t, a) for t, a in zip(texts, authors, strict=True) if _said(t) and written[a] > 1]
        names = {a: i for i, a in enumerate(dict.fromkeys(a for _, a in pairs))}
        if len(names) < 3:
            raise UspError(
                f"only {len(names)} author(s) with two texts; style needs at least 3, give more dialogues"
            )
        kept, codes = [t for t, _ in pairs], np.array([names[a] for _, a in pairs])
        seen = Counter(w for t in kept for w in set(_long_words("\n".join(t))))
        self.known_ = frozenset(w for w, n in seen.items() if n >= 3)
        self.vectorizer_ = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), lowercase=False, max_features=self.ngrams,
            sublinear_tf=True, use_idf=False,
        ).fit(map(_distorted, kept))  # fmt: skip
        raw = self._features(kept)
        self.scaler_ = StandardScaler().fit(raw)
        self._discriminate(self.scaler_.transform(raw), codes)
        short = self.dimensions_ < self.dimensions
        capped = f"{self.dimensions_} style dimensions instead of {self.dimensions}"
        self.note_ = f"{capped}: {len(names)} authors with two texts" if short else ""
        return self

    def _discriminate(self, x: np.ndarray, codes: np.ndarray) -> None:
        from scipy.linalg import eigh
        from sklearn.covariance import ledoit_wolf_shrinkage

        size = np.bincount(codes)
        means = np.zeros((len(size), x.shape[1]))
        np.add.at(means, codes, x)
        means /= size[:, None]
        residual, noise = x - means[codes], len(size) / len(x)
        shrink = max(self.least_shrinkage, ledoit_wolf_shrinkage(residual, assume_centered=True))
        within = residual.T @ residual / max(len(x) - len(size), 1)
        level = np.trace(within) / len(within) or 1.0
        within = (1 - shrink) * within + shrink * level * np.eye(len(within))
        between = (means * size[:, None]).T @ means / len(x)
        self.dimensions_ = min(self.dimensions, len(size) - 1, x.shape[1])
        last = x.shape[1] - 1
        strength, vectors = eigh(
            between, within, subset_by_index=[last - self.dimensions_ + 1, last]
        )
        strength = np.maximum(strength - noise, 1e-3)  # a mean of n texts has 1/n of their noise
        self.projection_ = (vectors * np.sqrt(strength / (1 + 2 * strength)))[:, ::-1]

    def embed(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Return style embeddings, shape (len(texts), dimensions_); NaN rows for texts without a character."""
        if not len(texts):
            return np.zeros((0, self.dimensions_))
        out = self.scaler_.transform(self._features(texts)) @ self.projection_
        out[[not _said(turns) for turns in texts]] = np.nan
        return out

    def similarity(self, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> np.ndarray:
        """Style-Sim of text pairs: cosine of style embeddings, -1 to 1; NaN where a text is empty."""
        return cosine(self.embed(a), self.embed(b))

    def _features(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        grams = self.vectorizer_.transform(map(_distorted, texts)).toarray()
        return np.hstack([grams, np.array([self._shape(t) for t in texts])])

    def _shape(self, turns: Sequence[str]) -> list[float]:
        turns = [t.strip() for t in turns if t.strip()] or [""]
        text, k = "\n".join(turns), len(turns)
        tokens = [m[0] for m in _TOKEN.finditer(text) if not m[0].isdecimal()]
        long, n = _long_words(text), max(len(tokens), 1)
        return [
            math.log1p(sum(len(t.split()) for t in turns) / k),
            sum(map(len, tokens)) / n,
            sum(_masked(w) == w for w in tokens) / n,
            sum(w not in self.known_ for w in long) / max(len(long), 1),
            sum(t[:1].islower() for t in turns) / k,
            sum(t.endswith((".", "?", "!")) for t in turns) / k,
            sum("!" in t for t in turns) / k,
            sum(".." in t for t in turns) / k,
            sum("?" in t for t in turns) / k,
            sum(c.isupper() for c in text) / max(len(text), 1),
            text.count(",") / n,
            (text.count("'") + text.count("\u2019")) / n,
        ]


class EncodedStyle:
    """Style by a sentence encoder that was trained on authorship (Wegmann et al. 2022), as in the paper.

    It learns nothing here; a text is the mean of its turns' embeddings, and Style-Sim their cosine.

    Args:
        encoder: `encoders.SentenceEncoder` of a style checkpoint ("AnnaWegmann/Style-Embedding").
    """

    note_ = ""

    def __init__(self, encoder) -> None:
        self.encoder = encoder

    def fit(self, texts: Sequence[Sequence[str]], authors: Sequence[Hashable]) -> "EncodedStyle":
        """Do nothing: the encoder knows style already."""
        return self

    def similarity(self, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> np.ndarray:
        """Style-Sim of text pairs: cosine of style embeddings, -1 to 1; NaN where a text is empty."""
        return cosine(meaning(self.encoder, a), meaning(self.encoder, b))


def _said(turns: Sequence[str]) -> bool:
    return any(t.strip() for t in turns)


def _distorted(turns: Sequence[str]) -> str:
    return distort("\n".join(turns))


def _long_words(text: str) -> list[str]:
    return [m[0].lower() for m in _TOKEN.finditer(text) if len(m[0]) >= 4 and m[0][0].isalpha()]


def best_threshold(scores: Sequence[float], same: Sequence[bool]) -> float:
    """Return the threshold of highest balanced accuracy on validation pairs.

    It lies half-way between two scores; among several best ones it is the middle one.

    >>> best_threshold([0.1, 0.2, 0.6, 0.8], [False, False, True, True])
    0.4
    """
    s, y = np.asarray(scores, float), np.asarray(same, bool)
    s, y = s[~np.isnan(s)], y[~np.isnan(s)]
    if not y.any() or y.all():
        raise UspError(
            "a threshold needs pairs of one author and pairs of two; one of the kinds is missing, "
            "give more dialogues"
        )
    values, rank = np.unique(s, return_inverse=True)
    true, false = (np.bincount(rank, weights=w, minlength=len(values)) for w in (y, ~y))
    # below the cut before value k: all values < k
    accuracy = (
        1 - (true.cumsum() - true) / true.sum() + (false.cumsum() - false) / false.sum()
    ) / 2
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    best = cuts[accuracy >= accuracy.max() - 1e-12]
    return float(best[(len(best) - 1) // 2])


def author_pairs(
    topics: Sequence[Hashable], authors: Sequence[Hashable], seed: int = 0
) -> tuple[list[tuple[int, int]], list[bool]]:
    """Return pairs of texts: one author on two topics (True), two authors on one topic (False).

    What a style scorer must tell apart although topic pulls the other way; as many of each kind as can
    be had. Without known topics give the same topic for all.
    """
    rng = np.random.default_rng(seed)
    by_author: dict[Hashable, list[int]] = {}
    by_topic: dict[Hashable, list[int]] = {}
    for i, (t, a) in enumerate(zip(topics, authors, strict=True)):
        by_author.setdefault(a, []).append(i)
        by_topic.setdefault(t, []).append(i)
    one = len(by_topic) == 1
    same = [p for rows in by_author.values() for p in combinations(rows, 2)]
    same = [(i, j) for i, j in same if one or topics[i] != topics[j]]
    drawn = [
        p for rows in by_topic.values() for p in rng.choice(rows, size=(4 * len(rows), 2)).tolist()
    ]
    other = dict.fromkeys((min(p), max(p)) for p in drawn if authors[p[0]] != authors[p[1]])
    size = min(len(same), len(other))
    same, other = (
        [pairs[i] for i in rng.permutation(len(pairs))[:size]] for pairs in (same, list(other))
    )
    return same + other, [True] * size + [False] * size
