"""Continuity: the rules of early stops, survival against scipy's, turn counts against scipy's, and the plots."""

import doctest
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from usp_lab import continuity, synthetic
from usp_lab.continuity import (
    Rules,
    duplicates,
    human_split,
    likeness,
    longest_run,
    read_dialogue,
    stopping_curves,
    stopping_times,
    true_hazards,
    turn_distances,
)
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.simulate import Simulated
from usp_lab.termination import decisions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NAN = math.nan


def messages(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def dialogue(*texts: str, **more) -> Dialogue:
    return Dialogue(id="d", messages=messages(*texts), **more)


def simulated(*texts: str, stop: str) -> Simulated:
    return Simulated(id="s", messages=messages(*texts), stop=stop, run="r", target="t")


@pytest.fixture(scope="module")
def population() -> list[Dialogue]:
    return synthetic.draw("test-continuity", 400, 3)


def test_doctests() -> None:
    result = doctest.testmod(continuity)
    assert result.attempted >= 3 and not result.failed


# --- the rules -----------------------------------------------------------------------------------


def test_likeness_by_hand() -> None:
    two = Rules(ngram=2, least_characters=3)
    assert likeness("abcd", "abce", two) == 2 / 4  # ab bc cd against ab bc ce
    assert likeness("a-b c!d", "ABCD", two) == 1  # letters and digits alone
    assert likeness("abcd", "wxyz", two) == 0
    assert math.isnan(likeness("ok thanks", "ok thanks"))  # too short to be a repetition
    assert likeness("", "", Rules(least_characters=0)) == 0


ASK = "Which tram goes up to the castle?"


@pytest.mark.parametrize(
    ("turns", "any_earlier", "two_back"),
    [
        ([ASK, "and how much is it then?", ASK.lower()], [0, 0, 1], [0, 0, 1]),
        ([ASK, "what is that about?", "and what else is up there?", ASK], [0, 0, 0, 1], [0, 0, 0, 0]),
        (["thanks", "thanks", "thanks"], [0, 0, 0], [0, 0, 0]),
        ([ASK], [0], [0]),
        ([], [], []),
    ],
)  # fmt: skip
def test_near_duplicates(turns, any_earlier, two_back) -> None:
    assert duplicates(turns) == [bool(x) for x in any_earlier]
    assert duplicates(turns, back=2) == [bool(x) for x in two_back]


def test_thresholds_are_parameters() -> None:
    turns = [ASK, "Which tram goes up to that castle?"]
    assert duplicates(turns, Rules(similarity=0.6)) == [False, True]
    assert duplicates(turns, Rules(similarity=0.95)) == [False, False]
    bye = dialogue("where?", "There.", "thanks, bye", "Bye.", "ok thanks", "Welcome.")
    assert read_dialogue(bye)["esr"] == 1 and read_dialogue(bye, Rules(closings=3))["esr"] == 0
    twice = dialogue(ASK, "The 28.", ASK, "The 28.")
    assert read_dialogue(twice)["esr"] == 1 and read_dialogue(twice, Rules(repeats=2))["esr"] == 0


@pytest.mark.parametrize(
    ("texts", "dead"),
    [
        ((ASK, "The 28.", "thanks, bye", "Bye."), set()),
        ((ASK, "The 28.", ASK, "The 28."), {"esr", "repeats"}),
        ((ASK, "The 28.", ASK, "The 28.", ASK + "!", "The 28."), {"esr", "repeats", "loops"}),
        ((ASK, "28.", "thanks, bye", "Bye.", "thank you, goodbye", "Bye."), {"esr", "endless_thanks"}),
        ((ASK, "28.", "thanks, bye", "Bye.", "how far is it?", "Far.", "ok, bye", "Bye."), set()),
        ((ASK, "I am glad you ask! 28.", "That is wonderful. And then?", "Thank you, great question. Walk.", "Amazing! How far?", "Happy to help: a mile."), {"mutual_praise"}),
        (("Great! Which tram?", "The 28."), set()),
        ((ASK,), set()),
    ],
)  # fmt: skip
def test_a_dialogue_is_read_by_the_rules(texts, dead) -> None:
    read = read_dialogue(dialogue(*texts))
    praise = read.pop("praise")
    assert {k for k, v in read.items() if v} == dead and set(read.values()) <= {0.0, 1.0}
    assert 0 <= praise <= 1


def test_runs() -> None:
    assert [longest_run(f) for f in ([], [False], [True], [True, True, False, True])] == [
        0,
        0,
        1,
        2,
    ]


def test_few_false_alarms_on_the_population(population) -> None:
    read = pd.DataFrame([read_dialogue(d) for d in population])
    assert read["esr"].mean() <= 0.03 and read[["loops", "mutual_praise"]].mean().max() <= 0.01


def test_llm_users_die_where_people_do_not() -> None:
    """The known-bad reference: GPT-4o as airline customer thanks without end; people do not."""
    file = SHARED / "simulated_tau_airline_dev.jsonl.gz"
    if not file.exists():
        pytest.skip("the shared real data are not here")
    shares = {}
    for name in ("simulated_tau_airline_dev", "wildchat_dev", "hh_helpful_dev"):
        corpus = load_dialogues(SHARED / f"{name}.jsonl.gz", n=300, on_bad="skip")
        shares[name] = np.mean([read_dialogue(d)["endless_thanks"] for d in corpus.all[:150]])
    assert shares["simulated_tau_airline_dev"] > 0.1
    assert max(shares["wildchat_dev"], shares["hh_helpful_dev"]) < 0.03


# --- when users stop -----------------------------------------------------------------------------

THREE = ("a?", "A.", "b?", "B.", "c?", "C.")


@pytest.mark.parametrize(
    ("one", "time", "ended"),
    [
        (simulated(*THREE, stop="left"), 3, 1),
        (simulated(*THREE, stop="end token"), 3, 1),
        (simulated("a?", "A.", "b?", "B.", "thanks, bye", "Bye.", stop="closing"), 2, 1),
        (simulated(*THREE, stop="max turns"), 2, 0),  # was never asked after the third reply
        (simulated(*THREE, stop="empty turn"), 2, 0),
        (simulated(*THREE[:5], stop="empty reply"), 2, 0),
        (simulated("a?", stop="empty reply"), 0, 0),
        (dialogue(*THREE), 3, 1),
        (dialogue("a?", "A.", "b?", "B.", "thanks, bye", "Bye."), 2, 1),
        (dialogue(*THREE[:5]), 2, 0),  # the record breaks off
    ],
)
def test_stopping_times_by_hand(one, time, ended) -> None:
    got = stopping_times([one], max_turns=9).iloc[0]
    assert (got["time"], got["ended"]) == (time, ended)


def test_real_dialogues_are_cut_where_the_loop_would_cut_them() -> None:
    for one in (dialogue(*THREE), simulated(*THREE, stop="max turns")):
        got = stopping_times([one], max_turns=3).iloc[0]
        assert (got["time"], got["ended"]) == (2, 0)
    bye = dialogue("a?", "A.", "b?", "B.", "thanks, bye", "Bye.")
    assert stopping_times([bye], max_turns=3).iloc[0]["ended"] == 1  # said in the third turn


def random_times(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    stop, cut = rng.geometric(0.3, n), rng.integers(0, 9, n)
    return pd.DataFrame({"time": np.minimum(stop, cut), "ended": (stop <= cut).astype(float)})


@pytest.mark.parametrize("seed", range(5))
def test_survival_is_kaplan_meiers(seed: int) -> None:
    times = random_times(120, seed)
    table = stopping_curves(times, list(range(120)), "usp", last=8)
    ours = table[table["quantity"] == "survival"].set_index("turn")
    right = times["time"][times["ended"] == 0], times["time"][times["ended"] == 1]
    data = scipy_stats.CensoredData(uncensored=right[1], right=right[0])
    sf = scipy_stats.ecdf(data).sf
    at_risk = ours[ours["n"] > 0].index
    assert len(at_risk) >= 6
    np.testing.assert_allclose(ours.loc[at_risk, "value"], sf.evaluate(at_risk.to_numpy()))
    hazard = table[table["quantity"] == "hazard"].set_index("turn").loc[at_risk]
    np.testing.assert_allclose((1 - hazard["value"]).cumprod(), ours.loc[at_risk, "value"])
    beyond = ours[ours["n"] == 0]
    assert beyond["value"].isna().all()


def test_intervals_are_about_greenwoods_where_dialogues_are_independent() -> None:
    times = random_times(500, 9)
    table = stopping_curves(times, list(range(500)), "usp", last=5)
    ours = table[table["quantity"] == "survival"].set_index("turn")
    data = scipy_stats.CensoredData(
        uncensored=times["time"][times["ended"] == 1], right=times["time"][times["ended"] == 0]
    )
    sf = scipy_stats.ecdf(data).sf
    greenwood = sf.confidence_interval(0.95)
    at = ours.index.to_numpy()
    wide = greenwood.high.evaluate(at) - greenwood.low.evaluate(at)
    np.testing.assert_allclose(ours["high"] - ours["low"], wide, rtol=0.2)
    assert (ours["low"] < ours["value"]).all() and (ours["value"] < ours["high"]).all()


def test_intervals_are_over_users() -> None:
    rng = np.random.default_rng(0)
    stop = np.repeat(rng.geometric(0.3, 40), 8)  # each of 40 users always stops at the same turn
    times = pd.DataFrame({"time": stop, "ended": 1.0})
    users = np.repeat(np.arange(40), 8).tolist()
    wide = stopping_curves(times, users, "usp", 3)
    narrow = stopping_curves(times, list(range(320)), "usp", 3)
    assert ((wide["high"] - wide["low"]) > 1.8 * (narrow["high"] - narrow["low"])).all()


def test_nobody_stops_and_nobody_is_asked() -> None:
    never = pd.DataFrame({"time": [3, 3, 3], "ended": [0.0, 0.0, 0.0]})
    table = stopping_curves(never, list("abc"), "usp", 4).set_index(["quantity", "turn"])
    assert table.loc[("survival", 3), "value"] == 1 and table.loc[("hazard", 3), "value"] == 0
    assert math.isnan(table.loc[("hazard", 4), "value"]) and table.loc[("hazard", 4), "n"] == 0


def test_the_population_stops_as_its_hazards_say(population) -> None:
    times = stopping_times(population, max_turns=20)
    curves = stopping_curves(times, [d.user_id for d in population], "real", 5)
    at = decisions(population)
    truth = true_hazards(at["hazard"], at["turn"], 5)
    both = curves.merge(truth, on=["quantity", "turn"], suffixes=("", "_true"))
    assert len(both) == 10
    assert (both["n"] == both["n_true"]).all()
    inside = (both["low"] <= both["value_true"]) & (both["value_true"] <= both["high"])
    assert inside.mean() >= 0.8
    assert (abs(both["value"] - both["value_true"]) < 0.08).all()


# --- how many turns ------------------------------------------------------------------------------


def test_turn_distances_are_scipys() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(1, 9, 60), rng.integers(1, 12, 60)
    out = turn_distances(a, b, list(range(60)))
    assert out["turns_w1"].value == pytest.approx(scipy_stats.wasserstein_distance(a, b))
    assert out["turns_ks"].value == pytest.approx(scipy_stats.ks_2samp(a, b).statistic)
    for e in out.values():
        assert e.low < e.value < e.high and (e.n, e.unit) == (60, "user")


def test_turn_distance_of_the_same_and_of_two_groups() -> None:
    counts = [1, 2, 2, 5]
    same = turn_distances(counts, counts, list("abcd"))
    assert same["turns_w1"].value == same["turns_ks"].value == 0
    apart = turn_distances([1, 1, NAN, NAN, NAN], [NAN, NAN, 3, 4, 5], list("abcde"))
    assert apart["turns_w1"].value == pytest.approx(3) and apart["turns_ks"].value == 1
    assert math.isnan(turn_distances([NAN], [2], ["a"])["turns_w1"].value)


def test_halves_share_no_user() -> None:
    users = [f"u{i // 3}" for i in range(30)]
    a, b = human_split(range(30), users, seed=1)
    assert (np.isnan(a) ^ np.isnan(b)).all()
    mine = {u for u, x in zip(users, a, strict=True) if not np.isnan(x)}
    other = {u for u, x in zip(users, b, strict=True) if not np.isnan(x)}
    assert len(mine) == len(other) == 5 and not mine & other
    again = human_split(range(30), users, seed=2)[0]
    assert (np.isnan(again) != np.isnan(a)).any()


def test_estimates_have_every_arm_and_metric(population) -> None:
    real = population[:40]
    never = [
        simulated(*["Which tram is it?", "The 28."] * 6, stop="max turns").model_copy(
            update={"id": d.id}
        )
        for d in real
    ]
    owners = [d.user_id for d in real]
    table = continuity.estimates({"usp": never}, real, owners, max_turns=6)
    value = table.set_index(["metric", "arm"])["value"]
    assert value["esr", "usp"] == value["loops", "usp"] == 1 and value["esr", "real"] < 0.1
    assert value["turns_w1", "usp"] > 3 * value["turns_w1", "human_split"]
    counted = np.mean([6 - min(d.n_turns, 6) for d in real])
    assert value["turns_w1", "usp"] == pytest.approx(counted)
    assert {"metric", "arm", "value", "low", "high", "n", "unit"} <= set(table)


# --- plots ---------------------------------------------------------------------------------------

matplotlib = pytest.importorskip("matplotlib", reason="figures need the extra [workbench]")

from usp_lab import plots, plots_continuity  # noqa: E402


def tables() -> dict[str, pd.DataFrame]:
    curves = [
        stopping_curves(random_times(60, i), list(range(60)), a, 9)
        for i, a in enumerate(("usp", "usp_end", "roleplay", "real", "population"))
    ]
    bins = [
        {"arm": a, "predicted": p, "value": p, "low": p - 0.1, "high": p + 0.1, "n": 30, "unit": "user"}
        for a in ("usp", "bayes", "usp_end", "twin")
        for p in (0.1, 0.4, 0.9)
    ]  # fmt: skip
    return {"stopping_curves": pd.concat(curves), "reliability": pd.DataFrame(bins)}


def test_the_twin_is_told_from_real_people_and_hazards_of_a_few_are_left_out() -> None:
    times = pd.DataFrame({"time": [1] * 6 + [2] * 5 + [3], "ended": 1.0})
    curves = [stopping_curves(times, list(range(12)), a, 3) for a in ("twin", "real")]
    fig = plots_continuity.stopping_curves(pd.concat(curves))
    drawn = [[(x.get_color(), len(x.get_xdata())) for x in ax.lines[-2:]] for ax in fig.axes]
    assert "fewer than 5 dialogues" in fig.get_supxlabel()
    assert drawn == [[("#A6A6A6", 3), ("#000000", 3)], [("#A6A6A6", 2), ("#000000", 2)]]


@pytest.mark.parametrize("name", ["stopping_curves", "reliability"])
def test_plots_draw_plain_and_awkward_tables(name: str, tmp_path) -> None:
    plot, table = getattr(plots_continuity, name), tables()[name]
    saved = plots.save_figure(plot(table), tmp_path / "a", table)
    bytes_ = [p.read_bytes() for p in saved]
    plots.save_figure(plot(pd.read_parquet(tmp_path / "a.parquet")), tmp_path / "a", table)
    assert [p.read_bytes() for p in saved] == bytes_
    for awkward in (
        table.iloc[:1],
        table.iloc[:0],
        table.assign(value=NAN, low=NAN, high=NAN),
        table.assign(low=NAN, high=NAN),
    ):
        assert plot(awkward).axes or not len(awkward)
    with pytest.raises(UspError, match="needs a table with"):
        plot(table.drop(columns="value"))
    text = [t.get_text() for t in plot(table).findobj(matplotlib.text.Text)]
    assert any("USP + end token" in t for t in text) and any("95 % interval" in t for t in text)
