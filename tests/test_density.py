"""The binned density against the exact one, in the middle and far out."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde
from sklearn.base import clone

from usp_lab.density import FACTORS, BinnedKDE
from usp_lab.errors import UspError


def clumps(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres, spread = rng.uniform(0, 10, (8, d)), rng.uniform(0.2, 0.8, 8)
    of = rng.integers(8, size=n)
    return centres[of] + spread[of, None] * rng.standard_normal((n, d))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.15])
def test_it_is_scipys_density(d, bandwidth):
    points = clumps(3000, d) @ np.diag([1.0, 40.0, 0.1][:d])  # axes of unlike scale
    exact = gaussian_kde(points.T, bw_method=bandwidth)
    kde = BinnedKDE(bandwidth).fit(points)
    assert kde.factor_ == pytest.approx(exact.factor)
    truth = exact(points.T)
    high = truth > 0.01 * truth.max()
    assert np.exp(kde.score_samples(points))[high] == pytest.approx(truth[high], rel=0.01)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_far_out_it_is_exact(d):
    points = clumps(400, d)
    far = points.mean(axis=0) + np.array([[20.0], [40.0], [-90.0]]) * np.ones(d)
    found = BinnedKDE(0.3).fit(points).score_samples(far)
    assert found == pytest.approx(gaussian_kde(points.T, 0.3).logpdf(far.T), rel=1e-9)
    assert found[0] > found[1] > found[2] > -np.inf


def test_it_integrates_to_one():
    kde = BinnedKDE().fit(clumps(800, 2))
    x, y = np.meshgrid(np.linspace(-6, 16, 200), np.linspace(-6, 16, 200))
    total = np.exp(kde.score_samples(np.stack([x.ravel(), y.ravel()], 1))).sum() * (22 / 199) ** 2
    assert total == pytest.approx(1, abs=0.005)


def test_likelihood_chooses_narrow_for_clumps_and_wide_for_one_normal():
    scott = 4000 ** (-1 / 6)
    tight = BinnedKDE("cv").fit(clumps(4000, 2))
    loose = BinnedKDE("cv").fit(np.random.default_rng(0).standard_normal((4000, 2)))
    assert tight.factor_ < 0.7 * scott < loose.factor_ < 1.5 * scott
    assert tight.cv_scores_[tight.factor_] == max(tight.cv_scores_.values())
    assert len(tight.cv_scores_) == len(FACTORS)
    fresh = clumps(4000, 2, seed=0)  # the same clumps, other points
    fresh += 0.05 * np.random.default_rng(1).standard_normal(fresh.shape)
    wide = BinnedKDE(1.5 * scott).fit(clumps(4000, 2))
    assert tight.score(fresh) > wide.score(fresh)


def test_draws_have_the_shape_of_the_estimate_and_follow_their_seed():
    points = clumps(2000, 3)
    kde = BinnedKDE(0.1).fit(points)
    drawn = kde.sample(40_000, random_state=1)
    assert drawn.mean(axis=0) == pytest.approx(points.mean(axis=0), abs=0.1)
    assert np.cov(drawn.T) == pytest.approx(np.cov(points.T) * 1.01, rel=0.05, abs=0.15)
    assert np.array_equal(drawn, kde.sample(40_000, random_state=1))
    assert not np.array_equal(drawn, kde.sample(40_000, random_state=2))


@pytest.mark.parametrize(
    "points, bandwidth, said",
    [
        (np.zeros((50, 2)), "scott", "lie on a line, a plane or one place"),
        (np.outer(np.arange(50.0), [1, 2]), "scott", "lie on a line"),
        (np.full((50, 2), np.nan), "scott", "50 of 50 points are NaN"),
        (np.random.rand(50, 4), "scott", r"d from 1 to 3, not \(50, 4\)"),
        (np.random.rand(3, 2), "scott", "3 points in 2 dimensions have no density"),
        (np.random.rand(50, 2), 0, "bandwidth=0; choose"),
        (np.random.rand(50, 2), -0.2, "number above 0"),
        (np.vstack([np.random.rand(50, 3), [[1e5] * 3]]), 1e-4, "more than a grid can hold"),
        (np.random.rand(50, 2), "wide", "bandwidth='wide'; choose"),
    ],
)
def test_bad_input_is_named(points, bandwidth, said):
    with pytest.raises(UspError, match=said):
        BinnedKDE(bandwidth).fit(points)


def test_contract_of_scikit_learn():
    kde = clone(BinnedKDE("cv", cells=128, seed=3))
    assert kde.get_params() == {"bandwidth": "cv", "cells": 128, "seed": 3}
    kde = kde.set_params(bandwidth=0.2).fit(np.random.default_rng(0).standard_normal((200, 2)))
    with pytest.raises(UspError, match="points have 3 dimensions, the density 2"):
        kde.score_samples(np.zeros((4, 3)))
