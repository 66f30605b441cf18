"""Metrics put to the test: something real is broken at known doses, and each metric must say so.

rows = respond(score, users)  # at every dose, for random halves of the users
judge(rows.assign(**{"break": "collapse"}), {"collapse": ["recall"]})

A score is a function of two masks over items, (those that speak, those of them that are replaced), and
returns metric -> value.
"""

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from usp_lab import stats
from usp_lab.errors import UspError
from usp_lab.tidy import halves

DOSES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
LEAST_MONOTONY, LEAST_AUC, AT = 0.8, 0.9, 0.5  # what it takes to see a break; the AUC at that dose

Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def respond(
    score: Score,
    users: Sequence[Hashable],
    doses: Sequence[float] = DOSES,
    replicates: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Score real items of which a growing share is replaced.

    With the same replicate a larger dose replaces what a smaller one does, and more.

    Args:
        score: of the items that speak and those of them that are replaced (two masks).
        users: whose each item is.
        doses: shares of the speaking half's items replaced, 0 to 1.
        replicates: random halves.
        seed: of the halves, and of what is replaced.

    Returns:
        Columns replicate, dose, metric, value (NaN: cannot be scored).

    Raises:
        UspError: a dose outside 0 to 1, or fewer than two users.
    """
    if bad := [d for d in doses if not 0 <= d <= 1]:
        raise UspError(f"dose {bad[0]}; give shares of 0 to 1")
    if len(set(users)) < 2:
        raise UspError(f"{len(set(users))} user; a half to break and one to compare with need two")
    rows = []
    for r in range(replicates):
        half = halves(users, [seed, r])
        said = np.array([half[u] for u in users], bool)
        order = np.random.default_rng([seed, r, 1]).permutation(np.flatnonzero(said))
        for dose in doses:
            gone = np.zeros(len(said), bool)
            gone[order[: round(dose * len(order))]] = True
            named = {"replicate": r, "dose": dose}
            rows += [{**named, "metric": m, "value": v} for m, v in score(said, gone).items()]
    return pd.DataFrame(rows)


def judge(
    rows: pd.DataFrame,
    meant: Mapping[str, Collection[str]],
    lower: Collection[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Tell of each metric whether it sees each break.

    Args:
        rows: of `respond`, with a column ``break`` and doses from 0 on. A replicate with a NaN is left out.
        meant: break -> the metrics that must see it.
        lower: metrics for which lower is better.
        seed: of the intervals.

    Returns:
        One row a break and metric: monotony (Spearman's correlation of dose and badness, the mean over
        replicates, -1 to 1; 0 for one that stays put), auc (P(broken by half looks worse than intact), over
        replicates), each a `stats.Estimate`; least_dose, from which on the AUC is 0.9 (NaN: never); meant;
        verdict ("sees it", "failed", "blind to it" where it is not meant to see it, "not scored").
    """
    out = []
    for (broken, metric), own in rows.groupby(["break", "metric"], sort=False):
        sign, must = 1 if metric in lower else -1, metric in meant[broken]
        wide = sign * own.pivot(index="replicate", columns="dose", values="value").dropna()
        columns, rising = [wide[d].to_numpy() for d in wide], partial(_spearman, list(wide))
        monotony = stats.of_sums(columns, rising, None, "replicate", seed)
        pairs = {d: np.concatenate([wide[0.0], wide[d]]) for d in wide.columns if d > 0}
        broken_one = np.arange(2 * len(wide)) >= len(wide)
        aucs = {d: stats.area(both, broken_one) for d, both in pairs.items()} if len(wide) else {}
        seen = [d for d in aucs if all(aucs[e] >= LEAST_AUC for e in aucs if e >= d)]
        half = min(pairs, key=lambda d: abs(d - AT))
        auc = stats.auc(pairs[half], broken_one, [*wide.index, *wide.index], "replicate", seed)
        monotony = monotony if len(wide) else auc  # NaN both
        sees = monotony.value >= LEAST_MONOTONY and auc.value >= LEAST_AUC
        verdict = "sees it" if sees else "failed" if must else "blind to it"
        named = {"break": broken, "metric": metric, "monotony": monotony, "auc": auc}
        told = {"least_dose": min(seen, default=math.nan), "meant": must}
        out.append(named | told | {"verdict": verdict if len(wide) else "not scored"})
    return pd.DataFrame(out)


def estimates(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `judge` as tidy ones: metric ``<break>_monotony`` and ``<break>_auc``, arm the metric."""
    rows = [
        {"metric": f"{v['break']}_{what}", "arm": v["metric"], **v[what].as_dict()}
        for v in judged.to_dict("records")
        for what in ("monotony", "auc")
    ]
    return pd.DataFrame(rows)


def _spearman(doses: Sequence[float], *badness: np.ndarray | float) -> np.ndarray:
    """Rank correlation of doses with sums over replicates, numbers or arrays of resamples."""
    x, y = rankdata(doses), rankdata(np.stack(badness), axis=0)
    x, y = x - x.mean(), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum() * (y**2).sum(axis=0))
    return np.where(norm > 0, x @ y / np.where(norm > 0, norm, 1), 0.0)


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each metric's mean by dose with the middle 95 % of its replicates: break, metric, dose, value, low, high, n (replicates)."""
    grouped = rows.groupby(["break", "metric", "dose"], sort=False)["value"]
    found = grouped.agg(
        value="mean",
        low=lambda v: v.quantile(0.025),
        high=lambda v: v.quantile(0.975),
        n="count",
    )
    return found.reset_index()
