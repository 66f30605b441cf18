"""Does a text support a fact? Asked premise by premise, each distinct pair once.

    entailment = Entailment(NLI("cross-encoder/nli-deberta-v3-base"), file="entailment.jsonl")
    entailment.support([["my girls cant do hills"]], [["The user has children"]])

Who answers is a scorer: `nli.NLI`, a cross-encoder by name, or `likeness.OfflineScorer`, which needs no
download and is calibrated on what `evidence.calibration` knows.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

Pair = tuple[str, str]  # premise, fact


class Scorer(Protocol):
    """What `Entailment` asks: P(fact | premise) per pair, NaN where it cannot say."""

    identity: str

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return one number a pair, 0 to 1."""


class Bag(NamedTuple):
    """A text's premises, a fact, and whether the text supports it."""

    premises: tuple[str, ...]
    fact: str
    label: bool
    kind: str = ""
    user: str = ""


class Support(NamedTuple):
    """Of one text and its facts: how probable each fact is, and which premise says so (-1: none)."""

    probability: np.ndarray
    premise: np.ndarray


class Entailment:
    """A scorer whose answers are kept: a pair that was asked before costs no model call.

    Args:
        scorer: `nli.NLI`, `likeness.OfflineScorer` or one's own.
        file: a .jsonl file in which answers outlive the process; lines of other models are left alone.

    Attributes:
        calls: pairs that the scorer was asked for.
    """

    def __init__(self, scorer: Scorer, file: str | Path | None = None) -> None:
        self.scorer, self.file = scorer, None if file is None else Path(file)
        self._known: dict[Pair | str, float] = {}
        self.calls = 0
        if self.file is not None and self.file.exists():
            self._known = dict(_lines(self.file))

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return P(fact | premise) of each pair, 0 to 1, higher is surer; NaN where it cannot be said."""
        keys = [self._key(p) for p in pairs]
        new = {k: p for k, p in zip(keys, pairs, strict=True) if k not in self._known}
        if new:
            self.calls += len(new)
            scored = np.asarray(self.scorer.score(list(new.values())), float).tolist()
            self._known.update(zip(new, scored, strict=True))
            self._keep(zip(new, scored, strict=True))
        return np.array([self._known[k] for k in keys], float)

    def support(
        self, premises: Sequence[Sequence[str]], facts: Sequence[Sequence[str]]
    ) -> list[Support]:
        """Return for each text how well its premises support each of its facts: the best one counts.

        Args:
            premises: the texts' premises (`facts.premises`, or another side's facts).
            facts: as sentences, as many lists as texts.

        Returns:
            Per text a probability and the best premise's index per fact; without premises NaN and -1.
        """
        sizes = [(len(u), len(f)) for u, f in zip(premises, facts, strict=True)]
        grids = zip(premises, facts, strict=True)
        scores = self.score([(u, f) for units, own in grids for u in units for f in own])
        out, start = [], 0
        for rows, columns in sizes:
            grid = scores[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
            blank = np.isnan(grid).all(axis=0) if rows else np.ones(columns, bool)
            filled = np.where(np.isnan(grid), -1.0, grid)
            best = filled.argmax(axis=0) if rows else np.zeros(columns, int)
            top = filled.max(axis=0) if rows else np.zeros(columns)
            out.append(Support(np.where(blank, np.nan, top), np.where(blank, -1, best)))
        return out

    def best(self, bags: Sequence[Bag]) -> np.ndarray:
        """Return P(fact) of each bag by its best premise; NaN where it has none."""
        found = self.support([b.premises for b in bags], [[b.fact] for b in bags])
        return np.array([s.probability[0] for s in found], float)

    def _key(self, pair: Pair) -> Pair | str:
        if self.file is None:
            return pair
        text = json.dumps([self.scorer.identity, *pair])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def _keep(self, scored: Iterable[tuple[str, float]]) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torn = self.file.exists() and self.file.read_bytes()[-1:] not in (b"", b"\n")
            with self.file.open("a", encoding="utf-8") as f:
                f.write("\n" if torn else "")
                f.writelines(
                    json.dumps([k, None if math.isnan(p) else p]) + "\n" for k, p in scored
                )


def _lines(file: Path) -> Iterable[tuple[str, float]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):  # a line that a crash cut short is asked again
            continue
        yield key, math.nan if value is None else float(value)
