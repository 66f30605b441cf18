"""The map to touch, without a browser: what is selected is read, drawn and simulated."""

import sys

import numpy as np
import pytest

from usp_lab.assistants import scripted
from usp_lab.errors import UspError
from usp_lab.explore import explore
from usp_lab.sampling import ProfileSampler

TEXTS = [
    f"You work as a {j} in {p}. You want to find out how to bake bread.\n\nYou write in {how}."
    for j in ("nurse", "welder", "judge") for p in ("Oslo", "Lima", "Cork") for how in ("lower case", "long <b>sentences</b>")
]  # fmt: skip


@pytest.fixture(scope="module")
def sampler() -> ProfileSampler:
    return ProfileSampler(reducer="pca").fit(TEXTS)


def test_a_region_is_read_and_drawn_from(sampler):
    pytest.importorskip("jscatter", reason="the extra explore is not installed")
    map_ = explore(sampler)
    assert map_.selected == list(range(18))
    map_.scatter.selection([1, 3, 5])
    assert map_.selected == [1, 3, 5] and "3 profiles" in map_.out.value
    assert "<b>" not in map_.out.value and "&lt;b&gt;" in map_.out.value  # text stays text
    assert set(map_.draw(2)) < {1, 3, 5} and len(set(map_.draw(9))) == 3
    assert "2 profiles" in (map_.draw(2), map_.out.value)[1]


def test_users_of_a_region_talk(sampler):
    pytest.importorskip("jscatter", reason="the extra explore is not installed")
    from usp_lab.simulate import UserSimulator

    usp = UserSimulator.from_pretrained("usp-tiny", name="usp", max_new_tokens=16)
    map_ = explore(sampler, usp, scripted("good"), max_turns=1)
    map_.scatter.selection([2, 4])
    map_.draw(1)
    (dialogue,) = map_.simulate()
    assert dialogue.profile == TEXTS[map_.drawn[0]] and dialogue.user_turns[0]
    assert f"user {map_.drawn[0]}" in map_.out.value


def test_what_is_missing_is_named(sampler, monkeypatch):
    with pytest.raises(UspError, match="fit on texts"):
        explore(ProfileSampler(reducer="pca").fit(np.random.default_rng(0).standard_normal((9, 4))))
    monkeypatch.setitem(sys.modules, "jscatter", None)
    with pytest.raises(UspError, match="usp-lab\\[explore\\]"):
        explore(sampler)
