"""Answers of a fixed form from a language model: asked, checked, repaired once, else failed with its reason.

    ask_each(client, [messages, ...], Verdict)  ->  [Answered(value=Verdict(...), reason="", reply="{...}"), ...]

A request that fails, or a reply that stays invalid, is one item's affair: it is never invented, and the others
go on. A refused key ends everything, since no request would fare better.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from usp_lab.chat import Message
from usp_lab.decoding import Sampling
from usp_lab.endpoint_requests import RequestFailed

GREEDY = Sampling(max_new_tokens=1024, temperature=0.0)
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
    messages, reply = list(prompt), ""
    for attempt in (1, 2):
        try:
            reply = client.chat(messages, sampling)
        except RequestFailed as failed:
            return Answered(None, str(failed), reply)
        value, error = parse(reply, form)
        if value is not None:
            return Answered(value, "", reply)
        if attempt == 1:
            again = f"That is not the JSON object asked for: {error}. Answer with the corrected object alone."
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": again},
            ]
    return Answered(None, f"invalid reply, also after one repair: {error}", reply)


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
