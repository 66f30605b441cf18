"""Simulators and assistants behind any server that speaks the OpenAI API.

    here = Endpoint("http://localhost:8000/v1", "wangkevin02/USP")
    there = Endpoint("https://api.openai.com/v1", "gpt-4.1-mini", price_in=0.4, price_out=1.6)
    simulate(EndpointSimulator(here), EndpointAssistant(there), targets, out="dialogues.jsonl")

Keys come from the environment and go nowhere else. Seeds are sent, but what a server makes of them
is its own affair: that one seed gives one text is a promise of the in-process engine alone.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from usp_lab.at_endpoint import AtEndpoint
from usp_lab.chat import (
    END_TOKEN,
    SPECIAL_TOKENS,
    Message,
    broken_up,
    chat_template,
    with_profile,
)
from usp_lab.decoding import Sampling
from usp_lab.endpoint_client import Client
from usp_lab.endpoint_requests import Endpoint, RequestFailed, Usage, time_limit
from usp_lab.errors import UspError
from usp_lab.simulators import UserSimulator

__all__ = [
    "Client",
    "Endpoint",
    "EndpointAssistant",
    "EndpointSimulator",
    "RequestFailed",
    "Usage",
    "render",
    "time_limit",
]

_ENDS = ("<|eot_id|>", "<|end_of_text|>")
# What Llama-3's tokenizers read as special, and the end token of models trained with one.
_SPECIAL = re.compile(
    "|".join(map(re.escape, (*SPECIAL_TOKENS, END_TOKEN)))
    + r"|<\|(?:reserved_special_token_\d+|python_tag|eom_id|step_id|image)\|>"
)


def _short(endpoint: Endpoint) -> str:
    """Return what results call a model that has no name of its own."""
    return endpoint.model.rstrip("/").rsplit("/", 1)[-1]


class EndpointSimulator(AtEndpoint):
    """USP, or a model trained like it, behind an endpoint.

    It speaks through ``/v1/completions`` in our own rendering of USP's template, because the
    assistant's header is what ``/v1/chat/completions`` would open.

    Args:
        endpoint: where, and which model.
        with_profile: it was trained with profiles.
        sampling: of each turn. USP's release has a repetition penalty of 1.2.
        name: how results call it; the model's name when None.
        end_token: it was trained with `END_TOKEN`: an empty turn is then the end, since most
            servers leave special tokens out of the text.
    """

    completions = True

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        with_profile: bool = True,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        name: str | None = None,
        end_token: bool = False,
    ) -> None:
        super().__init__(Client(endpoint), sampling)
        self.name = name or _short(endpoint)
        self.with_profile, self.end_token = with_profile, end_token
        self.given = "the target's profile" if with_profile else "the target's true first turn"

    def __repr__(self) -> str:
        template = sha256(chat_template("user").encode()).hexdigest()[:12]
        return (
            f"EndpointSimulator({self.endpoint.model!r}, with_profile={self.with_profile}, "
            f"end_token={self.end_token}, template={template}, {self.sampling})"
        )

    start = UserSimulator.start

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Write the next turn of each dialogue, `END_TOKEN` where the model ends it.

        Raises:
            RequestFailed, UspError: as `Client.complete`.
        """
        prompts = [render(m) for m in batch]
        texts = self.client.complete_all(
            prompts, self.sampling, _ENDS, seeds, may_be_empty=self.end_token
        )
        return [self._turn(t) for t in texts]

    def _turn(self, text: str) -> str:
        text, ended, _ = text.partition(END_TOKEN)
        text = text.strip()
        return END_TOKEN if not text and (ended or self.end_token) else text


class EndpointAssistant(AtEndpoint):
    """An assistant behind an endpoint, through ``/v1/chat/completions``. It sees no profile.

    Args:
        endpoint: where, and which model.
        system: a system prompt of its own.
        sampling: of each reply.
        name: how results call it; the model's name when None.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        system: str | None = None,
        sampling: Sampling = Sampling(max_new_tokens=512),  # noqa: B008  (frozen)
        name: str | None = None,
    ) -> None:
        super().__init__(Client(endpoint), sampling)
        self.name, self.system = name or _short(endpoint), system

    def __repr__(self) -> str:
        return f"EndpointAssistant({self.endpoint.model!r}, {self.system!r}, {self.sampling})"

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Answer the last user turn of each dialogue.

        Raises:
            RequestFailed, UspError: as `Client.chat`.
        """
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        dialogues = [[*told, *with_profile(m, None)] for m in batch]
        return self.client.chat_all(dialogues, self.sampling, seeds)


def render(messages: Sequence[Message]) -> str:
    """Return messages in USP's chat template with the user's header opened, BOS included.

    Where a content spells a special token it is broken up, as `chat.without_special_tokens` does.

    Raises:
        UspError: no message, or the user has just spoken.
    """
    if not messages or messages[-1]["role"] == "user":
        last = f"the last is {messages[-1]['content'][:40]!r}" if messages else "there is none"
        raise UspError(
            f"a user turn follows a system message or an assistant's, but {last}; give one"
        )
    whole = [{**m, "content": broken_up(m["content"], _SPECIAL)} for m in messages]
    return _template().render(
        messages=whole, bos_token=SPECIAL_TOKENS[0], add_generation_prompt=True
    )


@lru_cache(maxsize=1)
def _template():
    import jinja2

    return jinja2.Environment().from_string(chat_template("user"))
