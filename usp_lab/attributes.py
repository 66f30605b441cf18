"""What profiles say, as a table of attributes: who shares what with whom, and what never occurs together.

    attributes("You are a nurse.\\n\\nYou type in lower case.")   # {"occupation": "nurse", "casing": "lower"}

Facts, traits and habits in the terms of the profile schema. What no rule reads is missing, not guessed.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from sklearn.base import BaseEstimator

from usp_lab.errors import UspError
from usp_lab.profile_quality import HABITS, read_claims
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
        tables_: attribute -> log p(value | class), shape (fits, values + 1, classes); the last value is "never seen".
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
        codes = self._codes(rows)
        fits = [self._em(codes, k, self.random_state + i) for i in range(self.fits)]
        self.weights_ = np.array([w for w, _ in fits])
        self.tables_ = {a: np.array([t[a] for _, t in fits]) for a in self.values_}

    def _em(self, codes: dict[str, np.ndarray], k: int, seed: int):
        n = len(next(iter(codes.values())))
        belongs = np.random.default_rng(seed).dirichlet(np.full(k, 0.2), n)
        for _ in range(self.iterations):
            weights = np.log((belongs.sum(0) + 0.5) / (n + 0.5 * k))
            tables = {a: self._table(a, c, belongs) for a, c in codes.items()}
            joint = self._joint(codes, weights, tables)
            belongs = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        return weights, tables

    def _table(self, attribute: str, codes: np.ndarray, belongs: np.ndarray) -> np.ndarray:
        told, size = codes >= 0, len(self.values_[attribute]) + 1
        overall = np.bincount(codes[told], minlength=size) + 0.5
        counts = np.zeros((size, belongs.shape[1]))
        np.add.at(counts, codes[told], belongs[told])
        counts += self.prior * (overall / overall.sum())[:, None]
        return np.log(counts / counts.sum(0))

    def _codes(self, rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
        """Return attribute -> codes, -1 where a profile does not say."""
        return {
            a: np.array([v.get(r[a], len(v)) if a in r else -1 for r in rows], dtype=int)
            for a, v in self.values_.items()
        }

    @staticmethod
    def _joint(codes, weights, tables) -> np.ndarray:
        out = np.tile(weights, (len(next(iter(codes.values()))), 1))
        for a, c in codes.items():
            told = c >= 0
            out[told] += tables[a][c[told]]
        return out

    def score_samples(self, X: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return log p(what each profile says) in nats, shape (n,); the more it says, the lower it is."""
        codes = self._codes(X)
        fits = [
            np.logaddexp.reduce(
                self._joint(codes, w, {a: t[i] for a, t in self.tables_.items()}), axis=1
            )
            for i, w in enumerate(self.weights_)
        ]
        return np.logaddexp.reduce(fits, axis=0) - np.log(len(fits))
