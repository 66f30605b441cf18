"""Intervals and tests. Items of one user are not independent, so what is resampled is the cluster (user, dialogue, ...), named in ``unit``.

Intervals are 95 % BCa bootstrap intervals by `scipy.stats.bootstrap` (Efron 1987) over per-cluster sums.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats as scipy_stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: n items were scored, ``unit`` was resampled. Without two units the interval is NaN."""

    value: float
    low: float
    high: float
    n: int
    unit: str

    def as_dict(self) -> dict:
        """Return the entry of ``metrics.json``."""
        return asdict(self)


def _by_cluster(columns: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None) -> list[np.ndarray]:
    """Sum each column within clusters; without clusters each item is its own."""
    columns = [np.asarray(c, dtype=float) for c in columns]
    if clusters is None:
        return columns
    codes = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    index = np.array([codes[c] for c in clusters])
    return [np.bincount(index, weights=c, minlength=len(codes)) for c in columns]


def _bootstrap(columns: list[np.ndarray], statistic: Callable, value: float, n: int, unit: str, seed: int) -> Estimate:
    if len(columns[0]) < 2:
        return Estimate(value, math.nan, math.nan, n, unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa of a constant sample is undefined, which is handled below
        result = scipy_stats.bootstrap(
            columns, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=200, method="BCa", rng=np.random.default_rng(seed)
        )
    low, high = map(float, result.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        low, high = np.nanpercentile(result.bootstrap_distribution, [2.5, 97.5]).tolist()
    return Estimate(value, low, high, n, unit)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None, unit: str = "dialogue", seed: int = 0,
    transform: Callable = lambda x: x,
) -> Estimate:  # fmt: skip
    """Estimate transform(sum(numerators) / sum(denominators)); items with a NaN are left out and not counted in n.

    >>> ratio([1, 0, 1, 0], [1, 1, 1, 1]).value
    0.5
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    keep = ~(np.isnan(top) | np.isnan(bottom))
    if not keep.any():
        return Estimate(math.nan, math.nan, math.nan, 0, unit)
    kept = None if clusters is None else [c for c, k in zip(clusters, keep, strict=True) if k]
    columns = _by_cluster([top[keep], bottom[keep]], kept)

    def statistic(a, b, axis=-1):
        return transform(a.sum(axis=axis) / b.sum(axis=axis))

    return _bootstrap(columns, statistic, float(statistic(*columns)), int(keep.sum()), unit, seed)


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None, unit: str = "dialogue", seed: int = 0) -> Estimate:
    """Estimate the mean of items, resampling clusters.

    >>> mean([1.0, 2.0, 3.0]).value
    2.0
    """
    return ratio(values, np.ones(len(values)), clusters, unit, seed)


def paired(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None, unit: str = "dialogue", seed: int = 0) -> Estimate:
    """Estimate the mean of a - b over the same items."""
    return mean(np.asarray(a, float) - np.asarray(b, float), clusters, unit, seed)


def ratio_difference(
    a: tuple[Sequence[float], Sequence[float]], b: tuple[Sequence[float], Sequence[float]], clusters: Sequence[Hashable] | None = None, unit: str = "dialogue",
    seed: int = 0, transform: Callable = lambda x: x,
) -> Estimate:  # fmt: skip
    """Estimate transform(ratio of a) - transform(ratio of b), both measured on the same items; each is (numerators, denominators).

    >>> ratio_difference(([1, 1], [1, 1]), ([0, 1], [1, 1])).value
    0.5
    """
    columns = [np.asarray(c, float) for c in (*a, *b)]
    keep = ~np.isnan(columns).any(axis=0)
    if not keep.any():
        return Estimate(math.nan, math.nan, math.nan, 0, unit)
    kept = None if clusters is None else [c for c, k in zip(clusters, keep, strict=True) if k]
    sums = _by_cluster([c[keep] for c in columns], kept)

    def statistic(w, x, y, z, axis=-1):
        return transform(w.sum(axis=axis) / x.sum(axis=axis)) - transform(y.sum(axis=axis) / z.sum(axis=axis))

    return _bootstrap(sums, statistic, float(statistic(*sums)), int(keep.sum()), unit, seed)


def perplexity(nll: Sequence[float], tokens: Sequence[float], clusters: Sequence[Hashable] | None = None, unit: str = "user", seed: int = 0) -> Estimate:
    """Estimate exp(sum nll / sum tokens) from per-item negative log-likelihoods in nats.

    >>> round(perplexity([math.log(8)], [3]).value, 6)
    2.0
    """
    return ratio(nll, tokens, clusters, unit, seed, np.exp)


def auc(scores: Sequence[float], labels: Sequence[bool], clusters: Sequence[Hashable] | None = None, unit: str = "dialogue", seed: int = 0) -> Estimate:
    """Estimate the area under the ROC curve (Mann-Whitney; ties count a half), resampling clusters within percentiles.

    NaN where one class is missing.

    >>> auc([0.1, 0.4, 0.8], [False, True, True]).value
    1.0
    """
    s, y = np.asarray(scores, float), np.asarray(labels, bool)
    keep = ~np.isnan(s)
    s, y = s[keep], y[keep]
    if not y.any() or y.all():
        return Estimate(math.nan, math.nan, math.nan, int(len(s)), unit)
    names = [c for c, k in zip(clusters if clusters is not None else range(len(keep)), keep, strict=True) if k]
    members: dict[Hashable, list[int]] = {}
    for i, c in enumerate(names):
        members.setdefault(c, []).append(i)
    groups, rng, draws = [np.array(m) for m in members.values()], np.random.default_rng(seed), []
    for _ in range(500):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if y[rows].any() and not y[rows].all():
            draws.append(_auc(s[rows], y[rows]))
    low, high = np.percentile(draws, [2.5, 97.5]).tolist() if len(draws) > 1 else (math.nan, math.nan)
    return Estimate(_auc(s, y), low, high, int(len(s)), unit)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks, n = scipy_stats.rankdata(scores), labels.sum()
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))
