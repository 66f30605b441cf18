"""Atomic facts read by a language model at an OpenAI-compatible endpoint: `LLMFacts(Client(Endpoint(url, model)))`.

Takes the place of `facts.RuleFacts` wherever one is asked for. The prompts are in ``consistency.toml``.
"""

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from pydantic import BaseModel

from usp_lab.chat import Message
from usp_lab.decoding import Sampling
from usp_lab.facts import Fact, Facts, kind_of
from usp_lab.profiles import split_profile
from usp_lab.structured import GREEDY, ask_each


@lru_cache(maxsize=1)
def prompts() -> dict:
    """Return what language models are asked (``consistency.toml``)."""
    path = resources.files("usp_lab") / "consistency.toml"
    return tomllib.loads(path.read_text("utf-8"))


class FactList(BaseModel):
    """The form of an answer."""

    facts: list[str]


class LLMFacts:
    """Splits profiles and dialogues into facts by asking a language model.

    A text whose reply stays invalid after one repair has no facts and says why; it is then not scored. A text
    that was answered is not asked about again.

    Args:
        client: an `endpoints.Client`.
        sampling: how it draws; greedy when None.
    """

    def __init__(self, client, sampling: Sampling | None = None) -> None:
        self.client, self.sampling = client, sampling or GREEDY
        self._known: dict[tuple[str, str], Facts] = {}

    @property
    def identity(self) -> str:
        """The model that is asked."""
        return f"llm {self.client.endpoint.model}"

    def profiles(self, profiles: Sequence[str | None]) -> list[Facts]:
        """Return the facts of each profile's objective half."""
        return self._facts("profile", [split_profile(p or "")[0] for p in profiles], "no profile")

    def dialogues(self, dialogues: Sequence[Sequence[Message]]) -> list[Facts]:
        """Return what each dialogue's user turns ask for and tell."""
        turns = [
            "\n".join(" ".join(m["content"].split()) for m in d if m["role"] == "user")
            for d in dialogues
        ]
        return self._facts("dialogue", turns, "no user turn")

    def _facts(self, what: str, texts: Sequence[str], empty: str) -> list[Facts]:
        told = prompts()["facts"]
        new = [t for t in dict.fromkeys(texts) if t.strip() and (what, t) not in self._known]
        asked = [
            [
                {"role": "system", "content": told["system"].strip()},
                {"role": "user", "content": told[what].strip().replace("{text}", t)},
            ]
            for t in new
        ]
        answers = ask_each(self.client, asked, FactList, self.sampling)
        found = {(what, t): self._read(a) for t, a in zip(new, answers, strict=True)}
        # a request that failed without an answer may fare better next time
        self._known |= {
            (what, t): found[what, t] for t, a in zip(new, answers, strict=True) if a.reply
        }
        found = self._known | found
        return [found[what, t] if t.strip() else Facts(reason=empty) for t in texts]

    @staticmethod
    def _read(answer) -> Facts:
        if answer.value is None:
            return Facts(reason=answer.reason)
        texts = dict.fromkeys(
            " ".join(t.split()).rstrip(".") for t in answer.value.facts if t.strip()
        )
        items = tuple(Fact(t, kind_of(t)) for t in texts)
        return Facts(items, "" if items else "the language model found no fact")
