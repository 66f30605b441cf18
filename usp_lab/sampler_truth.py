"""Is an estimated density true? Against the population's p(z), and, where no truth is known, against itself.

The latter needs no truth: how common a user is does not depend on which of the user's dialogues a profile was
written from, so that an estimate must rank users alike by one profile and by another (`siblings`, `correlation`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata

from usp_lab import stats
from usp_lab.data import Dialogue
from usp_lab.tidy import one_each, owners, row

RARE = 0.1  # the share of users that count as rare


def correlation(a: Sequence[float], b: Sequence[float], unit: str = "user", seed: int = 0) -> stats.Estimate:  # fmt: skip
    """Estimate the rank correlation of two columns, one row a user; BCa interval over users.

    >>> correlation([1, 2, 3, 4], [2, 4, 6, 9]).value
    1.0
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[keep], y[keep], int(keep.sum())
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return stats.Estimate(float("nan"), float("nan"), float("nan"), n, unit)
    value = float(_spearman(x, y))
    if n < 10 or abs(value) == 1:
        return stats.Estimate(round(value, 12), float("nan"), float("nan"), n, unit)
    found = bootstrap((x, y), _spearman, paired=True, vectorized=True, n_resamples=1000, method="BCa", rng=np.random.default_rng(seed))  # fmt: skip
    return stats.Estimate(value, *map(float, found.confidence_interval), n, unit)


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    x, y = (rankdata(v, axis=axis) for v in (x, y))
    x, y = (v - v.mean(axis=axis, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))


def within(values: Sequence[float], groups: Sequence[str]) -> np.ndarray:
    """Return ranks (0 to 1) less their group's mean; NaN for a user who is alone in a group, shape (n,)."""
    table = pd.DataFrame({"rank": rankdata(values) / len(values), "group": groups})
    grouped = table.groupby("group")["rank"]
    out = table["rank"] - grouped.transform("mean")
    return out.where(grouped.transform("size") > 1).to_numpy()


def against_truth(
    estimated: Sequence[float], true: Sequence[float], topics: Sequence[str], arm: str, seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return how an estimate orders users and finds the rarest tenth: overall, across topics, within topics.

    Args:
        estimated, true: log densities, one row a user.
        topics: of each.
        arm: who estimated.
        seed: of resampling.

    Returns:
        tidy rows of `density_rank_corr`, `rare_auc`, and both with `_within_topic`; `density_rank_corr_across_topics`
        is that of the topics' means, where the unit is a topic.
    """
    columns = {"": (np.asarray(estimated, float), np.asarray(true, float))}
    columns["_within_topic"] = (within(estimated, topics), within(true, topics))
    rows = []
    for ending, (a, b) in columns.items():
        rows.append(
            row(f"density_rank_corr{ending}", arm, correlation(a, b, seed=seed), better="higher")
        )
        known = np.isfinite(a) & np.isfinite(b)
        rare = b[known] <= np.quantile(b[known], RARE) if known.any() else []
        found = stats.auc(-a[known], rare, unit="user", seed=seed)
        rows.append(row(f"rare_auc{ending}", arm, found, better="higher"))
    means = pd.DataFrame({"a": estimated, "b": true, "topic": topics}).groupby("topic").mean()
    across = correlation(means["a"], means["b"], "topic", seed)
    rows.append(row("density_rank_corr_across_topics", arm, across, better="higher"))
    return pd.DataFrame(rows)


def siblings(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return the first and the last dialogue of each user who has several."""
    last = dict(zip(owners(dialogues), dialogues, strict=True))
    first = one_each(dialogues)
    pairs = [
        (a, b) for a, b in zip(first, map(last.get, owners(first)), strict=True) if a.id != b.id
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]
