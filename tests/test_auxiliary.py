"""What the detector and the generator are measured by: both ends of each metric, and the baselines beside."""

import math
from random import Random

import numpy as np
import pandas as pd
import pytest

from usp_lab import auxiliary as aux
from usp_lab import load_dialogues, stats
from usp_lab.arms import another_user, twin_turns
from usp_lab.data import Dialogue
from usp_lab.detector_training import Utterances, utterances
from usp_lab.extract_rules import RuleExtractor
from usp_lab.profiles import Profile
from usp_lab.synthetic import describe, said_by_chance, task_of


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
    scores = aux.detector_scores({"a_vs_b": ROWS}, judges)
    found = aux.detector_estimates(scores)
    arms = {"a_vs_b": 1.0, "a_vs_b_wrong": 0.0, "a_vs_b_guess": 0.5, "a_vs_b_minus_wrong": 1.0, "a_vs_b_minus_guess": 0.5}  # fmt: skip
    assert {r.arm: r.value for r in found.itertuples()} == arms
    assert set(found["n"]) == {40} and set(found["unit"]) == {"user"}


def test_each_text_is_asked_once_and_all_are_silent_where_the_detector_is():
    asked = []

    def detector(texts):
        asked.append(list(texts))
        return np.where([t == "turn 3" for t in texts], np.nan, told(texts))

    twice = side(ROWS.texts[:6], [True] * 6)
    scores = aux.detector_scores({"one": ROWS, "two": twice}, {"detector": detector, "words": told})
    assert asked == [ROWS.texts]
    for table in scores.values():
        silent = table["text"] == "turn 3"
        assert table.loc[silent, ["detector", "words"]].isna().all(axis=None)
        assert table.loc[~silent, ["detector", "words"]].notna().all(axis=None)
    found = aux.detector_estimates({"one": scores["one"]})
    assert set(found["n"]) == {39}


def test_bag_of_words_learns_who_speaks_and_length_alone_does_not(corpus):
    words = aux.BagOfWords().fit(utterances(corpus.train[:80]))
    held = utterances(corpus.test[:20])
    p = words.probabilities(held.texts)
    assert ((p >= 0) & (p <= 1)).all() and stats.auc(p, held.human).value > 0.97
    assert words.probabilities([]).shape == (0,)
    assert aux.shortness(["a b c", "a", ""]).tolist() == [-3, -1, 0]


def test_pairs_are_of_turns_in_which_both_speak():
    d = Dialogue(id="d", messages=[{"role": "user", "content": "one"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "two"}])  # fmt: skip
    found = aux.pairs([d], [["uno", ""]])
    assert found.texts == ["one", "uno"] and found.human.tolist() == [True, False]
    assert found.owners == ["d", "d"]
    assert aux.pairs([d], [["", " "]]).texts == []
    with pytest.raises(ValueError, match="shorter"):
        aux.pairs([d], [["uno"]])


def test_on_purpose_sees_what_there_is_and_nothing_where_there_is_none(corpus):
    targets = corpus.test[:24]
    marked = [[f"{t} indeed" for t in d.user_turns] for d in targets]
    seen = aux.pairs(targets, marked)
    assert stats.auc(aux.on_purpose(seen), seen.human, seen.owners).value > 0.95
    twins = aux.pairs(targets, twin_turns(targets, 1))
    assert 0.35 < stats.auc(aux.on_purpose(twins), twins.human, twins.owners).value < 0.65
    lone = side(["a", "b"], [True, False], ["u", "u"])
    assert np.isnan(aux.on_purpose(lone)).all()


def test_levels_count_what_is_saturated_and_what_is_silent():
    scores = {"a": 0.995, "b": 0.5, "c": math.nan, "d": 0.99}
    groups = {"real": (list("abcd"), list("uuvv")), "usp": (["b"], ["u"])}
    found = aux.detector_levels(groups, lambda t: np.array([scores[x] for x in t]))
    assert value(found, "r_ai_saturated", "real") == pytest.approx(1 / 3)
    assert value(found, "naturalness", "real") == pytest.approx((0.995 + 0.5 + 0.99) / 3)
    assert value(found, "detector_abstains", "real") == 0.25
    assert value(found, "r_ai_saturated", "usp") == 0 == value(found, "detector_abstains", "usp")
    [n] = found[(found["arm"] == "real") & (found["metric"] == "naturalness")]["n"]
    assert n == 3


def test_ece_per_judge():
    table = aux.detector_scores({"x": ROWS}, {"detector": told})["x"]
    table["sure"] = table["human"].astype(float)
    found = aux.calibration_estimates(table, ["detector", "sure"])
    assert value(found, "detector_ece", "detector") == pytest.approx(0.1)
    assert value(found, "detector_ece", "sure") == 0


# --- the generator ---------------------------------------------------------------------------------


def test_topic_is_read_off_the_objective_half(corpus):
    d = corpus.test[0]
    assert aux.topic_of(d.profile) == d.truth["topic"]
    assert aux.topic_of(Profile(text=d.profile)) == d.truth["topic"]
    subjective = d.profile.partition("\n\n")[2]
    assert aux.topic_of(f"You have a dog.\n\n{subjective}") is None
    assert aux.topic_of("") is aux.topic_of(None) is None


def test_habits_taught_on_purpose_are_read_off_the_turns_and_off_nothing_else(corpus):
    learned, held = corpus.train[:200], corpus.test[:40]
    swapped = [
        d.model_copy(update={"messages": held[i].messages})
        for d, i in zip(held, another_user(held), strict=True)
    ]
    tests = {"": held, "_swapped": swapped, "_learned": learned[:40]}
    found = aux.habits_on_purpose(learned, tests)
    own, other, taught = (value(found, "generator_style", f"on_purpose{k}") for k in tests)
    assert taught > 0.95 and own > other + 0.1


@pytest.mark.parametrize("split", ["test", "test_new_topics", "test_new_phrasings"])
def test_the_truth_is_read_back_and_another_s_is_not(corpus, split):
    some = corpus.splits[split][:25]
    true = [Profile(text=d.profile) for d in some]
    rules = [e.profile for e in RuleExtractor().extract(some)]
    shifted = [*true[5:], *true[:5]]
    found = aux.generator_estimates(
        {"truth": true, "rules": rules, "other": shifted, "none": [None] * len(some)}, some
    )
    assert value(found, "generator_topic", "truth") >= 0.96
    assert value(found, "generator_style", "truth") > 0.98
    assert value(found, "generator_style_precision", "truth") > 0.98
    assert value(found, "generator_topic", "other") < 0.3
    assert value(found, "generator_style", "other") < 0.7
    assert 0.5 < value(found, "generator_topic", "rules") and 0.5 < value(found, "generator_style", "rules") < 0.95  # fmt: skip
    assert value(found, "generator_topic", "none") == 0 == value(found, "generator_style", "none")
    assert math.isnan(value(found, "generator_style_precision", "none"))


def test_habits_that_profiles_mention_by_chance_are_counted_apart(corpus):
    some = corpus.train
    plain = [d for d in some if set(d.truth["expressed"]) & said_by_chance(d.truth["user"])]
    assert plain
    kept = [
        [a for a in d.truth["expressed"] if a not in said_by_chance(d.truth["user"])] for d in plain
    ]
    told = [
        Profile(text=describe(task_of(d), k, d.truth["asked"], Random(0)))
        for d, k in zip(plain, kept, strict=True)
    ]
    found = aux.generator_estimates({"told": told}, plain)
    assert value(found, "generator_style", "told") > 0.98
    assert 0.6 < value(found, "generator_style_mentioned", "told") < 0.95


def test_likeness_is_one_to_itself_and_less_to_another(corpus):
    some = corpus.test[:8]
    own = [d.profile for d in some]
    found = aux.likeness({"generator": own, "other": own[::-1], "blank": [""] * 8}, some)
    for half in ("objective", "subjective"):
        assert value(found, f"generator_{half}", "generator") == pytest.approx(1, abs=1e-5)
        assert value(found, f"generator_{half}", "other") < 0.95
        assert value(found, f"generator_{half}", "blank") == 0
        gap = value(found, f"generator_{half}", "generator_minus_other")
        assert gap == pytest.approx(1 - value(found, f"generator_{half}", "other"), abs=1e-5)
