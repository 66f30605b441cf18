"""Profiles by a language model at any OpenAI-compatible endpoint: `LlmExtractor(Endpoint(url, model))`.

An answer must fit the schema, and each claim must quote the turn that it rests on. One that does not is sent back once
with what is wrong; after that the dialogue has failed. Nothing is made up in its place.
"""

import json
from collections.abc import Sequence
from functools import lru_cache

from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.endpoint_requests import Endpoint, RequestFailed
from usp_lab.extract_rules import Extracted
from usp_lab.profiles import HABITS, Objective, Profile, Subjective, _Part
from usp_lab.structured import ask, parse
from usp_lab.told import Told, filled, message, texts

_REPLY = Sampling(temperature=0.0, max_new_tokens=2048)
_CONTEXT_WORDS = 60  # of each assistant reply
_CHARACTERS = 3.5  # a token, about


class Reply(_Part):
    """What a model answers: a profile without its text."""

    objective: Objective = Objective()
    subjective: Subjective = Subjective()


class LlmExtractor(Told):
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
        repair = texts()["extract"]["repair"]
        try:
            profile, flaw, _ = ask(self._send, asked, lambda said: read_reply(said, turns), repair)
        except RequestFailed as failed:
            return Extracted(error=f"request failed: {failed} ({d.id}: {_size(d)})", cut=cut)
        if profile is None:
            return Extracted(error=f"invalid answer after one repair: {flaw}", cut=cut)
        return Extracted(profile, cut=cut)

    def _send(self, asked: Sequence[Message]) -> str:
        return self.client.structured(asked, self.sampling, self.seed, schema())

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
    return [message("system", told["system"]), message("user", filled(told["user"], wanted))]


@lru_cache(maxsize=1)
def schema() -> dict:
    """Return the JSON schema of a reply."""
    return Reply.model_json_schema()


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
