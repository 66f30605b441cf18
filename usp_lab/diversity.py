"""Diversity of simulated users: their turns against the real turns of other users, their dialogues among themselves.

real, usp = (turn_cloud(encoder, d, users) for d in (targets, simulated))
distribution_estimates({"usp": usp}, real, halves(users))

Every table is tidy: metric, arm, value, low, high, n, unit, better, and ``reason``, why a value is NaN.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from usp_lab import distributions
from usp_lab.data import Dialogue
from usp_lab.distributions import FEWEST, Scored, Unscorable, leave_one_out, leave_one_out_each
from usp_lab.errors import UspError
from usp_lab.scorers import meaning
from usp_lab.tidy import row

_FREE = (-math.inf, math.inf)


def scored_row(metric: str, arm: str, scored: Scored, **more: object) -> dict:
    """Return one row of a tidy table with its reason."""
    return row(metric, arm, scored.estimate, reason=scored.reason, **more)


def user_sides(encoder, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """Embed what the user says in each dialogue (`scorers.meaning`), shape (n, dimension)."""
    return meaning(encoder, [d.user_turns for d in dialogues])


def whole_dialogues(encoder, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """Embed both sides of each dialogue together, shape (n, dimension)."""
    return meaning(encoder, [[m["content"] for m in d.messages] for d in dialogues])


# --- turns against other users' real turns -------------------------------------------------------


@dataclass(frozen=True)
class Cloud:
    """Embeddings and whose they are: x of shape (n, dimension), users of length n."""

    x: np.ndarray
    users: Sequence[Hashable]

    @classmethod
    def of(cls, x: np.ndarray, users: Sequence[Hashable]) -> "Cloud":
        """Leave out rows that are NaN (empty texts).

        Raises:
            UspError: not one user an embedding.
        """
        if len(x) != len(users):
            raise UspError(f"{len(x)} embeddings of {len(users)} users; give each its user")
        keep = np.isfinite(x).all(axis=1)
        return cls(np.asarray(x, float)[keep], [u for u, k in zip(users, keep, strict=True) if k])

    def at_most(self, n: int, seed: int = 0) -> "Cloud":
        """Return so many of them, drawn at random: what is compared must be of one size."""
        if len(self.users) <= n:
            return self
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.users))[:n])
        return Cloud(self.x[kept], [self.users[i] for i in kept])


def turn_cloud(encoder, dialogues: Sequence[Dialogue], users: Sequence[Hashable]) -> Cloud:
    """Embed every user turn with words (`scorers.meaning`); ``users``: whose each dialogue is."""
    said = [([t], u) for d, u in zip(dialogues, users, strict=True) for t in d.user_turns]
    return Cloud.of(meaning(encoder, [t for t, _ in said]), [u for _, u in said])


class AgainstReal:
    """An arm's turns against the real turns of the *other* half of users, both ways, averaged.

    So nobody gains by its own target being there, and real turns as the arm (`human_split`) reach
    what real people reach with as many turns.

    Args:
        said, real: turns of the same users.
        half: of each user, in which half (`halves`).
        k: neighbours of precision, recall, density and coverage.
        seeds: of MAUVE's k-means.

    Raises:
        UspError: turns of a user who is in neither half.
    """

    def __init__(
        self,
        said: Cloud,
        real: Cloud,
        half: Mapping[Hashable, bool],
        k: int = 5,
        seeds: Sequence[int] = range(5),
    ) -> None:
        self.k, x = k, np.concatenate([said.x, real.x])
        place = {u: i for i, u in enumerate(half)}
        if strangers := [u for u in (*said.users, *real.users) if u not in place]:
            raise UspError(f"turns of {strangers[0]!r}, who is in neither half; halve all users")
        self._user = np.array([place[u] for u in (*said.users, *real.users)], int)
        side = np.array(list(half.values()), bool)[self._user]
        arm = np.arange(len(x)) < len(said.x)
        self._folds = [(arm & (side == s), ~arm & (side != s)) for s in (True, False)]
        self._fewest = min(int(part.sum()) for fold in self._folds for part in fold)
        self._near, self._labels, self._known = distributions.distances(x, x), None, {}
        if self._fewest >= FEWEST:
            number = distributions.bucket_number(self._fewest)
            self._labels = distributions.buckets(x, number, seeds)

    def mauve(self, kept: np.ndarray) -> dict[str, float]:
        """Return MAUVE, averaged over seeds and both ways, of the users kept (boolean, in the order of ``half``)."""
        if self._labels is None:
            raise Unscorable(f"{self._fewest} turns in a half, at least {FEWEST} are needed")
        labels = self._labels
        return self._both(
            "mauve", lambda g, r: {"mauve": distributions.mauve_of(labels, g, r)}, kept
        )

    def prdc(self, kept: np.ndarray) -> dict[str, float]:
        """Return precision, recall, density and coverage of the users kept."""
        near, k = self._near, self.k

        def compare(g, r):
            within = near[np.ix_(r, r)], near[np.ix_(g, g)]
            return distributions.prdc_of(*within, near[np.ix_(r, g)], k)

        return self._both("prdc", compare, kept)

    def _both(self, kind: str, compare: Callable, kept: np.ndarray) -> dict[str, float]:
        key = kind, kept.tobytes()  # asked for again by every difference
        if key not in self._known:
            keep = kept[self._user]
            both = [compare(*(np.flatnonzero(part & keep) for part in f)) for f in self._folds]
            self._known[key] = {m: float(np.mean([b[m] for b in both])) for m in both[0]}
        return self._known[key]


def most_neighbours(
    arms: Mapping[str, Cloud], real: Cloud, half: Mapping[Hashable, bool], k: int
) -> int:
    """Return ``k``, or where turns are few a third of the fewest that a half has (1 at least)."""
    sides = [[half[u] for u in cloud.users] for cloud in (*arms.values(), real)]
    fewest = min(min(sum(side), len(side) - sum(side)) for side in sides)
    return max(1, min(k, fewest // 3))


def distribution_estimates(
    arms: Mapping[str, Cloud],
    real: Cloud,
    half: Mapping[Hashable, bool],
    k: int = 5,
    seeds: Sequence[int] = range(5),
    unit: str = "user",
) -> pd.DataFrame:
    """Score every arm by `AgainstReal`, with `human_split` as reference and the paired differences to it.

    Returns:
        Rows of mauve (freed of first-order bias), precision, recall, density and coverage, for which
        higher is better. ``n``: the arm's turns.
    """
    scorers = {a: AgainstReal(x, real, half, k, seeds) for a, x in arms.items()}
    human, names, rows = AgainstReal(real, real, half, k, seeds), list(half), []
    kinds = {"mauve": {"mauve": _FREE}, "prdc": distributions.PRDC}
    for kind, bounds in kinds.items():
        floor = getattr(human, kind)
        for arm, scorer in {**scorers, "human_split": human}.items():
            own, n = getattr(scorer, kind), len((arms | {"human_split": real})[arm].users)
            cells = {arm: leave_one_out_each(own, bounds, names, unit, kind == "mauve")}
            if arm != "human_split":
                gap, free = _difference(own, floor), dict.fromkeys(bounds, _FREE)
                name = f"{arm}_minus_human_split"
                cells[name] = leave_one_out_each(gap, free, names, unit, kind == "mauve")
            for a, scored in cells.items():
                rows += [scored_row(m, a, s, better="higher") | {"n": n} for m, s in scored.items()]
    return pd.DataFrame(rows)


def _difference(first: Callable, second: Callable) -> Callable:
    def statistic(kept: np.ndarray) -> dict[str, float]:
        a, b = first(kept), second(kept)
        return {m: a[m] - b[m] for m in a}

    return statistic


# --- Vendi ---------------------------------------------------------------------------------------


def vendi_estimates(
    arms: Mapping[str, np.ndarray],
    real: np.ndarray,
    users: Sequence[Hashable],
    half: Mapping[Hashable, bool],
    unit: str = "user",
) -> pd.DataFrame:
    """Vendi score of an arm's dialogues over that of their targets: 1 is as varied, below it collapse.

    ``<arm>_minus_real`` is that ratio less the targets' own, which is 1: below 0 is less varied than
    people. Each user is left out of both sides, so the difference is paired.

    Args:
        arms: simulated dialogues' embeddings, shape (n, dimension), in the order of ``real``; where a
            row is NaN (nothing said), its target is left out too.
        real, users: the targets, and whose they are.
        half: `human_split` is one half's dialogues over as many of the other's; for its interval they
            are left out in pairs, since the score grows with the number of dialogues.
    """
    x, pairs = np.asarray(real, float), {}
    known = np.isfinite(x).all(axis=1)
    for arm, said in arms.items():
        y = np.asarray(said, float)
        both = np.flatnonzero(known & np.isfinite(y).all(axis=1))
        pairs[arm] = y[both], x[both], [users[i] for i in both]
    first = np.array([half[u] for u in users], bool)
    a, b = np.flatnonzero(known & first), np.flatnonzero(known & ~first)
    n = min(len(a), len(b))
    pairs["human_split"] = x[a[:n]], x[b[:n]], [users[i] for i in a[:n]]
    scored = {arm: _vendi_ratio(*pair, unit) for arm, pair in pairs.items()}
    scored |= {f"{arm}_minus_real": _vendi_ratio(*pairs[arm], unit, 1.0) for arm in arms}
    return pd.DataFrame([scored_row("vendi_ratio", a, s, better="") for a, s in scored.items()])


def _vendi_ratio(
    said: np.ndarray, real: np.ndarray, users: Sequence[Hashable], unit: str, less: float = 0.0
) -> Scored:
    def ratio(keep: np.ndarray) -> float:
        return distributions.vendi(said[keep]) / distributions.vendi(real[keep]) - less

    return leave_one_out(ratio, users, unit, bounds=(-less, math.inf))
