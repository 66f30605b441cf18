"""The reward over HTTP: what OpenRLHF sends, what it gets, and that nothing is made up."""

import json
import math
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from usp_lab.chat import system_message
from usp_lab.look_alikes import look_alike
from usp_lab.models import load_tokenizer
from usp_lab.profile_generator import Written
from usp_lab.reward import CycleReward
from usp_lab.reward_server import RewardServer, messages_of

PROFILE = "You are going to Porto.\n\nYou write short messages."
TALK = [
    {"role": "user", "content": "where to in porto"},
    {"role": "assistant", "content": "The river.\n\nIt is near."},
    {"role": "user", "content": "ok"},
]


class Reader:
    """Gives the profile back to who says "porto", and nothing to who is silent about it."""

    def write(self, dialogues):
        return [
            Written(PROFILE)
            if "porto" in " ".join(d.user_turns)
            else Written(error="nothing to read")
            for d in dialogues
        ]


class Detector:
    def probabilities(self, turns):
        return np.array([math.nan if len(t) < 3 else 0.5 for t in turns])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(look_alike(tmp_path_factory.mktemp("m")))


@pytest.fixture
def url():
    with RewardServer(CycleReward(Reader(), Detector()), lam=0.8, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def post(url: str, body: object, path: str = "/get_reward") -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def rendered(tokenizer, talk, **options) -> str:
    messages = [system_message(PROFILE), *talk]
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_rendered_dialogues_are_read_back(tokenizer):
    text = rendered(tokenizer, TALK)
    assert messages_of(text) == [system_message(PROFILE) | {"content": system_message(PROFILE)["content"].strip()}, *TALK]  # fmt: skip
    opened = rendered(tokenizer, TALK[:2], add_generation_prompt=True) + "<|finetune_right_pad_id|>"
    assert messages_of(opened)[1:] == TALK[:2]
    assert messages_of("just a text") == []


def test_rewards_are_those_of_the_library(tokenizer, url):
    status, answer = post(url, {"query": [rendered(tokenizer, TALK)] * 2, "prompts": ["a", "b"]})
    assert status == 200 and answer["rewards"] == [pytest.approx(0.8 * 2 + 0.2 * 1.0)] * 2
    assert answer["terms"][0] == {"r_cc": pytest.approx(2), "r_ai": pytest.approx(1)}


@pytest.mark.parametrize(
    "body, path, message",
    [
        (b"{half", "/get_reward", "the body is no JSON object"),
        ({"queries": []}, "/get_reward", "the body is no JSON object"),
        ({"query": []}, "/get_reward", "give a list of dialogues"),
        ({"query": ["hello"]}, "/get_reward", "query 0 begins 'hello'"),
        ({"query": ["hello"]}, "/reward", "no /reward here; post to /get_reward"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(url, body, path, message):
    status, answer = post(url, body, path)
    assert status == 400 and message in answer["error"]


def test_no_reward_is_made_up(tokenizer, url):
    queries = [rendered(tokenizer, TALK), rendered(tokenizer, TALK[2:])]
    status, answer = post(url, {"query": queries})
    assert (status, answer) == (400, {"error": "query 1: nothing to read"})
