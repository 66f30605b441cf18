"""Asks a model behind an OpenAI-compatible server, whichever it is.

All requests run on one background event loop, because a thread cannot be made to give up a server
that sends a byte now and then; the threads that call wait for it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar
from urllib.parse import urljoin

from usp_lab.chat import SPECIAL_TOKENS, Message
from usp_lab.decoding import Sampling
from usp_lab.endpoint_requests import Endpoint, Fault, RequestFailed, Requests, Usage
from usp_lab.endpoint_servers import (
    Answer,
    Models,
    Paths,
    drawing,
    served_names,
    server_of,
)
from usp_lab.errors import UspError

_BOS = SPECIAL_TOKENS[0]
_PROBE = Sampling(max_new_tokens=1)
_NEW_LIMIT = "max_completion_tokens"
_REFUSED = (401, 403)
_T = TypeVar("_T")


@lru_cache(maxsize=1)
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoints", daemon=True).start()
    return loop


def wait_for(coroutines: Sequence[Coroutine]) -> list:
    """Return what coroutines return; the first error ends them all."""
    futures = [asyncio.run_coroutine_threadsafe(c, _event_loop()) for c in coroutines]
    try:
        return [f.result() for f in futures]
    finally:
        for f in futures:
            f.cancel()


class Client:
    """Asks one endpoint; any number of threads may call it.

    Raises:
        UspError: the package openai is not installed, or a key that no header can carry.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self._requests = endpoint, Requests(endpoint)
        self.usage: Usage = self._requests.usage
        self._server = None if endpoint.server == "auto" else endpoint.server
        self._bos: str | None = None
        self._looking, self._counting = asyncio.Lock(), asyncio.Lock()
        self._limit = "max_tokens"

    def complete(
        self,
        prompt: str,
        sampling: Sampling,
        stop: Sequence[str] = (),
        seed: int | None = None,
        *,
        may_be_empty: bool = False,
    ) -> str:
        """Return how the model goes on after a prompt (``/v1/completions``), up to a stop string.

        Args:
            prompt: where it begins with ``<|begin_of_text|>`` the model sees just one, also if the
                server adds its own.
            sampling, stop, seed: how to draw; seeds are cut to 31 bits, for servers want no more.
            may_be_empty: an empty text is an answer where the model itself stopped.

        Raises:
            RequestFailed: nothing usable after all tries, or in the time allowed.
            UspError: the key is refused, or the server cannot draw so.
        """
        return self.complete_all([prompt], sampling, stop, [seed], may_be_empty=may_be_empty)[0]

    def complete_all(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        stop: Sequence[str],
        seeds: Sequence[int | None],
        *,
        may_be_empty: bool = False,
    ) -> list[str]:
        """Complete prompts at once, as `complete` does each; the first failure ends them all."""
        pairs = zip(prompts, seeds, strict=True)
        return wait_for([self._complete(p, sampling, stop, s, may_be_empty) for p, s in pairs])

    def chat(self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None) -> str:
        """Return the assistant's next message (``/v1/chat/completions``).

        Raises:
            RequestFailed, UspError: as `complete`.
        """
        return self.chat_all([messages], sampling, [seed])[0]

    def chat_all(
        self,
        dialogues: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int | None],
    ) -> list[str]:
        """Answer dialogues at once, as `chat` does each; the first failure ends them all."""
        return wait_for([self._chat(m, sampling, s) for m, s in zip(dialogues, seeds, strict=True)])

    def check(self, *, sampling: Sampling = _PROBE, completions: bool = False) -> None:
        """Find out, for a few tokens, whether the endpoint can be used.

        Args:
            sampling: how it will be asked to draw.
            completions: it must have ``/v1/completions`` and Llama-3's tokens; without,
                ``/v1/chat/completions``.

        Raises:
            UspError: it is down, refuses the key, serves another model, or cannot draw so.
        """
        wait_for([self._check(sampling, completions)])

    # --- on the event loop ------------------------------------------------------------------------

    async def _complete(
        self,
        prompt: str,
        sampling: Sampling,
        stop: Sequence[str],
        seed: int | None,
        may_be_empty: bool,
    ) -> str:
        def read(answer: Answer) -> str:
            text = answer.text
            for end in stop:  # a special token is text to some servers and nothing to others
                text = text.partition(end)[0]
            if text.strip() or (may_be_empty and answer.stopped):
                return text
            raise empty_answer(answer)

        if prompt.startswith(_BOS):
            prompt = await self._begin() + prompt.removeprefix(_BOS)
        body = {"prompt": prompt} | ({"stop": list(stop)} if stop else {})
        return await self._ask("/completions", body, sampling, seed, read)

    async def _chat(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> str:
        def read(answer: Answer) -> str:
            if answer.text.strip():
                return answer.text.strip()
            raise empty_answer(answer)

        turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        return await self._ask("/chat/completions", {"messages": turns}, sampling, seed, read)

    async def _ask(
        self,
        path: str,
        asked: dict,
        sampling: Sampling,
        seed: int | None,
        read: Callable[[Answer], _T],
    ) -> _T:
        """Post until ``read`` takes the answer; after an empty one under another seed."""
        server = await self._which()
        limit = self._limit
        fixed = {"model": self.endpoint.model, limit: sampling.max_new_tokens, **asked}
        fixed |= drawing(server, sampling)
        if server in ("vllm", "sglang") and "prompt" in asked:  # else an end token is not seen
            fixed["skip_special_tokens"] = False

        def body(empty: int) -> dict:
            return fixed if seed is None else fixed | {"seed": (seed + empty) % 2**31}

        try:
            return await self._requests.ask(path, body, read)
        except RequestFailed as failed:
            if failed.status == 401:  # others would be too: better to end a run that can go on
                raise self._refused(failed) from None
            if failed.status != 400 or limit == _NEW_LIMIT or _NEW_LIMIT not in str(failed):
                raise
        self._limit = _NEW_LIMIT  # what OpenAI's reasoning models want, and say so
        self.usage.add(failures=-1)
        return await self._ask(path, asked, sampling, seed, read)

    async def _which(self) -> str:
        """Return which server it is; the first who wants to know asks."""
        async with self._looking:
            if self._server is None:
                try:
                    self._server, _ = await self._look()
                except RequestFailed as failed:
                    raise self._refused(failed) if failed.status in _REFUSED else failed from None
        return self._server

    async def _look(self) -> tuple[str, list[dict]]:
        """Return which server it is, and the models that it lists."""
        get, paths, models = self._requests.get, {}, []
        try:
            paths = (await get(urljoin(self.endpoint.url, "/openapi.json"), Paths)).paths
        except RequestFailed as failed:
            if not failed.is_answer:
                raise
        if server_of(paths, []) != "transformers":  # that one lists what the hub's cache holds
            try:
                models = (await get("/models", Models)).data
            except RequestFailed as failed:
                if failed.status in _REFUSED or not failed.is_answer:
                    raise
        return server_of(paths, models), models

    async def _begin(self) -> str:
        """Return what a prompt must begin with for the model to see one BOS.

        A server adds one of its own if the tokenizer's settings say so; token counts show it.
        """
        async with self._counting:
            if self._bos is None:
                one, two = [await self._count(_BOS * n) for n in (1, 2)]
                if one is not None and two is not None and two != one + 1:
                    raise UspError(
                        f"{self.endpoint.model} at {self.endpoint.url} reads {_BOS} as {two - one} "
                        "tokens; serve a model with Llama-3's tokenizer, as USP's template needs"
                    )
                self._bos = _BOS if one == 1 else ""
        return self._bos

    async def _count(self, prompt: str) -> int | None:
        """Return how many tokens the model sees, where the server says it."""
        answer = await self._ask("/completions", {"prompt": prompt}, _PROBE, None, lambda a: a)
        return answer.prompt_tokens

    async def _check(self, sampling: Sampling, completions: bool) -> None:
        e = self.endpoint
        try:
            server, models = await self._look()
            self._server = self._server or server
            drawing(self._server, sampling)
            names = served_names(models)
            if names and e.model not in names:
                raise UspError(
                    f"{e.url} serves {', '.join(names[:5])}, not {e.model}; name one of these as "
                    "model, or start the server with yours"
                )
            if completions:
                await self._begin()
            else:
                brief = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, 16))
                hello = {"messages": [{"role": "user", "content": "Hello"}]}
                await self._ask("/chat/completions", hello, brief, None, lambda a: a)
        except RequestFailed as failed:
            if failed.status in _REFUSED:
                raise self._refused(failed) from None
            what = "start the server or correct the URL"
            if failed.is_answer:
                what = "name the model as the server does, or a server with that part of the API"
            raise UspError(f"{failed}; {what}") from None

    def _refused(self, failed: RequestFailed) -> UspError:
        variable = self.endpoint.key_variable
        what = f"the key in {variable} is refused; put one there that may use this model"
        if not self._requests.has_key:
            what = f"{variable} is not set; set it to your key, or name another key_variable"
        return UspError(f"{failed}; {what}")


def empty_answer(answer: Answer) -> Fault:
    """Return the fault of an answer without text."""
    why = "" if answer.stopped else ", cut at max_new_tokens"
    return Fault("an empty text" + why, status=200, empty=True)
