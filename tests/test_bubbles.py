"""Highlighting in chat bubbles: what is copied and what praises, apart and together; the rule that finds praise. `test_plots` has the rest."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usp_lab.bubbles import show_dialogue, side_by_side
from usp_lab.praise import praise_phrases, praise_rate
from usp_lab.users import tables

PROFILE = "You find every single answer useful and walk the dog each morning."


class Marks(HTMLParser):
    """Collects (style, text) of marks, the tags, and the text as a reader sees it."""

    def __init__(self, page: str):
        super().__init__()
        self.marks, self.tags, self.text, self.style = [], set(), "", None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "mark":
            self.style = dict(attrs)["style"]
            self.marks.append((self.style, ""))

    def handle_endtag(self, tag):
        self.style = None if tag == "mark" else self.style

    def handle_data(self, data):
        self.text += data
        if self.style is not None:
            self.marks[-1] = (self.style, self.marks[-1][1] + data)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def marked(text: str, **options) -> Marks:
    return Marks(show_dialogue(user(text), **options).html)


def test_copied_words_and_praise_are_told_apart():
    read = marked("I walk the dog each morning. You're so helpful!", profile=PROFILE, praise=True)
    (copied, first), (praise, second) = read.marks
    assert (first, second) == ("walk the dog each morning", "You're so helpful")
    assert copied != praise and "solid" in copied and "dotted" in praise  # also without colour


def test_where_both_hold_both_are_shown():
    text = "That is so useful and walk the dog each day"
    alone = marked(text, profile=PROFILE).marks
    assert [t for _, t in alone] == ["useful and walk the dog each"]
    both = marked(text, profile=PROFILE, praise=True).marks
    assert [t for _, t in both] == ["That is so ", "useful", " and walk the dog each"]
    assert both[1][0].startswith(both[2][0]) and "dotted" in both[1][0]
    assert "dotted" in both[0][0] and "dotted" not in both[2][0]


def test_praise_is_marked_on_request_and_in_the_users_turns_alone():
    assert marked("That's great, thanks!").marks == []
    reply = [{"role": "assistant", "content": "That's great, you're so kind!"}]
    assert "<mark" not in show_dialogue(reply, praise=True).html
    assert [t for _, t in marked("That's great!", highlight=False, praise=True).marks] == [
        "That's great"
    ]


def test_the_legend_says_what_the_marks_mean():
    shown = [show_dialogue(user("That's great!"), praise=True)]
    assert "repeats the profile" not in side_by_side(shown).html
    read = Marks(side_by_side(shown, legend=True).html)
    named = {text: style for style, text in read.marks}
    assert named["That's great"] == named["praises the assistant"] != named["repeats the profile"]


BITS = ["<b>", "</mark>", "&amp;", "so helpful", "\"'", "walk the dog each", "<!--", "great!", "\n"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(BITS), st.text(max_size=5)), max_size=8))
def test_marked_text_stays_text(bits):
    text = " ".join(bits)
    page = show_dialogue(user(text), profile=PROFILE, praise=True).html
    bubble = Marks(page[page.index("width:fit-content") - 20 :])
    shown = Marks(page).tags
    assert shown <= {"div", "details", "summary", "mark"}
    plain = Marks(show_dialogue(user(text), highlight=False).html)
    assert re.sub(r"\s", "", bubble.text).endswith(re.sub(r"\s", "", plain.text))


# --- the rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Great, thanks.",
        "oh wow, amazing! what else",
        "You\u2019ve been such a great help",
        "that is most helpful",
        "What a brilliant idea!",
        "Excellent answer, I will do that.",
        "I love that. And the bus?",
        "great thanks where next",
        "You're very patient with me, where do I start?",
        "Your help has been invaluable.",
    ],
)
def test_praise_is_found(text):
    assert praise_phrases(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Thanks.",
        "thank you so much, bye",
        "A tip would be great.",
        "That's not helpful",
        "This isn't really useful at all.",
        "You could be very helpful if you tried",
        "Is that a good idea?",
        "any good tips",
        "What is a good answer to that?",
        "I want a great hotel with a lovely view",
        "The perfect storm is coming",
        "never a clear answer",
    ],
)
def test_no_praise_is_found_in_requests_denials_and_plain_thanks(text):
    assert praise_phrases(text) == []


def test_the_population_praises_when_it_is_helped_and_never_when_it_is_not():
    say = tables()["reactions"]
    for kind in ("push", "annoyed", "rude_back", "wrong", "give_up"):
        for tone in say[kind].values():
            assert [t for t in tone["text"] if praise_phrases(t)] == []
    assert praise_rate(say["ack"]["friendly"]["text"]) >= 0.4
    assert praise_rate(say["ack"]["formal"]["text"]) >= 0.4
    assert praise_rate(say["ack"]["curt"]["text"]) == 0


@given(st.text(max_size=60))
def test_spans_lie_in_the_text_in_order_and_apart(text):
    ends = [i for span in praise_phrases("Great! " + text + " so helpful.") for i in span]
    assert ends == sorted(ends) and (not ends or ends[-1] <= len(text) + 19)
