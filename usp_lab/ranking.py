"""Do simulated users rank assistants as their known helpfulness does?

The users of each arm talk to every assistant. Two criteria are read from what they leave behind:

``goals_met``: goals of the profile told that a reply met (its ``meta["met"]``, which a user sees as
an answer), as a share of those goals; what was never asked for counts as unmet.
``annoyance``: decisions after the opening that push back or give up, as a share of all of them;
read off the user's words, and where a user leaves without a word, off what is still unmet.

Order and intervals come from resampling users, the same ones for every assistant and arm.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, rankdata, spearmanr

from usp_lab import stats
from usp_lab.errors import UspError
from usp_lab.tidy import row

CRITERIA = {"goals_met": 1, "annoyance": -1}  # 1: the higher, the better the assistant
_TAILS = [2.5, 97.5]


# --- scores and order -------------------------------------------------------------------------------

_PARTS = {  # criterion -> (numerator, denominator)
    "goals_met": ("met", "wanted"),
    "goals_asked": ("asked", "wanted"),
    "annoyance": ("annoyed", "decisions"),
}


_LABELS = {
    "kendall_tau": "both",
    "kendall_tau_goals_met": "goals met",
    "kendall_tau_annoyance": "annoyance",
}


def scores(found: pd.DataFrame, quality: Mapping[str, float], unit: str) -> pd.DataFrame:
    """Estimate every assistant's score per arm and criterion, with intervals over users.

    Args:
        found: of `outcomes`.
        quality: assistant -> how often it helps.
        unit: what ``found["user"]`` is.

    Returns:
        Rows of metric ("goals_met_good", ...), arm, value, low, high, n, unit, criterion, assistant,
        helpfulness, better.
    """
    rows = []
    for criterion, (above, below) in _PARTS.items():
        for (arm, assistant), own in found.groupby(["arm", "assistant"], sort=False):
            e = stats.ratio(own[above], own[below], own["user"].tolist(), unit)
            of = {"criterion": criterion, "assistant": assistant}
            of |= {"helpfulness": quality[assistant]}
            of |= {"better": "lower" if CRITERIA.get(criterion) == -1 else "higher"}
            rows.append(row(f"{criterion}_{_word(assistant)}", arm, e, **of))
    return pd.DataFrame(rows)


def _word(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.replace(" %", ""))


def taus(drawn: np.ndarray, quality: Sequence[float]) -> np.ndarray:
    """Return Kendall's tau-b of every row with the true quality; -1 to 1, higher is better.

    tau = (concordant - discordant pairs) / sqrt(pairs untied in one * pairs untied in the other)
    (Kendall, Biometrika 1938 and 1945). A row of equal scores recovers no order: 0. A row with a
    NaN is NaN.

    Args:
        drawn: scores, shape (draws, assistants), the higher the better.
        quality: shape (assistants,).

    >>> taus(np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [1.0, 1.0, 1.0]]), [0.1, 0.5, 0.9]).round(2)
    array([1.  , 0.33, 0.  ])
    """
    out, whole = np.full(len(drawn), np.nan), np.isfinite(drawn).all(axis=1)
    if not whole.any():
        return out
    orders, of = np.unique(rankdata(drawn[whole], axis=1), axis=0, return_inverse=True)
    known = [0.0 if np.ptp(o) == 0 else kendalltau(o, quality).statistic for o in orders]
    out[whole] = np.array(known)[of.ravel()]
    return out


def kendall(
    found: pd.DataFrame, quality: Mapping[str, float], unit: str, seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """Estimate Kendall's tau between each arm's order of the assistants and the true one.

    Every resample of users recovers an order of its own; the interval is the percentiles of their
    tau (tau takes few values, so the bias correction of BCa is undefined). Resamples are the same
    for all arms, so that differences are paired.

    Returns:
        Tidy rows: ``kendall_tau_goals_met``, ``kendall_tau_annoyance``, and ``kendall_tau``, the
        mean of those that could be scored; arms, and differences of the first arm to each other.

    Raises:
        UspError: fewer than two assistants.
    """
    arms, users = list(dict.fromkeys(found["arm"])), list(dict.fromkeys(found["user"]))
    if len(quality) < 2:
        raise UspError(f"{len(quality)} assistant(s) to rank; give at least two")
    weights = np.vstack([np.ones(len(users)), _draw(len(users), len(users), draws, seed)])
    per: dict[tuple[str, str], np.ndarray] = {}
    for arm in arms:
        for criterion in CRITERIA:
            scored = _scored(found, arm, criterion, users, list(quality), weights)
            per[f"kendall_tau_{criterion}", arm] = taus(scored, list(quality.values()))
        both = np.array([per[f"kendall_tau_{c}", arm] for c in CRITERIA])
        both = both[~np.isnan(both[:, 0])]
        per["kendall_tau", arm] = both.mean(axis=0) if len(both) else np.full(draws + 1, np.nan)
    rows = []
    for metric in ("kendall_tau", *(f"kendall_tau_{c}" for c in CRITERIA)):
        of = {arm: per[metric, arm] for arm in arms}
        of |= {f"{arms[0]}_minus_{arm}": of[arms[0]] - of[arm] for arm in arms[1:]}
        for arm, drawn in of.items():
            own = found["arm"] == arm.split("_minus_")[0]
            n = 0 if np.isnan(drawn[0]) else int(own.sum())
            e = _percentiles(drawn, n, unit, len(users))
            drawn_as = {"label": _LABELS[metric], "panel": "Kendall's tau", "better": "higher"}
            rows.append(row(metric, arm, e, **drawn_as))
    return pd.DataFrame(rows)


def users_needed(
    found: pd.DataFrame, quality: Mapping[str, float], seed: int = 0, draws: int = 1000
) -> pd.DataFrame:
    """Return how often so many users, drawn again from those there are, recover the whole order.

    Returns:
        Rows of criterion, arm, users (1, 2, 4, ... and all), value (share of draws, 0 to 1), n
        (users drawn from); criteria that could not be scored are left out.
    """
    users, rows = list(dict.fromkeys(found["user"])), []
    sizes = sorted({*(2**k for k in range(12) if 2**k < len(users)), len(users)})
    for size in sizes:
        weights = _draw(len(users), size, draws, seed)
        for arm in dict.fromkeys(found["arm"]):
            for criterion in CRITERIA:
                scored = _scored(found, arm, criterion, users, list(quality), weights)
                right = taus(scored, list(quality.values())) > 1 - 1e-9  # not scored: not right
                of = {"criterion": criterion, "arm": arm, "users": size, "n": len(users)}
                if np.isfinite(scored).any():
                    rows.append(of | {"value": float(right.mean())})
    return pd.DataFrame(rows, columns=["criterion", "arm", "users", "n", "value"])


def agreement(
    found: pd.DataFrame, reference: str, unit: str, seed: int = 0, draws: int = 500
) -> pd.DataFrame:
    """Estimate whether the same users are the annoyed ones, and the ones with much to ask.

    Spearman's rank correlation over users between an arm and the reference arm, of annoyance and of
    the number of goals met, both over all assistants; -1 to 1. NaN without three users or variety.

    Returns:
        Tidy rows ``user_agreement_goals_met`` and ``user_agreement_annoyance`` per arm.
    """
    sums = found.groupby(["arm", "user"])[["met", "annoyed", "decisions"]].sum(min_count=1)
    sums["annoyance"] = sums["annoyed"] / sums["decisions"].where(sums["decisions"] > 0)
    rows = []
    for criterion, column in {"goals_met": "met", "annoyance": "annoyance"}.items():
        wide = sums[column].unstack("arm")
        for arm in [a for a in dict.fromkeys(found["arm"]) if a != reference]:
            pair = wide[[arm, reference]].dropna().to_numpy()
            rng = np.random.default_rng(seed)
            size = (draws if len(pair) else 0, len(pair))
            picks = [np.arange(len(pair)), *rng.integers(max(len(pair), 1), size=size)]
            drawn = np.array([_spearman(pair[p]) for p in picks])
            e = _percentiles(drawn, len(pair), unit, len(pair))
            rows.append(row(f"user_agreement_{criterion}", arm, e, better="higher"))
    return pd.DataFrame(rows)


def _spearman(pair: np.ndarray) -> float:
    if len(pair) < 3 or (np.ptp(pair, axis=0) == 0).any():
        return float("nan")
    return float(spearmanr(*pair.T).statistic)


def _draw(n: int, size: int, draws: int, seed: int) -> np.ndarray:
    """Return how often each of n users is in each resample of ``size``, shape (draws, n)."""
    return np.random.default_rng(seed).multinomial(size, np.full(n, 1 / n), size=draws)


def _scored(
    found: pd.DataFrame,
    arm: str,
    criterion: str,
    users: Sequence[str],
    assistants: Sequence[str],
    weights: np.ndarray,
) -> np.ndarray:
    """Return the assistants' scores in every resample, the higher the better: (draws, assistants)."""
    own = found[found["arm"] == arm].dropna(subset=list(_PARTS[criterion]))
    sums = own.groupby(["user", "assistant"])[list(_PARTS[criterion])].sum()
    above, below = (
        sums[c].unstack("assistant").reindex(index=users, columns=assistants).fillna(0).to_numpy()
        for c in _PARTS[criterion]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return CRITERIA[criterion] * (weights @ above) / (weights @ below)


def _percentiles(drawn: np.ndarray, n: int, unit: str, clusters: int) -> stats.Estimate:
    """Return the first number with the percentiles of the others."""
    value, again = float(drawn[0]), drawn[1:][np.isfinite(drawn[1:])]
    if np.isnan(value) or clusters < 2 or not len(again):
        return stats.Estimate(value, float("nan"), float("nan"), n, unit)
    return stats.Estimate(value, *np.percentile(again, _TAILS).tolist(), n, unit)
