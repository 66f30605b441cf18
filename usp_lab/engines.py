"""The in-process engine: batched generation that computes every token of a dialogue once.

Keys and values stay in the engine from turn to turn. A prompt is compared with what is there and
only the rest is computed, so that results are those of computing everything anew. Turns end at
different times: others join those that are still being written, so that the batch stays full.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from threading import RLock

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from usp_lab.decoding import Sampling
from usp_lab.kv_rows import KeyValueRows
from usp_lab.streams import Stream, chains


def attention_mask(model: PreTrainedModel, seen: torch.BoolTensor) -> torch.Tensor:
    """Return what a model takes for who attends to whom, shape (rows, 1, new, all)."""
    if model.config._attn_implementation == "sdpa":
        return seen
    return torch.where(seen, 0.0, torch.finfo(model.dtype).min).to(model.dtype)  # is added


class LocalEngine:
    """Generates with a transformers model in this process.

    It keeps ``batch_size`` dialogues of at most `context` tokens in the device's memory. They are
    forgotten when the model's weights change in place; after any other change of the model (an
    adapter switched) call `forget`.
    """

    def __init__(
        self, model: PreTrainedModel, pad_id: int, stop_ids: Sequence[int], batch_size: int = 64
    ) -> None:
        self.model, self.pad_id, self.stop_ids = model, pad_id, frozenset(stop_ids)
        self.batch_size = batch_size
        self.lock = RLock()  # threads take turns
        self.forget()

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model attends to."""
        window = getattr(self.model.config, "sliding_window", None)  # within it, all is attended to
        return min(self.model.config.max_position_embeddings, window or 2**62)

    def room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Return how many tokens are left in the context after the longest possible turn."""
        return self.context - sampling.max_new_tokens - len(prompt)

    def forget(self) -> None:
        """Drop what is kept of earlier turns."""
        self._rows: KeyValueRows | None = None
        self._weights = self._weights_now()

    def _weights_now(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self.model.parameters()]

    def rows(self) -> KeyValueRows:
        """Return what is kept, of the model as it is now."""
        if self._weights_now() != self._weights:
            self.forget()
        if self._rows is None:
            self._rows = KeyValueRows(self.model)
        return self._rows

    def stream(self, sampling: Sampling) -> Stream:
        """Return a stream of turns, which is to be closed when it is no longer needed."""
        return Stream(self, sampling)

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None, sampling: Sampling
    ) -> list[list[int]]:
        """Continue each prompt to its first stop token, which the result includes, or to the limit.

        Where there are more than ``batch_size``, prompts that begin with one another (turns of one
        dialogue) follow each other in one row, so that what they share is computed once.

        With seeds, a row does not depend on its neighbours in fp32; without, torch's global
        generator gives them. In bf16 rounding depends on the batch's shape, and about 3 greedy
        tokens in 1,000 do.

        Raises:
            UspError: a prompt that leaves no room for ``max_new_tokens`` in the context.
        """
        n, out = len(prompts), {}
        if seeds is None:
            seeds = torch.randint(2**62, (n,)).tolist()
        left = chains(prompts, math.ceil(n / self.batch_size))  # each of them has a row in turn
        others = iter(range(self.batch_size, len(left)))
        with (
            closing(self.stream(sampling)) as stream,
            tqdm(total=n, unit="turn", delay=5, leave=False, disable=n <= self.batch_size) as bar,
        ):
            stream.check(prompts)
            firsts = [chain[0] for chain in left[: self.batch_size]]
            stream.add(range(len(firsts)), [prompts[i] for i in firsts], [seeds[i] for i in firsts])
            while stream:
                for c, turn in stream.go_on():
                    out[left[c].pop(0)] = turn
                    bar.update()
                    if not left[c]:
                        stream.leave(c)
                        c = next(others, None)
                    if c is not None:
                        i = left[c][0]
                        stream.add([c], [prompts[i]], [seeds[i]])
        return [out[i] for i in range(n)]

    def forward(
        self, rows: slice | list[int], ids: np.ndarray, places: np.ndarray
    ) -> torch.FloatTensor:
        """Compute new tokens of some rows at their places, both of shape (rows, new).

        Padding, in front, has place -1. Returns the scores after the last token of each row.
        """
        device, kept = self.model.device, self._rows
        where = torch.from_numpy(places).to(device)
        position, width = where.clamp(min=0), int(places.max()) + 1
        kept.look_at(rows, where, width)
        seen = torch.arange(width, device=device) <= position[:, None, :, None]
        scores = self.model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=attention_mask(self.model, seen),
            position_ids=position,
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        each = np.arange(len(kept.held))[rows]
        kept.held[each[:, None], places] = ids
        return scores
