"""Metrics on text: values worked out by hand, edges, and real conversations where they are at hand."""

import doctest
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from usp_lab import metrics

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PROFILE = "You have two young girls. You love long quiet walks by the sea."


def test_doctests() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 7 and not result.failed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("...!?", []),
        ("' '' ’", []),
        ("Don’t STOP", ["don't", "stop"]),
        ("rock'n'roll 24/7", ["rock'n'roll", "24", "7"]),
        ("the dogs' 'own' café_bar", ["the", "dogs", "own", "café", "bar"]),
        ("東京 is big", ["東京", "is", "big"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert metrics.words(text) == expected


def test_distinct() -> None:
    turns = ["a b a", "b a"]
    assert metrics.distinct(turns, 1) == 2 / 5
    assert metrics.distinct(turns, 2) == 2 / 3  # ab ba | ba: n-grams do not cross turns
    assert metrics.distinct(turns, 2, sample=1) == 1
    assert math.isnan(metrics.distinct(turns, 4))
    assert math.isnan(metrics.distinct([], 1))


def test_mattr() -> None:
    assert metrics.mattr(["a b", "a c"], window=2) == 1  # windows ab, ba, ac
    assert metrics.mattr(["a a b"], window=2) == 0.75
    assert metrics.mattr(["a a"], window=2) == 0.5
    assert math.isnan(metrics.mattr(["a"], window=2)) and math.isnan(metrics.mattr([]))
    tokens = [str(t) for t in np.random.default_rng(0).geometric(0.2, size=200)]
    windows = [len(set(tokens[i : i + 30])) / 30 for i in range(200 - 30 + 1)]
    assert metrics.mattr([" ".join(tokens)], window=30) == pytest.approx(np.mean(windows))


def test_pairwise_difference() -> None:
    assert metrics.pairwise_difference(["a b", "B a!"]) == 0
    assert metrics.pairwise_difference(["a b c", "c d", "", "e"]) == pytest.approx(
        (0.75 + 1 + 1) / 3
    )
    assert math.isnan(metrics.pairwise_difference(["a", "..."]))
    assert math.isnan(metrics.pairwise_difference([]))


def test_pairwise_difference_of_a_sample_is_close_to_that_of_all() -> None:
    turns = [f"w{i % 7} x{i % 5} y{i % 3}" for i in range(150)]
    every = metrics.pairwise_difference(turns, pairs=10**6)
    drawn = metrics.pairwise_difference(turns, pairs=3000, seed=1)
    assert drawn == pytest.approx(every, abs=0.02)
    assert drawn == metrics.pairwise_difference(turns, pairs=3000, seed=1)


def test_identical_share() -> None:
    training = ["Is it far from here?", "thanks a lot, bye"]
    turns = ["is it FAR from here", "Is it far from there?", "thanks", "thanks a lot bye!"]
    assert metrics.identical_share(turns, training) == pytest.approx(
        [1, 0, math.nan, 1], nan_ok=True
    )
    assert metrics.identical_share(["thanks"], ["Thanks."], least_words=1) == [1]
    assert metrics.identical_share([], training) == []


def test_profile_copy() -> None:
    assert metrics.profile_copy(PROFILE, ["nothing of the kind"]) == 0
    assert metrics.profile_copy(PROFILE, [PROFILE]) == 1
    # 13 words, 10 distinct 4-grams; "long quiet walks by" is one, "two young girls you" crosses turns
    assert (
        metrics.profile_copy(PROFILE, ["Long quiet walks by a lake.", "two young", "girls you"])
        == 0.1
    )
    assert metrics.profile_copy("a b a b a b", ["a b a b"], n=2) == 1  # distinct n-grams
    assert math.isnan(metrics.profile_copy("too short indeed", ["too short indeed"]))
    assert math.isnan(metrics.profile_copy(PROFILE, [])) and math.isnan(
        metrics.profile_copy("", ["a"])
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("my girls love the sea", []),
        ("i Love LONG, quiet walks a lot", ["Love LONG, quiet walks"]),
        ("love long quiet walks by the sea", ["love long quiet walks by the sea"]),
        ("have two young girls! and: quiet walks by the sea", ["have two young girls", "quiet walks by the sea"]),
        ("İİ ßß love long quiet walks", ["love long quiet walks"]),  # lower case may be longer
    ],
)  # fmt: skip
def test_copied_phrases(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in metrics.copied_phrases(PROFILE, text)] == expected


def test_copied_phrases_and_profile_copy_agree() -> None:
    for text in ("I love long quiet walks", "nothing", "young girls you love"):
        assert bool(metrics.copied_phrases(PROFILE, text)) == (
            metrics.profile_copy(PROFILE, [text]) > 0
        )
    assert metrics.copied_phrases("you don't like it", "you don’t like it") == [(0, 17)]


def test_describe_turns_by_hand() -> None:
    d = metrics.describe_turns([["hello there?", "Thanks!"], ["One two three four"]])
    assert d["words per turn"] == pytest.approx(7 / 3) and d["turns per dialogue"] == 1.5
    assert d["question mark"] == d["lower-case opening"] == d["thanks"] == pytest.approx(1 / 3)
    assert d["final . ? !"] == d["three words or fewer"] == pytest.approx(2 / 3)
    assert d["distinct-1"] == d["opening diversity"] == 1
    assert math.isnan(d["MATTR"])


@pytest.mark.parametrize("dialogues", [[], [[]], [[], []]])
def test_describe_turns_without_a_turn(dialogues: list) -> None:
    d = metrics.describe_turns(dialogues)
    turns = d.pop("turns per dialogue")
    assert all(math.isnan(v) for v in d.values())
    assert turns == 0 if dialogues else math.isnan(turns)


def test_an_empty_turn_does_not_count_as_punctuated() -> None:
    assert metrics.describe_turns([["", "ok"]])["final . ? !"] == 0


@pytest.mark.skipif(
    not SHARED.exists(), reason="no ../shared/data: real conversations do not come along"
)
def test_real_turns_give_the_figures_of_their_readme() -> None:
    with gzip.open(SHARED / "oasst_dev.jsonl.gz", "rt", encoding="utf-8") as f:
        rows = [json.loads(line)["messages"] for line in f]
    d = metrics.describe_turns([[m["content"] for m in r if m["role"] == "user"] for r in rows])
    shown = {"question mark": 0.71, "lower-case opening": 0.08, "final . ? !": 0.84}
    for name, share in (shown | {"three words or fewer": 0.03, "thanks": 0.08}).items():
        assert d[name] == pytest.approx(share, abs=0.02), name
    assert d["turns per dialogue"] == pytest.approx(2.5, abs=0.05)
