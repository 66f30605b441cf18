"""What OpenAI-compatible servers send, how they are told apart, and how each is told to draw.

Each has defaults of its own (a top-k of 40 or 50, a min-p, the checkpoint's repetition penalty), so
every field that changes the distribution is sent. Names are those of vLLM's and SGLang's
``protocol.py``, of llama.cpp's ``tools/server/README.md``, and of ``transformers.cli.serving``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from usp_lab.decoding import Sampling
from usp_lab.errors import UspError

SERVERS = ("vllm", "sglang", "llama.cpp", "transformers", "openai")
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


def server_of(paths: Iterable[str], models: Sequence[Mapping]) -> str:
    """Return which of `SERVERS` has these ``paths`` in its API and lists these ``models``."""
    if "/load_model" in paths:
        return "transformers"
    owners = {_OWNERS.get(str(m.get("owned_by")), "openai") for m in models}
    return owners.pop() if len(owners) == 1 else "openai"


def served_names(models: Sequence[Mapping]) -> list[str]:
    """Return the names under which ``/v1/models`` offers models, aliases included."""
    return [str(n) for m in models for n in (m.get("id"), *(m.get("aliases") or ())) if n]


def drawing(server: str, sampling: Sampling) -> dict:
    """Return the fields that make a server draw as ``sampling`` says; its length is not among them.

    Raises:
        UspError: a repetition penalty for a server that has none.
    """
    penalty = sampling.repetition_penalty
    fields = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if server in ("vllm", "sglang"):
        return fields | {"repetition_penalty": penalty, "top_k": -1, "min_p": 0.0}
    if server == "llama.cpp":  # these samplers alone, in the order of the in-process engine
        samplers = ["penalties", "temperature", "top_p"]
        return fields | {"repeat_penalty": penalty, "repeat_last_n": -1, "samplers": samplers}
    if server == "transformers":  # it draws only if told so here, and refuses a field for penalties
        config = {"do_sample": sampling.temperature > 0, "top_k": 0, "repetition_penalty": penalty}
        return fields | {"generation_config": json.dumps(config)}
    if penalty != 1:
        raise UspError(
            f"repetition_penalty={penalty:g}, but the API of OpenAI has none; set it to 1, or where "
            f"the server has one, name it: Endpoint(..., server=) {', '.join(SERVERS[:-1])}"
        )
    return fields


# --- what they send ------------------------------------------------------------------------------


class Models(BaseModel):
    """The body of ``/v1/models``."""

    data: list[dict]


class Paths(BaseModel):
    """The body of ``/openapi.json``."""

    paths: dict = {}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    text: str | None = None
    message: _Message = _Message()
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said.

    ``flaw`` says what keeps it from being an answer; ``stopped`` that the model ended by itself.
    Tokens are None where the server does not count them.
    """

    text: str
    stopped: bool
    flaw: str
    prompt_tokens: int | None
    completion_tokens: int | None


_M = TypeVar("_M", bound=BaseModel)


def parsed(kind: type[_M], raw: str) -> _M | None:
    """Return a body as ``kind``, None where it is no such thing."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError:
        return None


def read_answer(raw: str) -> Answer | None:
    """Return what a body of either ``completions`` says, None where it is invalid."""
    body = parsed(_Completion, raw)
    if body is None:
        return None
    choice, flaw = body.choices[0], ""
    text = choice.message.content or choice.text or ""
    if choice.message.refusal or choice.finish_reason == "content_filter":
        flaw = f"a refusal, {short(choice.message.refusal or 'content_filter')!r}"
    elif choice.finish_reason in ("abort", "error"):
        flaw = f"a text broken off by the server ({choice.finish_reason})"
    return Answer(
        text,
        choice.finish_reason != "length",
        flaw,
        body.usage and body.usage.prompt_tokens,
        body.usage and (body.usage.completion_tokens or 0),
    )


def short(text: str) -> str:
    """Return the start of a text, on one line."""
    return " ".join(text[:1000].split())[:200]
