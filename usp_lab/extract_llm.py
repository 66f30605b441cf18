"""Profiles by a language model at any OpenAI-compatible endpoint, with structured output.

    LlmExtractor(Endpoint("http://localhost:8000/v1", "some-chat-model"))
    LlmPolisher(Endpoint(...))

What they are told is ours and is data (``profiling/llm.toml``); the paper's prompts were not published. An answer must fit the
schema, and each claim must quote the turn that it rests on. One that does not is sent back once with
what is wrong; after that the dialogue has failed. Nothing is made up in its place.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.endpoint_client import Client, empty_answer, wait_for
from usp_lab.endpoint_requests import Endpoint, RequestFailed
from usp_lab.endpoint_servers import Answer
from usp_lab.extract_rules import Extracted
from usp_lab.polish import NotPolished
from usp_lab.profiles import HABITS, Objective, Profile, Subjective, _Part
from usp_lab.structured import parse

_REPLY = Sampling(temperature=0.0, max_new_tokens=2048)
_TEXT = Sampling(temperature=0.0, max_new_tokens=600)
_CONTEXT_WORDS = 60  # of each assistant reply
_CHARACTERS = 3.5  # a token, about
_NO_FORMAT = re.compile(r"response_format|json_schema|schema|unsupported|not supported|guided|grammar|extra", re.I)  # fmt: skip


class Reply(_Part):
    """What a model answers: a profile without its text."""

    objective: Objective = Objective()
    subjective: Subjective = Subjective()


@lru_cache(maxsize=1)
def texts() -> dict:
    """Return what models are told."""
    return tomllib.loads((resources.files("usp_lab") / "profiling" / "llm.toml").read_text("utf-8"))


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


class _AtEndpoint:
    """What both share."""

    remote = True

    def __init__(self, endpoint: Endpoint, sampling: Sampling, seed: int) -> None:
        self.client, self.sampling, self.seed = StructuredClient(endpoint), sampling, seed
        self.concurrency, self.usage = endpoint.concurrency, self.client.usage

    def check(self) -> None:
        """Find out whether the endpoint is there, takes the key and serves the model.

        Raises:
            UspError: which of these it is not.
        """
        self.client.check(sampling=self.sampling)

    def _told(self, part: str) -> str:
        digest = hashlib.sha256(json.dumps(texts()[part], sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.client.endpoint.model!r}, {self.sampling}, seed={self.seed}, told={digest}"


class LlmExtractor(_AtEndpoint):
    """Extracts attributes with a chat model.

    Args:
        endpoint: where, and which model.
        sampling: of the answer; greedy, up to 2,048 tokens when None.
        context: tokens that the model can read and write; 0: unknown, the server will say. A token is taken
            to be 3.5 characters.
        truncate: leave out last turns of a dialogue that does not fit; without, it fails.
        seed: sent along.
    """

    name = "llm"

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        sampling: Sampling | None = None,
        context: int = 0,
        truncate: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(endpoint, sampling or _REPLY, seed)
        self.context, self.truncate = context, truncate

    def __repr__(self) -> str:
        fit = f"context={self.context}, truncate={self.truncate}"
        return f"LlmExtractor({self._told('extract')}, {fit})"

    def extract(self, dialogues: Sequence[Dialogue]) -> list[Extracted]:
        """Return a profile for each dialogue, or why there is none.

        Raises:
            UspError: the key is refused.
        """
        return [self._one(d) for d in dialogues]

    def _one(self, d: Dialogue) -> Extracted:
        messages, cut, error = self._fitting(d)
        if error:
            return Extracted(error=error)
        turns = [m["content"] for m in messages if m["role"] == "user"]
        asked = prompt(messages)
        flaw = ""
        for _ in range(2):  # the answer, and one repair
            try:
                said = self.client.structured(asked, self.sampling, self.seed, schema())
            except RequestFailed as failed:
                return Extracted(error=f"request failed: {failed} ({d.id}: {_size(d)})", cut=cut)
            profile, flaw = read_reply(said, turns)
            if profile is not None:
                return Extracted(profile, cut=cut)
            repair = texts()["extract"]["repair"].strip().replace("{ERROR}", flaw)
            asked = [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": repair}]  # fmt: skip
        return Extracted(error=f"invalid answer after one repair: {flaw}", cut=cut)

    def _fitting(self, d: Dialogue) -> tuple[list[Message], int, str]:
        """Return the messages that fit, how many user turns were left out, and why none fit."""
        kept = list(d.messages)
        while self.context and kept:
            tokens = _tokens(prompt(kept)) + self.sampling.max_new_tokens
            if tokens <= self.context:
                break
            if not self.truncate:
                return [], 0, (
                    f"longer than the context: {d.id} needs about {tokens:,} tokens with its answer, the "
                    f"model takes {self.context:,}; allow truncation or use a longer context"
                )  # fmt: skip
            last = max(i for i, m in enumerate(kept) if m["role"] == "user")
            kept = kept[:last]
        cut = d.n_turns - sum(m["role"] == "user" for m in kept)
        if not kept:
            return [], 0, f"longer than the context: not even the first turn of {d.id} fits ({_size(d)})"  # fmt: skip
        return kept, cut, ""


class LlmPolisher(_AtEndpoint):
    """Puts a profile's claims into two fluent paragraphs with a chat model.

    Args:
        endpoint: where, and which model.
        sampling: of the text; greedy, up to 600 tokens when None.
        seed: sent along.
    """

    name = "llm"

    def __init__(
        self, endpoint: Endpoint, *, sampling: Sampling | None = None, seed: int = 0
    ) -> None:
        super().__init__(endpoint, sampling or _TEXT, seed)

    def __repr__(self) -> str:
        return f"LlmPolisher({self._told('polish')})"

    def polish(self, profile: Profile) -> str:
        """Return a profile's text, objective facts first.

        Raises:
            NotPolished: the request failed, or the text had not the right form twice.
            UspError: the key is refused.
        """
        notes, halves = _notes(profile)
        told = texts()["polish"]
        wanted = {"{PARAGRAPHS}": told["both"] if halves == 2 else told["one"], "{WHAT}": "", "{NOTES}": notes}  # fmt: skip
        asked = [_message("system", told["system"]), _message("user", _filled(told["user"], wanted))]  # fmt: skip
        flaw = ""
        for _ in range(2):
            try:
                text = self.client.chat(asked, self.sampling, self.seed).strip()
            except RequestFailed as failed:
                raise NotPolished(f"request failed: {failed}") from None
            flaw = _misshapen(text, halves)
            if not flaw:
                return text
            repair = told["repair"].strip().replace("{ERROR}", flaw)
            asked = [*asked, _message("assistant", text), _message("user", repair)]
        raise NotPolished(f"misshapen text after one repair: {flaw}")


# --- what is asked ----------------------------------------------------------------------------------


def prompt(messages: Sequence[Message]) -> list[Message]:
    """Return what the model reads: instructions, the user's turns numbered, the replies shortened."""
    lines, number = [], 0
    for m in messages:
        if m["role"] == "user":
            lines.append(f"[user turn {number}] {m['content']}")
            number += 1
        elif m["role"] == "assistant":
            words = m["content"].split()
            more = " ..." if len(words) > _CONTEXT_WORDS else ""
            lines.append(f"[assistant] {' '.join(words[:_CONTEXT_WORDS])}{more}")
    told = texts()["extract"]
    wanted = {
        "{SCHEMA}": json.dumps(schema()),
        "{HABITS}": ", ".join(HABITS),
        "{CONVERSATION}": "\n".join(lines).replace("</conversation>", "< /conversation>"),
    }
    return [_message("system", told["system"]), _message("user", _filled(told["user"], wanted))]


@lru_cache(maxsize=1)
def schema() -> dict:
    """Return the JSON schema of a reply."""
    return Reply.model_json_schema()


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text.strip()}


def _filled(text: str, wanted: dict[str, str]) -> str:
    """Fill in names, once: what is filled in is not read again."""
    return re.sub("|".join(map(re.escape, wanted)), lambda m: wanted[m[0]], text)


def _tokens(messages: Sequence[Message]) -> int:
    return int(sum(len(m["content"]) for m in messages) / _CHARACTERS)


def _size(d: Dialogue) -> str:
    return f"{d.n_turns} user turns, {sum(len(m['content'].split()) for m in d.messages):,} words"


# --- what is answered -------------------------------------------------------------------------------


def read_reply(text: str, turns: Sequence[str]) -> tuple[Profile | None, str]:
    """Return (profile, "") of a valid answer, else (None, what is wrong with it)."""
    reply, flaw = parse(text, Reply)
    if reply is None:
        return None, f"{flaw}, in {text[:80]!r}"
    profile = Profile(objective=reply.objective, subjective=reply.subjective)
    wrong = [f for name, claim in profile.claims() for f in _unfounded(name, claim, turns)]
    if wrong:
        return None, "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if wrong[3:] else "")
    return profile, ""


def _unfounded(name: str, claim, turns: Sequence[str]) -> list[str]:
    what = f"{name} ({getattr(claim, 'value', getattr(claim, 'level', ''))[:40]})"
    if not claim.evidence:
        return [f"{what} has no evidence"]
    out = []
    for e in claim.evidence:
        if e.turn >= len(turns):
            out.append(f"{what} quotes user turn {e.turn}, but the last is {len(turns) - 1}")
        elif _plain(e.quote) not in _plain(turns[e.turn]):
            out.append(f"{what}: {e.quote[:60]!r} does not stand in user turn {e.turn}")
    return out


def _plain(text: str) -> str:
    """Return a text as quotes are compared: without case, punctuation at its ends, odd spaces and quotes."""
    text = text.lower().replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"')
    return " ".join(text.split()).strip(" .\"'\u2026")


def _notes(profile: Profile) -> tuple[str, int]:
    """Return the claims as notes, and how many halves they fill."""
    said = {"objective facts": [], "what the person wants now": [], "personality and style": []}
    for name, claim in profile.claims():
        is_fact = any(claim is c for c in getattr(profile.objective, name, []))
        part = "what the person wants now" if name in ("goals", "details") else "objective facts" if is_fact else "personality and style"  # fmt: skip
        value = getattr(claim, "value", None) or f"{claim.level} {name}"
        said[part].append(f"- {value}")
    lines = [f"{part}:\n" + "\n".join(items) for part, items in said.items() if items]
    halves = bool(said["objective facts"] or said["what the person wants now"]) + bool(said["personality and style"])  # fmt: skip
    return "\n\n".join(lines), halves


def _misshapen(text: str, halves: int) -> str:
    """Return what is wrong with the form of a text, "" where nothing is."""
    paragraphs = [p for p in re.split(r"\n\s*\n", text) if p.strip()]
    if len(paragraphs) != halves:
        return f"{len(paragraphs)} paragraphs, not {halves}"
    silent = [p for p in paragraphs if not re.search(r"\byou(?:r|rs)?\b", p, re.IGNORECASE)]
    return f"not in the second person: {silent[0][:60]!r}" if silent else ""
