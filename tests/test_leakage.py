"""The leakage audit: what each arm may see, which turns are scored, what the share means."""

import numpy as np
import pytest

from usp_lab import leakage
from usp_lab.data import Dialogue
from usp_lab.errors import UspError


def talk(name: str, user: str | None, turns: int) -> Dialogue:
    said = [
        {"role": role, "content": f"{role} {name} {i}"}
        for i in range(turns)
        for role in ("user", "assistant")
    ]
    return Dialogue(id=name, messages=said, user_id=user)


def build(dialogues):
    """An extractor that repeats all it sees."""
    return [" | ".join(m["content"] for m in d.messages) for d in dialogues]


TARGETS = [talk("a1", "a", 5), talk("b1", "b", 4), talk("c1", "c", 4)]
OTHERS = [talk("a2", "a", 2), talk("b1", "b", 4)]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_an_arm_of_the_first_turns_sees_no_more(turns):
    first, *_ = leakage.profiles(f"first_{turns}", TARGETS, [], build)
    assert first == " | ".join(f"{r} a1 {i}" for i in range(turns) for r in ("user", "assistant"))


def test_what_the_other_arms_see():
    told = {a: leakage.profiles(a, TARGETS, OTHERS, build) for a in ("whole", "sibling", "empty")}
    assert told["whole"] == build(TARGETS) and told["empty"] == ["", "", ""]
    assert told["sibling"] == [build(OTHERS[:1])[0], None, None]  # b's only one is the target
    shuffled = leakage.profiles("shuffled", TARGETS, [], build)
    assert sorted(shuffled) == sorted(told["whole"])
    assert all(a != b for a, b in zip(shuffled, told["whole"], strict=True))
    assert leakage.profiles("prior", TARGETS, [], build) == [None] * 3
    assert leakage.profiles("prior", TARGETS, [], build, lambda d: d.id) == ["a1", "b1", "c1"]
    with pytest.raises(UspError, match="no arm 'last_1'"):
        leakage.profiles("last_1", TARGETS, [], build)


def test_training_mixes_all_lengths_and_keeps_nothing_of_the_truth():
    train = [talk(f"t{i}", f"u{i // 2}", 5) for i in range(200)]
    told = leakage.mixed(train, build, seed=3)
    seen = {d.profile.count("user t") for d in told}
    assert seen == {0, 1, 2, 3, 5} and [d.id for d in told] == [d.id for d in train]
    assert told == leakage.mixed(train, build, seed=3) != leakage.mixed(train, build, seed=4)
    assert all(d.truth is None for d in told)


def test_training_mixes_in_what_was_drawn_beforehand_where_there_is_such_a_thing():
    train = [talk(f"t{i}", f"u{i // 2}", 5) for i in range(210)]
    told = leakage.mixed(train, build, seed=3, prior=lambda d: f"prior of {d.id}")
    prior = [d for d in told if d.profile == f"prior of {d.id}"]
    assert 15 <= len(prior) <= 50  # one of seven arms
    assert {d.profile.count("user t") for d in told if d not in prior} == {0, 1, 2, 3, 5}
    assert not any("prior" in d.profile for d in leakage.mixed(train, build, seed=3))


def test_only_dialogues_with_a_turn_after_the_third_are_scored():
    assert [d.id for d in leakage.scored([*TARGETS, *OTHERS[:1]])] == ["a1", "b1", "c1"]
    assert len(leakage.scored(TARGETS, 2)) == 2


class Echo:
    """Says the end of what it was told, and what it heard last."""

    def room(self, messages):
        return 0

    def generate(self, batch, seeds):
        assert len(set(seeds)) == len(seeds)
        return [f"{m[0]['content'][-40:]} / {m[-1]['content']}" for m in batch]


def test_turns_are_written_in_their_true_context():
    said = leakage.written(Echo(), TARGETS, ["A", "B", None], seed=1)
    assert [len(turns) for turns in said] == [2, 1, 0]
    assert [t.split(" / ")[1] for t in said[0]] == ["assistant a1 2", "assistant a1 3"]
    assert [len(t) for t in leakage.written(Echo(), TARGETS, ["A", "B", None], most=1)] == [1, 1, 0]
    assert leakage.written(Echo(), TARGETS, ["A", "", None], most=1)[0] == said[0][:1]


class Judge:
    def score(self, a, b, level):
        assert level == "utterance"
        same = np.array([x == y for x, y in zip(a, b, strict=True)], float)
        return {"sem_sim": same, "style_sim": np.where(same > 0, same, np.nan)}


def test_likeness_sums_over_the_turns_that_were_written():
    said = [["user a1 3", "else"], [""], []]
    found = leakage.likeness(Judge(), TARGETS, said)
    assert found["sem_sim"][0].tolist() == [1, 2] and np.isnan(found["sem_sim"][1:]).all()
    assert found["style_sim"][0].tolist() == [1, 1]  # one of the two has no style to score


def test_lookahead_share_by_hand_and_its_edges():
    users = [f"u{i}" for i in range(40)]
    rng, count = np.random.default_rng(0), np.full(40, 2.0)

    def arm(level):
        return np.stack([2 * (level + rng.normal(0, 0.01, 40)), count], 1)

    whole, first, empty = arm(1.0), arm(1.6), arm(3.0)
    share = leakage.lookahead_share(whole, first, empty, users)
    assert abs(share.value - 0.3) < 0.02 and share.low < share.value < share.high
    assert leakage.lookahead_share(whole, whole, empty, users).value == 0
    assert leakage.lookahead_share(whole, empty, empty, users).value == 1
    assert np.isnan(leakage.lookahead_share(whole, first, whole, users).value)
    first[3] = np.nan  # a dialogue that one arm lacks is left out of all
    assert leakage.lookahead_share(whole, first, empty, users).n == 39


def test_estimates_hold_every_arm_and_the_share():
    x = np.random.default_rng(1).random((3, 2)) + 1
    arms = {"whole": x, "first_3": 1.1 * x, "empty": x * [2, 1]}
    table = leakage.estimates({"nll": arms}, TARGETS)
    rows = set(zip(table["metric"], table["arm"], strict=True))
    assert {("nll", a) for a in arms} | {("lookahead_share", "nll")} <= rows
    assert ("nll", "whole_minus_empty") in rows and ("nll", "empty_minus_empty") not in rows
    gain = table.set_index(["metric", "arm"]).loc[("nll", "whole_minus_empty"), "value"]
    assert gain == pytest.approx(-x[:, 0].sum() / x[:, 1].sum())


def test_the_glance_shows_gains_that_point_right_and_says_the_share():
    from usp_lab.plots_leakage import arms_at_a_glance

    rng = np.random.default_rng(2)
    nats = {"whole": 1.0, "first_3": 1.2, "shuffled": 3.0, "empty": 2.0}
    found = {
        a: np.stack([level + rng.normal(0, 0.01, 3), np.ones(3)], 1) for a, level in nats.items()
    }
    table = leakage.estimates({"nll": found}, TARGETS)
    (axis,) = arms_at_a_glance(table).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        "first 3 turns",
        "whole dialogue",
        "another user's",
    ]
    assert axis.get_xlabel().endswith("]") and "share: 20 %" in axis.get_xlabel()
    vague = table.copy()
    vague.loc[vague["metric"] == "lookahead_share", ["low", "high"]] = (-4.0, 7.0)
    assert arms_at_a_glance(vague).axes[0].get_xlabel().endswith("share: cannot be told")
    points = [line.get_xdata()[0] for line in axis.lines if line.get_marker() in ("o", "D")]
    assert points[0] > 0 > points[2] and points[1] > points[0]  # a lower loss is a gain
