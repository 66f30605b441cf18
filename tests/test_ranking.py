"""Ranking assistants: what dialogues come to, the order recovered, its interval; cases looked at closely; the plots."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

pytest.importorskip("matplotlib", reason="figures need the extra [workbench]")

from usp_lab import plots_ranking, ranking, synthetic, tidy  # noqa: E402
from usp_lab.assistants import HELPFULNESS, scripted  # noqa: E402
from usp_lab.cases import ENDS, GIVEN, SILENT, habits, reconstruct  # noqa: E402
from usp_lab.chat import END_TOKEN, Utterance, system_message  # noqa: E402
from usp_lab.data import Corpus, Dialogue  # noqa: E402
from usp_lab.errors import UspError  # noqa: E402
from usp_lab.outcomes import annoyance_reader, audience, graded, outcomes  # noqa: E402
from usp_lab.ranking import CRITERIA, agreement, kendall, scores, taus  # noqa: E402
from usp_lab.simulate import Simulated, TwinSimulator, simulate  # noqa: E402

QUALITY = {"good": 0.9, "fair": 0.6, "bad": 0.1}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    splits = {
        s: synthetic.draw(s, n, 5) for s, n in (("train", 250), ("validation", 20), ("test", 60))
    }
    return Corpus("population", splits)


@pytest.fixture(scope="module")
def reader(corpus):
    return annoyance_reader(corpus)


class Says:
    """A reader of annoyance that finds it in every turn with "grr"."""

    def rates(self, dialogues):
        later = [d.user_turns[1:] for d in dialogues]
        return [float(sum("grr" in t for t in turns)) for turns in later], [len(t) for t in later]


def spoken(turns, replies=(), stop="max turns", name="d") -> Simulated:
    messages = []
    for k, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        messages.append(
            {"role": "assistant", "content": "r"} | ({"meta": replies[k]} if replies else {})
        )
    return Simulated(id=name, messages=messages, stop=stop, run="r", target="t", source="simulated")


def told(*asked, name="d", user="u") -> Dialogue:
    return Dialogue(
        id=name,
        messages=[],
        user_id=user,
        profile="p",
        truth={"topic": "tea", "asked": list(asked)},
    )


def reply(goal, met, topic="tea"):
    return {"kind": "answer", "topic": topic, "goal": goal, "met": list(met)}


def found(rows) -> pd.DataFrame:
    """Outcomes of (arm, assistant, user, met of 10, annoyed of 10)."""
    columns = ["arm", "assistant", "user", "met", "annoyed"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(wanted=10.0, asked=10.0, decisions=10.0, id=table["user"])


def steady(arm="usp", users=6, met=(9, 6, 1), annoyed=(1, 4, 9)) -> pd.DataFrame:
    rows = [
        (arm, a, f"u{u}", m, x)
        for u in range(users)
        for a, m, x in zip(QUALITY, met, annoyed, strict=True)
    ]
    return found(rows)


# --- what a dialogue comes to -----------------------------------------------------------------------


def test_goals_are_counted_of_those_told_however_they_were_met():
    d = spoken(["a", "b"], [reply("brew", ["brew", "milk"]), reply("cups", ["cups"])])
    other = spoken(["a"], [reply("brew", ["brew"], topic="coffee")])
    talks = {("usp", "good"): [d], ("usp", "bad"): [other]}
    rows = outcomes(talks, {"usp": [told("brew", "milk", "pot")]}, Says())
    assert rows[["wanted", "asked", "met"]].to_numpy().tolist() == [[3, 1, 2], [3, 0, 0]]


def test_annoyance_is_read_from_words_and_from_silence_by_what_is_unmet():
    unmet, met = reply("brew", []), reply("brew", ["brew"])
    cases = {
        "pushes": (spoken(["grr", "grr no", "fine"], [unmet] * 3), (1, 2)),  # not the opening
        "leaves unhelped": (spoken(["a", "b"], [unmet] * 2, "left"), (1, 2)),
        "leaves helped": (spoken(["a", "b"], [met] * 2, "left"), (0, 2)),
        "ends unhelped": (spoken(["a"], [unmet], "end token"), (1, 1)),
        "says goodbye first": (spoken(["a", "ok bye"], [unmet] * 2, "end token"), (0, 1)),
        "says goodbye": (spoken(["a", "thanks, bye"], [unmet] * 2, "closing"), (0, 1)),
        "is cut off": (spoken(["a"], [unmet], "max turns"), (0, 0)),
        "never speaks": (spoken([], [], "left"), (1, 1)),
    }
    for name, (d, wanted) in cases.items():
        row = outcomes({("usp", "good"): [d]}, {"usp": [told("brew")]}, Says()).iloc[0]
        assert (row["annoyed"], row["decisions"]) == wanted, name


def test_without_truth_goals_are_not_scored_and_silence_says_nothing():
    target = Dialogue(id="d", messages=[], profile="p")
    row = outcomes(
        {("usp", "a"): [spoken(["x", "grr"], stop="left")]}, {"usp": [target]}, Says()
    ).iloc[0]
    assert (
        row["user"] == "d"
        and math.isnan(row["met"])
        and (row["annoyed"], row["decisions"]) == (1, 1)
    )


def test_shuffled_is_told_anothers_profile_and_goals_but_stays_the_targets(corpus):
    targets = tidy.one_each(corpus.test, 12)
    assert len({t.user_id for t in targets}) == len(targets) == 12
    mixed = audience("shuffled", targets, 1)
    assert [m.id for m in mixed] == [t.id for t in targets]
    assert all(
        m.profile != t.profile and m.user_id == t.user_id
        for m, t in zip(mixed, targets, strict=True)
    )
    assert sorted(m.profile for m in mixed) == sorted(t.profile for t in targets)
    assert all(any(m.profile == t.profile and m.truth == t.truth for t in targets) for m in mixed)
    assert audience("usp", targets) == targets


# --- the order --------------------------------------------------------------------------------------


def test_tau_is_scipys_and_nought_without_an_order():
    rng = np.random.default_rng(0)
    drawn, truth = rng.integers(0, 4, (200, 4)).astype(float), [0.15, 0.45, 0.75, 0.95]
    for row, got in zip(drawn, taus(drawn, truth), strict=True):
        assert got == pytest.approx(0 if np.ptp(row) == 0 else kendalltau(row, truth).statistic)
    assert taus(np.array([truth, truth[::-1]]), truth).tolist() == pytest.approx([1, -1])
    assert math.isnan(taus(np.array([[1, math.nan, 2, 3]]), truth)[0])


def test_a_right_a_wrong_and_a_flat_order():
    flat = steady("roleplay", met=(9, 6, 1), annoyed=(0, 0, 0))
    wrong = steady("shuffled", met=(1, 6, 9), annoyed=(9, 4, 1))
    table = kendall(pd.concat([steady(), flat, wrong]), QUALITY, "user", draws=200).set_index(
        ["metric", "arm"]
    )
    values = table["value"]
    assert values["kendall_tau", "usp"] == 1 and values["kendall_tau", "shuffled"] == -1
    assert values["kendall_tau_annoyance", "roleplay"] == 0
    assert values["kendall_tau", "roleplay"] == pytest.approx(0.5)
    assert values["kendall_tau", "usp_minus_roleplay"] == pytest.approx(0.5)
    assert (table["low"] == table["value"]).all() and (
        table["unit"] == "user"
    ).all()  # all users alike
    assert table.loc[("kendall_tau", "usp"), "n"] == 18


def test_the_interval_is_wide_where_users_disagree_and_holds_the_value():
    rng = np.random.default_rng(1)
    rows = [
        ("usp", a, f"u{u}", rng.binomial(10, 0.5 + 0.1 * q), rng.binomial(10, 0.5 - 0.1 * q))
        for u in range(12)
        for a, q in QUALITY.items()
    ]
    table = kendall(found(rows), QUALITY, "user", draws=500).set_index("metric")
    e = table.loc["kendall_tau"]
    assert e["high"] - e["low"] > 0.5 and e["low"] <= e["value"] <= e["high"]
    again = kendall(found(rows), QUALITY, "user", draws=500).set_index("metric")
    pd.testing.assert_frame_equal(table, again)


def test_intervals_cover_the_tau_of_many_users():
    rng, truth = np.random.default_rng(2), list(QUALITY.values())
    hits = []
    for _ in range(60):
        rate = {"good": 0.7, "fair": 0.6, "bad": 0.3}
        rows = [
            ("usp", a, f"u{u}", rng.binomial(10, p), 5) for u in range(25) for a, p in rate.items()
        ]
        e = (
            kendall(found(rows), QUALITY, "user", draws=200)
            .set_index("metric")
            .loc["kendall_tau_goals_met"]
        )
        hits.append(e["low"] <= 1 <= e["high"] + 1e-9)
    assert len(truth) == 3 and np.mean(hits) >= 0.9


def test_one_user_one_assistant_and_unscored_goals():
    e = kendall(steady(users=1), QUALITY, "user").iloc[0]
    assert e["value"] == 1 and math.isnan(e["low"])
    with pytest.raises(UspError, match=r"1 assistant\(s\) to rank; give at least two"):
        kendall(steady(), {"good": 0.9}, "user")
    unknown = steady().assign(met=math.nan, wanted=math.nan)
    table = kendall(unknown, QUALITY, "user", draws=50).set_index("metric")["value"]
    assert math.isnan(table["kendall_tau_goals_met"])
    assert table["kendall_tau"] == table["kendall_tau_annoyance"] == 1
    assert set(ranking.users_needed(unknown, QUALITY)["criterion"]) == {"annoyance"}


def test_scores_are_shares_with_intervals_over_users():
    table = scores(steady(), QUALITY, "user").set_index("metric")
    assert (
        table.loc["goals_met_fair", "value"] == 0.6 and table.loc["annoyance_bad", "value"] == 0.9
    )
    assert table.loc["annoyance_bad", "better"] == "lower" and table.loc["goals_met_bad", "n"] == 6
    assert set(table["criterion"]) == {"goals_met", "goals_asked", "annoyance"}
    real = {"evasive 30 %": 0.7}
    named = scores(steady().assign(assistant="evasive 30 %"), real, "dialogue")
    assert set(named["metric"]) == {
        "goals_met_evasive_30",
        "goals_asked_evasive_30",
        "annoyance_evasive_30",
    }


def test_more_users_recover_the_order_more_often():
    rng = np.random.default_rng(3)
    rows = [
        ("usp", a, f"u{u}", rng.binomial(10, 0.4 + 0.3 * q), rng.binomial(10, 0.6 - 0.3 * q))
        for u in range(40)
        for a, q in QUALITY.items()
    ]
    table = ranking.users_needed(found(rows), QUALITY, draws=300)
    assert sorted(set(table["users"])) == [1, 2, 4, 8, 16, 32, 40]
    for _, own in table.groupby("criterion"):
        assert own["value"].iloc[-1] > own["value"].iloc[0] + 0.3
    assert (ranking.users_needed(steady(), QUALITY, draws=20)["value"] == 1).all()


def test_agreement_finds_the_same_users():
    def users(arm, levels):
        return found([(arm, a, f"u{u}", m, 10 - m) for u, m in enumerate(levels) for a in QUALITY])

    levels = [1, 5, 3, 8, 2, 9]
    table = pd.concat([users("usp", levels), users("shuffled", levels[::-1]), users("twin", levels), users("flat", [5] * 6)])  # fmt: skip
    got = agreement(table, "twin", "user", draws=100).set_index(["metric", "arm"])["value"]
    assert got["user_agreement_goals_met", "usp"] == pytest.approx(1)
    assert got["user_agreement_annoyance", "usp"] == pytest.approx(1)
    assert got["user_agreement_goals_met", "shuffled"] < 0.2
    assert math.isnan(got["user_agreement_goals_met", "flat"])


def test_the_populations_own_users_recover_the_known_order(corpus, reader):
    targets = tidy.one_each(corpus.test, 24)
    assistants, quality = graded(corpus, None)
    assert quality == HELPFULNESS and set(assistants) == set(HELPFULNESS)
    talks = {
        ("twin", name): simulate(TwinSimulator(), a, targets, max_turns=8, progress=False)
        for name, a in assistants.items()
    }
    rows = outcomes(talks, {"twin": targets}, reader)
    table = kendall(rows, quality, "user", draws=300).set_index("metric")
    assert table.loc["kendall_tau", "value"] == 1 and table.loc["kendall_tau", "low"] > 0.6
    score = scores(rows, quality, "user").set_index("metric")["value"]
    assert score["goals_met_good"] > score["goals_met_bad"] + 0.3
    assert score["annoyance_bad"] > score["annoyance_good"] + 0.3


def test_the_reader_of_annoyance_reads_new_users_and_their_last_words(corpus, reader):
    assert reader.check(corpus.test).value > 0.9
    pushes, _ = reader.rates([spoken(["a", "Never mind, I'll look it up myself. Bye."]), spoken(["a", "Perfect, thank you, that's all I needed."])])  # fmt: skip
    assert pushes == [1, 0]
    before = [t["acts"] for d in corpus.test for t in d.truth["turns"]]
    annoyance_reader(corpus).check(corpus.test)
    assert before == [t["acts"] for d in corpus.test for t in d.truth["turns"]]


# --- cases ------------------------------------------------------------------------------------------


class Counts:
    """Says how many messages of which kind it reads; then leaves, says nothing, ends."""

    name, given = "counts", "nothing"

    def __init__(self, opens=True):
        self.opens = opens

    def start(self, target):
        return (
            [system_message(target.profile)]
            if self.opens
            else [{"role": "user", "content": target.opening}]
        )

    def generate(self, batch, seeds):
        out = []
        for messages in batch:
            roles = "".join(m["role"][0] for m in messages)
            users = roles.count("u")
            out.append([roles, roles, Utterance("", {"left": True}), " ", END_TOKEN][users])
        return out


def real(turns=5) -> Dialogue:
    messages = [
        m
        for i in range(turns)
        for m in ({"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"a{i}"})
    ]
    return Dialogue(id="real", messages=messages, profile="p")


def test_every_turn_is_written_anew_in_its_true_context():
    target = real()
    messages, notes = reconstruct(Counts(), target)
    assert [m["content"] for m in messages[::2]] == ["s", "sua", "", "", ""]
    assert messages[1::2] == target.messages[1::2]
    assert notes == ["", "", "", "", ENDS, "", SILENT, "", ENDS, ""]
    assert target == real()


def test_a_true_opening_is_given_and_said_so():
    messages, notes = reconstruct(Counts(opens=False), real(2))
    assert messages[0]["content"] == "u0" and notes[0] == GIVEN and messages[2]["content"] == "ua"


def test_the_populations_own_user_is_reconstructed_from_what_replies_did(corpus):
    target = next(d for d in corpus.test if d.n_turns >= 3)
    messages, _ = reconstruct(TwinSimulator(), target, seed=1)
    assert [m["content"] for m in messages[1::2]] == [m["content"] for m in target.messages[1::2]]
    assert [m["content"] for m in messages[::2]] != target.user_turns
    assert reconstruct(TwinSimulator(), target, seed=1)[0] == messages
    assert reconstruct(TwinSimulator(), target, seed=2)[0] != messages


def test_habits_tell_who_recites_and_praises():
    profile = "You love long quiet walks by the sea."
    target = Dialogue(id="d", messages=[], profile=profile)
    recites = spoken(["I love long quiet walks by the sea", "You are so helpful!"])
    asks = spoken(["where to walk", "and the bus"])
    told_of = {"roleplay": [target] * 2, "usp": [target] * 2}
    table = habits({"roleplay": [recites] * 2, "usp": [asks] * 2}, told_of, ["u", "v"], "user")
    got = table.set_index(["metric", "arm"])["value"]
    assert got["profile_copy", "roleplay"] == 0.8 and got["profile_copy", "usp"] == 0
    assert got["praise_rate", "roleplay"] == 0.5 and got["praise_rate", "usp"] == 0
    assert got["turns", "usp"] == 2 and got["words_per_turn", "usp"] == 3
    none = habits({"plato": [asks]}, {"plato": [Dialogue(id="d", messages=[])]}, ["u"], "dialogue")
    assert math.isnan(none.set_index("metric").loc["profile_copy", "value"])


# --- plots ------------------------------------------------------------------------------------------


def drawn_texts(fig) -> str:
    import matplotlib.text

    return " ".join(t.get_text() for t in fig.findobj(matplotlib.text.Text))


def test_plots_draw_whole_single_empty_and_unscored_tables():
    arms = pd.concat([steady(a) for a in ("usp", "shuffled", "roleplay", "twin")])
    tables = {
        plots_ranking.assistant_scores: scores(arms, QUALITY, "user"),
        plots_ranking.users_needed: ranking.users_needed(arms, QUALITY, draws=20),
    }
    for plot, table in tables.items():
        before = table.copy()
        shown = drawn_texts(plot(table))
        assert "role-play" in shown and "goals met" in shown and "annoyance" in shown
        pd.testing.assert_frame_equal(table, before)
        assert plot(table)._repr_png_() == plot(table)._repr_png_()
        plot(table.iloc[[0]])
        assert "no rows" in drawn_texts(plot(table.iloc[:0]))
        assert "not scored" in drawn_texts(plot(table.assign(value=math.nan)))
        with pytest.raises(UspError, match=f"{plot.__name__} needs a table"):
            plot(table.drop(columns="arm"))


def test_panels_name_the_assistants_in_order_of_help():
    fig = plots_ranking.assistant_scores(scores(steady(), QUALITY, "user"))
    names = [re.sub(r"\n.*", "", t.get_text()) for t in fig.axes[0].get_xticklabels()]
    assert names == ["bad", "fair", "good"]
    assert set(CRITERIA) <= {"goals_met", "annoyance"} and scripted("good").helpfulness == 0.95
