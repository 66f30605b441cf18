"""An estimated density against a known one, and the plots of the profile sampler."""

import numpy as np
import pandas as pd
import pytest

from usp_lab import load_dialogues, tidy
from usp_lab import sampler_truth as against
from usp_lab.plots_sampler import agreement, local_density, spread_table, terrain, terrain_table
from usp_lab.sampling import ProfileSampler

RNG = np.random.default_rng(0)


def test_a_good_estimate_is_told_from_one_that_knows_the_topic_alone():
    topics = RNG.integers(12, size=400)
    true = topics + RNG.standard_normal(400)
    arms = {
        "good": true + 0.3 * RNG.standard_normal(400),
        "topic": topics + 0.01 * RNG.standard_normal(400),
        "noise": RNG.standard_normal(400),
        "reversed": -true,
    }
    table = pd.concat(against.against_truth(e, true, topics, arm) for arm, e in arms.items())
    value = table.pivot(index="metric", columns="arm", values="value")
    assert (value.loc[["density_rank_corr", "density_rank_corr_within_topic"], "good"] > 0.9).all()
    assert value.loc["rare_auc", "good"] > 0.95
    assert value.loc["density_rank_corr", "topic"] > 0.9
    assert abs(value.loc["density_rank_corr_within_topic", "topic"]) < 0.15
    assert value.loc["density_rank_corr_across_topics", "topic"] > 0.95
    assert abs(value.loc["density_rank_corr", "noise"]) < 0.15
    assert value.loc["density_rank_corr", "reversed"] == pytest.approx(-1)
    good = table[(table["arm"] == "good") & (table["metric"] == "density_rank_corr")].iloc[0]
    assert good["low"] < good["value"] < good["high"] and good["n"] == 400


def test_who_is_missing_is_left_out_and_few_have_no_interval():
    found = against.correlation([1, 2, np.nan, 4, 5], [1, 2, 3, 4, 6])
    assert found.value == 1 and found.n == 4 and np.isnan(found.low)
    assert np.isnan(against.correlation([1, 1, 1], [1, 2, 3]).value)
    assert np.isnan(against.within([3.0, 1.0, 2.0], ["a", "a", "b"])[2])


def test_siblings_are_two_dialogues_of_one_user():
    corpus = load_dialogues("population", n=300, seed=1)
    first, last = against.siblings(corpus.train)
    assert len(first) > 20
    for a, b in zip(first, last, strict=True):
        assert a.user_id == b.user_id and a.id != b.id
    one = tidy.one_each(corpus.train)
    assert len({d.user_id for d in one}) == len(one) == len({d.user_id for d in corpus.train})
    assert tidy.one_each(corpus.train, 5) == one[:5]


@pytest.fixture(scope="module")
def sampler() -> ProfileSampler:
    places = np.concatenate([RNG.standard_normal((150, 4)), 4 + RNG.standard_normal((50, 4))])
    return ProfileSampler(reducer="pca").fit(places)


def test_plots_draw_whole_single_and_empty_tables(sampler):
    marked = {k: sampler.coordinates_[sampler.group(k)] for k in ("majority", "minority")}
    land = terrain_table(sampler, cells=20, **marked)
    assert len(land) == 400 + 40 and land["value"].max() == 1
    assert len(terrain(land).axes) == 3 and terrain(land[land["kind"] == "grid"]).axes
    spread = spread_table(sampler, marked)
    mean = spread.groupby("kind")["value"].mean()
    assert mean["minority"] > mean["majority"]
    common = pd.DataFrame({"kind": ["majority"] * 2, "share": [0.1, 0.2], "value": [0.5, 0.7], "n": [20, 40]})  # fmt: skip
    for plot, table in ((terrain, land), (local_density, spread), (agreement, common)):
        assert plot(table).axes and not plot(table.iloc[:0]).axes
        if plot is not terrain:
            assert plot(table.iloc[:1]).axes
