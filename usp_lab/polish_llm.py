"""A profile's claims put into words by a chat model: `LlmPolisher(Endpoint(...))`.

A text of the wrong form is sent back once with what is wrong; after that it has failed.
"""

import re
from collections.abc import Sequence

from usp_lab.chat import Message
from usp_lab.decoding import Sampling
from usp_lab.endpoint_requests import Endpoint, RequestFailed
from usp_lab.polish import NotPolished
from usp_lab.profiles import Profile
from usp_lab.structured import ask
from usp_lab.told import Told, filled, message, texts

_TEXT = Sampling(temperature=0.0, max_new_tokens=600)


class LlmPolisher(Told):
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
        asked = [message("system", told["system"]), message("user", filled(told["user"], wanted))]  # fmt: skip

        def read(text: str) -> tuple[str | None, str]:
            flaw = _misshapen(text.strip(), halves)
            return (None, flaw) if flaw else (text.strip(), "")

        try:
            text, flaw, _ = ask(self._send, asked, read, told["repair"])
        except RequestFailed as failed:
            raise NotPolished(f"request failed: {failed}") from None
        if text is None:
            raise NotPolished(f"misshapen text after one repair: {flaw}")
        return text

    def _send(self, asked: Sequence[Message]) -> str:
        return self.client.chat(asked, self.sampling, self.seed)


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
