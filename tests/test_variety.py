"""Openings for one intent, a trait's variance between and within users: known answers, both ends, NaN with reasons."""

import doctest
import math

import numpy as np
import pytest

from usp_lab import synthetic, variety
from usp_lab.arms import another_user
from usp_lab.baselines import from_function
from usp_lab.chat import END_TOKEN
from usp_lab.data import Dialogue
from usp_lab.distributions import Unscorable
from usp_lab.errors import UspError
from usp_lab.simulate import TwinSimulator
from usp_lab.variety import (
    TRAITS,
    between_share,
    draw_openings,
    first_turn_diversity,
    intraclass,
    opening_estimates,
    trait_estimates,
    trait_values,
)

NAN = math.nan


@pytest.fixture(scope="module")
def population() -> list[Dialogue]:
    return synthetic.draw("test-variety", 200, 5)


def test_doctests() -> None:
    result = doctest.testmod(variety)
    assert result.attempted >= 1 and not result.failed


# --- openings --------------------------------------------------------------------------------------


def test_openings_differ_by_draw_and_are_the_same_again(population):
    targets = population[:12]
    found = draw_openings(TwinSimulator(), targets, n=3, seed=1)
    assert len(found) == 12 and all(len(own) == 3 and all(own) for own in found)
    assert sum(len(set(own)) > 1 for own in found) >= 11
    assert found == draw_openings(TwinSimulator(), targets, n=3, seed=1)
    assert found != draw_openings(TwinSimulator(), targets, n=3, seed=2)
    assert found[4:5] == draw_openings(TwinSimulator(), targets[4:5], n=3, seed=1)


def test_who_ends_at_once_says_nothing_and_who_is_given_the_opening_has_none(population):
    mute = from_function(lambda profile, messages, rng: END_TOKEN, "mute", "nothing")

    class Given(TwinSimulator):
        def start(self, target):
            return [{"role": "user", "content": target.opening}]

        def generate(self, batch, seeds):
            raise AssertionError("there is nothing to ask for")

    some = population[:3]
    openings = {"usp": draw_openings(mute, some, 2), "plato": draw_openings(Given(), some, 2)}
    assert openings == {"usp": [["", ""]] * 3, "plato": [[], [], []]}
    rows = opening_estimates(openings, ["a", "b", "c"]).set_index("arm")
    assert rows["value"].isna().all() and (rows["n"] == 0).all()
    assert rows.loc["plato", "reason"] == "no opening of its own"
    assert rows.loc["usp", "reason"] == "no intent with two openings with words"
    with pytest.raises(UspError, match="n=1 openings a target; give at least 2"):
        draw_openings(mute, some, 1)


def test_first_turn_diversity_by_hand_and_at_both_ends():
    apart, same, half = ["a b", "c d", "e"], ["a b", "b a", "A b!"], ["a b", "b c"]
    for openings, value in ((apart, 1), (same, 0), (half, 1 - 1 / 3)):
        found = first_turn_diversity([openings] * 5, range(5))
        assert found.estimate.value == pytest.approx(value) and not found.reason
    mixed = first_turn_diversity([apart, same, ["", "a"], []], "wxyz").estimate
    assert mixed.value == 0.5 and mixed.n == 2
    assert first_turn_diversity([apart, same] * 4, list("ab") * 4, "user").estimate.n == 8


def test_one_user_again_varies_less_than_other_users_do(population):
    first = list({d.user_id: d for d in population}.values())
    again = first_turn_diversity(draw_openings(TwinSimulator(), first, 4), range(len(first)))
    others = [
        [first[j].opening for j in own]
        for own in zip(*(another_user(first, k) for k in range(4)), strict=True)
    ]
    apart = first_turn_diversity(others, range(len(first))).estimate
    assert 0.5 < again.estimate.high < apart.low


# --- traits ----------------------------------------------------------------------------------------


def test_traits_by_hand():
    assert list(TRAITS) == ["words", "lower_case", "final_mark", "question_mark", "capitals"]
    values = trait_values([["hi", "WHY me? "], ["", " "], []])
    np.testing.assert_allclose(values[0], [(math.log(2) + math.log(3)) / 2, 0.5, 0.5, 0.5, 3 / 10])
    assert np.isnan(values[1:]).all() and values.shape == (3, 5)
    assert trait_values([]).shape == (0, 5)


def test_intraclass_is_the_textbooks_on_the_textbooks_table():
    """Shrout & Fleiss (1979), table 2: six targets with four ratings; ICC(1,1) = 0.17."""
    table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    value = intraclass(np.ravel(table), np.repeat(np.arange(6), 4))
    assert value == pytest.approx(0.17, abs=0.005)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_intraclass_finds_the_share_that_was_drawn(share):
    rng = np.random.default_rng(0)
    users = rng.permutation(np.arange(900) // 3)[:850]  # unbalanced
    own = rng.standard_normal(300) * math.sqrt(share)
    values = own[users] + rng.standard_normal(850) * math.sqrt(1 - share)
    assert intraclass(values, users.tolist()) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_intervals_of_the_share_hold_it_about_as_often_as_they_say(share):
    rng, hits = np.random.default_rng(1), []
    users = [i // 2 for i in range(60)]
    for _ in range(60):
        own = np.repeat(rng.standard_normal(30), 2) * math.sqrt(share)
        values = own + rng.standard_normal(60) * math.sqrt(1 - share)
        found = between_share([*values, NAN], [*users, "x"]).estimate
        hits.append(found.low < share < found.high)
        assert found.n == 60
    assert np.mean(hits) > 0.85


def test_both_ends_of_the_variance():
    assert intraclass(np.array([1, 1, 5, 5, 9, 9]), "aabbcc") == 1
    assert intraclass(np.array([1, 9, 1, 9, 1, 9]), "aabbcc") < 0


@pytest.mark.parametrize(
    ("values", "users", "why"),
    [
        ([1, 2, 3], "abc", "3 dialogues of 3 users; two users are needed"),
        ([1, 2, 3], "aaa", "3 dialogues of 1 users"),
        ([2, 2, 2, 2], "aabb", "all dialogues are alike"),
        ([NAN, NAN], "ab", "0 dialogues of 0 users"),
    ],
)
def test_no_variance_to_divide_says_why(values, users, why):
    found = between_share(values, users)
    assert math.isnan(found.estimate.value) and why in found.reason
    with pytest.raises(Unscorable, match=why):
        intraclass(np.array([v for v in values if v == v]), users[: sum(v == v for v in values)])


def test_real_users_keep_their_manner_and_strangers_do_not(population):
    turns = [d.user_turns for d in population]
    users = [d.user_id for d in population]
    mixed = np.random.default_rng(0).permutation(len(turns))
    said = {"real": turns, "mixed": [turns[i] for i in mixed], "mute": [[]] * len(turns)}
    rows = trait_estimates(said, dict.fromkeys(said, users)).set_index(["metric", "arm"])
    for trait in ("lower_case", "final_mark", "capitals"):
        real, strangers = (rows.loc[(f"between_share_{trait}", a)] for a in ("real", "mixed"))
        assert real["low"] > 0.5 > strangers["high"] and real["label"] == TRAITS[trait][0]
    assert rows.xs("mute", level="arm")["value"].isna().all()
    assert rows.xs("mute", level="arm")["reason"].str.contains("0 dialogues of 0 users").all()
