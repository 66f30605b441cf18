"""The inside of `simulate`: keeps dialogues going, whoever speaks, and hands on those that have ended."""

import hashlib
import json
import queue
import sys
from collections import deque
from collections.abc import Sequence

from tqdm.auto import tqdm

from usp_lab.chat import with_profile
from usp_lab.data import Dialogue
from usp_lab.sides import Settings, Side, Talk
from usp_lab.store import FAILED, Simulated, Store

_DELAY = 3  # seconds until the bar shows: a short run needs none
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def fingerprint(target: Dialogue) -> str:
    """Return 8 hex digits over what a simulator can know of a target."""
    known = [target.profile, [m["content"] for m in target.messages], target.truth]
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Loop:
    """Keeps dialogues going and hands the store those that have ended."""

    def __init__(
        self, simulator, assistant, settings: Settings, store: Store, batch_size: int
    ) -> None:
        self.start, self.settings, self.store = simulator.start, settings, store
        self.active: list[Talk] = []
        self.ended = self.failed = 0
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.sides = (
            Side("user", simulator, simulator.generate, self.answers),
            Side("assistant", assistant, assistant.reply, self.answers),
        )
        # A model finds again what it computed of as many dialogues as its engine keeps.
        kept = [side.model.engine.batch_size for side in self.sides if side.model]
        self.batch_size = min([batch_size, *kept])

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
                side.speak(self.active, self.settings, any(s.most for s in self.sides))
            writing = any(side.stream for side in self.sides)
            broken = self._listen(not writing and all(t.waits for t in self.active))
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
        for side in self.sides:
            for t in ended:
                side.leave(t)
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
