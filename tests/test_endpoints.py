"""Endpoints: what is asked, what is made of bad answers, what is said and hidden when all fails."""

import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_server import BOS, FAULTS, FakeServer, sometimes
from tokenizers import processors
from transformers.utils.import_utils import is_serve_available

from usp_lab import endpoint_requests
from usp_lab.chat import END_TOKEN, chat_template, system_message
from usp_lab.endpoint_servers import drawing, served_names, server_of
from usp_lab.endpoints import (
    Client,
    Endpoint,
    EndpointAssistant,
    EndpointSimulator,
    RequestFailed,
    render,
    time_limit,
)
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.look_alikes import look_alike
from usp_lab.models import load_tokenizer
from usp_lab.simulate import UserSimulator, simulate
from usp_lab.simulators import identity

SYSTEM = system_message("You have two daughters.\n\nYou are curt.")
ASKED = [{"role": "user", "content": "which area"}, {"role": "assistant", "content": "Baixa."}]
KEY = "sk-0123456789abcdef"
SHORT = Sampling(max_new_tokens=16)
SLOW = ("timeout", "trickle")

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="the package openai is not installed (extra endpoints)",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def endpoint(fake: FakeServer, **options) -> Endpoint:
    options = {"model": fake.model, "server": "vllm", "pause": 0.002, "timeout": 10.0} | options
    return Endpoint(fake.url, **options)


def ask(client: Client, seed: int | None = 1) -> str:
    return client.chat([{"role": "user", "content": "which area"}], SHORT, seed)


def only(*faults) -> object:
    """A ``fault`` for the first requests."""
    return lambda n: faults[n] if n < len(faults) else None


# --- what is sent ---------------------------------------------------------------------------------


def test_rendering_is_that_of_the_tokenizer(tmp_path):
    tokenizer = load_tokenizer(look_alike(tmp_path), "user")
    spelt = [*ASKED, {"role": "user", "content": " a <|eot_id|> b<|end_of_text|>"}, ASKED[1]]
    for messages in ([SYSTEM], [SYSTEM, *ASKED], ASKED, spelt):
        said = [
            {**m, "content": m["content"].replace("<|e", "< |e")} if m in spelt else m
            for m in messages
        ]
        assert render(messages) == tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True
        )


def test_no_text_ends_a_turn_or_changes_the_speaker():
    for token in ("<|eot_id|>", "<|reserved_special_token_7|>", "<|python_tag|>", END_TOKEN):
        plain, spelt = (render([{"role": "assistant", "content": c}]) for c in ("", token))
        assert spelt.count("<|") == plain.count("<|")


def test_user_turns_follow_others():
    with pytest.raises(UspError, match="the last is 'which area'"):
        render(ASKED[:1])
    with pytest.raises(UspError, match="there is none"):
        render([])


@pytest.mark.parametrize(
    ("server", "fields"),
    [
        ("vllm", {"repetition_penalty": 1.2, "top_k": -1, "min_p": 0.0}),
        ("sglang", {"repetition_penalty": 1.2, "top_k": -1, "min_p": 0.0}),
        (
            "llama.cpp",
            {
                "repeat_penalty": 1.2,
                "repeat_last_n": -1,
                "samplers": ["penalties", "temperature", "top_p"],
            },
        ),
    ],
)
def test_every_server_is_told_how_to_draw(server, fields):
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2)
    assert drawing(server, sampling) == {"temperature": 0.7, "top_p": 0.9, **fields}


def test_transformers_is_told_in_a_generation_config():
    for temperature in (0.0, 0.7):
        told = drawing("transformers", Sampling(temperature=temperature, repetition_penalty=1.2))
        assert json.loads(told["generation_config"]) == {
            "do_sample": temperature > 0,
            "top_k": 0,
            "repetition_penalty": 1.2,
        }
        assert told["temperature"] == temperature and "repetition_penalty" not in told


def test_a_penalty_is_never_dropped_in_silence():
    with pytest.raises(UspError, match="repetition_penalty=1.2, but the API of OpenAI has none"):
        drawing("openai", Sampling(repetition_penalty=1.2))
    assert drawing("openai", Sampling(top_p=0.9)) == {"temperature": 1.0, "top_p": 0.9}


def test_servers_are_told_apart():
    assert server_of(["/v1/models", "/load_model"], []) == "transformers"
    for owner, server in {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}.items():
        assert server_of([], [{"id": "m", "owned_by": owner}]) == server
    assert server_of([], []) == server_of([], [{"id": "m", "owned_by": "system"}]) == "openai"
    assert server_of([], [{"owned_by": "vllm"}, {"owned_by": "sglang"}]) == "openai"  # a router
    assert served_names([{"id": "a", "aliases": ["b"]}, {"id": "c"}]) == ["a", "b", "c"]


@needs_openai
def test_simulator_asks_for_a_completion_of_the_users_header():
    with FakeServer() as server:
        simulator = EndpointSimulator(endpoint(server), sampling=Sampling(repetition_penalty=1.2))
        turn = simulator.generate([[SYSTEM, *ASKED]], [2**40 + 5])[0]
    assert turn.startswith("about ")
    assert server.bodies() == [
        {
            "model": "usp",
            "prompt": render([SYSTEM, *ASKED]).removeprefix(BOS),  # the server adds it
            "stop": ["<|eot_id|>", "<|end_of_text|>"],
            "max_tokens": 128,
            "temperature": 1.0,
            "top_p": 1.0,
            "repetition_penalty": 1.2,
            "top_k": -1,
            "min_p": 0.0,
            "skip_special_tokens": False,
            "seed": 5,
        }
    ]


@needs_openai
def test_assistant_sees_turns_alone():
    said = {"role": "user", "content": "ok", "meta": {"goal": "x"}}
    with FakeServer() as server:
        plain = EndpointAssistant(endpoint(server))
        told = EndpointAssistant(endpoint(server), system="Be brief.")
        for assistant in (plain, told):
            assistant.reply([[SYSTEM, *ASKED, said]], [1])
    turns = [*ASKED, {"role": "user", "content": "ok"}]
    system = {"role": "system", "content": "Be brief."}
    assert [b["messages"] for b in server.bodies()] == [turns, [system, *turns]]
    assert "daughters" not in json.dumps(server.posts)


@needs_openai
@pytest.mark.parametrize("adds_bos", [True, False])
def test_model_sees_one_bos(adds_bos):
    with FakeServer(adds_bos=adds_bos) as server:
        simulator = EndpointSimulator(endpoint(server))
        simulator.generate([[SYSTEM], [SYSTEM, *ASKED]], [1, 2])
        assert len(server.posts) == 4  # two of them to find out
    assert [b["prompt"].count(BOS) + adds_bos for b in server.bodies()] == [1, 1]


@needs_openai
def test_servers_that_count_nothing_are_taken_to_add_a_bos():
    with FakeServer(metered=False) as server:
        simulator = EndpointSimulator(endpoint(server))
        simulator.generate([[SYSTEM]], [1])
    assert BOS not in server.bodies()[0]["prompt"]
    assert simulator.usage.unmetered == 3 and simulator.usage.prompt_tokens == 0


@needs_openai
def test_another_familys_tokenizer_is_refused():
    with FakeServer(bos_tokens=7) as server:
        with pytest.raises(UspError, match=r"usp at .* reads <\|begin_of_text\|> as 7 tokens"):
            EndpointSimulator(endpoint(server)).check()


# --- what is made of answers ----------------------------------------------------------------------


@needs_openai
@pytest.mark.parametrize(
    ("text", "end_token", "turn"),
    [
        (" ok but which one<|eot_id|><|start_header_id|>assistant", False, "ok but which one"),
        (f"{END_TOKEN}<|eot_id|>", False, END_TOKEN),
        (f"bye {END_TOKEN}", True, "bye"),
        ("", True, END_TOKEN),
        ("<|eot_id|>", True, END_TOKEN),
    ],
)
def test_turns_and_ends(text, end_token, turn):
    with FakeServer(say=lambda body: text) as server:
        simulator = EndpointSimulator(endpoint(server), end_token=end_token)
        assert simulator.generate([[SYSTEM]], [1]) == [turn]


@needs_openai
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_overcome(fault):
    with FakeServer() as server:
        expected = ask(Client(endpoint(server)))
    with FakeServer(fault=only(fault, fault)) as server:
        client = Client(endpoint(server, timeout=1.0 if fault in SLOW else 10.0))
        answer = ask(client)
    seeds = [b["seed"] for b in server.bodies()]
    if fault == "empty":  # an empty text is the model's; to ask for the same again is no use
        assert seeds == [1, 2, 3] and answer != expected
    else:
        assert seeds == [1, 1, 1] and answer == expected
    assert (client.usage.requests, client.usage.retries, client.usage.failures) == (3, 2, 0)


@needs_openai
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "HTTP 500, 'out of memory'"),
        ("429", "HTTP 429, 'too many requests'"),
        ("timeout", "no answer within 0.3 s"),
        ("trickle", "no answer within 0.3 s"),
        ("drop", "no connection, 'Server disconnected"),
        ("cut", "no connection, 'peer closed connection"),
        ("empty", "an empty text"),
        ("blank", "an invalid body, ''"),
        ("invalid", "an invalid body, '<html>gateway</html>'"),
        ("choices", "an invalid body"),
    ],
)
def test_a_fault_that_stays_is_told(fault, reason):
    with FakeServer(fault=lambda n: fault) as server:
        client = Client(endpoint(server, timeout=0.3 if fault in SLOW else 10.0, retries=2))
        with pytest.raises(RequestFailed) as failed:
            ask(client)
    assert str(failed.value).startswith(f"usp at {server.url}: {reason}")
    assert str(failed.value).endswith("(tried 3 times)")
    usage = client.usage
    assert (usage.requests, usage.retries, usage.failures) == (3, 2, 1)
    assert len(server.posts) == 3 or fault in SLOW  # a busy machine may not get so far in time


@needs_openai
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((400, {"message": "too long"}), "HTTP 400, 'too long'"),
        ((422, {"message": "what"}), "HTTP 422, 'what'"),
        ((403, {"message": "flagged"}), "HTTP 403, 'flagged'"),
        ((429, {"message": "broke", "code": "insufficient_quota"}), "HTTP 429, 'broke'"),
    ],
)
def test_what_cannot_be_mended_is_not_repeated(fault, reason):
    with FakeServer(fault=lambda n: fault) as server:
        with pytest.raises(RequestFailed, match=re.escape(f"{reason} (tried once)")):
            ask(Client(endpoint(server)))


@needs_openai
@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"message": {"content": None, "refusal": "I cannot"}}, "a refusal, 'I cannot'"),
        ({"message": {"content": "I"}, "finish_reason": "content_filter"}, "a refusal"),
        ({"message": {"content": "I"}, "finish_reason": "abort"}, "broken off by the server"),
        ({"message": {"content": ""}, "finish_reason": "length"}, "an empty text, cut at max_new"),
        ({}, "an empty text"),
    ],
)
def test_refused_and_broken_texts_are_no_turns(choice, reason, monkeypatch):
    with FakeServer() as server:
        body = {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        monkeypatch.setattr(server.http.RequestHandlerClass, "completion", lambda *a: body)
        client = Client(endpoint(server, retries=1))
        with pytest.raises(RequestFailed, match=f"{reason}.*tried 2 times"):
            ask(client)
    assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (10, 4)  # paid for


# --- limits ---------------------------------------------------------------------------------------


@needs_openai
def test_the_pause_that_a_server_asks_for_is_made():
    times = []

    def fault(n: int) -> str | None:
        times.append(time.monotonic())
        return None if n else "429"

    with FakeServer(fault=fault, retry_after="0.5") as server:
        ask(Client(endpoint(server)))
    assert times[1] - times[0] >= 0.5  # the pause of its own is 0.002 s


@needs_openai
def test_a_pause_longer_than_a_dialogue_may_take_ends_it():
    with FakeServer(fault=lambda n: "429", retry_after="3600") as server:
        reason = r"asks to wait 3.6e\+03 s \(tried once; a dialogue may wait 600 s\)"
        with pytest.raises(RequestFailed, match=reason):
            ask(Client(endpoint(server)))


def test_retry_after_is_seconds_or_a_date():
    parse = endpoint_requests._retry_after
    assert parse({"retry-after": "7.5"}) == 7.5
    assert parse({"retry-after": "Wed, 01 Jan 2200 00:00:00 GMT"}) > 1e9
    for odd in ("Wed, 01 Jan 2020 00:00:00 GMT", "soon", "-3", "nan", "inf", ""):
        assert parse({"retry-after": odd}) == 0
    assert parse({}) == 0


@needs_openai
def test_a_dialogue_waits_no_longer_than_it_may():
    with FakeServer(fault=lambda n: "timeout") as server:
        client = Client(endpoint(server, timeout=0.2, dialogue_timeout=0.5, retries=100))
        with pytest.raises(RequestFailed, match=r"a dialogue may wait 0.5 s\)"):
            ask(client)
        assert client.usage.requests <= 3
        with time_limit(0.1), pytest.raises(RequestFailed, match="no answer within 0.1 s"):
            ask(client)
        with time_limit(0.0), pytest.raises(RequestFailed, match="no time left .tried 0 times"):
            ask(client)
        assert client.usage.requests <= 4


@needs_openai
def test_no_more_at_once_than_allowed():
    with FakeServer(say=lambda body: time.sleep(0.02) or "ok") as server:
        client = Client(endpoint(server, concurrency=3))
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(lambda s: ask(client, s), range(24))) == ["ok"] * 24
        assert server.most <= 3
        client.chat_all([ASKED[:1]] * 8, SHORT, range(8))  # one caller's, too
        assert server.most <= 3


@needs_openai
def test_usage_and_cost():
    with FakeServer(fault=only("500", "empty")) as server:
        assistant = EndpointAssistant(endpoint(server, price_in=1000.0, price_out=10000.0))
        assistant.reply([ASKED[:1]] * 2, [1, 2])
    usage = assistant.usage
    assert (usage.requests, usage.retries, usage.failures, usage.unmetered) == (4, 2, 0, 0)
    # two prompts of two words; the empty answer's prompt is the one BOS
    assert (usage.prompt_tokens, usage.completion_tokens) == (2 + 2 + 1, 7 + 7)
    assert usage.cost == pytest.approx(5 * 1e-3 + 14 * 1e-2)


# --- before anything is spent ---------------------------------------------------------------------


@needs_openai
def test_check_passes_and_costs_little():
    with FakeServer() as server:
        both = (
            EndpointSimulator(endpoint(server, server="auto"), sampling=SHORT),
            EndpointAssistant(endpoint(server, server="auto"), sampling=SHORT),
        )
        for side in both:
            side.check()
        assert [p["body"]["max_tokens"] for p in server.posts] == [1, 1, 16]
        both[0].generate([[SYSTEM]], [1])
        assert len(server.posts) == 4  # nothing is found out twice
    assert "repetition_penalty" in server.bodies()[-1]  # that it is vLLM, was


@needs_openai
def test_an_endpoint_that_is_down():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    for side in (EndpointSimulator, EndpointAssistant):
        with pytest.raises(UspError) as error:
            side(Endpoint(url, "usp", retries=2, pause=0.001)).check()
        assert not isinstance(error.value, RequestFailed)
        assert re.fullmatch(
            f"usp at {url}/v1: no connection, '.+' .tried 3 times.; start the server or correct "
            "the URL",
            str(error.value),
        )


@needs_openai
def test_keys(monkeypatch):
    with FakeServer(key="another") as server:
        for server_name in ("auto", "vllm"):
            told = endpoint(server, key_variable="USP_KEY", server=server_name)
            monkeypatch.delenv("USP_KEY", raising=False)
            with pytest.raises(UspError, match="HTTP 401.*; USP_KEY is not set; set it"):
                EndpointAssistant(told).check()
            monkeypatch.setenv("USP_KEY", KEY)
            assistant = EndpointAssistant(told)
            refused = r"provided: \*\*\*' .tried once.; the key in USP_KEY is refused"
            for call in (assistant.check, lambda a=assistant: a.reply([ASKED[:1]], [1])):
                with pytest.raises(UspError, match=refused) as error:
                    call()
                assert not isinstance(error.value, RequestFailed)  # all would fail: the run ends
        monkeypatch.setenv("USP_KEY", " another\n")
        EndpointAssistant(told).check()
        assert server.posts[-1]["key"] == "another"
    monkeypatch.setenv("USP_KEY", "two\nlines")
    with pytest.raises(UspError, match="USP_KEY is no key"):
        Client(told)


@needs_openai
def test_an_endpoint_that_serves_another_model():
    with FakeServer(model="llama") as server:
        with pytest.raises(UspError, match="serves llama, not usp; name one of these"):
            EndpointSimulator(endpoint(server, model="usp")).check()
    with FakeServer(model="llama", owner="transformers") as server:  # lists other things
        with pytest.raises(UspError, match="HTTP 404, 'no model usp' .*; name the model as"):
            EndpointSimulator(endpoint(server, model="usp", server="auto")).check()
        EndpointSimulator(endpoint(server, server="auto")).check()
        assert "generation_config" in server.posts[-1]["body"]


@needs_openai
def test_an_endpoint_without_completions():
    with FakeServer(paths=("/v1/chat/completions",)) as server:
        EndpointAssistant(endpoint(server)).check()
        with pytest.raises(UspError, match="HTTP 404, 'Not Found' .*a server with that part"):
            EndpointSimulator(endpoint(server)).check()


@needs_openai
def test_an_endpoint_without_repetition_penalty():
    with FakeServer(owner="system") as server:
        simulator = EndpointSimulator(
            endpoint(server, server="auto"), sampling=Sampling(repetition_penalty=1.2)
        )
        with pytest.raises(UspError, match="has none; set it to 1, or where the server has one"):
            simulator.check()
        assert not server.posts


@needs_openai
def test_the_new_name_of_max_tokens():
    wants = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with FakeServer(fault=only((400, {"message": wants}))) as server:
        client = Client(endpoint(server))
        ask(client)
        ask(client)
    names = [{k for k in p["body"] if k.startswith("max_")} for p in server.posts]
    assert names == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]
    assert client.usage.failures == 0


def test_values_that_cannot_be():
    for options, reason in [
        ({"url": "localhost:8000"}, "no http URL"),
        ({"url": "http://u:p@host/v1"}, "holds a user, password or query"),
        ({"url": "http://host/v1?key=abc"}, "holds a user, password or query"),
        ({"model": ""}, "no model"),
        ({"concurrency": 0}, "concurrency=0; give at least 1"),
        ({"timeout": 0.0}, "timeout=0.0; give seconds"),
        ({"dialogue_timeout": float("inf")}, "dialogue_timeout=inf"),
        ({"retries": -1}, "retries=-1"),
        ({"price_in": -1.0}, "price_in=-1.0"),
        ({"server": "tgi"}, "known: auto, vllm, sglang, llama.cpp, transformers, openai"),
    ]:
        with pytest.raises(UspError, match=reason) as error:
            Endpoint(**{"url": "http://host", "model": "m"} | options)
        assert "abc" not in str(error.value) and "u:p" not in str(error.value)
    assert Endpoint("http://host:80/", "m").url == "http://host:80/v1"
    assert Endpoint("http://host/api/v3/", "m").url == "http://host/api/v3"


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        UspError, match=r"needs the package openai; pip install usp-lab\[endpoints\]"
    ):
        Client(Endpoint("http://host", "m"))


@needs_openai
def test_identity_is_what_decides_the_turns(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def simulator(url="http://host", model="m", **options) -> str:
        return identity(EndpointSimulator(Endpoint(url, model), **options))

    def assistant(url="http://host", **options) -> str:
        return identity(EndpointAssistant(Endpoint(url, "m"), **options))

    assert simulator() == simulator("https://elsewhere/v1")
    assert assistant() == assistant("https://elsewhere/v1")
    others = {
        simulator(),
        simulator(model="n"),
        simulator(with_profile=False),
        simulator(end_token=True),
        simulator(sampling=SHORT),
        assistant(),
        assistant(system="x"),
        assistant(sampling=SHORT),
    }
    assert len(others) == 8 and not any(KEY in i or "host" in i for i in others)


# --- whole dialogues ------------------------------------------------------------------------------

TARGETS = [f"You are user {i}." for i in range(40)]
RETRIED = tuple(f for f in FAULTS if f != "empty")  # after which the same seed is asked for again


def sides(fake: FakeServer, **options) -> tuple[EndpointSimulator, EndpointAssistant]:
    told = endpoint(fake, timeout=4.0, concurrency=32, **options)
    return EndpointSimulator(told), EndpointAssistant(told)


def contents(dialogues) -> dict:
    return {d.id: (d.stop, [m["content"] for m in d.messages]) for d in dialogues}


@needs_openai
def test_dialogues_are_the_same_through_faults(tmp_path):
    out = tmp_path / "d.jsonl"
    with FakeServer() as server:
        calm = simulate(*sides(server), TARGETS, max_turns=3, progress=False)
    with FakeServer(fault=sometimes(0.2, 1, RETRIED)) as server:
        both = sides(server, retries=12)
        rough = simulate(*both, TARGETS, max_turns=3, out=out, progress=False)
        failed = sum(s.usage.failures for s in both)
    assert contents(rough) == contents(calm)
    assert {d.stop for d in rough} == {"max turns"} and not failed
    assert set(server.injected) == set(RETRIED)  # each kind was met
    assert len(server.posts) == 40 * 3 * 2 + 3 + sum(server.injected.values())  # none twice
    assert len(out.read_text().splitlines()) == 40


@needs_openai
def test_what_fails_is_recorded_and_done_later(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "d.jsonl"
    quoting = (400, {"message": f"bad request of {KEY}"})

    def fault(n: int) -> object:
        return quoting if n > 10 and n % 9 == 0 else sometimes(0.2, 2)(n) if n > 10 else None

    with FakeServer(fault=fault) as server:
        first = simulate(*sides(server, retries=1), TARGETS, max_turns=3, out=out, progress=False)
    failed = {d.id for d in first if d.stop == "failed"}
    assert 0 < len(failed) < 40
    for d in first:
        assert re.search(r"\(tried (once|2 times)\)$", d.error) if d.id in failed else not d.error
    everything = "".join(p.read_text(errors="replace") for p in tmp_path.iterdir())
    assert "bad request of ***" in everything
    assert KEY not in everything + caplog.text and all(p["key"] == KEY for p in server.posts)
    with FakeServer() as server:
        again = simulate(*sides(server), TARGETS, max_turns=3, out=out, progress=False)
        assert (
            sum(b["messages"][-1]["role"] == "user" for b in server.bodies("/chat/completions")) > 0
        )
        calls = len(server.bodies("/v1/completions"))
    assert {d.stop for d in again} == {"max turns"}
    assert calls == 3 * len(failed)  # nothing else is asked for again
    kept = contents(d for d in first if d.id not in failed)
    assert kept.items() <= contents(again).items()
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert Counter(ids) == Counter(d.id for d in again) and len(ids) == 40


_CLIENT = """
import resource, sys
from usp_lab.endpoints import Endpoint, EndpointAssistant, EndpointSimulator
from usp_lab.simulate import simulate

told = Endpoint(sys.argv[1], "usp", concurrency=32, timeout=90.0, pause=0.002, retries=12)
profiles = [f"You are user {i}. " + "You like tea. " * 60 for i in range(96)]
done = simulate(EndpointSimulator(told), EndpointAssistant(told), profiles, batch_size=32,
                max_turns=8, progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(done), {d.stop for d in done}, peak // (1024 if sys.platform == "darwin" else 1))
"""


@needs_openai
def test_memory_of_32_dialogues_at_once():
    text, full = " ".join(["word"] * 140), threading.Event()

    def say(body: dict) -> str:
        if "You like tea" in body.get("prompt", ""):  # wait until all 32 are here, once
            if server.now >= 32:
                full.set()
            full.wait(60)
        return text

    faults = tuple(f for f in FAULTS if f not in SLOW)
    with FakeServer(fault=sometimes(0.2, 3, faults), say=say) as server:
        done = subprocess.run(
            [sys.executable, "-c", _CLIENT, server.url],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert server.most == 32
    assert not done.stderr, done.stderr
    ended, _, peak = done.stdout.rpartition(" ")
    assert ended == "96 {'max turns'}"
    assert int(peak) < 1.5 * 2**20  # KiB


@needs_openai
def test_ctrl_c_waits_for_no_answer():
    code = (
        "import sys\nfrom usp_lab.endpoints import *\n"
        "c = Client(Endpoint(sys.argv[1], 'usp', server='vllm'))\n"
        "from usp_lab.decoding import Sampling\n"
        "c.chat([{'role': 'user', 'content': 'a'}], Sampling())\n"
    )
    with FakeServer(fault=lambda n: "timeout") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url], stderr=subprocess.PIPE, text=True
        )
        while not server.posts:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(2)
        _, errors = process.communicate(timeout=30)
    assert errors.strip().endswith("KeyboardInterrupt") and "Task was destroyed" not in errors


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[str, Path, Path]:
    """The root URL of `transformers serve`, a simulator's and an assistant's checkpoint."""
    if not is_serve_available():
        pytest.skip("transformers serve is not installed (pip install transformers[serving])")
    folder = tmp_path_factory.mktemp("serve")
    user, assistant = look_alike(folder / "usp"), look_alike(folder / "assistant", seed=1)
    tokenizer = load_tokenizer(user, "user")
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(user)  # adds a BOS, as Llama-3's does
    (assistant / "chat_template.jinja").write_text(chat_template("assistant"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = "-m transformers.cli.transformers serve --device cpu --dtype float32 --host 127.0.0.1"
    process = subprocess.Popen(
        [sys.executable, *words.split(), "--port", str(port)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            assert process.poll() is None, "transformers serve has ended"
            try:
                opener.open(url + "/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield url, user, assistant
    finally:
        process.terminate()
        process.wait(20)


@needs_openai
def test_greedy_text_is_that_of_the_in_process_engine(real):
    url, user, _ = real
    greedy = Sampling(temperature=0, repetition_penalty=20.0, max_new_tokens=200)
    simulator = EndpointSimulator(Endpoint(url, str(user)), sampling=greedy)
    simulator.check()
    batch = [[SYSTEM], [SYSTEM, *ASKED], [SYSTEM, *ASKED, *ASKED], ASKED]
    turns = simulator.generate(batch, range(4))
    local = UserSimulator.from_pretrained(
        user, temperature=0, repetition_penalty=20.0, max_new_tokens=200
    )
    assert turns == local.generate(batch, range(4))
    ids = local.engine.generate([local.prompt(m) for m in batch], range(4), greedy)
    assert any(len(i) < 200 for i in ids)  # one at least ended by itself
    with FakeServer(upstream=url) as proxy:  # all this with one BOS in front
        again = EndpointSimulator(Endpoint(proxy.url, str(user)), sampling=greedy)
        assert again.generate(batch[:1], [0]) == turns[:1]
    assert BOS not in proxy.bodies()[0]["prompt"]


@needs_openai
def test_a_real_server_draws_when_told_to(real):
    url, user, _ = real
    simulator = EndpointSimulator(Endpoint(url, str(user)), sampling=SHORT)
    assert len({simulator.generate([[SYSTEM]], [s])[0] for s in range(4)}) == 4
    assert simulator.generate([[SYSTEM]], [1]) == simulator.generate([[SYSTEM]], [1])


@needs_openai
def test_dialogues_with_a_real_server_through_faults(real, tmp_path):
    url, user, assistant = real
    out = tmp_path / "d.jsonl"
    sampling = Sampling(max_new_tokens=8)
    with FakeServer(upstream=url, fault=sometimes(0.2, 5)) as proxy:
        told = {"concurrency": 8, "timeout": 15.0, "pause": 0.01, "retries": 8}
        simulator = EndpointSimulator(Endpoint(proxy.url, str(user), **told), sampling=sampling)
        partner = EndpointAssistant(Endpoint(proxy.url, str(assistant), **told), sampling=sampling)
        done = simulate(simulator, partner, TARGETS[:16], max_turns=2, out=out, progress=False)
    assert len(proxy.injected) >= 5
    assert [d.id for d in done] == [f"profile-{i}" for i in range(16)]
    for d in done:
        assert d.stop in ("failed", "max turns", "closing")
        assert bool(d.error) == (d.stop == "failed")
    assert any(d.stop != "failed" for d in done), done[0].error
    assert simulator.usage.prompt_tokens > 0 and simulator.usage.completion_tokens > 0
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 16


@needs_openai
def test_a_real_server_without_the_model(real):
    missing = Endpoint(real[0], str(real[1].parent / "none"), retries=1, pause=0.01)
    with pytest.raises(UspError, match=r"none at http://127.0.0.1:\d+/v1: .*tried (once|2 times)"):
        EndpointAssistant(missing).check()
