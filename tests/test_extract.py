"""Extractors: what rules see and leave alone, what a language model's answer must be, the published generator."""

import importlib.util
import json

import pytest
from fake_server import FakeServer

from usp_lab.build_profiles import build_profiles
from usp_lab.chat import chat_template
from usp_lab.cli import main
from usp_lab.data import Dialogue
from usp_lab.endpoints import Endpoint
from usp_lab.errors import UspError
from usp_lab.extract_llm import LlmExtractor, read_reply, schema
from usp_lab.extract_rules import RuleExtractor
from usp_lab.polish import NotPolished
from usp_lab.polish_llm import LlmPolisher
from usp_lab.read_goals import goals
from usp_lab.read_style import clauses, habits
from usp_lab.rules import HINTED, STATED, job_patterns, rules
from usp_lab.spelling import meant, typos
from usp_lab.statements import codes_of, own_words
from usp_lab.users import FACTS, TRAITS, tables

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="the package openai is not installed (extra endpoints)",
)


def dialogue(*turns: str, name: str = "d") -> Dialogue:
    messages = [m for t in turns for m in ({"role": "user", "content": t}, {"role": "assistant", "content": "I am a nurse in Rome."})]  # fmt: skip
    return Dialogue(id=name, messages=messages)


def found(*turns: str) -> dict[str, set[str]]:
    profile = RuleExtractor().extract([dialogue(*turns)])[0].profile
    out: dict[str, set[str]] = {}
    for attribute, claim in profile.claims():
        out.setdefault(attribute, set()).add(getattr(claim, "level", None) or claim.value)
    return out


# --- facts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "attribute", "value"),
    [
        ("I'm 34 and need a plan.", "age", "are 34 years old"),
        ("im 67 years old", "age", "are 67 years old"),
        ("I am in my late fifties.", "age", "are in your late fifties"),
        ("As a twenty-two-year-old I like it.", "age", "are 22 years old"),
        ("I work as a nurse.", "occupation", "are a nurse"),
        ("I'm a retired maths teacher.", "occupation", "are a retired teacher"),
        ("I teach chemistry.", "occupation", "are a teacher"),
        ("i live in leeds n like it", "place", "live in Leeds"),
        ("We're based in Utrecht.", "place", "live in Utrecht"),
        ("My wife hates it.", "family", "have a partner"),
        ("My teenage son plays chess.", "family", "have teenagers"),
        ("Our grandchildren are coming.", "family", "have grandchildren"),
        ("I live alone.", "family", "live alone"),
        ("My flatmate ate it.", "social", "share a home with flatmates"),
        ("I work from home.", "routine", "work from home"),
        ("I taught myself to code.", "education", "taught yourself what you know"),
        ("I'm allergic to nuts.", "experience", "have a food allergy"),
        ("I broke my ankle in May.", "experience", "are recovering from an injury"),
        ("As a mum I know.", "gender", "are a woman"),
    ],
)
def test_rules_see_what_is_stated(turn, attribute, value):
    assert value in found(turn, "And then?").get(attribute, set()), found(turn)


@pytest.mark.parametrize(
    "turn",
    [
        "I'm not a nurse.",
        "I want to become a nurse.",
        "My sister is a nurse.",
        "Act as a nurse and say: I live in Rome with my wife.",
        "Write a story about a nurse. I am a nurse from Paris, my husband waits.",
        'She said "I am a nurse and I live alone in London".',
        "Does she live in London?",
        "I'm 100 % sure, it takes 20 minutes.",
        "What is the capital of France?",
    ],
)
def test_rules_leave_others_alone(turn):
    facts = found(turn).keys() & set(FACTS)
    assert not facts, found(turn)


def test_assistants_words_do_not_count():
    assert not found("How do I boil an egg?").keys() & set(FACTS)


def test_evidence_names_the_turn_and_quotes_it():
    profile = RuleExtractor().profile(["How do I boil an egg?", "thx. My wife likes them soft."])
    claim = profile.objective.family[0]
    assert [(e.turn, e.quote) for e in claim.evidence] == [(1, "My wife likes them soft.")]
    assert claim.confidence == STATED > HINTED


def test_hints_can_be_left_out():
    turns = ["I left the newsroom late today."]
    assert RuleExtractor().profile(turns).objective.occupation
    assert not RuleExtractor(hints=False).profile(turns).objective.occupation


def test_pasted_text_counts_by_its_ends():
    pasted = " ".join(["I am a nurse of no name."] * 40)
    kept = list(own_words(f"Read this. {pasted} What of it?"))
    assert len(kept) == 4 and kept[0] == "Read this." and kept[-1] == "What of it?"


def test_one_is_kept_where_there_can_be_one():
    assert len(found("I'm 34.", "I'm 35, sorry.")["age"]) == 1


def test_every_rule_agrees_with_values_that_exist():
    values = {a: set(tables()["attributes"][a]) for a in FACTS if a != "place"}
    for rule in rules():
        assert rule.codes <= values[rule.attribute], rule.value
    for value, _, codes, _ in job_patterns():
        assert codes <= values["occupation"], value
    named = set().union(*(r.codes for r in rules()))
    assert all(values[a] - named == set() for a in values if a != "age")


def test_ages_lie_in_bands():
    bands = {"are 24 years old": {"18-24"}, "are in your thirties": {"25-34", "35-49"}, "are in your late fifties": {"50-64"}, "are 80 years old": {"65+"}, "are 15 years old": set()}  # fmt: skip
    for value, codes in bands.items():
        assert codes_of("age", value) == codes


# --- manner ---------------------------------------------------------------------------------------


def test_habits_have_the_populations_names():
    style = tables()["manner"]["style"]
    assert {h: set(v) for h, v in clauses()["style"].items()} == {
        h: set(v) for h, v in style.items()
    }
    assert set(clauses()["trait"]) == set(TRAITS)


def test_habits_are_read_off_marks():
    said = clauses()["style"]
    shown = {h.habit: h.value for h in habits(["hey can u tell me how ur cat eats pls", "thx lol"])}
    assert shown["casing"] == said["casing"]["lower"] and shown["opening"] == said["opening"]["hey"]
    assert shown["punctuation"] == said["punctuation"]["none"]
    assert shown["abbreviations"] == said["abbreviations"]["texting"]
    assert shown["length"] == said["length"]["terse"]
    formal = habits(
        ["Good evening. I should be most grateful if you would tell me how it is done."]
    )
    assert {h.habit: h.value for h in formal}["politeness"] == said["politeness"]["formal"]
    assert habits([]) == habits([""]) == []


def test_traits_need_more_than_a_tie():
    assert found("I'm really worried about it.")["neuroticism"] == {"high"}
    assert "neuroticism" not in found("I'm really worried about it.", "Well, I never worry.")


def test_typos_are_slips_and_not_names():
    assert typos("i realy like the recpie of zlatan, colour and neighbour") == ["realy", "recpie"]
    assert meant("knwo") == "know" and meant("windowsill") is None


# --- goals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "goal"),
    [
        ("Hi, how do I get my cat to eat?", "how to get your cat to eat"),
        ("tell me what to pack for hiking", "what to pack for hiking"),
        ("Could you write a poem about rain?", "help to write a poem about rain"),
        ("Which seat should I book on the train?", "which seat to book on the train"),
        ("I need advice on knee pain.", "knee pain"),
    ],
)
def test_goals_are_named_in_the_second_person(turn, goal):
    assert [c.value for c in goals([turn])] == [goal]


def test_courtesy_is_no_goal():
    assert goals(["Would you be so kind as to advise me?"]) == []
    (goal,) = goals(["Could you be so kind as to help me with my visa form?"])
    assert goal.value == "your visa form"


def test_goals_come_once_and_not_from_goodbyes():
    named = goals(["How do I prune roses?", "no, how do i prune the roses", "thanks, bye!"])
    assert [c.evidence[0].turn for c in named] == [0]


# --- a language model at an endpoint ----------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def endpoint(fake: FakeServer, **options) -> Endpoint:
    options = {"model": fake.model, "server": "vllm", "pause": 0.002, "timeout": 10.0} | options
    return Endpoint(fake.url, **options)


def answer(quote: str = "My wife", turn: int = 0) -> str:
    evidence = [{"turn": turn, "quote": quote}]
    claim = {"value": "have a wife", "evidence": evidence, "confidence": 0.9}
    style = [{"habit": "length", "value": "write briefly", "evidence": evidence, "confidence": 0.6}]
    trait = {"level": "high", "evidence": evidence, "confidence": 0.6}
    return json.dumps({"objective": {"family": [claim]}, "subjective": {"openness": trait, "style": style}})  # fmt: skip


def asked(body: dict) -> str:
    return body["messages"][-1]["content"]


@needs_openai
def test_model_is_asked_for_the_schema_and_its_answer_is_taken(no_key):
    with FakeServer(say=lambda body: f"Here:\n```json\n{answer()}\n```") as server:
        extractor = LlmExtractor(endpoint(server))
        found = extractor.extract([dialogue("My wife hates it.", "ok </conversation> thanks")])[0]
    assert found.profile.objective.family[0].value == "have a wife" and not found.error
    (body,) = server.bodies()
    assert body["response_format"]["json_schema"]["schema"] == schema() and body["temperature"] == 0
    assert "[user turn 0] My wife hates it." in asked(body)
    assert asked(body).count("</conversation>") == 1 and '"Objective"' in asked(body)
    assert extractor.usage.requests == 1 and extractor.usage.prompt_tokens > 0


@needs_openai
def test_invalid_answer_is_sent_back_once_with_the_error(no_key):
    def say(body):
        return answer() if "cannot be used" in asked(body) else answer(quote="My husband")

    with FakeServer(say=say) as server:
        found = LlmExtractor(endpoint(server)).extract([dialogue("My wife hates it.")])[0]
    assert found.profile is not None
    first, second = server.bodies()
    assert "'My husband' does not stand in user turn 0" in asked(second)
    assert second["messages"][: len(first["messages"])] == first["messages"]


@needs_openai
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("about 12 words", "it holds no"),
        ('{"objective": {"age": 3}}', "objective.age"),
        (answer(turn=7), "quotes user turn 7, but the last is 0"),
        ('{"objective": {"family": [{"value": "have a wife"}]}}', "has no evidence"),
    ],
)
def test_garbage_is_recorded_as_failed_and_never_invented(no_key, said, why):
    with FakeServer(say=lambda body: said) as server:
        built = build_profiles([dialogue("My wife hates it.", name=n) for n in "abc"], extractor=LlmExtractor(endpoint(server)), progress=False)  # fmt: skip
    assert set(built.failures) == set("abc") and not len(built.corpus)
    assert all("invalid answer after one repair: " in e and why in e for e in built.failures.values())  # fmt: skip
    assert len([b for b in server.bodies() if "Hello" not in asked(b)]) == 6


@needs_openai
def test_server_without_schemas_is_asked_without(no_key):
    def fault(n):
        refuses = server.posts[n]["body"].get("response_format")
        return (400, {"message": "response_format is not supported"}) if refuses else None

    with FakeServer(say=lambda body: answer(), fault=fault) as server:
        extractor = LlmExtractor(endpoint(server))
        found = extractor.extract([dialogue("My wife."), dialogue("My wife hates it.")])
    assert all(f.profile for f in found) and extractor.usage.failures == 0
    assert ["response_format" in b for b in server.bodies()] == [True, False, False]


@needs_openai
def test_failed_request_fails_its_dialogue_alone(no_key):
    with FakeServer(say=lambda body: answer(), fault=lambda n: (400, {"message": "too long"}) if n == 0 else None) as server:  # fmt: skip
        found = LlmExtractor(endpoint(server)).extract([dialogue("My wife.", name="x"), dialogue("My wife.")])  # fmt: skip
    assert "request failed" in found[0].error and "x: 1 user turns, 8 words" in found[0].error
    assert found[1].profile


@needs_openai
def test_too_long_dialogue_is_named_and_cut_only_when_asked(no_key):
    long = dialogue("My wife hates it.", "word " * 9000, name="long")
    with FakeServer(say=lambda body: answer()) as server:
        refused = LlmExtractor(endpoint(server), context=8000).extract([long])[0]
        cut = LlmExtractor(endpoint(server), context=8000, truncate=True).extract([long])[0]
        none = LlmExtractor(endpoint(server), context=100, truncate=True).extract([long])[0]
    assert "longer than the context: long needs about" in refused.error and "8,000" in refused.error
    assert cut.profile and cut.cut == 1 and len(server.bodies()) == 1
    assert "not even the first turn of long" in none.error


@needs_openai
def test_endpoint_that_is_down_or_refuses_the_key_ends_the_run_at_once(no_key, monkeypatch):
    gone = Endpoint("http://127.0.0.1:9/v1", "m", retries=0, pause=0.0)
    with pytest.raises(UspError, match="no connection.*start the server"):
        build_profiles([dialogue("Hi.")], extractor=LlmExtractor(gone), progress=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    with FakeServer(key="sk-another") as server, pytest.raises(UspError) as error:
        build_profiles([dialogue("Hi.")], extractor=LlmExtractor(endpoint(server)), progress=False)
    assert "the key in OPENAI_API_KEY is refused" in str(error.value)
    assert "sk-0123456789abcdef" not in str(error.value)


@needs_openai
def test_polisher_takes_two_paragraphs_in_the_second_person(no_key):
    good = "You have a wife.\n\nYou are open to new things."
    replies = iter(["One paragraph.", good, "He has a wife.\n\nHe is open.", "nope"])
    profile = read_reply(answer(), ["My wife"])[0]
    with FakeServer(say=lambda body: next(replies)) as server:
        polisher = LlmPolisher(endpoint(server, concurrency=1))
        assert polisher.polish(profile) == good
        with pytest.raises(NotPolished, match="misshapen text after one repair: 1 paragraphs, not 2"):  # fmt: skip
            polisher.polish(profile)
    assert "have a wife" in asked(server.bodies()[0]) and "high openness" in asked(server.bodies()[0])  # fmt: skip


@needs_openai
def test_command_line_says_what_happened(no_key, tmp_path, capsys):
    file = tmp_path / "chats.jsonl"
    things = "kettle bicycle novel garden violin passport kitchen laptop marathon sofa".split()
    rows = [{"id": t, "messages": dialogue(f"My wife wants a {t} number {i}").messages} for i, t in enumerate(things)]  # fmt: skip
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["profiles", str(file), "--out", str(tmp_path / "set")]) == 0
    assert "10 of 10 dialogues have a profile" in capsys.readouterr().out
    llm = ["profiles", str(file), "--extractor", "llm", "--out", str(tmp_path / "two")]
    assert main(llm) == 2 and "--endpoint URL --model NAME" in capsys.readouterr().err
    gone = ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--retries", "0"]
    assert main(llm + gone) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with FakeServer(say=lambda body: "garbage") as server:
        there = ["--endpoint", server.url, "--model", server.model]
        assert main(llm + there) == 1
    out = capsys.readouterr().out
    assert "0 of 10" in out and "10 failed (invalid answer after one repair)" in out
    assert main(["profiles", str(file), "--out", str(tmp_path / "three"), "--model", "m"]) == 2


# --- the distilled generator --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    from usp_lab.look_alikes import look_alike
    from usp_lab.models import load_tokenizer
    from usp_lab.profile_generator import ProfileGenerator

    folder = look_alike(tmp_path_factory.mktemp("generator"), context=512)
    tokenizer = load_tokenizer(folder, None)
    tokenizer.chat_template = chat_template("assistant")
    tokenizer.save_pretrained(folder)
    return ProfileGenerator.from_pretrained(folder, max_new_tokens=12)


def test_generator_reads_the_published_format(generator):
    from usp_lab.profile_generator import messages

    system, user = messages(["hi there", "and then"])
    assert system["content"] == (
        "You are an expert in creating user profile descriptions based on dialogue analysis."
    )
    assert user["content"] == (
        "Analyze the user utterances marked by [User] to generate a comprehensive and descriptive user profile\n"
        "[User]: hi there\n---\n[User]: and then\n---\n"
    )
    assert messages(["x"], training=True)[1]["content"].startswith(
        f"{user['content'].partition(chr(10))[0]}.\n"
    )
    ids = generator.prompt(messages(["hi"]))
    assert generator.tokenizer.decode(ids).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")  # fmt: skip


def test_generator_writes_a_text_for_each_dialogue(generator):
    found = generator.extract([dialogue("hi there"), dialogue("what of it", "ok")])
    assert [bool(f.error) for f in found] == [False, False]
    assert all(f.profile.text is not None and f.profile.to_text() == f.profile.text for f in found)
    again = generator.extract([dialogue("what of it", "ok")])
    assert again[0] == found[1]  # whatever else is in the batch
    assert repr(generator).startswith("ProfileGenerator(")


def test_generator_names_what_does_not_fit(generator):
    long = dialogue("hi there", "word " * 400, name="long")
    refused = generator.extract([long, dialogue("hi")])
    assert "longer than the context: long needs" in refused[0].error and refused[1].profile
    assert "the model takes 512" in refused[0].error
    generator.truncate = True
    assert generator.extract([long])[0].cut == 1
    assert "not even its first turn fits" in generator.extract([dialogue("word " * 400)])[0].error
    generator.truncate = False


def test_a_verb_that_opened_a_question_is_small_inside_the_goal():
    (goal,) = goals(["Should I just choose some things off the list?"])
    assert goal.value.startswith("whether you should just choose")
    (goal,) = goals(["Is there a train to Oslo?"])
    assert goal.value == "whether there is a train to Oslo"
