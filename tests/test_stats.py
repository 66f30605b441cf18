"""Intervals: values worked out by hand, edges, agreement with scipy and scikit-learn, coverage."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from usp_lab import stats
from usp_lab.errors import UspError

NAN = math.nan


def blank(e: stats.Estimate) -> list[bool]:
    return [math.isnan(v) for v in (e.value, e.low, e.high)]


def test_doctests() -> None:
    result = doctest.testmod(stats)
    assert result.attempted >= 6 and not result.failed


def test_values_by_hand() -> None:
    assert stats.ratio([1, 2, 3], [2, 2, 8]).value == 0.5
    assert stats.mean([1, 2, 6]).value == 3
    assert stats.paired([1, 5, 9], [0, 5, 4]).value == 2
    assert stats.perplexity([math.log(2) * 3, math.log(4)], [3, 1]).value == pytest.approx(2**1.25)
    assert stats.ratio_difference(([1, 2], [2, 2]), ([1, 0], [2, 2])).value == 0.5
    two = stats.perplexity_difference([(math.log(9), 2), (0, 0)], [(math.log(4), 2), (0, 0)])
    assert two.value == pytest.approx(3 - 2)


def test_what_is_reported() -> None:
    e = stats.mean([1.0, 2.0, 4.0, 5.0], unit="user")
    assert e.as_dict() == {"value": 3.0, "low": e.low, "high": e.high, "n": 4, "unit": "user"}
    assert e.low < 3 < e.high and 1 <= e.low and e.high <= 5
    assert all(type(v) is float for v in (e.value, e.low, e.high)) and type(e.n) is int


@pytest.mark.parametrize("values", [[], [NAN], [NAN, NAN]])
def test_nothing_to_score(values: list[float]) -> None:
    for e in (
        stats.mean(values),
        stats.paired(values, values),
        stats.ratio(values, values),
        stats.ratio_difference((values, values), (values, values)),
        stats.perplexity(values, values),
        stats.perplexity_difference([(v, 1) for v in values], [(v, 1) for v in values]),
        stats.auc(values, [True] * len(values)),
    ):
        assert blank(e) == [True] * 3 and e.n == 0


def test_one_unit_has_no_interval() -> None:
    assert blank(stats.mean([2.0])) == [False, True, True]
    assert blank(stats.mean([2.0, 3.0], ["a", "a"])) == [False, True, True]
    assert blank(stats.auc([0.1, 0.9], [False, True], ["a", "a"])) == [False, True, True]


def test_nothing_to_divide_by() -> None:
    assert blank(stats.ratio([1, 2], [0, 0])) == [True] * 3
    assert blank(stats.perplexity([1, 2], [0, 0])) == [True] * 3
    e = stats.ratio([0, 0, 1, 1], [0, 0, 1, 2])  # some resamples have nothing to divide by
    assert e.value == pytest.approx(2 / 3) and math.isfinite(e.low) and math.isfinite(e.high)


def test_constant_has_a_point_as_interval() -> None:
    e = stats.mean([2.0] * 7)
    assert (e.value, e.low, e.high) == (2, 2, 2)
    e = stats.auc([0, 0, 0, 0], [True, False, True, False])
    assert (e.value, e.low, e.high) == (0.5, 0.5, 0.5)


def test_nan_items_are_left_out_and_not_counted() -> None:
    assert stats.mean([1, NAN, 3], ["a", "b", "c"]) == stats.mean([1, 3], ["a", "c"])
    assert stats.mean([1, NAN, 3]).n == 2
    assert stats.paired([1, NAN, 3, 4], [1, 2, NAN, 2]) == stats.mean([0, 2])
    assert stats.perplexity([1, NAN, 2], [1, 0, 1]) == stats.perplexity([1, 2], [1, 1])
    assert stats.ratio_difference(([1, NAN], [1, 1]), ([0, 0], [1, 1])).n == 1
    assert stats.auc([0.1, NAN, 0.9], [False, True, True]).n == 2


def test_a_cluster_is_one_unit() -> None:
    """Four copies of an item say no more than the item."""
    values = [1.0, 2.0, 4.0, 8.0, 3.0]
    once, copies = stats.mean(values), stats.mean(values * 4, list("abcde") * 4)
    assert (copies.value, copies.low, copies.high) == pytest.approx(
        (once.value, once.low, once.high)
    )
    assert (once.n, copies.n) == (5, 20)
    alone = stats.mean(values * 4)
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_order_and_names_of_clusters_do_not_matter() -> None:
    a = stats.mean([1, 2, 3, 5], ["x", "y", "x", "z"])
    assert a == stats.mean([1, 2, 3, 5], [None, ("t", 1), None, 7])


def test_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert stats.mean(values, seed=1) == stats.mean(values, seed=1) != stats.mean(values, seed=2)
    labels = values > np.random.default_rng(1).normal(size=30)
    assert stats.auc(values, labels, seed=1) == stats.auc(values, labels, seed=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.ratio([1, 2], [1]),
        lambda: stats.paired([1.0], [1.0, 2.0, 3.0]),
        lambda: stats.auc([1.0], [True, False]),
        lambda: stats.ratio_difference(([1], [1]), ([1, 2], [1, 2])),
    ],
)
def test_columns_must_match(call) -> None:
    with pytest.raises(UspError, match=r"\d against \d.*one of each"):
        call()


def test_clusters_must_match() -> None:
    with pytest.raises(ValueError):
        stats.mean([1, 2, 3], ["a", "b"])


@pytest.mark.parametrize("draw", ["exponential", "normal"])
def test_bca_is_scipys(draw: str) -> None:
    sample = getattr(np.random.default_rng(3), draw)(size=60)
    theirs = scipy_stats.bootstrap(
        (sample,), np.mean, n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    ours = stats.mean(sample)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


@pytest.mark.parametrize("kind", ["mean", "ratio", "paired"])
def test_coverage_with_clusters(kind: str) -> None:
    """95 % intervals hold the truth in 90 to 99 % of 200 samples of 40 users; item by item they do not."""
    rng, hits, naive = np.random.default_rng(11), 0, 0
    for _ in range(200):
        user = np.repeat(np.arange(40), rng.integers(1, 8, 40))
        effect, noise = rng.normal(size=40)[user], rng.normal(size=len(user))
        if kind == "mean":
            truth, call = 1.0, lambda c, v=1 + effect + noise: stats.mean(v, c)
        elif kind == "paired":
            base = rng.normal(size=len(user))
            truth, call = (
                0.5,
                lambda c, v=base + 0.5 + effect + noise, b=base: stats.paired(v, b, c),
            )
        else:
            size = rng.integers(1, 20, len(user)).astype(float)
            total = size * (2 + 0.5 * effect) + noise
            truth, call = 2.0, lambda c, v=total, s=size: stats.ratio(v, s, c)
        e, alone = call(user), call(None)
        hits += e.low <= truth <= e.high
        naive += alone.low <= truth <= alone.high
    assert 0.90 <= hits / 200 <= 0.99
    assert naive < hits and naive / 200 < 0.85


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(ties: bool) -> None:
    rng = np.random.default_rng(5)
    labels = rng.random(300) < 0.3
    scores = rng.normal(size=300) + labels
    scores = scores.round() if ties else scores
    e = stats.auc(scores, labels)
    assert e.value == pytest.approx(roc_auc_score(labels, scores))
    assert e.low < e.value < e.high and e.high - e.low == pytest.approx(0.13, abs=0.05)


def test_auc_by_hand() -> None:
    assert stats.auc([1, 2, 2, 3], [False, True, False, True]).value == 3.5 / 4
    assert stats.auc([3, 2, 1], [False, False, True]).value == 0
    assert blank(stats.auc([1, 2], [True, True])) == [True] * 3
    assert blank(stats.auc([1, 2], [False, False])) == [True] * 3


def test_auc_resamples_clusters() -> None:
    rng = np.random.default_rng(2)
    labels, scores = np.arange(40) % 2 == 0, rng.normal(size=40)
    once = stats.auc(scores, labels, list(range(40)))
    copies = stats.auc(np.tile(scores, 5), np.tile(labels, 5), list(range(40)) * 5)
    assert (copies.value, copies.low, copies.high) == pytest.approx(
        (once.value, once.low, once.high)
    )


def test_many_items_take_no_long_time() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    e = stats.mean(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (e.low, e.high) == pytest.approx((e.value - half, e.value + half), abs=0.1 * half)
