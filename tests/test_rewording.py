"""Rewording: what turns and profile share is exchanged in both, and nothing else."""

import re

import pytest

from usp_lab import synthetic
from usp_lab.errors import UspError
from usp_lab.rewording import reworded
from usp_lab.sft_settings import SftSettings
from usp_lab.spelling import words

SOME = synthetic.draw("train", 200, 5)


def test_shared_words_become_others_in_both():
    changed = 0
    for old, new in zip(SOME, reworded(SOME, 1.0), strict=True):
        assert new.id == old.id and new.n_turns == old.n_turns
        before, after = ([w for w in re.findall("[A-Za-z]{3,}", d.profile)] for d in (old, new))
        assert len(before) == len(after)
        pairs = {(a.lower(), b.lower()) for a, b in zip(before, after, strict=True) if a != b}
        assert len({a for a, _ in pairs}) == len(pairs)  # each word by one other
        said = [" ".join(d.user_turns).lower() for d in (old, new)]
        for a, b in pairs:
            assert re.search(rf"\b{a}\b", said[0]) and re.search(rf"\b{b}\b", said[1])
            assert b in words()
        assert [m for m in old.messages if m["role"] != "user"] == [
            m for m in new.messages if m["role"] != "user"
        ]
        changed += bool(pairs)
    assert changed > 150


def test_the_share_that_is_asked_for_and_the_same_each_time():
    half = reworded(SOME, 0.5, seed=3)
    same = sum(a is b for a, b in zip(SOME, half, strict=True))
    assert 70 < same < 130 and half == reworded(SOME, 0.5, seed=3) != reworded(SOME, 0.5, seed=4)
    assert reworded(SOME, 0.0) == SOME


def test_how_profiles_are_put_stays():
    text = " ".join(d.profile for d in reworded(SOME, 1.0))
    assert text.count("You ") == " ".join(d.profile for d in SOME).count("You ")
    assert "find out" in text


def test_bad_settings():
    with pytest.raises(UspError, match="reword=0.5 with speaker='user'; give a share of 0 to 1"):
        SftSettings(reword=0.5)
    with pytest.raises(UspError, match="reword=2"):
        SftSettings(speaker="generator", reword=2)
