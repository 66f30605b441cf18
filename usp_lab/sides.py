"""The two sides of a dialogue under way, and how each is asked for its turns.

A side that computes in this process is called with all dialogues that are ready; where it is a
language model, dialogues join its batch and leave it one by one. A remote side is called from
threads with one dialogue each, so that none waits for another's answer.
"""

import hashlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from usp_lab.chat import END_TOKEN, Message, Utterance, is_closing, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.simulators import ChatModel, ModelAssistant


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


@dataclass(eq=False)
class Talk:
    """A dialogue under way."""

    target: Dialogue
    replicate: int
    messages: list[Message]
    waits: bool = False  # for a turn under way, remotely or in a model's batch
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


class Side:
    """Who speaks as ``role``: called with all dialogues that are ready, or remotely with each."""

    def __init__(self, role: str, speaker, call: Callable, answers: queue.SimpleQueue) -> None:
        self.role, self.call, self.answers = role, call, answers
        self.room = getattr(speaker, "room", None)
        self.todo, self.threads = queue.SimpleQueue(), []
        self.most = speaker.concurrency if getattr(speaker, "remote", False) else 0
        self.endpoint = getattr(speaker, "endpoint", None)
        self.by_target = getattr(speaker, "by_target", False)
        self.model, self.stream = None, None
        # A subclass may do more in its own method than have the engine write.
        if getattr(call, "__func__", None) in (ChatModel.generate, ModelAssistant.reply):
            self.model, self.stream = speaker, speaker.engine.stream(speaker.sampling)

    def speak(self, talks: Sequence[Talk], settings: Settings, at_once: bool) -> None:
        """Let each dialogue whose turn it is go on; remotely, `answers` will have its turn.

        Args:
            talks: all under way.
            settings: of the run.
            at_once: hear each turn that a model's batch has ended, not some together: a remote side
                waits for it, or has answered.
        """
        ready = [t for t in talks if not (t.stop or t.waits) and t.speaker == self.role]
        seeds = [
            turn_seed(settings.seed, t.replicate, f"{t.target.id}/{self.role}", len(t.messages))
            for t in ready
        ]
        if self.stream is not None:
            self._write(ready, seeds, settings.max_turns, at_once)
            return
        for t in ready:
            t.stop = "context full" if self.room and self.room(self._read(t)) < 0 else ""
        seeds = [s for t, s in zip(ready, seeds, strict=True) if not t.stop]
        ready = [t for t in ready if not t.stop]
        if self.most:
            self._send(ready, seeds)
        elif ready:
            known = ([t.target for t in ready],) if self.by_target else ()
            turns = self.call([t.messages for t in ready], seeds, *known)
            for t, text in zip(ready, turns, strict=True):
                t.hear(text, settings.max_turns)

    def _read(self, talk: Talk) -> list[Message]:
        """Return what a model reads; an assistant is not shown the user's profile."""
        return talk.messages if self.role == "user" else with_profile(talk.messages, None)

    def _write(
        self, talks: Sequence[Talk], seeds: Sequence[int], max_turns: int, at_once: bool
    ) -> None:
        """Have turns join those that the model writes, and hear those that have ended."""
        model = self.model
        for t, seed in zip(talks, seeds, strict=True):
            prompt = model.prompt(self._read(t))
            if model.engine.room(prompt, model.sampling) < 0:
                t.stop = "context full"
            else:
                t.waits = True
                self.stream.add([t], [prompt], [seed])
        enough = (lambda n: n > 0 or not self.answers.empty()) if at_once else None
        for t, ids in self.stream.go_on(enough):
            t.waits = False
            t.hear(model.text(ids), max_turns)

    def leave(self, talk: Talk) -> None:
        """Note that a dialogue has ended."""
        if self.stream is not None:
            self.stream.leave(talk)

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
        """Send no more, and drop what a model is writing; threads end when their call does."""
        if self.stream is not None:
            self.stream.close()
        while not self.todo.empty():
            self.todo.get()
        for _ in self.threads:
            self.todo.put(None)
