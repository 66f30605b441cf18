"""The schema of profiles, their text and JSON, and the seam between the two halves."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usp_lab import synthetic
from usp_lab.errors import UspError
from usp_lab.polish import TemplatePolisher
from usp_lab.profiles import (
    Claim,
    Evidence,
    Habit,
    Objective,
    Profile,
    Subjective,
    Trait,
    split_profile,
)
from usp_lab.statements import codes_of
from usp_lab.users import FACTS

LMSYS = (  # in the manner of the release's: two paragraphs, second person
    "You are a 34-year-old nurse living in Leeds with your husband and two teenage sons. You are interested in how to prune roses.\n\n"
    "You are curious and open to new ideas. Your messages are short and polite, and you rarely use capital letters."
)


def whole() -> Profile:
    said = [Evidence(turn=0, quote="my husband says so")]
    return Profile(
        objective=Objective(
            age=[Claim(value="are 34 years old", confidence=0.9)],
            family=[Claim(value="have a partner", evidence=said, confidence=0.9)],
            goals=[Claim(value="how to prune roses"), Claim(value="help to write a card")],
            details=[Claim(value="frost is due on Friday")],
        ),
        subjective=Subjective(
            openness=Trait(level="high", evidence=said, confidence=0.6),
            style=[Habit(habit="casing", value="type everything in lower case")],
        ),
    )


def test_json_goes_there_and_back():
    profile = whole()
    assert Profile.from_json(profile.to_json()) == profile
    assert json.loads(profile.to_json())["objective"]["family"][0]["evidence"][0]["turn"] == 0
    schema = Profile.model_json_schema()
    assert set(FACTS) <= schema["$defs"]["Objective"]["properties"].keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "the whole"),
        ('{"objective": {"age": [{"value": ""}]}}', "objective.age.0.value"),
        ('{"subjective": {"openness": {"level": "huge"}}}', "subjective.openness.level"),
        ('{"objective": {"shoe_size": []}}', "objective.shoe_size"),
        ('{"objective": {"age": [{"value": "x", "confidence": 2}]}}', "confidence"),
    ],
)
def test_bad_json_is_refused_with_the_place(text, said):
    with pytest.raises(UspError, match="not a profile: ") as error:
        Profile.from_json(text)
    assert said in str(error.value)


def test_profiles_are_fixed():
    with pytest.raises(ValueError, match="frozen"):
        whole().objective.age = []


def test_template_says_every_claim_in_two_paragraphs():
    text = whole().to_text()
    first, second = text.split("\n\n")
    for said in ("34 years old", "have a partner", "find out how to prune roses", "help to write a card", "frost"):  # fmt: skip
        assert said in first
    assert "curious" in second and "lower case" in second
    assert re.fullmatch(r"(?:[A-Z].*[.!?])", first) and "You You" not in text


def test_template_leaves_out_what_is_unsure():
    profile = whole()
    text = TemplatePolisher(least=0.7).polish(profile)
    assert "34" in text and "curious" not in text


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_to_the_letter(text):
    profile = Profile.from_text(text)
    assert profile.to_text() == text
    if not re.search("[\ud800-\udfff]", text):
        assert Profile.from_json(profile.to_json()).to_text() == text


@given(st.lists(st.sampled_from(["You are curt.", "You live in Rome.", "a  b", "\n", "\n\n", " \n \n", "x"])))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_no_word_is_lost_at_the_seam(parts):
    text = "".join(parts)
    first, second = split_profile(text)
    assert f"{first} {second}".split() == text.split()


def test_seam_survives_other_layouts():
    first, second = LMSYS.split("\n\n")
    for text in (
        LMSYS,
        f"\n{first}\n\n\n\n{second}\n\n",
        f"{first}\r\n \r\n{second}\n",
        f"{first}\n{second}",
        f"{first} {second}",
    ):
        assert split_profile(text) == (first, second), text
    a, b = first.split(". ", 1)
    assert split_profile(f"{a}.\n\n{b}\n\n{second}") == (f"{a}.\n\n{b}", second)
    assert split_profile("  \n") == ("", "")
    assert split_profile(first) == (first, "") and split_profile(second) == ("", second)


def test_populations_profiles_fall_into_their_halves_without_a_blank_line():
    right = total = 0
    for d in synthetic.draw("validation", 40, 5):
        halves = d.profile.split("\n\n")
        total += 1
        right += list(split_profile(" ".join(halves))) == halves
    assert right >= 0.7 * total  # the seam is a guess there; blank lines are not


def test_text_is_read_back_into_attributes():
    o, s = Profile.from_text(LMSYS).objective, Profile.from_text(LMSYS).subjective
    assert o.age[0].value == "are 34 years old" and codes_of("age", o.age[0].value) == {"25-34"}
    assert o.place[0].value == "live in Leeds" and o.occupation[0].value == "are a nurse"
    assert {c.value for c in o.family} >= {"have teenagers"}
    assert "prune roses" in o.goals[0].value and s.openness.level == "high"


def test_what_the_template_says_is_read_back():
    profile = whole()
    again = Profile.from_text(profile.to_text())
    assert again.objective.age[0].value == "are 34 years old"
    assert again.subjective.openness.level == "high"
    assert [h.habit for h in again.subjective.style] == ["casing"]
    assert not again.subjective.other
