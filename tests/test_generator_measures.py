"""What the profile generator is measured by: the truth read back, another's, and the baselines beside."""

import math
from random import Random

import pandas as pd
import pytest

from usp_lab import generator_measures, load_dialogues
from usp_lab.arms import another_user
from usp_lab.extract_rules import RuleExtractor
from usp_lab.profiles import Profile
from usp_lab.synthetic import describe, said_by_chance, task_of


@pytest.fixture(scope="module")
def corpus():
    return load_dialogues("population", n=900)


def value(table: pd.DataFrame, metric: str, arm: str) -> float:
    [row] = table[(table["metric"] == metric) & (table["arm"] == arm)].to_dict("records")
    return row["value"]


def test_topic_is_read_off_the_objective_half(corpus):
    d = corpus.test[0]
    assert generator_measures.topic_of(d.profile) == d.truth["topic"]
    assert generator_measures.topic_of(Profile(text=d.profile)) == d.truth["topic"]
    subjective = d.profile.partition("\n\n")[2]
    assert generator_measures.topic_of(f"You have a dog.\n\n{subjective}") is None
    assert generator_measures.topic_of("") is generator_measures.topic_of(None) is None


def test_habits_taught_on_purpose_are_read_off_the_turns_and_off_nothing_else(corpus):
    learned, held = corpus.train[:200], corpus.test[:40]
    swapped = [
        d.model_copy(update={"messages": held[i].messages})
        for d, i in zip(held, another_user(held), strict=True)
    ]
    tests = {"": held, "_swapped": swapped, "_learned": learned[:40]}
    found = generator_measures.habits_on_purpose(learned, tests)
    own, other, taught = (value(found, "generator_style", f"on_purpose{k}") for k in tests)
    assert taught > 0.95 and own > other + 0.1


@pytest.mark.parametrize("split", ["test", "test_new_topics", "test_new_phrasings"])
def test_the_truth_is_read_back_and_another_s_is_not(corpus, split):
    some = corpus.splits[split][:25]
    true = [Profile(text=d.profile) for d in some]
    rules = [e.profile for e in RuleExtractor().extract(some)]
    shifted = [*true[5:], *true[:5]]
    found = generator_measures.generator_estimates(
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
    found = generator_measures.generator_estimates({"told": told}, plain)
    assert value(found, "generator_style", "told") > 0.98
    assert 0.6 < value(found, "generator_style_mentioned", "told") < 0.95


def test_likeness_is_one_to_itself_and_less_to_another(corpus):
    some = corpus.test[:8]
    own = [d.profile for d in some]
    found = generator_measures.likeness(
        {"generator": own, "other": own[::-1], "blank": [""] * 8}, some
    )
    for half in ("objective", "subjective"):
        assert value(found, f"generator_{half}", "generator") == pytest.approx(1, abs=1e-5)
        assert value(found, f"generator_{half}", "other") < 0.95
        assert value(found, f"generator_{half}", "blank") == 0
        gap = value(found, f"generator_{half}", "generator_minus_other")
        assert gap == pytest.approx(1 - value(found, f"generator_{half}", "other"), abs=1e-5)
