"""Judging profiles: against the population's truth, and against statements."""

import math

import pandas as pd
import pytest

from usp_lab import plots_profiles, synthetic
from usp_lab.data import Dialogue
from usp_lab.extract_rules import RuleExtractor
from usp_lab.profile_claims import read_claims
from usp_lab.profile_quality import against_statements, judge, quality, shortfall
from usp_lab.profiles import Claim, Evidence, Objective, Profile, Subjective, Trait


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return synthetic.draw("validation", 40, 5)


def made(value: str, attribute: str = "family", confidence: float = 0.9) -> Profile:
    claim = Claim(value=value, evidence=[Evidence(turn=0, quote="x")], confidence=confidence)
    return Profile(objective=Objective(**{attribute: [claim]}))


def known(family: str, *expressed: str) -> Dialogue:
    z = {"family": family, "occupation": "nurse", "openness": "high"}
    turns = [{"goal": "a", "acts": []}, {"goal": "b", "acts": []}, {"goal": None, "acts": []}]
    truth = {"user": z, "expressed": list(expressed), "evidence": [], "turns": turns}
    return Dialogue(id="k", messages=[{"role": "user", "content": "x"}], truth=truth)


def test_populations_own_profiles_are_read_back_exactly(dialogues):
    table = quality({"truth": [Profile(text=d.profile) for d in dialogues]}, dialogues, "known")
    scored = table[(table["n"] > 0) & (table["metric"] != "extract_true")]
    assert (scored["value"] == 1).all() and len(scored) > 30
    for d in dialogues:
        assert {f.attribute for f in read_claims(Profile(text=d.profile))} == set(d.truth["expressed"])  # fmt: skip


@pytest.mark.parametrize(
    ("family", "expressed", "value", "right", "true"),
    [
        ("teens", ["family"], "have teenagers", True, True),
        ("teens", ["family"], "have children", True, True),  # coarser, and still so
        ("teens", [], "have teenagers", False, True),  # true, but shown nowhere: invented
        ("couple", ["family"], "have teenagers", False, False),
    ],
)
def test_right_is_true_and_shown(family, expressed, value, right, true):
    rows = judge(known(family, *expressed), made(value))
    claims = {kind: good for a, kind, good, _ in rows if a == "family" and kind != "item"}
    assert claims == {"claim": right, "true": true}
    items = [good for a, kind, good, _ in rows if a == "family" and kind == "item"]
    assert items == [right] * len(expressed)


def test_words_of_ones_own_are_understood():
    assert judge(known("teens", "family"), made("have two teenage sons"))[0][2]
    assert judge(known("teens", "occupation"), made("work as a nurse in Leeds", "occupation"))[0][2]


def test_goals_are_right_where_something_was_asked():
    goals = [Claim(value=f"how {i}", evidence=[Evidence(turn=i, quote="x")]) for i in (0, 2)]
    rows = judge(known("teens"), Profile(objective=Objective(goals=goals)))
    assert [r[2] for r in rows if r[:2] == ("goals", "claim")] == [True, False]
    assert [r[2] for r in rows if r[:2] == ("goals", "item")] == [True, False]


def test_failed_profiles_miss_what_is_shown():
    d = known("teens", "family", "openness")
    trait = Profile(subjective=Subjective(openness=Trait(level="high", evidence=[Evidence(turn=0, quote="x")])))  # fmt: skip
    table = quality({"a": [None, trait]}, [d, d.model_copy(update={"id": "l"})], "known")
    value = {r.arm: r.value for r in table[table["metric"] == "extract_recall"].itertuples()}
    assert value["a_known_facts"] == 0 and value["a_known_traits"] == 0.5
    assert math.isnan(value["a_known_style"])


def test_shortfall_says_why():
    d = known("teens", "occupation")
    d.truth["evidence"] = [{"attr": "occupation", "value": "nurse", "text": "My kids saw the ward", "turn": 0}]  # fmt: skip
    evidence = [Evidence(turn=0, quote="my kids saw the ward")]
    beside = Profile(objective=Objective(family=[Claim(value="have a baby", evidence=evidence)]))
    row = shortfall([beside], [d]).iloc[0]
    assert (row["claim"], row["meant_for"], row["n"], row["true"]) == ("have a baby", "occupation", 1, 0)  # fmt: skip
    assert row["example"] == "my kids saw the ward"
    assert shortfall([made("have a baby")] * 2, [d] * 2)[["meant_for", "n"]].values.tolist() == [["", 2]]  # fmt: skip
    assert shortfall([made("have a baby")], [known("newborn")])["true"].tolist() == [1]
    assert shortfall([made("have a baby")], [known("newborn", "family")]).empty
    assert shortfall([made("have a baby", confidence=0.6)], [d], stated=True).empty


def test_statements_support_contradict_or_are_silent():
    messages = [{"role": "user", "content": "x"}]
    told = Dialogue(id="i", messages=messages, profile="I am 30 years old. I live in Paris. I like my two kids.")  # fmt: skip
    verdicts = {
        ("age", "are 31 years old"): "supported",  # the same band
        ("age", "are 70 years old"): "contradicted",
        ("place", "live in Rome"): "contradicted",
        ("family", "have children"): "supported",
        ("routine", "work nights"): "not_covered",
    }
    for (attribute, value), verdict in verdicts.items():
        table = against_statements([made(value, attribute)], [told]).set_index("arm")
        assert table.loc[verdict, "value"] == 1 and table.loc[verdict, "n"] == 1, value
    assert math.isnan(against_statements([None], [told])["value"].iloc[0])


def test_plots_draw_full_and_empty_tables(dialogues):
    rules = [e.profile for e in RuleExtractor().extract(dialogues)]
    table = quality({"rules": rules}, dialogues, "known")
    few = table[table["part"].isin(["facts", "style", "openness"])]
    found = few.rename(columns={"part": "attribute"})
    for plot, data in ((plots_profiles.attribute_quality, few), (plots_profiles.coverage, found)):
        assert plot(data).axes and plot(data[:0]) and plot(data[:1])
    assert isinstance(table, pd.DataFrame)
