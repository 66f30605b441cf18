"""A Gaussian kernel density in a few dimensions, by binning: its time grows with the points, not with their square.

    kde = BinnedKDE(bandwidth="scott").fit(points)      # points (n, d), d = 1, 2 or 3
    kde.score_samples(points)                           # log density, as scikit-learn's KernelDensity

The estimate is that of `scipy.stats.gaussian_kde`: the kernel's covariance is the data's times the squared
factor. In whitened coordinates that kernel is round, so that points can be binned (linearly, on a grid of
equal spacing in all directions) and convolved once (KDEpy's `FFTKDE`); in between, a cubic spline reads the
grid. Linear binning widens the kernel by spacing^2 / 6, which is taken off the kernel.
"""

import math

import numpy as np
from KDEpy import FFTKDE
from scipy.ndimage import map_coordinates, spline_filter
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from sklearn.model_selection import KFold

from usp_lab.errors import UspError

CELLS = {1: 2048, 2: 512, 3: 96}  # cells of the grid along its longest side
_MARGIN = 5.0  # bandwidths of empty grid around the points
_LONE = 3.0  # bandwidths from a single point: where even less is read, the sum is done exactly
_ENTRIES = 4_000_000  # distances held at once by an exact sum
FACTORS = tuple(float(f) for f in np.geomspace(0.15, 1.6, 12))  # of Scott's, tried by "cv"


class BinnedKDE(BaseEstimator):
    """Gaussian KDE on a grid, with scikit-learn's contract.

    Attributes after `fit`:
        factor_: the kernel's standard deviation in whitened coordinates, no unit.
        center_, cholesky_: of the data; whitened is ``solve(cholesky_, x - center_)``.
        n_features_in_: d.
    """

    def __init__(self, bandwidth: str | float = "scott", cells: int = 0, seed: int = 0) -> None:
        """Choose a bandwidth.

        Args:
            bandwidth: "scott", n^(-1/(d+4)); "silverman", that times (4/(d+2))^(1/(d+4)); "cv", of `FACTORS`
                times Scott's the one under which held-out points are likeliest (5 folds); or the factor
                itself, above 0.
            cells: along the grid's longest side; 0: of `CELLS`.
            seed: of the folds.
        """
        self.bandwidth, self.cells, self.seed = bandwidth, cells, seed

    def fit(self, X, y=None) -> "BinnedKDE":
        """Estimate from points, shape (n, d).

        Raises:
            UspError: d above 3, fewer than d + 2 points, NaN, points on a line or plane, a bandwidth that is not above 0 or too narrow for a
                grid over all points.
        """
        points = self._checked(X)
        n, d = points.shape
        if n < d + 2:
            raise UspError(f"{n} points in {d} dimensions have no density; give at least {d + 2}")
        self.n_features_in_, self.center_ = d, points.mean(axis=0)
        covariance = np.atleast_2d(np.cov(points, rowvar=False))
        try:
            if not np.linalg.cond(covariance) < 1e12:
                raise np.linalg.LinAlgError
            self.cholesky_ = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise UspError(
                f"the {n} points lie on a line, a plane or one place; reduce to fewer dimensions than {d}"
            ) from None
        self._volume = float(np.log(np.diag(self.cholesky_)).sum())
        self._white = self._whiten(points)
        self.factor_ = self._factor(n, d)
        self._fill()
        return self

    def _checked(self, X) -> np.ndarray:
        points = np.asarray(X, float)
        points = points[:, None] if points.ndim == 1 else points
        if points.ndim != 2 or not 1 <= points.shape[1] <= max(CELLS):
            raise UspError(f"points must have shape (n, d) with d from 1 to 3, not {points.shape}")
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise UspError(
                f"{bad.sum()} of {len(points)} points are NaN or infinite; leave them out"
            )
        return points

    def _whiten(self, points: np.ndarray) -> np.ndarray:
        from scipy.linalg import solve_triangular

        return solve_triangular(self.cholesky_, (points - self.center_).T, lower=True).T

    def _factor(self, n: int, d: int) -> float:
        scott = n ** (-1 / (d + 4))
        if self.bandwidth == "scott":
            return scott
        if self.bandwidth == "silverman":
            return scott * (4 / (d + 2)) ** (1 / (d + 4))
        if self.bandwidth == "cv":
            return self._by_likelihood(scott)
        if isinstance(self.bandwidth, str) or not 0 < self.bandwidth < math.inf:
            raise UspError(
                f"bandwidth={self.bandwidth!r}; choose scott, silverman, cv, or a number above 0"
            )
        return float(self.bandwidth)

    def _by_likelihood(self, scott: float) -> float:
        folds = list(KFold(5, shuffle=True, random_state=self.seed).split(self._white))
        self.cv_scores_ = {}
        for factor in FACTORS:
            parts = []
            for learn, held in folds:
                part = BinnedKDE(1.0, self.cells)
                part.n_features_in_, part.factor_ = self.n_features_in_, factor * scott
                part._white, part._volume = self._white[learn], 0.0
                parts.append(part._fill()._log_white(self._white[held]))
            self.cv_scores_[factor * scott] = float(np.concatenate(parts).mean())
        return max(self.cv_scores_, key=self.cv_scores_.get)

    def _fill(self) -> "BinnedKDE":
        """Bin and convolve the whitened points; keep the spline's coefficients."""
        low, high = self._white.min(axis=0), self._white.max(axis=0)
        margin = _MARGIN * self.factor_
        longest = (high - low).max() + 2 * margin
        # Where the kernel is narrower than three cells the grid is made finer, within what memory allows.
        d = self.n_features_in_
        most = {1: 1 << 20, 2: 2048, 3: 192}[d]
        wanted = max(self.cells or CELLS[d], min(most, math.ceil(3 * longest / self.factor_)))
        self._step = longest / wanted
        self._low = low - margin
        counts = np.ceil((high - low + 2 * margin) / self._step).astype(int) + 1
        axes = [a + self._step * np.arange(c) for a, c in zip(self._low, counts, strict=True)]
        if self._step > 2 * self.factor_:
            raise UspError(
                f"the points reach over {longest / self.factor_:.0f} bandwidths, more than a grid can hold; "
                "leave far outliers out, or choose a wider bandwidth"
            )
        kernel = math.sqrt(self.factor_**2 - self._step**2 / 6)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
        density = FFTKDE(kernel="gaussian", bw=kernel, norm=2).fit(self._white).evaluate(grid)
        density = np.maximum(density.reshape(counts), 0)
        self._spline = spline_filter(density, order=3, mode="nearest")
        return self

    def score_samples(self, X) -> np.ndarray:
        """Return the log density of points, shape (n,), in nats per unit of volume.

        Raises:
            UspError: NaN, or another number of dimensions than was fitted.
        """
        points = self._checked(X)
        if points.shape[1] != self.n_features_in_:
            raise UspError(
                f"points have {points.shape[1]} dimensions, the density {self.n_features_in_}"
            )
        return self._log_white(self._whiten(points)) - self._volume

    def score(self, X, y=None) -> float:
        """Return the sum of log densities, as scikit-learn's does."""
        return float(self.score_samples(X).sum())

    def _log_white(self, white: np.ndarray) -> np.ndarray:
        places = ((white - self._low) / self._step).T
        read = map_coordinates(self._spline, places, order=3, mode="constant", prefilter=False)
        last = np.array(self._spline.shape)[:, None] - 1
        out = np.log(np.maximum(read, np.finfo(float).tiny))
        n, d = self._white.shape  # the library's kernel ends after some four bandwidths
        lone = math.exp(-(_LONE**2) / 2) / (n * (self.factor_ * math.sqrt(2 * math.pi)) ** d)
        unsure = (read < lone) | (places < 0).any(axis=0) | (places > last).any(axis=0)
        if unsure.any():
            out[unsure] = self._exact(white[unsure])
        return out

    def _exact(self, white: np.ndarray) -> np.ndarray:
        """Sum over all points, in pieces: for the far tails, where a grid has nothing to say."""
        n, d = self._white.shape
        norm = math.log(n) + d * math.log(self.factor_ * math.sqrt(2 * math.pi))
        rows, out = max(1, _ENTRIES // n), []
        for i in range(0, len(white), rows):
            apart = white[i : i + rows, None, :] - self._white[None]
            out.append(logsumexp(-0.5 * (apart**2).sum(-1) / self.factor_**2, axis=1) - norm)
        return np.concatenate(out) if out else np.empty(0)

    def sample(self, n_samples: int = 1, random_state: int | np.random.Generator = 0) -> np.ndarray:
        """Draw points from the estimate, shape (n_samples, d): a point of the data, moved by the kernel."""
        rng = np.random.default_rng(random_state)
        chosen = self._white[rng.integers(len(self._white), size=n_samples)]
        white = chosen + self.factor_ * rng.standard_normal(chosen.shape)
        return white @ self.cholesky_.T + self.center_
