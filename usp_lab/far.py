"""The virtual profiles least like any real one, out of a million, exactly.

    similarity = nearest(objective, subjective, pairs, training)       # to the most similar real profile
    least_similar(objective, subjective, pairs, training, k=5000)      # the k farthest

Halves are embedded apart, and a profile's embedding is the normalised mean of its two: so a virtual profile's cosine
to a real profile t is (of_i . t + sc_j . t) / |of_i + sc_j|, and all products are those of halves with real profiles, of
which there are far fewer than pairs. A pair's similarity to its nearest real profile only grows as more of these are looked
at; once it exceeds what the k-th farthest has in full, the pair is out. Nothing is approximated.
"""

from collections.abc import Iterator

import numba
import numpy as np

from usp_lab.errors import UspError

TILE = 512  # real profiles at once
_LOOK = (4096, 16384)  # real profiles looked at before the bound is (re)drawn


def joint(objective: np.ndarray, subjective: np.ndarray) -> np.ndarray:
    """Return embeddings of whole profiles, the normalised means of unit-length halves, shape (n, d)."""
    both = objective + subjective
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def nearest(objective: np.ndarray, subjective: np.ndarray, pairs: np.ndarray, training: np.ndarray) -> np.ndarray:  # fmt: skip
    """Return each pair's cosine to the most similar real profile, shape (n,).

    Args:
        objective: unit embeddings of objective halves, shape (a, d).
        subjective: of subjective halves, shape (b, d).
        pairs: rows of both, shape (n, 2).
        training: unit embeddings of real profiles (`joint`), shape (t, d).

    Raises:
        UspError: dimensions that differ; NaN; no pair or no real profile; a row that is not there.
    """
    search = _Search(objective, subjective, pairs, training)
    for tile in _tiles(search.training):
        search.look(tile)
    return search.best


def nearest_other(profiles: np.ndarray) -> np.ndarray:
    """Return each profile's cosine to the most similar other one, shape (n,), a tile at a time.

    Args:
        profiles: unit embeddings (`joint`), shape (n, d).

    Raises:
        UspError: fewer than two profiles.
    """
    if len(profiles) < 2:
        raise UspError(f"{len(profiles)} profile(s) have no other one; give two at least")
    out = np.empty(len(profiles), profiles.dtype)
    for start in range(0, len(profiles), TILE):
        near = profiles[start : start + TILE] @ profiles.T
        rows = np.arange(len(near))
        near[rows, start + rows] = -2  # itself
        out[start : start + TILE] = near.max(axis=1)
    return out


def least_similar(objective: np.ndarray, subjective: np.ndarray, pairs: np.ndarray, training: np.ndarray, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the k pairs least similar to any real profile, and their cosines to the nearest, ascending.

    Args:
        objective, subjective, pairs, training: see `nearest`.
        k: how many.
        seed: of the order in which real profiles are looked at, which changes the time alone.

    Raises:
        UspError: see `nearest`; k below 1 or above the number of pairs.
    """
    search = _Search(objective, subjective, pairs, training)
    if not 1 <= k <= len(pairs):
        raise UspError(f"k={k} of {len(pairs)} pairs; choose 1 to {len(pairs)}")
    order = np.random.default_rng(seed).permutation(len(training))
    seen = 0
    for mark in (*_LOOK, len(order)):
        for tile in _tiles(search.training, order[seen:mark]):
            search.look(tile)
        seen, alive = mark, search.alive
        if seen >= len(order) or len(alive) <= 2 * k:
            continue
        # Those that look farthest so far, in full: the k-th of them bounds the k-th of all from above.
        likely = alive[np.argpartition(search.best[alive], 2 * k)[: 2 * k]]
        full = _Search(objective, subjective, search.pairs[likely], training)
        for tile in _tiles(full.training):
            full.look(tile)
        bound = np.partition(full.best, k - 1)[k - 1]
        search.keep(alive[search.best[alive] <= bound + 1e-6])
    alive = search.alive
    chosen = alive[np.lexsort((alive, search.best[alive]))[:k]]
    return chosen, search.best[chosen]


def _tiles(training: np.ndarray, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    order = np.arange(len(training)) if order is None else order
    for start in range(0, len(order), TILE):
        yield training[order[start : start + TILE]]


class _Search:
    """The highest cosine seen so far, of each pair; ``alive``: those that are still asked about."""

    def __init__(self, objective, subjective, pairs, training) -> None:
        named = {"objective": objective, "subjective": subjective, "training": training}
        arrays = {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in named.items()}
        for name, a in arrays.items():
            if a.ndim != 2 or not len(a) or a.shape[1] != arrays["training"].shape[1]:
                raise UspError(
                    f"{name} embeddings have shape {a.shape}, training {arrays['training'].shape}; "
                    "give (n, d) each, of one encoder"
                )
            if not np.isfinite(a).all():
                raise UspError(f"{name} embeddings hold NaN or infinity; leave these profiles out")
        self.objective, self.subjective, self.training = arrays.values()
        self.pairs = np.ascontiguousarray(pairs, dtype=np.int64)
        sizes = (len(self.objective), len(self.subjective))
        if self.pairs.ndim != 2 or not len(self.pairs) or (self.pairs.max(0) >= sizes).any() or self.pairs.min() < 0:  # fmt: skip
            raise UspError(f"pairs must be rows of {sizes} halves, shape (n, 2), at least one")
        self.norm = np.empty(len(self.pairs), np.float32)
        _norms(self.norm, self.pairs, self.objective, self.subjective)
        self.best = np.full(len(self.pairs), -1, np.float32)
        self.keep(np.arange(len(self.pairs)))

    def look(self, tile: np.ndarray) -> None:
        """Look at some real profiles."""
        if self._whole is not None:
            found = (self._whole @ tile.T).max(axis=1)
            self.best[self.alive] = np.maximum(self.best[self.alive], found)
            return
        products = [vectors @ tile.T for vectors in self._used]
        _raise(self.best, self.alive, self._local, self.norm, *products)

    def keep(self, alive: np.ndarray) -> None:
        """Ask about these pairs from now on; gather their halves, or themselves where they are fewer."""
        self.alive, self._used, self._whole = alive, [], None
        self._local = self.pairs[alive]
        for side, vectors in enumerate((self.objective, self.subjective)):
            used, self._local[:, side] = np.unique(self._local[:, side], return_inverse=True)
            self._used.append(vectors[used])
        if len(alive) <= sum(map(len, self._used)):
            i, j = self.pairs[alive].T
            self._whole = joint(self.objective[i], self.subjective[j])
            self._used = []


@numba.njit(parallel=True, cache=True)
def _norms(out, pairs, first, second):
    for r in numba.prange(len(pairs)):
        total = np.float32(0)
        for k in range(first.shape[1]):
            v = first[pairs[r, 0], k] + second[pairs[r, 1], k]
            total += v * v
        out[r] = np.sqrt(total)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _raise(best, alive, pairs, norm, first, second):
    for r in numba.prange(len(alive)):
        a, b = first[pairs[r, 0]], second[pairs[r, 1]]
        top = np.float32(-2)
        for t in range(a.shape[0]):
            v = a[t] + b[t]
            if v > top:
                top = v
        row = alive[r]
        best[row] = max(best[row], top / norm[row])
