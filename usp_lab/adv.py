"""ADV: how far a simulated dialogue lies from its target, on one map of all dialogues.

gaps, shown = adv_distances(real, {"usp": simulated})
adv_curves(gaps, users), adv_estimates(gaps, users)

Tables as in `diversity`.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.distributions import Scored
from usp_lab.diversity import scored_row
from usp_lab.errors import UspError

PERCENTILES = tuple(range(5, 100, 5))


def adv_distances(
    real: np.ndarray, arms: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Measure ADV (arXiv 2502.18968): distance of each simulated dialogue to its target on a map of all, 0 up, lower is closer.

    Embeddings of whole dialogues, z-scored over the union of real ones and all arms, PCA to two
    dimensions, Euclidean. The map is common, hence one number depends on which arms are there.

    Args:
        real: shape (n, dimension).
        arms: simulated dialogues' embeddings, the same shape, in the order of ``real``; a row of NaN
            (nothing said) gives NaN.

    Returns:
        Distances, shape (n,), by arm; the share of the variance that the map shows.

    Raises:
        UspError: shapes differ, or no two unlike dialogues to make a map of.
    """
    for arm, x in arms.items():
        if np.shape(x) != np.shape(real):
            raise UspError(
                f"arm {arm!r} has embeddings of shape {np.shape(x)}, its targets {np.shape(real)}; "
                "give one simulated dialogue a target"
            )
    stacked = np.concatenate([real, *arms.values()]).astype(float)
    known = stacked[np.isfinite(stacked).all(axis=1)]
    spread = known.std(axis=0) if len(known) else np.zeros(1)
    if not (spread > 1e-12).any():
        raise UspError(f"{len(known)} dialogues, all alike; ADV needs two unlike ones")
    z = (stacked - known.mean(axis=0)) / np.where(spread > 1e-12, spread, 1)
    centred = z[np.isfinite(z).all(axis=1)]
    values, axes = np.linalg.eigh(centred.T @ centred)
    flat = (z @ axes[:, -2:]).reshape(len(arms) + 1, len(real), -1)
    gaps = np.linalg.norm(flat[1:] - flat[0], axis=-1)
    return dict(zip(arms, gaps, strict=True)), float(values[-2:].sum() / values.sum())


def adv_curves(
    gaps: Mapping[str, np.ndarray],
    users: Sequence[Hashable],
    unit: str = "user",
    seed: int = 0,
    draws: int = 500,
) -> pd.DataFrame:
    """Return percentile curves of ADV distances: arm, percentile, value, low, high, n, unit.

    Intervals: percentiles of ``draws`` resamples of users. An arm without a distance is NaN, n 0.
    """
    rng, rows = np.random.default_rng(seed), []
    for arm, gap in gaps.items():
        seen = np.isfinite(gap)
        own: dict[Hashable, list[float]] = {}
        for user, value in zip(users, gap, strict=True):
            if math.isfinite(value):
                own.setdefault(user, []).append(value)
        curve = np.full((3, len(PERCENTILES)), np.nan)
        if own:
            curve[0] = np.percentile(gap[seen], PERCENTILES)
        if len(own) > 1:
            lists = list(own.values())
            drawn = rng.integers(len(lists), size=(draws, len(lists)))
            again = [
                np.percentile(np.concatenate([lists[i] for i in r]), PERCENTILES) for r in drawn
            ]
            curve[1:] = np.percentile(again, [2.5, 97.5], axis=0)
        for p, (value, low, high) in zip(PERCENTILES, curve.T, strict=True):
            named = {"arm": arm, "percentile": p, "value": value, "low": low, "high": high}
            rows.append(named | {"n": int(seen.sum()), "unit": unit})
    return pd.DataFrame(rows)


def adv_estimates(
    gaps: Mapping[str, np.ndarray], users: Sequence[Hashable], unit: str = "user", seed: int = 0
) -> pd.DataFrame:
    """Return the mean ADV distance per arm, and paired differences to `usp` where it is there."""
    rows = []
    for arm, gap in gaps.items():
        e = stats.mean(gap, users, unit, seed)
        why = "" if e.n else "no dialogue with words"
        rows.append(scored_row("adv", arm, Scored(e, why), better="lower"))
    for arm in [a for a in gaps if "usp" in gaps and a != "usp"]:
        e = stats.paired(gaps[arm], gaps["usp"], users, unit, seed)
        rows.append(scored_row("adv", f"{arm}_minus_usp", Scored(e), better="higher"))
    return pd.DataFrame(rows)
