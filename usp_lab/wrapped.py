"""An assistant made slow, rude, evasive or wrong at known rates.

    Wrapped(scripted("good"), rude=0.2, slow=0.5, delay=2.0)

Whatever the assistant is (scripted, a model, an endpoint), so that one can see whether a simulator,
or a measure, notices.
"""

import time
from collections.abc import Sequence
from random import Random
from threading import Lock

from usp_lab.chat import Message, Utterance, is_closing, with_profile
from usp_lab.errors import UspError
from usp_lab.roleplay import texts
from usp_lab.simulators import identity

# What is done to a reply, and the kind of reply that it then is for a scripted user (`assistants.FAILURES`).
KINDS = {"rude": "rude", "evasive": "vague", "wrong": "wrong"}


class Wrapped:
    """Any assistant, some of its replies exchanged for rude, evasive or wrong ones, some late.

    A reply is at most one of rude, evasive and wrong; being slow is drawn apart. What happens to a
    reply depends on ``seed`` and the reply's own seed alone. ``meta["done"]`` says what was done, with
    ``meta["delay"]`` (seconds) where it came late; an exchanged reply keeps no goal met. A reply to a
    goodbye is still one (kind "welcome"), so that the loop ends there.

    Args:
        assistant: anything with ``reply``.
        slow, rude, evasive, wrong: probabilities of a reply; the last three add up to 1 at the most.
        delay: seconds by which a slow reply is late.
        seed: another seed spoils other replies.

    Raises:
        UspError: a rate that is no probability, rates that add up to more than 1, a negative delay.
    """

    def __init__(
        self,
        assistant,
        slow: float = 0.0,
        rude: float = 0.0,
        evasive: float = 0.0,
        wrong: float = 0.0,
        delay: float = 1.0,
        seed: int = 0,
    ) -> None:
        rates = {"slow": slow, "rude": rude, "evasive": evasive, "wrong": wrong}
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise UspError(f"{name} must be a rate between 0 and 1, not {rate}")
        if rude + evasive + wrong > 1 + 1e-9:
            raise UspError(
                f"rude + evasive + wrong must be at most 1, not {rude + evasive + wrong:g}; a reply "
                "is only one of them"
            )
        if delay < 0:
            raise UspError(f"delay must be 0 seconds or more, not {delay}")
        self.assistant, self.rates, self.delay, self.seed = assistant, rates, delay, seed
        done = ", ".join(f"{k} {v:g}" for k, v in rates.items() if v)
        self.name = f"{getattr(assistant, 'name', type(assistant).__name__)} ({done or 'as it is'})"
        # A late reply holds up its own dialogue only: the loop then asks for one at a time, from
        # threads. What computes in this process is no faster for it, and is asked one by one.
        self._inner_remote = getattr(assistant, "remote", False)
        self.remote = self._inner_remote or bool(slow and delay)
        self.concurrency = getattr(assistant, "concurrency", 64)
        self.endpoint = getattr(assistant, "endpoint", None)  # its prices and time limits
        self.usage = getattr(assistant, "usage", None)
        self._lock = Lock()

    def __repr__(self) -> str:
        late = self.delay if self.rates["slow"] else 0
        table = [texts()["wrapped"][k] for k in KINDS if self.rates[k]]
        return f"Wrapped({identity(self.assistant)}, {self.rates}, {late}, {self.seed}, {table})"

    def check(self) -> None:
        """Check the assistant, where it can be.

        Raises:
            UspError: its endpoint is down, refuses the key or serves another model.
        """
        if check := getattr(self.assistant, "check", None):
            check()

    def room(self, messages: Sequence[Message]) -> float:
        """Return how many tokens the assistant has left for its longest reply; no limit for a scripted one."""
        room = getattr(self.assistant, "room", None)
        return room(with_profile(messages, None)) if room else float("inf")

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Answer the last user turn of each dialogue, spoiling some answers."""
        batch = [with_profile(m, None) for m in batch]
        replies = self._replies(batch, seeds)
        out = [
            self._spoil(m, r, Random(f"wrapped/{self.seed}/{s}"))
            for m, r, s in zip(batch, replies, seeds, strict=True)
        ]
        late = max((u.meta.get("delay", 0.0) for u in out), default=0.0)
        if late:
            time.sleep(late)
        return out

    def _replies(self, batch, seeds) -> list[str]:
        if self._inner_remote or not self.remote:
            return self.assistant.reply(batch, seeds)
        with self._lock:
            return self.assistant.reply(batch, seeds)

    def _spoil(self, messages: Sequence[Message], reply: str, rng: Random) -> Utterance:
        meta = dict(reply.meta) if isinstance(reply, Utterance) else {}
        draw, late = rng.random(), rng.random() < self.rates["slow"]
        if late:
            meta["delay"] = self.delay
        for done, kind in KINDS.items():
            if draw < self.rates[done] and reply.strip():
                text = self._exchange(done, messages, rng)
                goodbye = meta.get("kind") == "welcome" or ("kind" not in meta and _bye(messages))
                # Of the answer that was not given, nothing was said that a next turn could take up.
                meta = {k: v for k, v in meta.items() if k not in ("answer", "slots")}
                meta |= {"kind": "welcome" if goodbye else kind, "met": [], "text": text}
                return Utterance(text, meta | {"done": done})
            draw -= self.rates[done]
        return Utterance(str(reply), meta | ({"done": "late"} if late else {}))

    @staticmethod
    def _exchange(done: str, messages: Sequence[Message], rng: Random) -> str:
        said = {m["content"] for m in messages if m["role"] == "assistant"}
        table = texts()["wrapped"][done]
        return rng.choice([t for t in table if t not in said] or table)


def _bye(messages: Sequence[Message]) -> bool:
    turns = [m for m in messages if m["role"] == "user"]
    return len(turns) > 1 and is_closing(turns[-1]["content"])
