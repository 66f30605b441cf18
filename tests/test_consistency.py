"""DPC and its kin by hand, its edge cases, the dose-response, judges, manner, and the figures."""

import functools
import importlib
import inspect
import math

import numpy as np
import pandas as pd
import pytest
from fake_server import FakeServer

from usp_lab import consistency, consistency_setup, plots_consistency, synthetic
from usp_lab.consistency import (
    cover,
    differences,
    dpc,
    dpc_auc,
    dpc_difference,
    estimates,
    f1,
    score,
    supports,
    turn_notes,
)
from usp_lab.data import Corpus, Dialogue
from usp_lab.doses import dose_response, swapped
from usp_lab.endpoints import Client, Endpoint
from usp_lab.entailment import Entailment
from usp_lab.errors import UspError
from usp_lab.facts import Fact, Facts, profile_facts
from usp_lab.judges import Judge, sc_table, subjective_scores
from usp_lab.manner import ATTRIBUTES, MannerReader, claims
from usp_lab.utterances import content

THINGS = (
    "kettle bicycle novel garden violin passport kitchen laptop marathon sofa pension puppy".split()
)


class Shared:
    """A scorer: 1 where premise and fact share a content word that is a thing, else 0; NaN if unreadable."""

    identity = "shared"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, pairs) -> np.ndarray:
        self.asked += len(pairs)
        return np.array([self.one(*p) for p in pairs], float)

    @staticmethod
    def one(premise: str, fact: str) -> float:
        if "unreadable" in premise + fact:
            return math.nan
        shared = set(content(premise)) & set(content(fact))
        return float(bool(shared - {"user", "own", "sold", "found", "lost"}))


def made(i: int, turns: list[str], profile: str | None = None, user: str | None = "") -> Dialogue:
    messages = []
    for t in turns:
        messages += [{"role": "user", "content": t}, {"role": "assistant", "content": "Fine."}]
    user = f"user-{i}" if user == "" else user
    return Dialogue(id=f"d{i}", messages=messages, profile=profile, user_id=user)


def thing(i: int, user: str | None = "") -> Dialogue:
    """A user who says of four things what the profile says."""
    a, b, c, d = (f"{THINGS[k]}{i}" for k in range(4))  # nobody else's
    profile = f"You own a {a}. You sold a {b}. You found a {c}. You lost a {d}."
    turns = [f"i own a {a} and i sold a {b}.", f"my {c} came back, then my {d} went."]
    return made(i, turns, profile, user)


@pytest.fixture
def entailment() -> Entailment:
    return Entailment(Shared())


# --- shares --------------------------------------------------------------------------------------


def test_shares_by_hand(entailment):
    d = made(0, ["my kettle is old. how do i fix a violin?", "my sofa is red"])
    profile = "You own a kettle. You own a garden. You are thinking about music and want to know how to tune a violin."
    s = score([d], [profile], entailment).iloc[0]
    assert (s["profile_facts"], s["dialogue_facts"]) == (4, 3)
    assert s["dp_p"] == 0.5  # kettle and violin, not garden, not music
    assert s["dp_r"] == pytest.approx(2 / 3)  # kettle and violin, not the sofa
    assert s["dpc"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3)) and s["reason"] == ""


def test_the_threshold_decides(entailment):
    entailment.scorer.one = lambda p, f: 0.6
    entailment.scorer.score = lambda pairs: np.full(len(pairs), 0.6)
    d = thing(0)
    assert score([d], [d.profile], entailment)["dp_p"].tolist() == [1.0]
    assert score([d], [d.profile], entailment, threshold=0.61)["dp_p"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("turns", "profile", "reason", "known"),
    [
        (["i own a kettle"], None, "no profile", ()),
        (["i own a kettle"], "\n\n", "no profile", ()),
        ([], "You own a kettle.", "no user turn", ()),
        (["ok", "bye"], "You own a kettle.", "no fact in the user's turns", ("dp_p",)),
        (["i own an unreadable kettle"], "You own a sofa.", "longer than the entailment model reads", ()),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_nan_with_its_reason(entailment, turns, profile, reason, known):
    s = score([made(0, turns)], [profile], entailment).iloc[0]
    assert s["reason"] == reason
    for column in ("dp_p", "dp_r"):
        assert math.isnan(s[column]) == (column not in known), column
    assert math.isnan(s["dpc"])


def test_nothing_to_score(entailment):
    empty = score([], [], entailment)
    assert empty.empty and list(empty.columns[:3]) == ["user", "dialogue", "dp_p"]
    table = estimates({"true": empty}, "user")
    assert table["value"].isna().all() and (table["n"] == 0).all()
    assert math.isnan(dpc_auc(empty, empty).value)
    doses, slope = dose_response([], entailment)
    assert doses["value"].isna().all() and math.isnan(slope.value) and slope.n == 0


def test_f1_and_dpc_by_hand():
    assert f1(0.5, 1.0) == pytest.approx(2 / 3)
    assert f1(0.0, 0.0) == 0.0 and math.isnan(f1(math.nan, 0.0))
    e = dpc([1.0, 0.5, math.nan], [math.nan, 0.25, math.nan])
    assert e.value == pytest.approx(f1(0.75, 0.25)) and e.n == 2  # F1 of means, not mean of F1s
    assert dpc([0.0, 0.0], [0.0, 0.0]).value == 0.0
    alone = dpc([0.5], [0.5])
    assert alone.value == 0.5 and math.isnan(alone.low)
    assert math.isnan(dpc([], []).value) and math.isnan(dpc([math.nan], [math.nan]).value)
    assert math.isnan(dpc([1.0, 1.0], [math.nan, math.nan]).value), "no mean DP.R at all"


def test_the_interval_resamples_both_means_by_user():
    rng = np.random.default_rng(0)
    p, r = rng.uniform(0.4, 0.9, (2, 200))
    e = dpc(p, r)
    assert e.low < e.value < e.high and e.high - e.low < 0.1
    clusters = [i // 20 for i in range(200)]
    level = np.repeat(rng.uniform(-0.3, 0.1, 10), 20)
    wide = dpc(p + level, r + level, clusters, "user")
    assert wide.high - wide.low > e.high - e.low and wide.unit == "user"


def test_differences_are_paired(entailment):
    p, r = np.linspace(0.2, 0.8, 60), np.linspace(0.3, 0.9, 60)
    e = dpc_difference((p + 0.1, r + 0.1), (p, r))
    assert e.low > 0.05 and e.high < 0.15 and e.value == pytest.approx(0.1, abs=0.02)
    frames = {a: pd.DataFrame({"user": range(60), "dp_p": p + x, "dp_r": r}) for a, x in (("usp", 0.1), ("plato", 0.0))}  # fmt: skip
    table = differences(frames, [("usp", "plato"), ("usp", "roleplay")], "user")
    assert table["arm"].tolist() == ["usp_minus_plato"] and table["low"].iloc[0] > 0


def test_ones_own_profile_is_told_from_anothers(entailment):
    dialogues = [thing(i) for i in range(24)]
    true = score(dialogues, [d.profile for d in dialogues], entailment)
    other = score(dialogues, [dialogues[i - 1].profile for i in range(24)], entailment)
    assert dpc_auc(true, other).value == 1.0
    assert dpc_auc(true, true).value == 0.5
    assert estimates({"true": true, "shuffled": other}, "user").set_index(["metric", "arm"]).loc[("dpc", "true"), "value"] == 1.0  # fmt: skip


def test_the_same_set_again_costs_no_call(entailment):
    dialogues = [thing(i) for i in range(6)]
    first = score(dialogues, [d.profile for d in dialogues], entailment)
    asked = entailment.scorer.asked
    again = score(dialogues, [d.profile for d in dialogues], entailment)
    assert entailment.scorer.asked == asked == entailment.calls > 0
    pd.testing.assert_frame_equal(first, again)


# --- P.Cover -------------------------------------------------------------------------------------


def test_cover_by_hand():
    told = profile_facts(
        "You farm sheep near Leeds. You are thinking about jam and want to know what it costs."
    )
    assert cover(told, ["the sheep ate my jam"]) == pytest.approx(
        2 / 5
    )  # farm sheep leeds jam cost
    assert cover(told, ["SHEEP farming near leeds: what jams cost"]) == 1.0
    assert cover(told, ["no"]) == 0.0
    assert math.isnan(cover(told, [])) and math.isnan(cover(told, [" "]))
    assert math.isnan(cover(Facts(), ["sheep"]))


# --- dose-response -------------------------------------------------------------------------------


def test_swapped_facts_keep_their_number_and_grow_with_the_dose():
    dialogues = [thing(i) for i in range(12)]
    facts = [profile_facts(d.profile) for d in dialogues]
    before = [0] * 12
    for dose in (0.0, 0.1, 0.25, 0.5, 1.0):
        out = swapped(facts, dialogues, dose, seed=3)
        foreign = [len(set(o.items) - set(f.items)) for o, f in zip(out, facts, strict=True)]
        assert [len(o.items) for o in out] == [4] * 12
        assert all(b <= n for b, n in zip(before, foreign, strict=True))
        before = foreign
        if dose in (0.0, 0.25, 0.5, 1.0):
            assert foreign == [int(4 * dose)] * 12
    assert out == swapped(facts, dialogues, 1.0, seed=3) != swapped(facts, dialogues, 1.0, seed=4)


def test_the_mean_share_is_the_dose():
    dialogues = [thing(i) for i in range(200)]
    facts = [profile_facts(d.profile) for d in dialogues]
    out = swapped(facts, dialogues, 0.1)
    share = [len(set(o.items) - set(f.items)) / 4 for o, f in zip(out, facts, strict=True)]
    assert np.mean(share) == pytest.approx(0.1, abs=0.03) and set(share) == {0.0, 0.25}


def test_facts_never_come_from_the_same_user():
    dialogues = [thing(i, user=f"u{i // 3}") for i in range(12)]
    facts = [Facts((Fact(f"is u{i // 3} number {i}", "self"),) * 1) for i in range(12)]
    for i, out in enumerate(swapped(facts, dialogues, 1.0)):
        assert all(f"u{i // 3} " not in f.text for f in out.items)


def test_dpc_falls_with_the_dose(entailment):
    dialogues = [thing(i) for i in range(24)]
    doses, slope = dose_response(dialogues, entailment)
    assert doses["value"].is_monotonic_decreasing and doses["value"].iloc[0] == 1.0
    assert slope.high < 0 and slope.n == 24
    x = doses["dose"] - doses["dose"].mean()
    assert slope.value == pytest.approx(float((x * doses["value"]).sum() / (x**2).sum()))


def test_a_metric_that_sees_nothing_has_no_slope(entailment):
    entailment.scorer.score = lambda pairs: np.ones(len(pairs))
    _, slope = dose_response([thing(i) for i in range(24)], entailment)
    assert slope.value == pytest.approx(0)


# --- one dialogue --------------------------------------------------------------------------------


def test_a_turn_is_told_what_it_supports(entailment):
    d = made(0, ["i own a kettle.", "thanks", "my sofa is red"])
    found = supports(d, "You own a kettle. You like your sofa. You own a puppy.", entailment)
    assert found["turn"].tolist()[:2] == [0, 2] and found["probability"].tolist() == [1, 1, 0]
    notes = turn_notes(d, found)
    assert len(notes) == len(d.messages)
    assert notes[0] == "supports: owns a kettle" and notes[4] == "supports: likes their sofa"
    assert notes[1] == notes[2] == notes[3] == ""
    silent = supports(made(0, []), "You own a kettle.", entailment)
    assert silent["turn"].tolist() == [-1] and silent["probability"].isna().all()


# --- manner --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people():
    return synthetic.draw("train", 260, 5)


def test_manner_is_read_from_the_text(people):
    reader = MannerReader(words=400).fit(people[:200])
    new = [d for d in people[200:] if d.user_id not in {x.user_id for x in people[:200]}]
    told = [claims(d) for d in new]
    true = reader.recovered([d.user_turns for d in new], told)
    other = reader.recovered([new[i - 7].user_turns for i in range(len(new))], told)
    assert np.nanmean(true) > np.nanmean(other) + 0.15
    assert all(0 <= v <= 1 for v in true)
    assert set(reader.name([["hello"]])[0]) == set(ATTRIBUTES)


def test_manner_without_words_or_claims_is_nan(people):
    reader = MannerReader(words=200).fit(people[:80])
    values = reader.recovered([[], [" "], ["hi"], ["hi"]], [{"casing": "lower"}] * 3 + [{}])
    assert [math.isnan(v) for v in values] == [True, True, False, True]
    assert reader.recovered([], []) == []


def test_claims_are_what_the_profile_says_and_need_the_truth(people):
    for d in people[:20]:
        assert set(claims(d)) == set(d.truth["expressed"]) & set(ATTRIBUTES)
    with pytest.raises(UspError, match="not of the population"):
        claims(made(0, ["hi"]))
    with pytest.raises(UspError, match="needs 50 of the population"):
        MannerReader().fit([made(i, ["hi"]) for i in range(60)])


# --- judges --------------------------------------------------------------------------------------

PROFILE = "You farm.\n\nYou are curt and never use capitals."


def judged(say, dialogues=None, profiles=(PROFILE,)):
    with FakeServer(say=say) as server:
        client = Client(Endpoint(server.url, "usp", retries=0, pause=0, server="vllm"))
        dialogues = dialogues or [made(0, ["no thanks", "how much for <b>hay</b>"])]
        out = Judge(client).score("sc_score", dialogues, profiles)
        return out, server.bodies("chat/completions")


def test_a_judge_gives_one_to_five():
    (one,), bodies = judged(lambda body: '{"score": 4, "why": "short"}')
    assert one.value == 4.0 and one.reason == ""
    asked = bodies[0]["messages"][-1]["content"]
    assert (
        "never use capitals" in asked and "You farm" not in asked and "no thanks\nhow much" in asked
    )


@pytest.mark.parametrize("answer", ["0", "6", "-1", "99", "5.5"])
def test_an_answer_outside_one_to_five_is_nan_with_the_reply(answer):
    reply = f'{{"score": {answer}}}'
    (one,), bodies = judged(lambda body: reply)
    assert math.isnan(one.value) and one.reply == reply
    assert one.reason == f"the judge answered {answer}, outside 1 to 5" and len(bodies) == 1


def test_what_the_judge_cannot_be_asked_is_not_asked():
    dialogues = [made(0, []), made(1, ["hi"]), made(2, ["hi"])]
    out, bodies = judged(lambda body: "{}", dialogues, (PROFILE, "You farm.", None))
    assert [j.reason for j in out] == ["no user turn", *["no subjective half in the profile"] * 2]
    assert all(math.isnan(j.value) for j in out) and not bodies


def test_garbage_fails_with_its_reason():
    (one,), bodies = judged(lambda body: "I would say four.")
    assert math.isnan(one.value) and one.reply == "I would say four." and len(bodies) == 2
    assert one.reason.startswith("invalid reply, also after one repair")
    with pytest.raises(UspError, match="choose one of val_score, sc_score"):
        Judge(None).score("style", [], [])


def test_a_refused_key_ends_the_run(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "wrong")
    with FakeServer(key="right") as server:
        client = Client(
            Endpoint(server.url, "usp", key_variable="SOME_KEY", retries=0, server="vllm")
        )
        with pytest.raises(UspError, match="SOME_KEY is refused"):
            Judge(client).score("val_score", [made(0, ["hi"])], [PROFILE])


def test_subjective_scores_by_judge_by_reader_or_not_at_all(people):
    talks, told = {"true": people[:5]}, {"true": people[:5]}
    offline = subjective_scores("sc_score", talks, told, None, MannerReader(200).fit(people[:80]))
    assert len(offline) == 5 and offline["value"].between(0, 1).all()
    nothing = subjective_scores("sc_score", talks, told)
    assert nothing.empty and sc_table({"sc_score": nothing}, "user").empty
    with FakeServer(say=lambda body: '{"score": 9}') as server:
        judge = Judge(Client(Endpoint(server.url, "usp", retries=0, server="vllm")))
        scored = subjective_scores("sc_score", talks, told, judge)
    assert scored["value"].isna().all() and scored["reply"].eq('{"score": 9}').all()
    table = sc_table({"sc_score": scored, "val_score": offline}, "user")
    assert table["n"].tolist() == [0, 5] and math.isnan(table["value"].iloc[0])


# --- choosing, and figures -----------------------------------------------------------------------


def test_an_endpoint_without_a_model_or_a_server_is_refused(monkeypatch):
    once = functools.partial(Endpoint, retries=0, pause=0)
    monkeypatch.setattr("usp_lab.endpoints.Endpoint", once)
    with pytest.raises(UspError, match="no model is named"):
        consistency_setup.make_readers("http://localhost:1/v1")
    with pytest.raises(UspError, match="start the server"):
        consistency_setup.make_readers("http://127.0.0.1:9/v1", "m")
    reader, judge = consistency_setup.make_readers()
    assert reader.identity == "rules" and judge is None


def test_what_is_left_out_is_said():
    d = thing(0)
    own, drawn = (
        Corpus(source, {"train": [], "validation": [], "test": [d]})
        for source in ("a/b.jsonl", "population")
    )
    assert "Val.Score and SC.Score are left out" in consistency_setup.left_out(own)
    assert "left out." not in consistency_setup.left_out(own, judged=True)
    assert "everything is computed" in consistency_setup.left_out(drawn)


def test_plots_draw_tables_of_any_size():
    roc = pd.DataFrame({"kind": ["a", "a", "b"], "fpr": [0, 1, 0.5], "tpr": [0.2, 1, 0.5], "auc": 0.6, "n": 3, "at": [True, False, False]})  # fmt: skip
    doses = pd.DataFrame({"dose": [0, 0.5, 1], "value": [0.8, 0.4, math.nan], "low": 0.1, "high": 0.9, "n": 5})  # fmt: skip
    for plot, table in ((plots_consistency.roc, roc), (plots_consistency.dose_response, doses)):
        assert plot(table).axes and plot(table.iloc[:1]).axes and plot(table.iloc[:0])
        with pytest.raises(UspError, match="add"):
            plot(table.drop(columns=table.columns[0]))
    full = doses.assign(slope=-0.5, slope_low=-0.6, slope_high=-0.4, unit="user")
    texts = [t.get_text() for t in plots_consistency.dose_response(full).texts] + [plots_consistency.dose_response(full).get_supxlabel()]  # fmt: skip
    assert any("-0.50" in t for t in texts)


@pytest.mark.parametrize("name", ["consistency", "doses", "entailment", "likeness", "evidence", "facts", "manner", "judges"])  # fmt: skip
def test_everything_public_is_documented(name):
    module = importlib.import_module(f"usp_lab.{name}")
    for key, value in vars(module).items():
        own = inspect.isclass(value) or inspect.isfunction(value)
        if own and value.__module__ == module.__name__ and not key.startswith("_"):
            assert value.__doc__, key
    assert consistency.SHARES == ("dp_p", "dp_r", "dpc", "p_cover")
