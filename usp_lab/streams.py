"""Turns under way in the in-process engine: others join as some end, so that batches stay full."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from usp_lab.decoding import Draw, Sampling
from usp_lab.errors import UspError
from usp_lab.kv_rows import KeyValueRows

if TYPE_CHECKING:
    from usp_lab.engines import LocalEngine

_CPU_PREFILL, _GPU_PREFILL = 128, 2048  # tokens read at once: what keeps a device busy


def chains(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the prompts' indices in chains of ``most`` at most, each prompt beginning with the one before it.

    >>> chains([[1, 2], [1], [3], [1, 2, 5]], most=3)
    [[1, 0, 3], [2]]
    """
    out: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        last = prompts[out[-1][-1]] if out else None
        goes_on = last is not None and prompts[i][: len(last)] == last
        if goes_on and len(out[-1]) < most:
            out[-1].append(i)
        else:
            out.append([i])
    return sorted(out, key=lambda chain: len(prompts[chain[0]]))


@dataclass(eq=False)
class _Turn:
    """A turn under way."""

    key: Hashable
    prompt: list[int]
    seed: int
    new: list[int] = field(default_factory=list)
    slot: int = -1  # of `Draw`

    @property
    def text(self) -> list[int]:
        return self.prompt + self.new


class Stream:
    """Turns under way in an engine, of dialogues that join and end at any time.

    A dialogue's row of keys and values stays its own until it leaves.
    """

    SHARE = 0.25  # of the rows under way that must end, and be joined, at once: batches pay
    FULL = 0.875  # share of computed rows under way below which others are moved out of the way

    def __init__(self, engine: "LocalEngine", sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self._waiting: deque[_Turn] = deque()
        self._live: dict[int, _Turn] = {}  # by row
        self._slots = list(range(engine.batch_size))  # free ones
        self._draw: Draw | None = None
        self._rows: KeyValueRows | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._live)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse a prompt that leaves no room for ``max_new_tokens`` in the context."""
        for i, prompt in enumerate(prompts):
            if self.engine.room(prompt, self.sampling) < 0:
                most = self.engine.context - self.sampling.max_new_tokens
                raise UspError(
                    f"prompt {i} has {len(prompt)} tokens, but a context of {self.engine.context} "
                    f"less {self.sampling.max_new_tokens} new ones holds {max(most, 0)}; shorten "
                    "the profile or dialogue, or lower max_new_tokens"
                )

    def add(
        self,
        keys: Sequence[Hashable],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
    ) -> None:
        """Have turns written, each called by the key of its dialogue.

        Raises:
            UspError: a prompt that leaves no room for ``max_new_tokens`` in the context.
        """
        self.check(prompts)
        turns = [_Turn(k, list(p), int(s)) for k, p, s in zip(keys, prompts, seeds, strict=True)]
        if len(turns) > self.engine.batch_size:  # neighbours of like length attend to little else
            turns.sort(key=lambda t: len(t.prompt))
        self._waiting.extend(turns)

    @torch.inference_mode()
    def go_on(
        self, enough: Callable[[int], bool] | None = None
    ) -> list[tuple[Hashable, list[int]]]:
        """Write until ``enough`` turns have ended; return their keys and tokens.

        Those added before join when they, too, are a share of the rows; joining turns do not change
        what the others say.

        Args:
            enough: tells by the number of ended turns whether to return; None for a share of those
                under way.
        """
        with self.engine.lock:
            self._follow()
            ended = self._join()
            self._close_up()
            share = self.SHARE * len(self._live)
            while self._live and not (enough(len(ended)) if enough else len(ended) >= share):
                ended += self._step()
        return ended

    def leave(self, key: Hashable) -> None:
        """Let others have the row of a dialogue that has ended."""
        with self.engine.lock:
            if self._rows is not None:
                self._rows.leave((self, key))

    def close(self) -> None:
        """Drop what is under way, and let others have all rows."""
        with self.engine.lock:
            for owner in self._rows.owners[:] if self._rows is not None else ():
                if owner is not None and owner[0] is self:
                    self._rows.leave(owner)
        self._waiting.clear()
        self._live.clear()

    def _follow(self) -> None:
        """Begin again with what was computed by a model that has changed since."""
        rows = self.engine.rows()
        if rows is not self._rows:
            self._waiting.extendleft(reversed(self._live.values()))
            self._slots += [turn.slot for turn in self._live.values()]
            self._live.clear()
            self._rows = rows

    def _join(self) -> list[tuple[Hashable, list[int]]]:
        """Read the prompts of those that wait, where there is room, and draw a first token."""
        n = min(len(self._waiting), len(self._slots))
        if n == 0 or n < self.SHARE * len(self._live):
            return []
        turns = [self._waiting.popleft() for _ in range(n)]
        texts = [turn.text for turn in turns]
        self._reserve(max(len(turn.prompt) for turn in turns) + self.sampling.max_new_tokens)
        claims = self._rows.claim(
            [(self, turn.key) for turn in turns], texts, self.engine.batch_size
        )
        rows = [row for row, _ in claims]
        self._live.update(zip(rows, turns, strict=True))
        for turn in turns:
            turn.slot = self._slots.pop()
        scores = self._read(claims, texts)
        if self._draw is None:
            self._draw = Draw(self.sampling, self.engine.batch_size, scores)
        self._draw.join([t.slot for t in turns], [t.seed for t in turns], texts)
        return self._choose(rows, scores)

    def _reserve(self, columns: int) -> None:
        if columns > self._rows.columns:  # by half at least, so that growing dialogues seldom move
            self._rows.reserve(0, min(columns * 3 // 2, self.engine.context))

    def _read(self, claims: list[tuple[int, int]], texts: list[list[int]]) -> torch.FloatTensor:
        """Compute what is not kept yet; return the scores after each text."""
        new = [text[kept:] for (_, kept), text in zip(claims, texts, strict=True)]
        most = _CPU_PREFILL if self.engine.model.device.type == "cpu" else _GPU_PREFILL
        order = sorted(range(len(new)), key=lambda i: len(new[i]))  # so that padding is small
        scores: dict[int, torch.Tensor] = {}
        while order:
            n = 1
            while n < len(order) and (n + 1) * len(new[order[n]]) <= most:
                n += 1
            some, order = order[:n], order[n:]
            ids = np.full((n, len(new[some[-1]])), self.engine.pad_id)
            places = np.full(ids.shape, -1)
            for j, i in enumerate(some):
                ids[j, -len(new[i]) :] = new[i]
                places[j, -len(new[i]) :] = range(claims[i][1], len(texts[i]))
            rows = [claims[i][0] for i in some]
            where = rows if n > 1 else slice(rows[0], rows[0] + 1)
            scores.update(zip(some, self.engine.forward(where, ids, places), strict=True))
        return torch.stack([scores[i] for i in range(len(new))])

    def _close_up(self) -> None:
        """Move rows to the front where too few of those computed would be under way."""
        rows, live = sorted(self._live), len(self._live)
        if live and live < self.FULL * (rows[-1] + 1):
            holes = np.flatnonzero(~self._rows.busy[:live]).tolist()
            moving = rows[live - len(holes) :]  # the last ones
            self._rows.swap(holes, moving)
            for hole, row in zip(holes, moving, strict=True):
                self._live[hole] = self._live.pop(row)

    def _step(self) -> list[tuple[Hashable, list[int]]]:
        """Write one more token of each turn; return those that ended.

        All rows up to the last one are computed, be they under way or not: no copy costs less.
        """
        rows = sorted(self._live)
        shape = (rows[-1] + 1, 1)
        ids, places = np.full(shape, self.engine.pad_id), np.full(shape, -1)
        for row, turn in self._live.items():
            ids[row], places[row] = turn.new[-1], len(turn.prompt) + len(turn.new) - 1
        scores = self.engine.forward(slice(0, len(ids)), ids, places)
        return self._choose(rows, scores if len(rows) == len(ids) else scores[rows])

    def _choose(
        self, rows: list[int], scores: torch.FloatTensor
    ) -> list[tuple[Hashable, list[int]]]:
        """Draw the next token of each row; return the turns that ended with it."""
        turns, ended = [self._live[row] for row in rows], []
        tokens = self._draw(scores, [t.slot for t in turns], [len(t.new) for t in turns])
        for row, turn, token in zip(rows, turns, tokens, strict=True):
            turn.new.append(token)
            if token in self.engine.stop_ids or len(turn.new) == self.sampling.max_new_tokens:
                ended.append((turn.key, turn.new))
                self._slots.append(turn.slot)
                self._rows.busy[row] = False
                del self._live[row]
        return ended
