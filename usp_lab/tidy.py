"""Whose dialogues are measured, and the rows of tidy tables.

A tidy table has the columns metric, arm, value, low, high, n, unit; `Run.record` writes it into metrics.json.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.data import Corpus, Dialogue
from usp_lab.metrics import describe_turns


def row(metric: str, arm: str, estimate: stats.Estimate, **more: object) -> dict:
    """Return one row of a tidy table."""
    return {"metric": metric, "arm": arm, **estimate.as_dict(), **more}


def owners(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return what is resampled: each dialogue's user, or the dialogue itself where users are unknown."""
    return [d.user_id or d.id for d in dialogues]


def several_each(
    dialogues: Sequence[Dialogue], n: int | None = None, each: int = 2
) -> list[Dialogue]:
    """Return the first ``each`` dialogues of n users at most (None: all), who have so many; of others where too few have."""
    by_user: dict[str, list[Dialogue]] = {}
    for user, d in zip(owners(dialogues), dialogues, strict=True):
        by_user.setdefault(user, []).append(d)
    users = sorted(by_user.values(), key=lambda own: len(own) < each)[:n]
    return [d for own in users for d in own[:each]]


def one_each(dialogues: Sequence[Dialogue], n: int | None = None) -> list[Dialogue]:
    """Return the first dialogue of n users at most (None: all): n users tell more than n dialogues of fewer."""
    return several_each(dialogues, n, each=1)


def unit_of(corpus: Corpus) -> str:
    """Return the name of what `owners` resamples."""
    return "user" if all(d.user_id for d in corpus.test) else "dialogue"


def of_users(dialogues: Sequence[Dialogue], unit: str) -> str:
    """Say how many users stand behind dialogues, as far as they are known.

    >>> of_users([], "dialogue")
    'of unknown users'
    """
    return f"of {len(set(owners(dialogues)))} users" if unit == "user" else "of unknown users"


def halves(users: Sequence[Hashable], seed: int = 0) -> dict[Hashable, bool]:
    """Return of each user whether it is in a random half of the users (of an odd number, the smaller one)."""
    names = list(dict.fromkeys(users))
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = {names[i] for i in order[: len(names) // 2]}
    return {name: name in chosen for name in names}


def compare_corpora(
    corpora: Mapping[str, Sequence[Dialogue]], n: int, seed: int = 0, draws: int = 40
) -> pd.DataFrame:
    """Return `metrics.describe_turns` per corpus on n random dialogues each, with intervals by resampling dialogues."""
    rng, rows = np.random.default_rng(seed), []
    for name, dialogues in corpora.items():
        take = [dialogues[i].user_turns for i in rng.permutation(len(dialogues))[:n]]
        again = [
            describe_turns([take[i] for i in rng.integers(len(take), size=len(take))])
            for _ in range(draws)
        ]
        for statistic, value in describe_turns(take).items():
            half = 1.96 * float(np.std([a[statistic] for a in again]))
            rows.append(
                {
                    "statistic": statistic,
                    "corpus": name,
                    "value": value,
                    "low": value - half,
                    "high": value + half,
                    "n": len(take),
                    "unit": "dialogue",
                }
            )
    return pd.DataFrame(rows)
