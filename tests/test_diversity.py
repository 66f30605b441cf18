"""ADV, turns against the other half's real ones, Vendi ratios: both ends of each, what cannot be scored, bad input, and the plots."""

import math

import numpy as np
import pandas as pd
import pytest

from usp_lab import adv, diversity, evaluate, tidy
from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.diversity import AgainstReal, Cloud, distribution_estimates, vendi_estimates
from usp_lab.errors import UspError
from usp_lab.tidy import halves

NAN = math.nan
N, EACH = 24, 6  # users, turns each
USERS = [f"u{i}" for i in range(N) for _ in range(EACH)]
HALF = halves(USERS)
FIVE = ["mauve", "precision", "recall", "density", "coverage"]


def turns(seed: int, shift: float = 0.0, spread: float = 1.0) -> Cloud:
    x = np.random.default_rng(seed).standard_normal((N * EACH, 5))
    return Cloud(shift + spread * x, USERS)


def dialogue(i: int, user: str | None, *texts: str) -> Dialogue:
    said: list[Message] = [
        {"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(texts)
    ]
    return Dialogue(id=f"d{i}", messages=said, user_id=user)


class Letters:
    """Embeds a text as how often it has a, b and c."""

    def encode(self, texts):
        rows = [[t.count(c) + 0.01 for c in "abc"] for t in texts]
        return np.array(rows, np.float32).reshape(-1, 3)


# --- users -----------------------------------------------------------------------------------------


def test_several_each_prefers_users_who_have_so_many():
    d = [dialogue(i, u, "a") for i, u in enumerate(["x", "y", "y", "z", "z", "z", None, "w", "w"])]
    assert [t.id for t in tidy.several_each(d, 2)] == ["d1", "d2", "d3", "d4"]
    assert [t.id for t in tidy.several_each(d, 4)] == ["d1", "d2", "d3", "d4", "d7", "d8", "d0"]
    assert len(tidy.several_each(d)) == 8 and tidy.several_each([]) == []
    assert tidy.one_each(d) == [d[0], d[1], d[3], d[6], d[7]]


def test_whose_profile_is_told():
    d = [dialogue(i, f"u{i}", "a") for i in range(6)]
    own, shuffled = (evaluate.owners_told(arm, d, seed=3) for arm in ("usp", "shuffled"))
    assert own == tidy.owners(d) and sorted(shuffled) == sorted(own)
    assert not any(a == b for a, b in zip(own, shuffled, strict=True))


def test_halves_are_of_users_and_change_with_the_seed():
    assert list(HALF) == list(dict.fromkeys(USERS)) and sum(HALF.values()) == N // 2
    assert halves(USERS) == HALF != halves(USERS, 1)
    assert sum(halves("abc").values()) == 1 and halves([]) == {}


# --- ADV -------------------------------------------------------------------------------------------


def test_adv_by_hand_on_a_plane():
    real = np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]])
    arms = {"same": real, "right": real + [2, 0]}
    gaps, shown = adv.adv_distances(real, arms)
    np.testing.assert_allclose(gaps["same"], 0, atol=1e-12)
    union = np.concatenate([real, *arms.values()])[:, 0]
    np.testing.assert_allclose(gaps["right"], 2 / union.std())  # two dimensions: PCA only turns
    assert shown == pytest.approx(1)


def test_adv_grows_with_the_distance_and_keeps_what_said_nothing_apart():
    rng = np.random.default_rng(1)
    real = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 8))  # two things matter
    noise = rng.standard_normal((40, 8))
    arms = {"near": real + 0.1 * noise, "far": real + 0.5 * noise, "mute": real * NAN}
    arms["other"] = real[::-1]
    gaps, shown = adv.adv_distances(real, arms)
    mean = {a: g.mean() for a, g in gaps.items()}
    assert mean["near"] < mean["far"] < mean["other"] and np.isnan(gaps["mute"]).all()
    assert 0.8 < shown < 1
    users = [f"u{i // 2}" for i in range(40)]
    rows = adv.adv_estimates(gaps | {"usp": gaps["near"]}, users).set_index("arm")
    assert rows.loc["far_minus_usp", "low"] > 0 and rows.loc["far", "n"] == 40
    assert np.isnan(rows.loc["mute", "value"])
    assert (
        rows.loc["mute", "reason"] == "no dialogue with words" and rows.loc["far", "reason"] == ""
    )


def test_adv_curves_rise_within_their_bands_and_resample_users():
    rng = np.random.default_rng(2)
    gap = rng.gamma(2, size=60)
    curve = adv.adv_curves({"usp": gap}, range(60))
    assert (curve["value"].diff().dropna() >= 0).all()
    np.testing.assert_allclose(curve["value"], np.percentile(gap, curve["percentile"]))
    assert ((curve["low"] <= curve["value"]) & (curve["value"] <= curve["high"])).all()
    twice = adv.adv_curves({"usp": np.repeat(gap, 2)}, np.repeat(np.arange(60), 2))
    width = (curve["high"] - curve["low"]).mean()
    assert (twice["high"] - twice["low"]).mean() == pytest.approx(width, rel=0.15)
    alone = adv.adv_curves({"usp": gap, "mute": gap * NAN}, ["u"] * 60).set_index("arm")
    assert alone.loc["usp", "low"].isna().all() and alone.loc["mute", "value"].isna().all()
    assert (alone.loc["mute", "n"] == 0).all()


def test_adv_refuses_what_is_not_paired_and_what_is_all_alike():
    with pytest.raises(UspError, match=r"arm 'usp' has embeddings of shape \(3, 2\), its targets"):
        adv.adv_distances(np.eye(2), {"usp": np.zeros((3, 2))})
    with pytest.raises(UspError, match="4 dialogues, all alike"):
        adv.adv_distances(np.ones((2, 3)), {"usp": np.ones((2, 3))})


# --- turns -----------------------------------------------------------------------------------------


def test_turns_are_embedded_one_by_one_and_empty_ones_left_out():
    said = [dialogue(0, "x", "aa", "b", " ", "c", "bb"), dialogue(1, "y", "c")]
    cloud = diversity.turn_cloud(Letters(), said, ["x", "y"])
    assert cloud.users == ["x", "x", "y"]
    assert cloud.x.argmax(axis=1).tolist() == [0, 1, 2]
    some = cloud.at_most(2, seed=1)
    assert len(some.users) == 2 and cloud.at_most(3) is cloud and cloud.at_most(9) is cloud
    for x, u in zip(some.x, some.users, strict=True):
        assert u == cloud.users[int(np.flatnonzero((cloud.x == x).all(axis=1))[0])]
    with pytest.raises(UspError, match="3 embeddings of 2 users"):
        Cloud.of(np.eye(3), ["x", "y"])


def test_both_sides_or_the_users_alone():
    said = [dialogue(0, "x", "aaaa", "cccc"), dialogue(1, "x")]
    alone, whole = diversity.user_sides(Letters(), said), diversity.whole_dialogues(Letters(), said)
    assert alone[0].argmax() == 0 and whole[0, 0] == pytest.approx(whole[0, 2])
    assert np.isnan(alone[1]).all() and np.isnan(whole[1]).all()


def test_nobody_gains_from_its_own_target():
    """Who repeats its target word for word is no better than another real user is."""
    real = turns(0, spread=1.0)
    far = np.arange(N).repeat(EACH)[:, None] * 50.0  # every user in a place of their own
    alone = Cloud(real.x + far, USERS)
    found = AgainstReal(alone, alone, HALF, k=3).prdc(np.ones(N, bool))
    assert max(found.values()) == 0


@pytest.fixture(scope="module")
def estimates() -> pd.DataFrame:
    real = turns(0)
    one = Cloud(np.resize(turns(9).x[:3], real.x.shape), USERS)
    arms = {"twin": turns(1), "away": turns(2, shift=30), "one": one}
    table = distribution_estimates(arms, real, HALF, seeds=range(2))
    return table.set_index(["metric", "arm"])


def test_another_draw_is_near_human_split_and_far_is_far(estimates):
    for metric in FIVE:
        human, twin, away = (estimates.loc[(metric, a)] for a in ("human_split", "twin", "away"))
        assert human["low"] <= human["value"] <= human["high"] and human["n"] == N * EACH
        gap = estimates.loc[(metric, "twin_minus_human_split")]
        assert gap["low"] <= 0 <= gap["high"] and gap["high"] - gap["low"] < 0.6, metric
        assert gap["value"] == pytest.approx(twin["value"] - human["value"])
        assert away["value"] < 0.1 and estimates.loc[(metric, "away_minus_human_split"), "high"] < 0
    assert estimates.loc[("mauve", "human_split"), "value"] == pytest.approx(1, abs=0.15)


def test_collapse_keeps_precision_and_loses_recall_and_coverage(estimates):
    human = estimates.xs("human_split", level="arm")["value"]
    one = estimates.xs("one", level="arm")["value"]
    assert one["precision"] > 0.5
    for metric in ("mauve", "recall", "coverage"):
        assert one[metric] < 0.5 * human[metric], metric


def test_too_few_turns_say_so():
    users = ["x", "x", "y", "y", "z", "z"]
    few = Cloud(np.random.default_rng(0).standard_normal((6, 3)), users)
    half = {"x": True, "y": False, "z": False}
    table = distribution_estimates({"usp": few}, few, half, seeds=[0]).set_index(["metric", "arm"])
    mauve, recall = table.loc[("mauve", "usp")], table.loc[("recall", "usp")]
    assert np.isnan(mauve["value"]) and "2 turns in a half, at least 10" in mauve["reason"]
    assert np.isnan(recall["value"]) and "more than k = 5 are needed" in recall["reason"]
    assert diversity.most_neighbours({"usp": few}, few, half, 5) == 1
    assert diversity.most_neighbours({}, turns(0), HALF, 5) == 5
    assert diversity.most_neighbours({}, turns(0), HALF, 500) == N * EACH // 6
    with pytest.raises(UspError, match="turns of 'z', who is in neither half"):
        AgainstReal(few, few, {"x": True, "y": False})


# --- Vendi -----------------------------------------------------------------------------------------


def test_vendi_ratios_of_the_same_a_collapsed_and_a_mute_arm():
    real = np.random.default_rng(3).standard_normal((48, 60))
    users = [f"u{i // 2}" for i in range(48)]
    arms = {
        "same": real,
        "one": np.tile(real[:1], (48, 1)),
        "mute": real * NAN,
        "half": real.copy(),
    }
    arms["half"][24:] = NAN
    rows = vendi_estimates(arms, real, users, halves(users)).set_index("arm")
    assert rows.loc["same", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert rows.loc["one", "value"] < 0.05 and rows.loc["one", "high"] < 0.2
    assert rows.loc["half", "value"] == 1 and rows.loc["half", "n"] == 24
    assert np.isnan(rows.loc["mute", "value"]) and "at least 1" in rows.loc["mute", "reason"]
    human = rows.loc["human_split"]
    assert human["low"] < 1 < human["high"] and human["high"] - human["low"] < 0.3
    assert human["n"] == 24
    below = rows.loc["one_minus_real"]
    assert rows.loc["same_minus_real", ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert below["value"] == pytest.approx(rows.loc["one", "value"] - 1) and below["high"] < -0.8
    assert np.isnan(rows.loc["mute_minus_real", "value"]) and rows.loc["mute_minus_real", "reason"]
    assert "human_split_minus_real" not in rows.index


# --- plots -----------------------------------------------------------------------------------------

matplotlib = pytest.importorskip("matplotlib", reason="figures need the extra [workbench]")

from usp_lab import plots, plots_diversity  # noqa: E402


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    gaps = {a: rng.gamma(2, size=30) for a in ("usp_end", "roleplay", "twin", "other")}
    doses = [
        {"break": b, "metric": m, "dose": d, "value": 1 - d, "low": 0.9 - d, "high": 1.1 - d, "n": 20, "verdict": v}
        for b, m, v in (("collapse", "recall", "failed"), ("collapse", "vendi_ratio", "sees it"), ("foreign", "recall", "blind to it"))
        for d in (0, 0.5, 1)
    ]  # fmt: skip
    return {"adv_curves": adv.adv_curves(gaps, range(30)), "dose_response": pd.DataFrame(doses)}


@pytest.mark.parametrize("name", tables())
def test_plots_draw_plain_and_awkward_tables(name: str, tmp_path) -> None:
    plot, table = getattr(plots_diversity, name), tables()[name]
    saved = plots.save_figure(plot(table), tmp_path / "a", table)
    bytes_ = [p.read_bytes() for p in saved]
    plots.save_figure(plot(pd.read_parquet(tmp_path / "a.parquet")), tmp_path / "a", table)
    assert [p.read_bytes() for p in saved] == bytes_
    nothing = table.assign(value=NAN, low=NAN, high=NAN)
    for awkward in (table.iloc[:1], table.iloc[:0], nothing, table.assign(low=NAN, high=NAN)):
        assert plot(awkward).axes or not len(awkward)
    with pytest.raises(UspError, match="needs a table with"):
        plot(table.drop(columns="value"))


def words(fig) -> str:
    return " ".join(t.get_text() for t in fig.findobj(matplotlib.text.Text))


def test_references_stand_in_every_panel_and_a_failed_metric_says_so():
    fig = plots_diversity.adv_curves(tables()["adv_curves"])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["USP + end token", "role-play"]
    assert all([len(ax.lines) >= 3 for ax in fig.axes]) and "dashed: twin" in words(fig)
    alone = tables()["adv_curves"].query("arm == 'twin'").assign(value=NAN)
    assert "not scored" in words(plots_diversity.adv_curves(alone))
    fig = plots_diversity.dose_response(tables()["dose_response"])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["recall (failed)", "vendi ratio"]
    assert "collapse: failed\nforeign: blind to it" in words(fig) and "(n 20)" in words(fig)
    assert [ax.get_ylabel() for ax in fig.axes] == ["recall", "vendi ratio"]
