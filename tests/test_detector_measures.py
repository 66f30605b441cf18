"""What the detector is measured by: both ends of each metric, and the baselines beside."""

import math

import numpy as np
import pandas as pd
import pytest

from usp_lab import detector_measures, load_dialogues, stats
from usp_lab.arms import twin_turns
from usp_lab.bag_of_words import BagOfWords
from usp_lab.data import Dialogue
from usp_lab.detector_training import Utterances, utterances


@pytest.fixture(scope="module")
def corpus():
    return load_dialogues("population", n=900)


def side(texts: list[str], human: list[bool], owners: list[str] | None = None) -> Utterances:
    owners = owners or [f"u{i // 2}" for i in range(len(texts))]
    return Utterances(texts, np.array(human, bool), owners)


ROWS = side([f"turn {i}" for i in range(40)], [i % 2 == 0 for i in range(40)])


def told(texts):
    return np.array([0.9 if int(t.split()[1]) % 2 == 0 else 0.1 for t in texts])


def value(table: pd.DataFrame, metric: str, arm: str) -> float:
    [row] = table[(table["metric"] == metric) & (table["arm"] == arm)].to_dict("records")
    return row["value"]


def test_auc_of_who_knows_who_errs_and_who_guesses():
    judges = {"detector": told, "wrong": lambda t: 1 - told(t), "guess": lambda t: np.full(len(t), 0.5)}  # fmt: skip
    scores = detector_measures.detector_scores({"a_vs_b": ROWS}, judges)
    found = detector_measures.detector_estimates(scores)
    arms = {"a_vs_b": 1.0, "a_vs_b_wrong": 0.0, "a_vs_b_guess": 0.5, "a_vs_b_minus_wrong": 1.0, "a_vs_b_minus_guess": 0.5}  # fmt: skip
    assert {r.arm: r.value for r in found.itertuples()} == arms
    assert set(found["n"]) == {40} and set(found["unit"]) == {"user"}


def test_each_text_is_asked_once_and_all_are_silent_where_the_detector_is():
    asked = []

    def detector(texts):
        asked.append(list(texts))
        return np.where([t == "turn 3" for t in texts], np.nan, told(texts))

    twice = side(ROWS.texts[:6], [True] * 6)
    scores = detector_measures.detector_scores(
        {"one": ROWS, "two": twice}, {"detector": detector, "words": told}
    )
    assert asked == [ROWS.texts]
    for table in scores.values():
        silent = table["text"] == "turn 3"
        assert table.loc[silent, ["detector", "words"]].isna().all(axis=None)
        assert table.loc[~silent, ["detector", "words"]].notna().all(axis=None)
    found = detector_measures.detector_estimates({"one": scores["one"]})
    assert set(found["n"]) == {39}


def test_bag_of_words_learns_who_speaks_and_length_alone_does_not(corpus):
    words = BagOfWords().fit(utterances(corpus.train[:80]))
    held = utterances(corpus.test[:20])
    p = words.probabilities(held.texts)
    assert ((p >= 0) & (p <= 1)).all() and stats.auc(p, held.human).value > 0.97
    assert words.probabilities([]).shape == (0,)
    assert detector_measures.shortness(["a b c", "a", ""]).tolist() == [-3, -1, 0]


def test_pairs_are_of_turns_in_which_both_speak():
    d = Dialogue(id="d", messages=[{"role": "user", "content": "one"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "two"}])  # fmt: skip
    found = detector_measures.pairs([d], [["uno", ""]])
    assert found.texts == ["one", "uno"] and found.human.tolist() == [True, False]
    assert found.owners == ["d", "d"]
    assert detector_measures.pairs([d], [["", " "]]).texts == []
    with pytest.raises(ValueError, match="shorter"):
        detector_measures.pairs([d], [["uno"]])


def test_on_purpose_sees_what_there_is_and_nothing_where_there_is_none(corpus):
    targets = corpus.test[:24]
    marked = [[f"{t} indeed" for t in d.user_turns] for d in targets]
    seen = detector_measures.pairs(targets, marked)
    assert stats.auc(detector_measures.on_purpose(seen), seen.human, seen.owners).value > 0.95
    twins = detector_measures.pairs(targets, twin_turns(targets, 1))
    assert (
        0.35
        < stats.auc(detector_measures.on_purpose(twins), twins.human, twins.owners).value
        < 0.65
    )
    lone = side(["a", "b"], [True, False], ["u", "u"])
    assert np.isnan(detector_measures.on_purpose(lone)).all()


def test_levels_count_what_is_saturated_and_what_is_silent():
    scores = {"a": 0.995, "b": 0.5, "c": math.nan, "d": 0.99}
    groups = {"real": (list("abcd"), list("uuvv")), "usp": (["b"], ["u"])}
    found = detector_measures.detector_levels(groups, lambda t: np.array([scores[x] for x in t]))
    assert value(found, "r_ai_saturated", "real") == pytest.approx(1 / 3)
    assert value(found, "naturalness", "real") == pytest.approx((0.995 + 0.5 + 0.99) / 3)
    assert value(found, "detector_abstains", "real") == 0.25
    assert value(found, "r_ai_saturated", "usp") == 0 == value(found, "detector_abstains", "usp")
    [n] = found[(found["arm"] == "real") & (found["metric"] == "naturalness")]["n"]
    assert n == 3


def test_ece_per_judge():
    table = detector_measures.detector_scores({"x": ROWS}, {"detector": told})["x"]
    table["sure"] = table["human"].astype(float)
    found = detector_measures.calibration_estimates(table, ["detector", "sure"])
    assert value(found, "detector_ece", "detector") == pytest.approx(0.1)
    assert value(found, "detector_ece", "sure") == 0


# --- the generator ---------------------------------------------------------------------------------
