"""Do simulated users vary as real ones do? Distances between two clouds of embeddings, and of one with itself.

Arrays of vectors in, numbers out. What cannot be scored raises `Unscorable`, which `leave_one_out`
turns into NaN with the reason. Intervals leave one user out at a time: drawing users with replacement
would put copies at distance 0 beside each other, which every metric here mistakes for collapse.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student
from sklearn.cluster import KMeans

from usp_lab.errors import UspError
from usp_lab.stats import Estimate

PRDC = {"precision": (0, 1), "recall": (0, 1), "density": (0, math.inf), "coverage": (0, 1)}
FEWEST = 10  # vectors a side that MAUVE is computed for
_CURVE = np.linspace(1e-6, 1 - 1e-6, 25)  # mixtures on the frontier, as in mauve-text
_GROUPS = 100  # users are left out one by one up to so many, and in so many groups beyond


class Unscorable(Exception):
    """Why a metric has no value here."""


@dataclass(frozen=True)
class Scored:
    """An estimate, and why it is NaN ("" where it is not)."""

    estimate: Estimate
    reason: str = ""


def leave_one_out(
    statistic: Callable[[np.ndarray], float],
    users: Sequence[Hashable],
    unit: str = "user",
    unbiased: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Scored:
    """Estimate a statistic with a 95 % interval by the jackknife over users (Quenouille; Tukey).

    value +- t * sqrt((m - 1) / m * sum (v_i - mean v)^2), v_i the statistic without user i, m users.
    On average at least as wide as it should be (Efron & Stein, Ann. Stat. 1981), for any statistic.
    More than a hundred users are left out in a hundred groups (Wolter, Introduction to Variance
    Estimation, 2007, ch. 4), so that time does not grow with their number.

    Args:
        statistic: of the items kept, a boolean mask, shape (n,).
        users: whose item each is.
        unit: how results call a user.
        unbiased: take off the first-order bias (m - 1) * (mean v - v), which small samples have.
        bounds: the interval is cut to these.

    Returns:
        NaN and the reason where the statistic is `Unscorable`; a value without interval below two
        users, or where it cannot be had without one of them.
    """
    return leave_one_out_each(
        lambda keep: {"it": statistic(keep)}, {"it": bounds}, users, unit, unbiased
    )["it"]


def leave_one_out_each(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    bounds: Mapping[str, tuple[float, float]],
    users: Sequence[Hashable],
    unit: str = "user",
    unbiased: bool = False,
) -> dict[str, Scored]:
    """Estimate several statistics at once, each as `leave_one_out` does.

    Args:
        statistics: name -> value, of the items kept.
        bounds: what each statistic's interval is cut to; its names are those estimated.
        users, unit, unbiased: as in `leave_one_out`.
    """
    names = {u: i for i, u in enumerate(dict.fromkeys(users))}
    codes, m = np.array([names[u] for u in users], dtype=int), min(len(names), _GROUPS)
    try:
        values = statistics(np.ones(len(codes), bool))
    except Unscorable as why:
        nothing = Estimate(math.nan, math.nan, math.nan, len(codes), unit)
        return {name: Scored(nothing, str(why)) for name in bounds}
    try:
        each = [statistics(codes % m != i) for i in range(m)] if m > 1 else []
    except Unscorable:
        each = []
    out = {}
    for name, ends in bounds.items():
        value, low, high = float(values[name]), math.nan, math.nan
        if each:
            without = np.array([v[name] for v in each])
            if unbiased:
                value -= (m - 1) * (without.mean() - value)
            error = math.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
            half = float(student.ppf(0.975, m - 1)) * error
            low, high = (float(np.clip(value + s, *ends)) for s in (-half, half))
        out[name] = Scored(Estimate(value, low, high, len(codes), unit))
    return out


def _checked(*clouds: np.ndarray, least: int) -> list[np.ndarray]:
    clouds = [np.asarray(c, float) for c in clouds]
    if any(c.ndim != 2 for c in clouds) or len({c.shape[1] for c in clouds}) > 1:
        shapes = " and ".join(str(c.shape) for c in clouds)
        raise UspError(f"embeddings of shapes {shapes}; give (items, dimension), one dimension")
    for c in clouds:
        if not np.isfinite(c).all():
            bad = int((~np.isfinite(c)).any(axis=1).sum())
            raise UspError(f"{bad} of {len(c)} embeddings are not finite; leave empty texts out")
        if len(c) < least:
            raise Unscorable(f"{len(c)} embeddings, at least {least} are needed")
    return clouds


# --- MAUVE ---------------------------------------------------------------------------------------


def frontier_area(p: np.ndarray, q: np.ndarray, scale: float = 5.0) -> np.ndarray:
    """Area under the divergence frontier of two histograms (Pillutla et al., NeurIPS 2021), 0 to 1, higher is closer.

    The curve (exp(-c KL(q|r)), exp(-c KL(p|r))) over mixtures r = w p + (1 - w) q; c is ``scale``.

    Args:
        p, q: shares, shape (..., bins), each summing to 1 over the last axis.

    >>> frontier_area(np.array([0.5, 0.5]), np.array([0.5, 0.5])).round(3).item()
    1.0
    """

    def kl(a, r):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(a > 0, a * np.log(a / r), 0).sum(-1)

    mixed = [w * p + (1 - w) * q for w in _CURVE]
    ends = np.zeros(p.shape[:-1]), np.ones(p.shape[:-1])
    x = np.stack([ends[1], *(np.exp(-scale * kl(p, r)) for r in mixed[::-1]), ends[0]], -1)
    y = np.stack([ends[0], *(np.exp(-scale * kl(q, r)) for r in mixed[::-1]), ends[1]], -1)
    return -np.trapezoid(y, x, axis=-1)


def bucket_number(smaller: int) -> int:
    """Return how many buckets suit clouds of which the smaller has so many items: a tenth, 2 to 500."""
    return int(np.clip(smaller // 10, 2, 500))


def buckets(x: np.ndarray, k: int, seeds: Sequence[int]) -> np.ndarray:
    """Return the k-means bucket of each vector under each seed, shape (len(seeds), n)."""
    means = (KMeans(k, n_init=1, max_iter=100, random_state=s).fit_predict(x) for s in seeds)
    return np.stack(list(means))


def mauve_of(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """MAUVE of two sets of items from their buckets, averaged over seeds.

    Args:
        labels: of `buckets`.
        first, second: boolean masks, shape (n,), or indices, where an item may come twice.

    Raises:
        Unscorable: a set is empty.
    """
    sides = [labels[:, chosen] for chosen in (first, second)]
    if not all(side.size for side in sides):
        raise Unscorable("nothing on one side")
    k = int(labels.max()) + 1
    counts = [np.stack([np.bincount(row, minlength=k) for row in side]) for side in sides]
    p, q = (c / c.sum(1, keepdims=True) for c in counts)
    return float(frontier_area(p, q).mean())


def mauve(
    first: np.ndarray,
    second: np.ndarray,
    users: Sequence[Hashable],
    k: int | None = None,
    seeds: Sequence[int] = range(5),
    unit: str = "user",
) -> Scored:
    """MAUVE of two clouds over given embeddings; 1 for one distribution, towards 0 for unlike ones.

    Averaged over k-means seeds, and freed of first-order small-sample bias by the jackknife over users
    (the plug-in is too low by about bins/n), so that it can pass 1 by chance.

    Args:
        first, second: shapes (n, dimension) and (m, dimension).
        users: whose vectors those of ``first`` and then of ``second`` are, n + m.
        k: buckets; `bucket_number` of the smaller cloud when None.
        seeds: of k-means.
    """
    try:
        first, second = _checked(first, second, least=FEWEST)
    except Unscorable as why:
        return Scored(Estimate(math.nan, math.nan, math.nan, len(first), unit), str(why))
    k = k or bucket_number(min(len(first), len(second)))
    labels = buckets(np.concatenate([first, second]), k, seeds)
    one = np.arange(len(first) + len(second)) < len(first)
    return leave_one_out(
        lambda keep: mauve_of(labels, keep & one, keep & ~one), users, unit, unbiased=True
    )


# --- precision, recall, density, coverage ---------------------------------------------------------


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances, shape (len(a), len(b))."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0))


def prdc(real: np.ndarray, generated: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al., NeurIPS 2019), density, coverage (Naeem et al., ICML 2020); higher is better.

    A vector's ball reaches to its k-th nearest neighbour in its own cloud. Precision: share of
    generated in a real ball; recall: of real in a generated ball; coverage: of real balls with a
    generated one inside, all 0 to 1; density: real balls around a generated one, over k, 0 up
    (1 expected for one distribution).

    Args:
        real, generated: shapes (n, dimension), (m, dimension).

    Raises:
        Unscorable: no more than k vectors on a side.
        UspError: vectors that are not finite, or not of one dimension.

    >>> x = np.arange(12.0)[:, None]
    >>> prdc(x, x + 1000, k=2)["coverage"]
    0.0
    """
    real, generated = _checked(real, generated, least=k + 1)
    across = distances(real, generated)
    return prdc_of(distances(real, real), distances(generated, generated), across, k)


def prdc_of(rr: np.ndarray, gg: np.ndarray, rg: np.ndarray, k: int = 5) -> dict[str, float]:
    """Return `prdc` from distances that are known: real-real, generated-generated, real-generated.

    Raises:
        Unscorable: no more than k vectors on a side.
    """
    if min(len(rr), len(gg)) <= k:
        raise Unscorable(f"{len(rr)} real and {len(gg)} generated, more than k = {k} are needed")
    slack = 1e-6  # rounding of distances: a copy is inside its original's ball of radius 0
    real = np.partition(rr, k, axis=1)[:, k] + slack
    generated = np.partition(gg, k, axis=1)[:, k] + slack
    inside = rg <= real[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((rg <= generated).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float((rg.min(1) <= real).mean()),
    }


# --- Vendi ---------------------------------------------------------------------------------------


def vendi(x: np.ndarray) -> float:
    """Vendi score (Friedman & Dieng, TMLR 2023): the effective number of unlike items, 1 to n, higher is more varied.

    exp of the entropy of the eigenvalues of K / n, K the cosines of x, shape (n, dimension). It grows
    with n: compare clouds of one size.

    Raises:
        Unscorable: no vector, or one of length 0.

    >>> round(vendi(np.eye(3)), 6), round(vendi(np.ones((4, 2))), 6)
    (3.0, 1.0)
    """
    (x,) = _checked(x, least=1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if (norm == 0).any():
        raise Unscorable("a vector of length 0 has no cosine")
    x = x / norm
    small = x.T @ x if x.shape[1] < len(x) else x @ x.T  # the same eigenvalues but for zeros
    values = np.linalg.eigvalsh(small / len(x))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))
