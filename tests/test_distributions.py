"""Distances between clouds: known answers at both ends, monotone in between, honest about small samples."""

import numpy as np
import pytest

from usp_lab.distributions import (
    PRDC,
    Unscorable,
    bucket_number,
    buckets,
    distances,
    frontier_area,
    leave_one_out,
    leave_one_out_each,
    mauve,
    mauve_of,
    prdc,
    prdc_of,
    vendi,
)
from usp_lab.errors import UspError

RNG = np.random.default_rng(0)


def cloud(n: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return shift + spread * RNG.standard_normal((n, 6))


def test_mauve_is_one_for_one_distribution_and_falls_with_distance():
    users = [f"a{i}" for i in range(150)] + [f"b{i}" for i in range(150)]
    found = [
        mauve(cloud(150), cloud(150, shift), users, seeds=range(3)).estimate
        for shift in (0, 0.6, 4)
    ]
    same, near, far = (e.value for e in found)
    assert same == pytest.approx(1, abs=0.05) and far < 0.1 and far < near < same - 0.03
    assert found[1].low < near < found[1].high < same


def test_the_frontier_of_disjoint_histograms_is_empty():
    assert frontier_area(np.array([1.0, 0]), np.array([0, 1.0])) < 0.01
    p = RNG.dirichlet(np.ones(5), 3)
    assert frontier_area(p, p) == pytest.approx(1, abs=1e-3)


def test_prdc_of_a_cloud_with_itself_collapsed_and_away():
    real = cloud(200)
    own = prdc(real, real)
    assert own["precision"] == own["recall"] == own["coverage"] == 1 and own["density"] >= 1
    fresh = prdc(real, cloud(200))
    assert min(fresh["precision"], fresh["recall"], fresh["coverage"]) > 0.8
    assert fresh["density"] == pytest.approx(1, abs=0.25)
    # all of one kind: each is real, few real ones are reached
    collapsed = prdc(real, real[0] + 0.01 * cloud(200))
    assert collapsed["precision"] > 0.95 and collapsed["recall"] < 0.1
    assert collapsed["coverage"] < 0.2
    assert max(prdc(real, cloud(200, shift=50)).values()) == 0
    with pytest.raises(Unscorable, match="5 embeddings, at least 6"):
        prdc(real[:5], real)


def test_vendi_counts_kinds():
    kinds = np.eye(6)[np.repeat(np.arange(4), 25)]
    assert vendi(kinds) == pytest.approx(4) and vendi(kinds[:25]) == pytest.approx(1)
    assert vendi(cloud(100)) > vendi(cloud(100, shift=3))


def test_the_jackknife_has_the_textbook_interval():
    x, users = RNG.standard_normal(40), list(range(40))
    found = leave_one_out(lambda keep: x[keep].mean(), users).estimate
    half = 2.0227 * x.std(ddof=1) / np.sqrt(40)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)
    plain = leave_one_out(lambda keep: x[keep].var(), users, unbiased=True).estimate
    assert plain.value == pytest.approx(x.var(ddof=1))


def test_several_statistics_at_once_are_the_same_as_each_alone():
    x, users = RNG.standard_normal((60, 2)), [i // 2 for i in range(60)]
    calls = []

    def both(keep):
        calls.append(keep.sum())
        return {"first": x[keep, 0].mean(), "last": x[keep, 1].var()}

    free = (-np.inf, np.inf)
    found = leave_one_out_each(both, {"first": free, "last": (0, 1)}, users, "pair")
    assert calls == [60] + [58] * 30
    assert found["first"] == leave_one_out(lambda k: x[k, 0].mean(), users, "pair")
    alone = leave_one_out(lambda k: x[k, 1].var(), users, "pair", bounds=(0, 1))
    assert found["last"] == alone and alone.estimate.unit == "pair" and alone.estimate.n == 60


def test_many_users_are_left_out_in_groups():
    x, calls = RNG.standard_normal(2500), []
    found = leave_one_out(lambda k: calls.append(k.sum()) or x[k].mean(), range(2500)).estimate
    assert len(calls) == 101 and set(calls[1:]) == {2475}
    half = 1.984 * x.std(ddof=1) / np.sqrt(2500)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.25)


def test_without_anybody_or_with_one_user_alone_there_is_no_interval():
    nobody = leave_one_out_each(lambda k: prdc(cloud(3), cloud(3)), PRDC, [])
    assert set(nobody) == {"precision", "recall", "density", "coverage"}
    assert all(np.isnan(s.estimate.value) and "at least 6" in s.reason for s in nobody.values())
    one = leave_one_out(lambda k: 0.5, ["u"] * 4).estimate
    assert one.value == 0.5 and np.isnan(one.low) and one.n == 4


def test_prdc_from_known_distances_and_mauve_of_items_that_come_twice():
    real, made = cloud(40), cloud(30)
    parts = distances(real, real), distances(made, made), distances(real, made)
    assert prdc_of(*parts, k=3) == prdc(real, made, k=3)
    labels = buckets(np.concatenate([real, made]), bucket_number(30), seeds=[0, 1])
    first, second = np.arange(70) < 40, np.arange(70) >= 40
    by_mask = mauve_of(labels, first, second)
    assert by_mask == mauve_of(labels, np.flatnonzero(first), np.flatnonzero(second))
    one = np.zeros(40, int)  # one item again and again
    assert mauve_of(labels, one, np.flatnonzero(second)) < by_mask
    with pytest.raises(Unscorable, match="nothing on one side"):
        mauve_of(labels, np.array([], int), second)
    assert [bucket_number(n) for n in (3, 145, 10_000)] == [2, 14, 500]


def test_what_cannot_be_scored_says_why():
    few = mauve(cloud(5), cloud(20), list(range(25)))
    assert np.isnan(few.estimate.value) and "5 embeddings, at least 10" in few.reason
    with pytest.raises(UspError, match="1 of 20 embeddings are not finite"):
        prdc(np.where(np.arange(20)[:, None] == 3, np.nan, cloud(20)), cloud(20))
    with pytest.raises(UspError, match="one dimension"):
        prdc(cloud(20), cloud(20)[:, :3])
