"""Atomic facts: profiles and turns fall into what they say, in any typing, and nothing else counts."""

import json

import pytest
from fake_server import FakeServer

from usp_lab import synthetic
from usp_lab.endpoints import Client, Endpoint
from usp_lab.facts import (
    Fact,
    RuleFacts,
    core,
    dialogue_facts,
    kind_of,
    premises,
    profile_facts,
    third_person,
)
from usp_lab.facts_llm import LLMFacts
from usp_lab.structured import parse
from usp_lab.utterances import content, plain, read_turn, sentences


def user(*turns: str, reply: str = "I see.") -> list[dict]:
    """A dialogue of user turns, each answered."""
    out = []
    for t in turns:
        out += [{"role": "user", "content": t}, {"role": "assistant", "content": reply}]
    return out


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "facts"),
    [
        (
            "You are thinking about a damp wall and want to find out who should inspect the wall.",
            ["is thinking about a damp wall", "wants to know who should inspect the wall"],
        ),
        (
            "You have two sons, and you farm sheep. Your concern is jam, above all how long it keeps and what it costs.",
            ["has two sons", "farms sheep", "is thinking about jam", "wants to know how long it keeps", "wants to know what it costs"],
        ),
        ("Your kids are in their teens.", ["their kids are in their teens"]),
        ("The user works as a nurse.\n\nThe user is curt.", ["works as a nurse"]),
    ],
)  # fmt: skip
def test_a_profile_falls_into_facts(profile, facts):
    assert [f.text for f in profile_facts(profile).items] == facts


def test_the_subjective_half_is_no_fact():
    assert profile_facts("You farm sheep.\n\nYou never use capitals.").sentences == (
        "The user farms sheep",
    )
    assert profile_facts("\n\nYou farm sheep.\n\n\nYou are curt.\n").sentences == (
        "The user farms sheep",
    )


@pytest.mark.parametrize("profile", ["", None, "  \n\n "])
def test_no_profile_has_no_facts_and_says_so(profile):
    facts = profile_facts(profile)
    assert not facts.items and facts.reason == "no profile"


def test_a_long_sentence_is_cut_and_no_clause_is_lost():
    profile = (
        "You are a software developer from a small town in the north who moved to Berlin for a job two years ago, "
        "and you own a bakery with your brother, while your evenings go to the choir of the old church."
    )
    text = " ".join(profile_facts(profile).sentences)
    assert len(profile_facts(profile).items) >= 3
    assert all(w in text for w in ("developer", "bakery", "choir"))


def test_the_populations_profiles_come_whole():
    asked = found = 0
    for d in synthetic.draw("train", 40, 5):
        facts = profile_facts(d.profile)
        kinds = [f.kind for f in facts.items]
        assert kinds.count("topic") == 1
        asked, found = asked + len(d.truth["asked"]), found + kinds.count("request")
        assert kinds.count("request") <= len(d.truth["asked"])
        shown = {e["attr"] for e in d.truth["evidence"]} & set(synthetic.FACTS)
        assert kinds.count("self") >= len(shown)
    assert found / asked > 0.97


def test_kind_and_core_of_a_fact_are_read_off_its_text():
    for f in profile_facts("You have a dog. You are thinking about jam and want to know what it costs.").items:  # fmt: skip
        assert kind_of(f.sentence) == kind_of(f.text) == f.kind
    assert core("The user is thinking about jam") == "jam"
    assert core("The user") == "The user"
    assert Fact("their kids are small", "self").sentence == "The user's kids are small"


def test_third_person_takes_whole_words_alone():
    assert third_person("1,000 US dollars is all we have") == "1,000 US dollars is all they have"
    assert third_person("I like my iron in it, four of us") == "they like their iron in it, four of them"  # fmt: skip


# --- turns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        ("Could you tell me how long dough rises?", [("request", "how long dough rises")]),
        ("wat to put on the five pages", [("request", "what to put on the five pages")]),
        ("is wordpress overkill for five pages", [("request", "is wordpress overkill for five pages")]),
        ("Rising time for a rye loaf?", [("request", "Rising time for a rye loaf")]),
        ("People keep giving me different answers when I ask what to cook. What do you make of it?", [("request", "what to cook")]),
        ("Write a poem about the sea.", [("request", "Write a poem about the sea")]),
        ("I'm looking for a hotel near the station.", [("request", "a hotel near the station")]),
        ("ok but the girls cant do hills. my wife is pregnant", [("self", "my wife is pregnant")]),
        ("hi! my girls are four, any idea which area to stay in", [("self", "my girls are four"), ("request", "which area to stay in")]),
    ],
)  # fmt: skip
def test_requests_and_disclosures_are_found(turn, found):
    assert read_turn(turn) == found


@pytest.mark.parametrize(
    "turn",
    [
        "hello there!",
        "Thanks, that's all I needed. Bye!",
        "That doesn't answer my question.",
        "I've asked this already.",
        "You're going round in circles.",
        "Could you be a bit more specific?",
        "Okay, I see.",
        "That's really useful, thank you.",
        "Where would you begin?",
        "never mind, i'll look it up myself",
        "",
        "?!",
    ],
)
def test_pleasantries_and_pushback_are_nothing(turn):
    assert read_turn(turn) == []


def test_a_statement_made_of_the_replys_words_is_a_reaction():
    reply = "Bring a waterproof jacket and an umbrella, since it rains on ten days."
    turn = "my umbrella and waterproof jacket, ten days of rain"
    assert read_turn(turn, reply) == [] != read_turn(turn)


def test_a_fact_knows_its_turn_and_is_told_once():
    facts = dialogue_facts(user("my dog is old. what does he eat?", "again: what does he eat?"))
    assert [(f.turn, f.kind) for f in facts.items] == [(0, "self"), (0, "request")]


def test_what_cannot_be_scored_says_why():
    assert dialogue_facts([]).reason == "no user turn"
    assert dialogue_facts(user("hi", "thanks, bye")).reason == "no fact in the user's turns"


def test_rules_find_the_populations_requests_and_invent_none():
    asked = found = invented = 0
    for d in synthetic.draw("train", 60, 5):
        turns = {f.turn for f in dialogue_facts(d.messages).items if f.kind == "request"}
        said = [m["content"] for m in d.messages if m["role"] == "user"]
        replies = [""] + [m["content"] for m in d.messages if m["role"] == "assistant"]
        for k, t in enumerate(d.truth["turns"]):
            requests = [x for x in read_turn(said[k], replies[k]) if x[0] == "request"]
            asked += bool(t["goal"])
            found += bool(t["goal"] and requests)
            invented += bool(not t["goal"] and requests)
        assert turns <= set(range(len(said)))
    assert found / asked > 0.85 and invented == 0


def test_shorthand_is_written_out_and_single_letters_only_beside_it():
    assert plain("wat r u after, im lost") == "what are you after, I'm lost"
    assert plain("n = 5 in R") == "n = 5 in R"
    assert plain("ill come, he is ill") == "I'll come, he is ill"
    assert plain("id like to") == "I'd like to" and plain("my id card") == "my id card"


def test_content_words_are_stems_without_what_everybody_says():
    assert content("Could you tell me who inspects the walls?") == ("inspect", "wall")
    assert content("thanks, that helps a lot") == ()


def test_premises_are_sentences_each_once():
    assert premises(["my dog is old. help! help!", "ok"]) == [
        (0, "my dog is old."),
        (0, "help!"),
        (1, "ok"),
    ]
    long = premises(["word " * 400])
    assert all(len(text) <= 600 for _, text in long) and len(long) > 1
    assert premises([]) == premises([""]) == [] and sentences("...") == []


# --- a language model ----------------------------------------------------------------------------


def client(server: FakeServer) -> Client:
    return Client(Endpoint(server.url, "usp", retries=0, pause=0, server="vllm"))


def said(body: dict) -> str:
    return " ".join(m["content"] for m in body["messages"])


def test_a_language_model_splits_texts_and_equal_texts_are_asked_once():
    reply = '```json\n{"facts": ["has a dog.", "wants to know what it eats", "has a dog"]}\n```'
    with FakeServer(say=lambda body: reply) as server:
        reader = LLMFacts(client(server))
        facts = reader.profiles(["You have a dog.\n\nYou are curt."] * 3 + [None])
        assert [f.text for f in facts[0].items] == ["has a dog", "wants to know what it eats"]
        assert [f.kind for f in facts[0].items] == ["self", "request"]
        assert facts[3].reason == "no profile"
        asked = [said(b) for b in server.bodies("chat/completions")]
        assert len(asked) == 1 and "curt" not in asked[0]
        assert reader.profiles(["You have a dog."]) == facts[:1]
        assert len(server.bodies("chat/completions")) == 1, "asked before"
        assert reader.dialogues([user("my dog!", "what now?")])[0].items
        last = server.bodies("chat/completions")[-1]["messages"][-1]["content"]
        assert "my dog!\nwhat now?" in last and "I see." not in last


def test_an_invalid_reply_is_repaired_once():
    replies = iter(["Sure! has a dog", json.dumps({"facts": ["has a dog"]})])
    with FakeServer(say=lambda body: next(replies)) as server:
        facts = LLMFacts(client(server)).profiles(["You have a dog."])
        assert facts[0].sentences == ("The user has a dog",)
        second = server.bodies("chat/completions")[1]["messages"]
        assert second[-2]["content"] == "Sure! has a dog" and "it holds no {...}" in second[-1]["content"]  # fmt: skip


def test_what_stays_invalid_fails_alone_and_nothing_is_invented():
    def say(body):
        return '{"facts": ["farms"]}' if "You farm" in said(body) else '{"facts": "garbage"}'

    with FakeServer(say=say) as server:
        bad, good = LLMFacts(client(server)).profiles(["You bake.", "You farm."])
    assert not bad.items and bad.reason.startswith("invalid reply, also after one repair: facts:")
    assert good.sentences == ("The user farms",)


def test_a_failed_request_is_one_texts_affair():
    with FakeServer(say=lambda body: '{"facts": ["farms"]}', fault=lambda n: "500" if n == 0 else None) as server:  # fmt: skip
        reader = LLMFacts(
            Client(Endpoint(server.url, "usp", retries=0, concurrency=1, server="vllm"))
        )
        first, second = reader.profiles(["You bake.", "You farm."])
    assert not first.items and "500" in first.reason and second.items


@pytest.mark.parametrize("reply", ["", "{", "}{", "[1]", '{"facts": [1}'])
def test_garbage_is_no_answer(reply):
    from usp_lab.facts_llm import FactList

    value, error = parse(reply, FactList)
    assert value is None and error


def test_rules_read_many_at_once():
    reader = RuleFacts()
    assert [len(f.items) for f in reader.profiles(["You farm.", None])] == [1, 0]
    assert [len(f.items) for f in reader.dialogues([user("what is jam made of?"), []])] == [1, 0]
