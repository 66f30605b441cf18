"""Do probabilities mean what they say? A temperature that makes them, how far they are off, and what is too short to tell.

temperature = fit_temperature(log_odds, labels)  # on validation
ece(1 / (1 + np.exp(-log_odds / temperature)), labels, users)  # on test
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from usp_lab import stats
from usp_lab.errors import UspError

TOLD, ENOUGH, LONGEST = 0.85, 10, 5  # of `shortest_told`
_MOST = np.log(20.0)  # temperatures are looked for between 1/20 and 20


def fit_temperature(log_odds: Sequence[float], labels: Sequence[bool]) -> float:
    """Return the temperature T under which sigmoid(log_odds / T) is likeliest (Guo et al., ICML 2017).

    Targets are Platt's, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2): a classifier that makes no error on a finite
    sample is not thereby certain, and T has a minimum even then (Platt 1999). NaN are left out.

    Raises:
        UspError: items of one label alone.
    """
    z, y = np.asarray(log_odds, float), np.asarray(labels, bool)
    z, y = z[~np.isnan(z)], y[~np.isnan(z)]
    ones = int(y.sum())
    if not 0 < ones < len(y):
        raise UspError(
            f"{ones} of {len(y)} items to calibrate on are of the one kind; give some of both"
        )
    target = np.where(y, (ones + 1) / (ones + 2), 1 / (len(y) - ones + 2))

    def loss(log_t: float) -> float:
        scaled = z / np.exp(log_t)
        return float((np.logaddexp(0, scaled) - target * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-_MOST, _MOST), method="bounded").x))


def equal_bins(scores: Sequence[float], bins: int) -> np.ndarray:
    """Return the bin of each score, 0 upwards, as many scores in each as can be; equal scores share a bin.

    >>> equal_bins([0.1, 0.2, 0.8, 0.9], 2).tolist(), equal_bins([0.5, 0.5], 2).tolist()
    ([0, 0, 1, 1], [0, 0])
    """
    if not len(scores):
        return np.zeros(0, int)
    cut = pd.qcut(scores, min(bins, len(scores)), labels=False, duplicates="drop")
    return np.nan_to_num(np.asarray(cut, float)).astype(int)


def ece(
    probabilities: Sequence[float],
    labels: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    unit: str = "user",
    bins: int = 10,
    seed: int = 0,
) -> stats.Estimate:
    """Expected calibration error: sum over bins of |mean probability - share of ones|, weighted by size; 0 to 1.

    Lower is better (Naeini et al., AAAI 2015), over bins of equal size (Nixon et al. 2019), which are kept in
    resampling. Chance alone gives about 0.4 / sqrt(items a bin). Items without a probability (NaN) are left out.

    >>> ece([0.25, 0.25, 0.25, 0.25], [True, False, False, False]).value
    0.0
    >>> ece([1.0, 1.0], [True, False]).value
    0.5
    """
    p, y = np.asarray(probabilities, float), np.asarray(labels, float)
    keep = ~np.isnan(p)
    if not keep.any():
        return stats.Estimate(np.nan, np.nan, np.nan, 0, unit)
    own = [c for c, k in zip(clusters, keep, strict=True) if k] if clusters is not None else None
    where = equal_bins(p[keep], bins)
    off = (p - y)[keep]
    columns = [np.where(where == b, off, 0.0) for b in np.unique(where)]

    def statistic(*sums):
        *gaps, n = sums
        return sum(map(np.abs, gaps)) / n

    return stats.of_sums([*columns, np.ones(len(off))], statistic, own, unit, seed)


def shortest_told(texts: Sequence[str], log_odds: np.ndarray, human: np.ndarray) -> int:
    """Return the number of words from which on user and assistant utterances are told apart.

    The least m from 1 to 5 at which those of m words are, or, where there are not ten of either side, of up to m + 2:
    by an AUC of at least 0.85. Where assistants hardly ever say so little, being short is all there is to see, and a
    reward must not rest on it. If it is never shown, 5.
    """
    words = np.array([len(t.split()) for t in texts])
    for least in range(1, LONGEST):
        for most in range(least, least + 3):
            own = (words >= least) & (words <= most)
            sides = human[own], ~human[own]
            if all(side.sum() >= ENOUGH for side in sides):
                if stats.area(log_odds[own], human[own]) >= TOLD:
                    return least
                break
    return LONGEST
