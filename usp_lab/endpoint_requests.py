"""Requests to a server that may be slow, flaky or down: limits, costs, and when to try again.

A request has a time limit, and so has all that one dialogue waits for; what fails is tried again
after a growing, random pause, or after the one the server asks for; what fails for good says why.
"""

import asyncio
import math
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from usp_lab.endpoint_servers import SERVERS, Answer, parsed, read_answer, short
from usp_lab.errors import UspError

_LONGEST_PAUSE = 30.0  # seconds, unless the server asks for more
_AGAIN = {408, 409, 425, 429}  # and 500 and above
_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


class RequestFailed(UspError):
    """A request that failed for good: one dialogue cannot go on, others can.

    ``status`` is the HTTP status of the last answer, None where there was none.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status

    @property
    def is_answer(self) -> bool:
        """Whether the server did answer, if not with what was asked for."""
        return self.status is not None and self.status < 500 and self.status not in _AGAIN


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, and how much of it may be asked.

    Args:
        url: up to ``/v1``, which is added to a mere host.
        model: the name under which the server offers it.
        key_variable: the environment variable that holds the key; it may be unset.
        concurrency: requests under way at once.
        timeout: seconds for one request.
        dialogue_timeout: seconds one dialogue may wait for this side in all (see `time_limit`).
        retries: how often a request is tried again.
        price_in, price_out: dollars a million tokens.
        server: one of `SERVERS`, or "auto" to find out; "openai" is any other.
        pause: seconds before the first retry, about; doubled each time.

    Raises:
        UspError: a value that cannot be, or a URL that holds a key.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    timeout: float = 60.0
    dialogue_timeout: float = 600.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    server: str = "auto"
    pause: float = 0.5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or parts.query:
            raise UspError(
                f"the URL of the endpoint at {parts.hostname} holds a user, password or query; "
                f"leave it out and put the key into the environment, as {self.key_variable}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UspError(
                f"{self.url!r} is no http URL; give one such as http://localhost:8000/v1"
            )
        url = urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1", fragment=""))
        object.__setattr__(self, "url", url)
        least = {"concurrency": 1, "retries": 0, "price_in": 0, "price_out": 0, "pause": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UspError(f"{name}={getattr(self, name)}; give at least {low}")
        for name in ("timeout", "dialogue_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise UspError(f"{name}={getattr(self, name)}; give seconds, more than 0")
        if not self.model:
            raise UspError(f"no model for {self.url}; name the one that it serves")
        if self.server not in ("auto", *SERVERS):
            raise UspError(f"server={self.server!r} is unknown; known: auto, {', '.join(SERVERS)}")


@dataclass
class Usage:
    """What has been asked of an endpoint; any thread may add or read.

    ``requests`` counts what was sent to a model, retries included; ``failures`` what failed for
    good; ``unmetered`` answers without token counts: tokens and cost are then lower bounds.
    """

    price_in: float = 0.0
    price_out: float = 0.0
    requests: int = 0
    retries: int = 0
    failures: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Raise counters."""
        with self._lock:
            for name, n in counts.items():
                setattr(self, name, getattr(self, name) + n)

    @property
    def cost(self) -> float:
        """Dollars."""
        dollars = self.prompt_tokens * self.price_in + self.completion_tokens * self.price_out
        return dollars / 1e6


_LIMIT: ContextVar[float] = ContextVar("limit", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let this thread's calls of a `Client` fail once they have waited so long.

    Without it, a call may wait for ``dialogue_timeout``. A loop that knows dialogues gives each
    what is left of that. Waiting for a free place among ``concurrency`` requests does not count.
    """
    token = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(token)


# --- trying ---------------------------------------------------------------------------------------


class Fault(Exception):
    """Why a try gave nothing.

    Args:
        reason: for people.
        again: whether to try again, after ``pause`` seconds at least.
        status: of HTTP, where the server answered.
        empty: it answered without a text to use.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = True,
        pause: float = 0.0,
        status: int | None = None,
        empty: bool = False,
    ) -> None:
        super().__init__(reason)
        self.again, self.pause, self.status, self.empty = again, pause, status, empty


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait; 0 where it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if 0 < seconds < math.inf else 0.0


class Requests:
    """Tries requests of an endpoint until they give something; for one event loop.

    Raises:
        UspError: the package openai is not installed, or a key that no header can carry.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError:
            raise UspError(
                "an endpoint needs the package openai; pip install usp-lab[endpoints]"
            ) from None
        self.endpoint, self.usage = endpoint, Usage(endpoint.price_in, endpoint.price_out)
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UspError(f"{endpoint.key_variable} is no key: a key is one line of plain ASCII")
        self._openai = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._key or "none",
            timeout=endpoint.timeout,
            max_retries=0,  # ours repeat empty and invalid answers too, and count
        )
        self._errors = openai
        self._slots = asyncio.Semaphore(endpoint.concurrency)

    @property
    def has_key(self) -> bool:
        """Whether the environment holds a key."""
        return bool(self._key)

    async def get(self, url: str, kind: type[_M]) -> _M:
        """Return the body at a URL, tried until there is one; it costs nothing.

        Raises:
            RequestFailed: there is none.
        """

        async def call(_: int) -> _M:
            raw = await self._openai.get(url, cast_to=str)
            return parsed(kind, raw) or self._refuse(raw)

        return await self._tried(call, counts=False)

    async def ask(self, path: str, body: Callable[[int], dict], read: Callable[[Answer], _T]) -> _T:
        """Post ``body(n)``, n empty answers so far, until ``read`` takes what the model says.

        Raises:
            RequestFailed: it never did.
        """

        async def call(empty: int) -> _T:
            raw = await self._openai.post(path, body=body(empty), cast_to=str)
            answer = read_answer(raw) or self._refuse(raw)
            self._meter(answer)
            if answer.flaw:
                raise Fault(answer.flaw, status=200, empty=True)
            return read(answer)

        return await self._tried(call, counts=True)

    def _meter(self, answer: Answer) -> None:
        if answer.prompt_tokens is None:
            self.usage.add(unmetered=1)
            return
        tokens = {"prompt_tokens", "completion_tokens"}
        self.usage.add(**{name: getattr(answer, name) for name in tokens})

    def _refuse(self, raw: str) -> NoReturn:
        raise Fault(f"an invalid body, {self._quoted(raw)[:80]!r}", status=200)

    async def _tried(self, call: Callable[[int], Awaitable[_T]], *, counts: bool) -> _T:
        e, limit = self.endpoint, min(_LIMIT.get(), self.endpoint.dialogue_timeout)
        waited, empty, fault, tries = 0.0, 0, None, 0
        while waited < limit:
            async with self._slots:
                self.usage.add(requests=counts, retries=counts and tries > 0)
                began, tries = time.monotonic(), tries + 1
                seconds = min(e.timeout, limit - waited)
                try:
                    async with asyncio.timeout(seconds):
                        return await call(empty)
                except Fault as error:
                    fault = error
                except (TimeoutError, self._errors.APITimeoutError):
                    fault = Fault(f"no answer within {seconds:.3g} s")
                except self._errors.OpenAIError as error:
                    fault = self._fault(error)
                waited += time.monotonic() - began
            empty += fault.empty
            if not fault.again or tries > e.retries:
                break
            pause = max(min(e.pause * 2 ** (tries - 1), _LONGEST_PAUSE), fault.pause)
            pause *= random.uniform(1, 1.25)  # so that not all come back at once
            waited += pause
            if waited < limit:
                await asyncio.sleep(pause)
        self.usage.add(failures=counts)
        count = "once" if tries == 1 else f"{tries} times"
        late = f"; a dialogue may wait {e.dialogue_timeout:g} s" if waited >= limit else ""
        raise RequestFailed(
            f"{e.model} at {e.url}: {fault or 'no time left'} (tried {count}{late})",
            fault and fault.status,
        )

    def _fault(self, error: Exception) -> Fault:
        """Say what an error of the client means."""
        if not isinstance(error, self._errors.APIStatusError):
            cause = error.__cause__ or error
            return Fault(f"no connection, {self._quoted(str(cause) or type(cause).__name__)!r}")
        status, pause = error.status_code, _retry_after(error.response.headers)
        body = error.body or error.response.text
        if isinstance(body, Mapping):  # each server has its own form
            body = body.get("message") or body.get("detail") or body.get("error") or body
        asks = f", asks to wait {pause:.3g} s" if pause else ""
        return Fault(
            f"HTTP {status}, {self._quoted(str(body))!r}{asks}",
            again=(status in _AGAIN or status >= 500) and error.code != "insufficient_quota",
            pause=pause,
            status=status,
        )

    def _quoted(self, text: str) -> str:
        """Return the start of what a server says, which may quote the key."""
        return short(text.replace(self._key, "***") if len(self._key) > 7 else text)
