"""Seconds and error of the binned density beside `scipy.stats.gaussian_kde`, same points, same bandwidth.

    python benchmarks/density.py [--n 100000] [--queries 4000]

Points are clumps of unlike size and spread with a thin background, as UMAP gives. SciPy's time is measured
on a part of the queries and scaled to all n (it is linear in them); the error is the largest over the same part,
where the density is above 1 % of its maximum. `slope` is that of log time over log n, from 100,000 to 1,000,000 points.
"""

import argparse
import math
import time

import numpy as np
from scipy.stats import gaussian_kde

from usp_lab.density import BinnedKDE


def clumps(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return n points in d dimensions: 40 clumps of unlike size and spread, and 3 % of background."""
    rng = np.random.default_rng(seed)
    centres, spread = rng.uniform(0, 14, (40, d)), rng.uniform(0.25, 0.9, 40)
    of = rng.choice(40, n, p=rng.dirichlet(np.full(40, 0.7)))
    points = centres[of] + spread[of, None] * rng.standard_normal((n, d))
    away = rng.random(n) < 0.03
    points[away] = rng.uniform(-1, 15, (away.sum(), d))
    return points


def seconds(points: np.ndarray, rounds: int = 3) -> tuple[float, np.ndarray]:
    """Return the median seconds to fit and read the density of all points, and the densities."""
    times, found = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        found = BinnedKDE().fit(points).score_samples(points)
        times.append(time.perf_counter() - start)
    return float(np.median(times)), np.exp(found)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=4_000, help="of SciPy, scaled to n")
    options = parser.parse_args()
    for d in (2, 3):
        points = clumps(options.n, d)
        ours, density = seconds(points)
        some = np.random.default_rng(1).permutation(options.n)[: options.queries]
        start = time.perf_counter()
        exact = gaussian_kde(points.T)(points[some].T)
        theirs = (time.perf_counter() - start) * options.n / len(some)
        high = exact > 0.01 * density.max()
        worst = float(np.max(np.abs(density[some][high] / exact[high] - 1)))
        print(f"density {d}-D n={options.n} ratio {theirs / ours:.0f} max_rel_err {worst:.4f}")
    few, many = seconds(clumps(100_000, 2))[0], seconds(clumps(1_000_000, 2))[0]
    print(f"slope {math.log10(many / few):.2f}")


if __name__ == "__main__":
    main()
