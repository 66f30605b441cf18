"""The inside of `simulate`: keeps dialogues going, whoever speaks, and hands on those that have ended.

A side that computes in this process is called with all dialogues that are ready. A remote side is
called from threads with one dialogue each, so that none waits for another's answer.
"""

import hashlib
import json
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from usp_lab.chat import END_TOKEN, Message, Utterance, is_closing, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.store import FAILED, Simulated, Store

_DELAY = 3  # seconds until the bar shows: a short run needs none
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def turn_seed(seed: int, replicate: int, target_id: str, turn: int) -> int:
    """Return the seed of one turn, different for every run seed, replicate, target and turn."""
    text = f"{seed}/{replicate}/{target_id}/{turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


@dataclass(frozen=True)
class Settings:
    """What all dialogues of a run have in common."""

    simulator: str
    assistant: str
    max_turns: int
    seed: int

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise UspError(f"max_turns must be at least 1, not {self.max_turns}")

    def run(self, replicate: int) -> str:
        """Return 12 hex digits over everything but the target."""
        parts = [self.simulator, self.assistant, self.max_turns, self.seed, replicate]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def fingerprint(target: Dialogue) -> str:
    """Return 8 hex digits over what a simulator can know of a target."""
    known = [target.profile, [m["content"] for m in target.messages], target.truth]
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(eq=False)
class Talk:
    """A dialogue under way."""

    target: Dialogue
    replicate: int
    messages: list[Message]
    waits: bool = False  # for a remote side
    waited: Counter = field(default_factory=Counter)  # seconds, by role of the side
    stop: str = ""
    error: str = ""

    @property
    def speaker(self) -> str:
        """Who is to speak."""
        spoke = self.messages and self.messages[-1]["role"] == "user"
        return "assistant" if spoke else "user"

    def hear(self, text: str, max_turns: int) -> None:
        """Add what the speaker said, or note why the dialogue ends."""
        meta = text.meta if isinstance(text, Utterance) else {}
        said = {"role": self.speaker, "content": str(text)} | ({"meta": meta} if meta else {})
        if self.speaker == "user":
            if text == END_TOKEN:
                self.stop = "end token"
            elif not text.strip():
                self.stop = "left" if meta.get("left") else "empty turn"
            else:
                self.messages.append(said)
            return
        if not text.strip():
            self.stop = "empty reply"
            return
        turn = sum(m["role"] == "user" for m in self.messages)
        goodbye = turn > 1 and is_closing(self.messages[-1]["content"])
        self.messages.append(said)
        if goodbye and meta.get("kind", "welcome") == "welcome":
            self.stop = "closing"
        elif turn >= max_turns:
            self.stop = "max turns"


class _Side:
    """Who speaks as ``role``: called with all dialogues that are ready, or remotely with each."""

    def __init__(self, role: str, speaker, call: Callable, answers: queue.SimpleQueue) -> None:
        self.role, self.call, self.answers = role, call, answers
        self.room = getattr(speaker, "room", None)
        self.todo, self.threads = queue.SimpleQueue(), []
        self.most = speaker.concurrency if getattr(speaker, "remote", False) else 0
        self.endpoint = getattr(speaker, "endpoint", None)

    def is_full(self, talk: Talk) -> bool:
        """Tell whether the longest turn would not fit the speaker's context."""
        if self.room is None:
            return False
        user = self.role == "user"
        return self.room(talk.messages if user else with_profile(talk.messages, None)) < 0

    def speak(self, talks: Sequence[Talk], settings: Settings) -> None:
        """Let each dialogue whose turn it is go on; remotely, `answers` will have its turn."""
        ready = [t for t in talks if not (t.stop or t.waits) and t.speaker == self.role]
        for t in ready:
            t.stop = "context full" if self.is_full(t) else ""
        ready = [t for t in ready if not t.stop]
        seeds = [
            turn_seed(settings.seed, t.replicate, f"{t.target.id}/{self.role}", len(t.messages))
            for t in ready
        ]
        if self.most:
            self._send(ready, seeds)
        elif ready:
            turns = self.call([t.messages for t in ready], seeds)
            for t, text in zip(ready, turns, strict=True):
                t.hear(text, settings.max_turns)

    def _send(self, talks: Sequence[Talk], seeds: Sequence[int]) -> None:
        for t, seed in zip(talks, seeds, strict=True):
            t.waits = True
            self.todo.put((t, seed))
            if len(self.threads) < self.most:  # daemons, so that Ctrl-C waits for no answer
                self.threads.append(threading.Thread(target=self._work, daemon=True))
                self.threads[-1].start()

    def _work(self) -> None:
        while (job := self.todo.get()) is not None:
            talk, seed = job
            began = time.monotonic()
            try:
                with self._patience(talk):
                    answer = self.call([talk.messages], [seed])[0]
            except Exception as error:  # for the loop's thread to judge
                answer = error
            talk.waited[self.role] += time.monotonic() - began
            self.answers.put((talk, answer))

    def _patience(self, talk: Talk) -> AbstractContextManager:
        """Allow a call of an endpoint what is left of the time that a dialogue has."""
        if self.endpoint is None:
            return nullcontext()
        from usp_lab.endpoints import time_limit

        return time_limit(self.endpoint.dialogue_timeout - talk.waited[self.role])

    def close(self) -> None:
        """Send no more; threads end when their call does."""
        while not self.todo.empty():
            self.todo.get()
        for _ in self.threads:
            self.todo.put(None)


class Loop:
    """Keeps dialogues going and hands the store those that have ended."""

    def __init__(
        self, simulator, assistant, settings: Settings, store: Store, batch_size: int
    ) -> None:
        self.start, self.settings, self.store = simulator.start, settings, store
        self.batch_size = batch_size
        self.active: list[Talk] = []
        self.ended = self.failed = 0
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.sides = (
            _Side("user", simulator, simulator.generate, self.answers),
            _Side("assistant", assistant, assistant.reply, self.answers),
        )

    def run(self, waiting: Sequence[tuple[int, Dialogue]], total: int, progress: bool) -> None:
        """Simulate what waits (replicates and targets), of ``total`` dialogues.

        Raises:
            UspError: a side cannot go on, or the disk is full; what has ended is kept.
            KeyboardInterrupt: Ctrl-C; its text says how to go on.
        """
        before = total - len(waiting)
        with tqdm(
            total=total,
            initial=before,
            unit=" dialogues",
            delay=_DELAY,
            bar_format=_BAR,
            smoothing=0,  # the mean rate: dialogues end in waves
            disable=not progress,
            mininterval=1 if sys.stderr.isatty() else 5,
            leave=False,
        ) as bar:
            try:
                self._run(deque(waiting), bar)
            except KeyboardInterrupt:
                self._put_away()
                out = self.store.out
                end = f"in {out}; run the same again to go on" if out else "lost, for want of out="
                raise KeyboardInterrupt(
                    f"stopped; {before + self.ended} of {total} dialogues are {end}"
                ) from None
            finally:
                for side in self.sides:
                    side.close()

    def _run(self, waiting: deque[tuple[int, Dialogue]], bar: tqdm) -> None:
        while self.active or waiting:
            while waiting and len(self.active) < self.batch_size:
                replicate, target = waiting.popleft()
                self.active.append(Talk(target, replicate, list(self.start(target))))
            for side in self.sides:
                side.speak(self.active, self.settings)
            broken = self._listen(all(t.waits for t in self.active))
            bar.update(self._put_away())
            if self.failed:
                bar.set_postfix_str(f"{self.failed} failed", refresh=False)
            if broken is not None:
                raise broken

    def _listen(self, wait: bool) -> Exception | None:
        """Take in what remote sides have said, ``wait`` for one; return an error that ends all."""
        while wait or not self.answers.empty():
            talk, answer = self.answers.get()
            talk.waits = wait = False
            if not isinstance(answer, Exception):
                talk.hear(answer, self.settings.max_turns)
            elif _has_failed_alone(answer):
                talk.stop, talk.error = FAILED, str(answer)
            else:
                return answer
        return None

    def _put_away(self) -> int:
        """Hand over the dialogues that have ended, each once; return how many."""
        ended = [t for t in self.active if t.stop]
        self.active = [t for t in self.active if not t.stop]
        self.ended += len(ended)
        self.failed += sum(t.stop == FAILED for t in ended)
        self.store.add([self._simulated(t) for t in ended])
        return len(ended)

    def _simulated(self, talk: Talk) -> Simulated:
        t = talk.target
        return Simulated(
            id=t.id,
            messages=with_profile(talk.messages, None),
            profile=t.profile,
            user_id=t.user_id,
            source="simulated",
            stop=talk.stop,
            error=talk.error,
            run=self.settings.run(talk.replicate),
            target=fingerprint(t),
            replicate=talk.replicate,
        )


def _has_failed_alone(error: Exception) -> bool:
    from usp_lab.endpoints import RequestFailed  # its client is an extra

    return isinstance(error, RequestFailed)
