"""What profiles say, as a table of attributes: who shares what with whom, and what never occurs together.

    attributes("You are a nurse.\\n\\nYou type in lower case.")   # {"occupation": "nurse", "casing": "lower"}

Facts, traits and habits in the terms of the profile schema. What no rule reads is missing, not guessed.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator

from usp_lab.errors import UspError
from usp_lab.profile_claims import HABITS, read_claims
from usp_lab.profiles import Profile, split_profile
from usp_lab.users import FACTS, TRAITS, tables

OBJECTIVE, SUBJECTIVE = FACTS, (*TRAITS, *HABITS)
NAMES = (*OBJECTIVE, *SUBJECTIVE)


def values(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (attribute, value) of all values that these attributes have, places apart, which are many.

    >>> values(("gender",))
    [('gender', 'woman'), ('gender', 'man')]
    """
    base = tables()["kinds"]["base"]
    return [(a, v) for a in names if a in base for v in base[a]]


@lru_cache(maxsize=200_000)
def _read(half: str, names: tuple[str, ...]) -> Mapping[str, str]:
    out: dict[str, str] = {}
    for found in read_claims(Profile(text=half)):
        if found.attribute in names and found.codes:
            # a coarse claim ("has children") is a value of its own: the set it stands for
            out.setdefault(found.attribute, "|".join(sorted(found.codes)))
    return MappingProxyType(out)


def attributes(profile: str) -> dict[str, str]:
    """Return attribute -> value of a profile's text; a coarse claim's value is "a|b", all that agree with it.

    Facts are read in the objective half, traits and habits in the subjective one.

    >>> attributes("You work as a nurse.\\n\\nYou type everything in lower case.")
    {'occupation': 'nurse', 'casing': 'lower'}
    """
    objective, subjective = split_profile(profile)
    first = _read(f"{objective}\n\n", OBJECTIVE) if objective.strip() else {}
    second = _read(f"\n\n{subjective}", SUBJECTIVE) if subjective.strip() else {}
    return {**first, **second}


class LatentClasses(BaseEstimator):
    """How common a combination of attributes is: a mixture of classes, in each of which attributes are independent.

    The model of latent class analysis (Lazarsfeld and Henry, 1968), fitted by EM; a missing attribute is summed
    over, which is to say left out. Several fits are averaged, since one EM ends in one of many optima. Its number
    of classes is the one under which held-out profiles are likeliest, so that nothing need be known of the truth.

    Attributes after `fit`:
        n_classes_: chosen.
        values_: attribute -> value -> code.
        weights_: log shares of classes, shape (fits, classes).
        tables_: log p(value | class) of all attributes' values one below the other, each attribute's last being "never
            seen", shape (fits, values, classes).
        likelihood_: number of classes -> mean held-out log-likelihood in nats.
    """

    def __init__(
        self,
        n_classes: int | str = "cv",
        fits: int = 3,
        prior: float = 4.0,
        iterations: int = 80,
        random_state: int = 0,
    ) -> None:
        """Choose a model.

        Args:
            n_classes: how many, or "cv": of 1, 4, 8, 12, 16, by a held-out fifth.
            fits: EM runs that are averaged.
            prior: profiles' worth of the attribute's overall shares that each class begins with.
            iterations: of EM.
            random_state: of starts and of the held-out fifth.
        """
        self.n_classes, self.fits, self.prior = n_classes, fits, prior
        self.iterations, self.random_state = iterations, random_state

    def fit(self, X: Sequence[Mapping[str, str]], y=None) -> "LatentClasses":
        """Learn from attributes of profiles (`attributes`), one profile a user.

        A user who comes twice would be held out and learned from at once.

        Raises:
            UspError: fewer than ten profiles that say anything; a number of classes below 1.
        """
        rows = [r for r in X if r]
        if len(rows) < 10:
            raise UspError(
                f"{len(rows)} of {len(X)} profiles state an attribute that can be read; classes need ten"
            )
        if self.n_classes != "cv" and (
            not isinstance(self.n_classes, int | np.integer) or self.n_classes < 1
        ):
            raise UspError(f'n_classes must be "cv" or a number from 1 up, not {self.n_classes!r}')
        self.values_ = {
            a: {v: i for i, v in enumerate(sorted({r[a] for r in rows if a in r}))} for a in NAMES
        }
        self.values_ = {a: v for a, v in self.values_.items() if v}
        self.n_classes_, self.likelihood_ = self.n_classes, {}
        if self.n_classes == "cv":
            out = np.random.default_rng(self.random_state).random(len(rows)) < 0.2
            held = [r for r, o in zip(rows, out, strict=True) if o]
            kept = [r for r, o in zip(rows, out, strict=True) if not o]
            for k in (1, 4, 8, 12, 16):
                self._learn(kept, k)
                self.likelihood_[k] = float(self.score_samples(held).mean())
            self.n_classes_ = max(self.likelihood_, key=self.likelihood_.__getitem__)
        self._learn(rows, self.n_classes_)
        return self

    def _learn(self, rows: Sequence[Mapping[str, str]], k: int) -> None:
        told = self._told(rows)
        fits = [self._em(told, k, self.random_state + i) for i in range(self.fits)]
        self.weights_ = np.array([w for w, _ in fits])
        self.tables_ = np.array([t for _, t in fits])

    def _em(self, told: csr_array, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        n, starts, by_value = told.shape[0], self._starts(), told.T.tocsr()
        sizes = np.diff([*starts, told.shape[1]])
        overall = np.asarray(told.sum(axis=0)).ravel() + 0.5
        prior = self.prior * overall / np.repeat(np.add.reduceat(overall, starts), sizes)
        belongs = np.random.default_rng(seed).dirichlet(np.full(k, 0.2), n)
        for _ in range(self.iterations):
            weights = np.log((belongs.sum(0) + 0.5) / (n + 0.5 * k))
            counts = by_value @ belongs + prior[:, None]
            tables = np.log(counts / np.repeat(np.add.reduceat(counts, starts), sizes, axis=0))
            joint = told @ tables + weights
            belongs = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        return weights, tables

    def _starts(self) -> np.ndarray:
        """Return where each attribute's values begin; each has one more than it has values."""
        return np.cumsum([0, *(len(v) + 1 for v in self.values_.values())])[:-1]

    def _told(self, rows: Sequence[Mapping[str, str]]) -> csr_array:
        """Return which value each profile states of each attribute, one where it does, shape (n, values)."""
        starts = dict(zip(self.values_, self._starts().tolist(), strict=True))
        at = [
            (i, starts[a] + v.get(r[a], len(v)))
            for i, r in enumerate(rows)
            for a, v in self.values_.items()
            if a in r
        ]
        i, j = np.array(at, dtype=int).reshape(-1, 2).T
        width = sum(len(v) + 1 for v in self.values_.values())
        return csr_array((np.ones(len(at)), (i, j)), shape=(len(rows), width))

    def score_samples(self, X: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return log p(what each profile says) in nats, shape (n,); the more it says, the lower it is."""
        told = self._told(X)
        fits = [
            np.logaddexp.reduce(told @ t + w, axis=1)
            for w, t in zip(self.weights_, self.tables_, strict=True)
        ]
        return np.logaddexp.reduce(fits, axis=0) - np.log(len(fits))
