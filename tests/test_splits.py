"""No user and no group of near-duplicate openings is on two sides, whatever the dialogues."""

import random
import re
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.splits import groups, near_duplicates, split_groups, without_leaks

WORDS = st.text("ab c", max_size=14)
TEMPLATE = "I like to host guests at my home from time to time. What should I cook for {} of them?"


def dialogue(i: int, opening: str, user: str | None = None, profile: str | None = None) -> Dialogue:
    messages = [{"role": "user", "content": opening}, {"role": "assistant", "content": "Yes."}]
    return Dialogue(id=f"d{i}", messages=messages, user_id=user, profile=profile)


def grams(text: str) -> set[str]:
    plain = re.sub(r"[\W_]+", " ", text.lower()).strip() or text.strip()
    plain = plain[:100]
    return {plain[i : i + 5] for i in range(len(plain) - 4)} or {plain}


def partition(labels) -> set[frozenset[int]]:
    return {frozenset(i for i, x in enumerate(labels) if x == g) for g in set(labels)}


def all_pairs(texts: list[str], threshold: float) -> set[frozenset[int]]:
    """Group by comparing every pair, merging until nothing changes."""
    label, sets = list(range(len(texts))), [grams(t) for t in texts]
    for i, j in combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]) - 1e-9:
            label = [label[i] if x == label[j] else x for x in label]
    return partition(label)


# --- near-duplicates ------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(WORDS, max_size=14), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_no_pair_is_missed_among_short_texts(texts, threshold):
    assert partition(near_duplicates(texts, threshold)) == all_pairs(texts, threshold)


@pytest.mark.parametrize("seed", range(6))
def test_no_pair_is_missed_among_edited_sentences(seed):
    rng = random.Random(seed)
    words = "please can you tell me how far the old harbour is from a quiet hotel in town".split()
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 18))) for _ in range(12)]
    for text in rng.choices(texts, k=40):  # some near enough, some not, many just at the edge
        letters = list(text)
        for _ in range(rng.randint(0, 5)):
            letters[rng.randrange(len(letters))] = rng.choice("abcde ")
        texts.append("".join(letters))
    found = partition(near_duplicates(texts))
    assert found == all_pairs(texts, 0.8)
    assert 12 < len(found) < 52, "the texts are too easy to tell apart, or too hard"


def test_what_counts_as_near():
    same = ["Hello!", "hello", " HELLO... "]
    assert len(set(near_duplicates(same))) == 1
    assert len(set(near_duplicates(["hello", "hallo", "hi", "", "?", "!?", "你好", "再见"]))) == 8
    assert len(set(near_duplicates([TEMPLATE.format(n) for n in (6, "six", "80")]))) == 1
    head = "the same first hundred characters " * 3
    assert len(set(near_duplicates([head + "and then this", head + "but not that"]))) == 1
    assert len(near_duplicates([])) == 0


# --- splits ---------------------------------------------------------------------------------------


def check(splits: dict[str, list[Dialogue]]) -> None:
    """Assert that no two sides share a user, a profile that stands for one, or a near opening."""
    everything = [(side, d) for side, dialogues in splits.items() for d in dialogues]
    for (side, d), (other, e) in combinations(everything, 2):
        if side != other:
            assert d.user_id is None or d.user_id != e.user_id
            assert d.user_id or e.user_id or d.profile is None or d.profile != e.profile
            a, b = grams(d.opening), grams(e.opening)
            assert len(a & b) < 0.8 * len(a | b), (d.opening, e.opening)


MANY = st.lists(
    st.tuples(WORDS, st.sampled_from([None, *"uvwxyz"]), st.sampled_from([None, "p", "q"])),
    max_size=40,
).map(lambda rows: [dialogue(i, *row) for i, row in enumerate(rows)])


@settings(max_examples=80, deadline=None)
@given(MANY, st.integers(0, 3))
def test_every_dialogue_is_on_one_side_and_every_group_too(dialogues, seed):
    n_groups = len(set(groups(dialogues)))
    if n_groups < 3:
        with pytest.raises(UspError, match=f"form {n_groups} group.s. of users"):
            split_groups(dialogues, seed)
        return
    splits = split_groups(dialogues, seed)
    assert list(splits) == ["train", "validation", "test"] and all(splits.values())
    assert sorted(d.id for s in splits.values() for d in s) == sorted(d.id for d in dialogues)
    check(splits)
    assert splits == split_groups(dialogues, seed)


@settings(max_examples=80, deadline=None)
@given(MANY, MANY, MANY, MANY)
def test_leaks_are_taken_out_of_the_side_that_gives_way(train, validation, test, new_topics):
    given_splits = dict(train=train, validation=validation, test=test, test_new_topics=new_topics)
    splits, lost = without_leaks(given_splits)
    check(splits)
    assert list(splits) == list(given_splits) and splits["test"] == test
    gone = {s: len(d) - len(splits[s]) for s, d in given_splits.items()}
    assert lost == {s: n for s, n in gone.items() if n}
    assert without_leaks(splits) == (splits, {})


def test_only_what_leaks_is_taken_out():
    cat, dog, cow, hen = "my cat sneezes", "the dog won't sit", "cows on the road", "hens at night"
    splits, lost = without_leaks(
        {
            "train": [dialogue(0, cat, "ann"), dialogue(1, dog, "bob"), dialogue(2, cow, "cyd")],
            "validation": [dialogue(3, hen, "cyd"), dialogue(4, "The dog won't sit!", "dan")],
            "test": [dialogue(5, "grey parrots", "ann"), dialogue(6, "green lizards", "dan")],
        }
    )
    assert {s: [d.id for d in dialogues] for s, dialogues in splits.items()} == {
        "train": ["d1"],  # bob's opening was on validation's side, but has left it
        "validation": ["d3"],
        "test": ["d5", "d6"],
    }
    assert lost == {"train": 2, "validation": 1}


def test_sizes_follow_the_shares_and_large_groups_stay_in_training():
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    openings = ["".join(rng.choices(letters, k=20)) for _ in range(400)] + ["hello"] * 100
    rng.shuffle(openings)
    dialogues = [dialogue(i, o) for i, o in enumerate(openings)]
    splits = split_groups(dialogues)
    assert {s: len(d) for s, d in splits.items()} == {"train": 400, "validation": 50, "test": 50}
    assert sum(d.opening == "hello" for d in splits["train"]) == 100
    assert splits["test"] == sorted(splits["test"], key=lambda d: int(d.id[1:])), "out of order"
    assert splits != split_groups(dialogues, seed=1)
    two = split_groups(dialogues, shares={"validation": 0.04})
    assert {s: len(d) for s, d in two.items()} == {"train": 480, "validation": 20}


def test_no_side_is_left_empty_by_a_giant_group():
    openings = ["hello"] * 28 + ["what is granite", "who was mozart"]
    splits = split_groups([dialogue(i, o) for i, o in enumerate(openings)])
    assert {s: len(d) for s, d in splits.items()} == {"train": 28, "validation": 1, "test": 1}


def test_a_profile_stands_for_the_user_where_no_id_does():
    openings = ["tulips", "granite", "jazz", "yoghurt", "chess", "opera"]
    same = [dialogue(i, o, profile=f"p{i // 2}") for i, o in enumerate(openings)]
    assert partition(groups(same)) == {frozenset({0, 1}), frozenset({2, 3}), frozenset({4, 5})}
    known = [dialogue(i, o, user=f"u{i}", profile="p") for i, o in enumerate(openings)]
    assert len(set(groups(known))) == 6
    with pytest.raises(UspError, match="without user_id, one profile counts as one user"):
        split_groups([dialogue(i, o, profile="p") for i, o in enumerate(openings)])
