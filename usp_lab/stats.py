"""Intervals. Items of one user are not independent, so the cluster (user, dialogue, ...) is resampled.

Means, ratios and differences get 95 % BCa bootstrap intervals (Efron, JASA 1987) over per-cluster sums;
where BCa is undefined (all clusters alike, value outside all draws) and for AUC the percentiles are taken.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from usp_lab.errors import UspError

RESAMPLES = 2000
_TAILS = np.array([0.025, 0.975])
_BLOCK = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: n items were scored, ``unit`` was resampled.

    Without two units the interval is NaN; without an item the value is NaN too.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str

    def as_dict(self) -> dict:
        """Return the entry of ``metrics.json``."""
        return asdict(self)


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
    transform: Callable = lambda x: x,
) -> Estimate:
    """Estimate transform(sum(numerators) / sum(denominators)).

    Args:
        numerators, denominators: one of each an item; items with a NaN are left out, not counted in n.
        clusters: what each item belongs to and is resampled with; each item for itself when None.
        unit: how results call a cluster.
        seed: of the resampling.
        transform: monotonic, works on arrays.

    Raises:
        UspError: not as many of the one as of the other.

    >>> ratio([1, 0, 1, 0], [1, 1, 1, 1]).value
    0.5
    """
    columns = _aligned(numerators, denominators)
    return of_sums(columns, lambda a, b: transform(a / b), clusters, unit, seed)


def ratio_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
    transform: Callable = lambda x: x,
) -> Estimate:
    """Estimate the difference of two `ratio`s over the same items, first minus second.

    Args:
        first, second: (numerators, denominators) each; an item with a NaN in any is left out.
        clusters, unit, seed, transform: as in `ratio`.

    >>> ratio_difference(([1, 1], [2, 2]), ([0, 1], [2, 2])).value
    0.25
    """

    def difference(a, b, c, d):
        return transform(a / b) - transform(c / d)

    return of_sums(_aligned(*first, *second), difference, clusters, unit, seed)


def mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of items, resampling clusters; items that are NaN are left out.

    >>> mean([1.0, 2.0, 3.0]).value
    2.0
    """
    return ratio(values, np.ones(len(values)), clusters, unit, seed)


def paired(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of a - b over the same items; an item that is NaN in either is left out.

    >>> paired([3.0, 5.0], [1.0, 1.0]).value
    3.0
    """
    a, b = _aligned(a, b)
    return mean(a - b, clusters, unit, seed)


def perplexity(
    nll: Sequence[float],
    tokens: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "user",
    seed: int = 0,
) -> Estimate:
    """Estimate exp(sum nll / sum tokens) from per-item negative log-likelihoods in nats.

    >>> round(perplexity([math.log(8)], [3]).value, 6)
    2.0
    """
    return ratio(nll, tokens, clusters, unit, seed, np.exp)


def perplexity_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "user",
    seed: int = 0,
) -> Estimate:
    """Estimate the difference of two perplexities of the same items, first minus second.

    Args:
        first, second: one (negative log-likelihood, tokens) an item, as `scorers.turn_nll` gives them.
        clusters, unit, seed: as in `ratio`.

    >>> round(perplexity_difference([(math.log(8), 1)], [(math.log(2), 1)]).value, 6)
    6.0
    """
    a, b = (np.asarray(x, float).reshape(-1, 2).T for x in (first, second))
    return ratio_difference(a, b, clusters, unit, seed, np.exp)


def auc(
    scores: Sequence[float],
    labels: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> Estimate:
    """Estimate the area under the ROC curve: P(a true one scores higher than a false one), ties a half.

    Items without a score (NaN) are left out. NaN where one class is missing.

    >>> auc([0.1, 0.4, 0.8], [False, True, True]).value
    1.0
    """
    s, y = _aligned(scores, labels)
    return _areas([s], y, lambda a: a, clusters, unit, seed)


def auc_difference(
    first: Sequence[float],
    second: Sequence[float],
    labels: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "dialogue",
    seed: int = 0,
) -> Estimate:
    """Estimate the difference of two scores' `auc` over the same items, first minus second.

    An item that lacks either score is left out.

    >>> auc_difference([0.1, 0.4, 0.8], [0.1, 0.8, 0.4], [False, False, True]).value
    0.5
    """
    a, b, y = _aligned(first, second, labels)
    return _areas([a, b], y, lambda a, b: a - b, clusters, unit, seed)


def _areas(scores, y, statistic: Callable, clusters, unit: str, seed: int) -> Estimate:
    """Estimate a statistic of the AUC of each of several scores; both classes are needed."""
    keep = ~np.isnan(scores).any(axis=0)
    codes, y = _codes(clusters, keep), y[keep] > 0
    if not y.any() or y.all():
        return Estimate(math.nan, math.nan, math.nan, len(y), unit)
    ranks = [np.unique(s[keep], return_inverse=True)[1] for s in scores]

    def value(weights: np.ndarray) -> float:
        return statistic(*(_weighted_auc(r, y, weights) for r in ranks))

    whole, size = value(np.ones(len(y))), codes.max() + 1
    if size < 2:
        return Estimate(whole, math.nan, math.nan, len(y), unit)
    drawn = [value(w[codes]) for block in _weights(size, RESAMPLES, seed) for w in block]
    return Estimate(whole, *np.nanpercentile(drawn, 100 * _TAILS).tolist(), len(y), unit)


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the AUC, ties counted half, without an interval."""
    return _weighted_auc(np.unique(scores, return_inverse=True)[1], labels, np.ones(len(labels)))


def _weighted_auc(rank: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """AUC of items that count ``weights`` times; NaN where a class has no weight."""
    size = rank.max() + 1
    true = np.bincount(rank, weights=weights * labels, minlength=size)
    false = np.bincount(rank, weights=weights * ~labels, minlength=size)
    pairs = true.sum() * false.sum()
    return float(true @ (false.cumsum() - false / 2) / pairs) if pairs else math.nan


def _aligned(*columns: Sequence[float]) -> list[np.ndarray]:
    columns = [np.asarray(c, float) for c in columns]
    if len({c.shape for c in columns}) > 1:
        sizes = " against ".join(str(c.size) for c in columns)
        raise UspError(f"{sizes} values; give one of each for every item")
    return columns


def of_sums(
    columns: list[np.ndarray],
    statistic: Callable,
    clusters: Sequence[Hashable] | None,
    unit: str,
    seed: int,
) -> Estimate:
    """Return any statistic of column sums (a ratio, an F1), its interval by resampling clusters.

    Args:
        columns: arrays of one length, one number an item; items with a NaN are left out.
        statistic: of the columns' sums, which it is given as numbers, or as arrays of resamples.
        clusters: whose items are resampled together; None: each item alone.
        unit, seed: as elsewhere here.
    """
    keep = ~np.isnan(columns).any(axis=0)
    codes, n = _codes(clusters, keep), int(keep.sum())
    sums = [np.bincount(codes, weights=c[keep]) for c in columns]  # per cluster
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(statistic(*(c.sum() for c in sums)))
        if not math.isfinite(value):
            return Estimate(math.nan, math.nan, math.nan, n, unit)
        if len(sums[0]) < 2:
            return Estimate(value, math.nan, math.nan, n, unit)
        weights = _weights(len(sums[0]), RESAMPLES, seed)
        draws = np.concatenate([statistic(*(w @ c for c in sums)) for w in weights])
        left_out = statistic(*(c.sum() - c for c in sums))
    return Estimate(value, *_bca(value, draws, left_out), n, unit)


def _codes(clusters: Sequence[Hashable] | None, keep: np.ndarray) -> np.ndarray:
    """Number the clusters of the items kept, in order of appearance."""
    if clusters is None:
        return np.arange(keep.sum())
    kept = [c for c, k in zip(clusters, keep, strict=True) if k]
    numbers = {c: i for i, c in enumerate(dict.fromkeys(kept))}
    return np.array([numbers[c] for c in kept], dtype=int)


def _weights(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of n units is in each bootstrap draw, in blocks of rows."""
    rng, size = np.random.default_rng(seed), max(1, _BLOCK // n)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _bca(value: float, draws: np.ndarray, left_out: np.ndarray) -> list[float]:
    """Return the bias-corrected and accelerated interval; ``left_out`` is the value without each unit."""
    draws = draws[np.isfinite(draws)]
    away = left_out.mean() - left_out
    with np.errstate(divide="ignore", invalid="ignore"):
        acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
        bias = ndtri(((draws < value).mean() + (draws <= value).mean()) / 2)
        z = bias + ndtri(_TAILS)
        levels = ndtr(bias + z / (1 - acceleration * z))
    levels = levels if np.isfinite(levels).all() else _TAILS
    return np.percentile(draws, 100 * levels).tolist() if len(draws) else [math.nan, math.nan]
