"""Common users and rare ones, drawn by the density of their profiles.

    sampler = ProfileSampler(reducer="umap", random_state=0).fit(profiles)   # texts, or embeddings (n, D)
    sampler.sample(100, kind="minority")                                     # profiles of rare users
    sampler.save("sampler"); ProfileSampler.load("sampler")

Profiles are embedded (objective half, subjective half, or both joined), standardised and reduced to a map of
two or three dimensions, whose Gaussian kernel density says how common each is (arXiv 2502.18968, diverse
profile sampler; its code was not released). The density may also be that of the attributes which the profiles
state (`attributes.LatentClasses`): on the known-truth population that one knows who is rare, and the map's does
not (`05_profile_sampler`). UMAP's map differs between machines even when seeded, so a fitted
sampler is an artifact: coordinates are saved and answers come from them. PCA is the reproducible alternative.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from usp_lab import sampler_store
from usp_lab.attributes import LatentClasses, attributes
from usp_lab.compiled import umap_class
from usp_lab.density import BinnedKDE
from usp_lab.errors import UspError
from usp_lab.profiles import split_profile

KINDS = ("density", "majority", "minority", "uniform", "virtual")
PARTS = ("both", "objective", "subjective")
REDUCERS = ("umap", "pca", "densmap")
DENSITIES = ("kde", "classes")
_SHARD = 65_536  # profiles placed on the map at once


class ProfileSampler(BaseEstimator):
    """Draws users by how common their profiles are.

    Attributes after `fit`:
        coordinates_: place of each profile on the map, shape (n, n_components).
        log_density_: of each, shape (n,): nats per unit of the map's volume, or log p(what it states) in nats.
        density_: `BinnedKDE` on the map.
        classes_: `LatentClasses` with density="classes", else None.
        scaler_, map_: what leads there; map_ is None where a pickle was not trusted.
        texts_: the profiles; None where embeddings were given.
        fingerprint_: 16 hex digits over what was fitted on.
    """

    def __init__(
        self,
        part: str = "both",
        encoder: str = "minilm",
        reducer: str = "umap",
        n_components: int = 2,
        neighbors: int | None = None,
        min_dist: float = 0.1,
        bandwidth: str | float = "scott",
        density: str = "kde",
        learn_from: int = 100_000,
        random_state: int = 0,
    ) -> None:
        """Choose a map and a density.

        Args:
            part: of the profile that is embedded: "objective", "subjective", or "both" joined, where a profile
                that lacks one half lies at the others' mean in it.
            encoder: `encoders.SentenceEncoder`'s name; not used where embeddings are given.
            reducer: "umap" as in the paper; "pca"; "densmap", which fits and can place nobody afterwards.
            n_components: dimensions of the map, 1 to 3.
            neighbors, min_dist: of UMAP; neighbors None is 15, or fewer where there are fewer profiles.
            bandwidth: of `BinnedKDE`.
            density: who is common and who is rare: "kde", by the map, as in the paper; "classes", by the attributes
                stated, which needs texts.
            learn_from: the map is learned from so many profiles, drawn at random, and the others are placed on it.
            random_state: of the map, the bandwidth's folds and, where none is given, of draws.
        """
        self.part, self.encoder, self.reducer = part, encoder, reducer
        self.n_components, self.neighbors, self.min_dist = n_components, neighbors, min_dist
        self.bandwidth, self.density = bandwidth, density
        self.learn_from, self.random_state = learn_from, random_state

    # --- fitting --------------------------------------------------------------------------------

    def fit(self, X: Sequence[str] | np.ndarray, y=None) -> "ProfileSampler":
        """Learn map and density.

        Args:
            X: profiles, as texts or `Profile`, or their embeddings, shape (n, D).

        Raises:
            UspError: unknown part, reducer, density or bandwidth; classes of embeddings; fewer profiles than neighbours asked for; NaN or constant
                embeddings; more than half of them duplicates; a profile without the half that is embedded.
        """
        for name, known in (("part", PARTS), ("reducer", REDUCERS), ("density", DENSITIES)):
            if getattr(self, name) not in known:
                raise UspError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}")
        self.texts_ = None if isinstance(X, np.ndarray) else _texts(X)
        self._needs_texts()
        vectors = self._vectors(X)
        n = len(vectors)
        if self.neighbors is not None and self.reducer != "pca" and n <= self.neighbors:
            raise UspError(
                f"{n} profiles for neighbors={self.neighbors}; give more, or fewer neighbours"
            )
        if n < self.n_components + 2:
            raise UspError(f"{n} profiles make no map; give at least {self.n_components + 2}")
        if self.learn_from < self.n_components + 2:
            raise UspError(
                f"learn_from={self.learn_from}; a map needs at least {self.n_components + 2} profiles"
            )
        alike = n - len({hash(v.tobytes()) for v in vectors})
        if not vectors.std(axis=0).any():
            raise UspError(f"all {n} embeddings are the same; there is no density to estimate")
        if 2 * alike > n:
            raise UspError(
                f"{alike} of {n} profiles are duplicates; leave them out, they would pass for common users"
            )
        self.fingerprint_ = hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()[:16]
        self.coordinates_ = self._mapped(vectors)
        self.density_ = BinnedKDE(self.bandwidth, seed=self.random_state).fit(self.coordinates_)
        self.classes_ = None
        if self.density == "classes":
            rows = [attributes(t) for t in self.texts_]
            self.classes_ = LatentClasses(random_state=self.random_state).fit(rows)
            self.log_density_ = self.classes_.score_samples(rows)
        else:
            self.log_density_ = self.density_.score_samples(self.coordinates_)
        return self

    def _mapped(self, vectors: np.ndarray) -> np.ndarray:
        """Learn the map, from a part of many profiles, and return all places on it."""
        n, part = len(vectors), vectors
        if n > self.learn_from and self.reducer != "densmap":  # which can place no others
            rows = np.random.default_rng(self.random_state).choice(
                n, self.learn_from, replace=False
            )
            part = vectors[np.sort(rows)]
        self.scaler_ = StandardScaler().fit(part)
        self.map_ = self._reducer(len(part))
        places = self.map_.fit_transform(self.scaler_.transform(part))
        if len(part) < n:
            shards = (vectors[i : i + _SHARD] for i in range(0, n, _SHARD))
            places = np.vstack([self.map_.transform(self.scaler_.transform(v)) for v in shards])
        return np.asarray(places, float)

    def _needs_texts(self) -> None:
        if self.density == "classes" and self.texts_ is None:
            raise UspError("density='classes' reads attributes, which embeddings have none of; give texts, or choose kde")  # fmt: skip

    def _reducer(self, n: int):
        if self.reducer == "pca":
            return PCA(self.n_components, svd_solver="full")
        near = self.neighbors or min(15, n - 1)
        return umap_class()(near, self.n_components, min_dist=self.min_dist, densmap=self.reducer == "densmap", random_state=self.random_state, n_jobs=1)  # fmt: skip

    def _vectors(self, X: Sequence[str] | np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
        if not isinstance(X, np.ndarray):
            X = self._embedded(_texts(X))
            mean = np.nanmean(X, axis=0) if mean is None else mean
            X = np.where(np.isnan(X), mean, X)  # a half that is not there says nothing
        if X.ndim != 2 or not len(X):
            raise UspError(f"embeddings must have shape (n, D), not {X.shape}")
        bad = ~np.isfinite(X).all(axis=1)
        if bad.any():
            raise UspError(
                f"{bad.sum()} of {len(X)} embeddings are NaN or infinite; leave these profiles out"
            )
        return X.astype(np.float32, copy=False)

    def _embedded(self, texts: list[str]) -> np.ndarray:
        """Return embeddings, shape (n, D); NaN for a half that a profile lacks."""
        from usp_lab.models import sentence_encoder

        wanted = PARTS[1:] if self.part == "both" else (self.part,)
        halves = [dict(zip(PARTS[1:], split_profile(t), strict=True)) for t in texts]
        for half in wanted:
            missing = sum(not h[half].strip() for h in halves)
            if missing > (len(texts) // 2 if self.part == "both" else 0):
                raise UspError(
                    f"{missing} of {len(texts)} profiles have no {half} half; leave them out or choose another part"
                )
        encoder = sentence_encoder(self.encoder)
        return np.hstack([encoder.encode([h[half] for h in halves]) for half in wanted])

    # --- asking ---------------------------------------------------------------------------------

    def transform(self, X: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return the places of other profiles on the map, shape (n, n_components).

        Raises:
            UspError: densMAP, which cannot; a sampler loaded without trust; another encoder's dimension.
        """
        if self.reducer == "densmap":
            raise UspError(
                "densMAP can place no new profiles; fit it on all of them, or choose umap or pca"
            )
        if self.map_ is None:
            raise UspError("this UMAP was loaded without its pickle; ProfileSampler.load(folder, trusted=True) if you made it")  # fmt: skip
        vectors = self._vectors(X, self.scaler_.mean_)
        if vectors.shape[1] != self.scaler_.n_features_in_:
            raise UspError(
                f"embeddings of {vectors.shape[1]} dimensions, but fitted was on {self.scaler_.n_features_in_}; use the encoder and part it was fitted with"
            )
        return np.asarray(self.map_.transform(self.scaler_.transform(vectors)), float)

    def log_density(self, X: Sequence[str] | np.ndarray | None = None) -> np.ndarray:
        """Return log densities in nats, of the profiles fitted on or of others, shape (n,)."""
        if X is None:
            return self.log_density_
        if self.classes_ is None:
            return self.density_.score_samples(self.transform(X))
        if isinstance(X, np.ndarray):
            raise UspError("fitted with density='classes', which reads texts; give those")
        return self.classes_.score_samples([attributes(t) for t in _texts(X)])

    def group(
        self, kind: str, share: float = 0.1, by: str = "kde", neighbours: int = 50
    ) -> np.ndarray:
        """Return the indices of the most common ("majority") or the rarest ("minority") profiles.

        Args:
            kind: which end.
            share: of all profiles, above 0 and at most 1.
            by: "kde", or "neighbours": mean distance to so many nearest ones on the map, as in the paper's scripts.
            neighbours: how many.
        """
        if kind not in ("majority", "minority") or by not in ("kde", "neighbours"):
            raise UspError(
                f"kind={kind!r}, by={by!r}; choose majority or minority, kde or neighbours"
            )
        if not 0 < share <= 1:
            raise UspError(f"share must lie above 0 and at most at 1, not {share}")
        common = self.log_density_ if by == "kde" else self._nearness(neighbours)
        order = np.argsort(common, kind="stable")
        size = max(1, round(share * len(order)))
        return order[:size] if kind == "minority" else order[::-1][:size]

    def _nearness(self, neighbours: int) -> np.ndarray:
        if neighbours >= len(self.coordinates_):
            raise UspError(
                f"{len(self.coordinates_)} profiles have no {neighbours} neighbours each; ask for fewer"
            )
        distance, _ = cKDTree(self.coordinates_).query(self.coordinates_, k=neighbours + 1)
        return -distance[:, 1:].mean(axis=1)

    def sample_indices(self, n: int, kind: str = "density", random_state: int | None = None, share: float = 0.1) -> np.ndarray:  # fmt: skip
        """Draw profiles, as indices into those fitted on, shape (n,).

        Args:
            n: how many.
            kind: "density": the profiles nearest to points of the map's estimate, with repeats; "majority", "minority":
                of the ``share`` most common or rarest, without repeats; "uniform": evenly over the map's area
                (by one over the density, with repeats).
            random_state: of the draw; the sampler's own when None.
            share: the size of a group.

        Raises:
            UspError: an unknown kind, n below 1 or above the group.
        """
        if kind not in KINDS:
            raise UspError(f"kind={kind!r}; choose one of {', '.join(KINDS)}")
        if kind == "virtual":
            raise UspError(
                "virtual profiles are none of those fitted on; use sample, or virtual.draw"
            )
        if n < 1:
            raise UspError(f"n must be at least 1, not {n}")
        rng = np.random.default_rng(self.random_state if random_state is None else random_state)
        if kind == "density":
            return cKDTree(self.coordinates_).query(self.density_.sample(n, rng))[1]
        if kind == "uniform":
            there = self.log_density_  # of the map
            if self.classes_ is not None:
                there = self.density_.score_samples(self.coordinates_)
            weight = np.exp(there.min() - there)
            return rng.choice(len(weight), n, p=weight / weight.sum())
        among = self.group(kind, share)
        if n > len(among):
            raise UspError(f"n={n}, but the {kind} at share={share} has {len(among)} profiles; ask for fewer or raise share")  # fmt: skip
        return rng.choice(among, n, replace=False)

    def sample(self, n: int, kind: str = "density", random_state: int | None = None, share: float = 0.1) -> list[str]:  # fmt: skip
        """Draw profile texts; see `sample_indices`, which is what there is where embeddings were given.

        Those of kind "virtual" join halves of two neighbours (`virtual.draw`, which also says what was rejected).
        """
        if self.texts_ is None:
            raise UspError("fitted on embeddings, which are no texts; use sample_indices")
        if kind == "virtual":
            from usp_lab.virtual import draw

            return draw(self, n, random_state=random_state).texts
        return [self.texts_[i] for i in self.sample_indices(n, kind, random_state, share)]

    # --- keeping --------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write all that is needed to answer elsewhere into a new folder; see `sampler_store`."""
        sampler_store.save(self, Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, trusted: bool = False, encoder: str | None = None
    ) -> "ProfileSampler":
        """Read a saved sampler; the same answers as where it was saved.

        Args:
            folder: of `save`.
            trusted: unpickle UMAP's state too, which runs code of whoever made the folder. Without it all works
                but `transform` of a UMAP.
            encoder: what the caller embeds with, checked against what was fitted with.

        Raises:
            UspError: no sampler there, a damaged file, another encoder.
        """
        parameters, fitted = sampler_store.load(Path(folder), trusted, encoder)
        self = cls(**parameters)
        vars(self).update(fitted)
        return self


def _texts(profiles: Sequence) -> list[str]:
    return [p if isinstance(p, str) else p.to_text() for p in profiles]
