"""Answers of a fixed form from a language model: asked, checked, repaired once, else failed with its reason.

    ask_each(client, [messages, ...], Verdict)  ->  [Answered(value=Verdict(...), reason="", reply="{...}"), ...]

A request that fails, or a reply that stays invalid, is one item's affair: it is never invented, and the others
go on. A refused key ends everything, since no request would fare better.
"""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from usp_lab.chat import Message
from usp_lab.decoding import Sampling
from usp_lab.endpoint_client import Client, empty_answer, wait_for
from usp_lab.endpoint_requests import Endpoint, RequestFailed
from usp_lab.endpoint_servers import Answer

GREEDY = Sampling(max_new_tokens=1024, temperature=0.0)
_AGAIN = "That is not the JSON object asked for: {ERROR}. Answer with the corrected object alone."
_NO_FORMAT = re.compile(r"response_format|json_schema|schema|unsupported|not supported|guided|grammar|extra", re.I)  # fmt: skip
_FENCE = re.compile(r"\A\s*```\w*\s*|\s*```\s*\Z")


@dataclass(frozen=True)
class Answered:
    """One answer: ``value`` of the form asked for, or None and the ``reason``; ``reply`` is what was written last."""

    value: Any
    reason: str
    reply: str


def ask_each(
    client, prompts: Sequence[Sequence[Message]], form: type[BaseModel], sampling: Sampling = GREEDY
) -> list[Answered]:
    """Ask every prompt once, and an invalid reply's author once more, quoting the error.

    Args:
        client: an `endpoints.Client`; as many prompts are under way as its endpoint allows. Equal prompts are
            asked once.
        prompts: messages that ask for a JSON object.
        form: a pydantic model of it.
        sampling: how to draw.

    Raises:
        UspError: the key is refused.
    """
    texts = [json.dumps(list(p), ensure_ascii=False) for p in prompts]
    distinct = dict(zip(texts, prompts, strict=True))
    with ThreadPoolExecutor(max(1, client.endpoint.concurrency)) as pool:
        answers = pool.map(lambda p: _ask(client, p, form, sampling), distinct.values())
        known = dict(zip(distinct, answers, strict=True))
    return [known[t] for t in texts]


def _ask(client, prompt: Sequence[Message], form: type[BaseModel], sampling: Sampling) -> Answered:
    sent = []

    def send(messages: Sequence[Message]) -> str:
        sent.append(client.chat(messages, sampling))
        return sent[-1]

    try:
        value, flaw, reply = ask(send, prompt, lambda text: parse(text, form), _AGAIN)
    except RequestFailed as failed:
        return Answered(None, str(failed), sent[-1] if sent else "")
    reason = "" if value is not None else f"invalid reply, also after one repair: {flaw}"
    return Answered(value, reason, reply)


def ask(
    send: Callable[[Sequence[Message]], str],
    messages: Sequence[Message],
    read: Callable[[str], tuple[Any, str]],
    repair: str,
) -> tuple[Any, str, str]:
    """Ask a model, and once more, saying what is wrong, where its reply cannot be read.

    Args:
        send: messages -> reply.
        read: reply -> (value, "") or (None, what is wrong).
        repair: what is said of it, with ``{ERROR}`` in its place.

    Returns:
        (value, "", reply), or (None, what is wrong with the second reply, that reply).

    Raises:
        RequestFailed, UspError: as ``send``.
    """
    value, flaw = read(reply := send(messages))
    if value is None:
        told = repair.strip().replace("{ERROR}", flaw)
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": told}]
        value, flaw = read(reply := send([*messages, *again]))
    return value, flaw, reply


def parse(reply: str, form: type[BaseModel]) -> tuple[BaseModel | None, str]:
    """Read a reply: (value, "") or (None, what is wrong). A fence or words around the object are forgiven."""
    text = _FENCE.sub("", reply)
    first, last = text.find("{"), text.rfind("}")
    if first < 0 or last < first:
        return None, "it holds no {...}"
    try:
        return form.model_validate_json(text[first : last + 1]), ""
    except ValidationError as e:
        first_error = e.errors()[0]
        where = ".".join(map(str, first_error["loc"])) or "the object"
        return None, f"{where}: {first_error['msg']}"


class StructuredClient(Client):
    """A client that asks for JSON of a schema, as far as the server knows how.

    A server that refuses ``response_format`` is asked without; the schema stands in the prompt anyway.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.takes_schemas = True

    def structured(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None, schema: dict
    ) -> str:
        """Return the model's answer to messages.

        Raises:
            RequestFailed, UspError: as `Client.chat`.
        """
        return wait_for([self._structured(messages, sampling, seed, schema)])[0]

    async def _structured(self, messages, sampling, seed, schema) -> str:
        def read(answer: Answer) -> str:
            if answer.text.strip():
                return answer.text.strip()
            raise empty_answer(answer)

        turns = {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
        if self.takes_schemas:
            kind = {"name": "profile", "schema": schema, "strict": False}
            wanted = {"response_format": {"type": "json_schema", "json_schema": kind}}
            try:
                return await self._ask("/chat/completions", turns | wanted, sampling, seed, read)
            except RequestFailed as failed:
                if failed.status not in (400, 422) or not _NO_FORMAT.search(str(failed)):
                    raise
            self.takes_schemas = False
            self.usage.add(failures=-1)
        return await self._ask("/chat/completions", turns, sampling, seed, read)
