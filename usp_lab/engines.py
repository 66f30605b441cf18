"""The in-process engine: batched generation that computes every token of a dialogue once.

Keys and values stay in the engine from turn to turn. A prompt is compared with what is there and
only the rest is computed, so that results are those of computing everything anew.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from usp_lab.decoding import Draw, Sampling
from usp_lab.errors import UspError


def attention_mask(model: PreTrainedModel, seen: torch.BoolTensor) -> torch.Tensor:
    """Return what a model takes for who attends to whom, shape (rows, 1, new, all)."""
    if model.config._attn_implementation == "sdpa":
        return seen
    return torch.where(seen, 0.0, torch.finfo(model.dtype).min).to(model.dtype)  # is added


class _Rows(Cache):
    """Keys and values of dialogues, a row each, filled from the left: no holes between turns.

    ``places`` (rows, new tokens) says in which column each new token goes, ``width`` how many
    columns are attended to. The last column is a waste bin for padding.
    """

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self.keys, self.values = keys, values
        self.places, self.width = torch.zeros(0, 0, dtype=torch.long), 0

    @classmethod
    def empty(cls, model: PreTrainedModel, rows: int, columns: int) -> "_Rows":
        """Make room for a model's keys and values; one token is computed to learn their shapes."""
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        layers = model(token, use_cache=True).past_key_values.layers
        if not all(isinstance(getattr(x, "keys", None), torch.Tensor) for x in layers):
            raise UspError(
                f"{type(model).__name__} keeps other states than keys and values; serve it and use "
                "the endpoint engine"
            )

        def room(x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(rows, x.shape[1], columns, x.shape[3])

        return cls([room(x.keys) for x in layers], [room(x.values) for x in layers])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.keys[0].shape[0], self.keys[0].shape[2]

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """Store what is new and return all that is attended to (the interface of `Cache`)."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        each = torch.arange(len(self.places), device=keys.device)[:, None]
        keys[each, :, self.places] = key_states.transpose(1, 2)
        values[each, :, self.places] = value_states.transpose(1, 2)
        return keys[:, :, : self.width], values[:, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are given with each call."""
        return 0

    def part(self, rows: slice | list[int]) -> "_Rows":
        """Return some rows: a view for a slice, a copy for a list."""
        return _Rows([k[rows] for k in self.keys], [v[rows] for v in self.values])

    def take(self, row: int, other: "_Rows", other_row: int, columns: slice) -> None:
        """Copy columns of a row of another cache into a row of this one."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for a, b in zip(mine, theirs, strict=True):
                a[row, :, columns] = b[other_row, :, columns]


class LocalEngine:
    """Generates with a transformers model in this process.

    It keeps ``batch_size`` dialogues of at most `context` tokens in the device's memory. They are
    forgotten when the model's weights change in place; after any other change of the model (an
    adapter switched) call `forget`.
    """

    PREFILL = 512  # tokens computed at once while prompts are read: padding stays small
    SHRINK = 0.75  # share of rows still under way at which the others are left out

    def __init__(
        self, model: PreTrainedModel, pad_id: int, stop_ids: Sequence[int], batch_size: int = 64
    ) -> None:
        self.model, self.pad_id, self.stop_ids = model, pad_id, frozenset(stop_ids)
        self.batch_size = batch_size
        self.forget()

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model attends to."""
        window = getattr(self.model.config, "sliding_window", None)  # within it, all is attended to
        return min(self.model.config.max_position_embeddings, window or 2**62)

    def forget(self) -> None:
        """Drop what is kept of earlier calls."""
        self._cache: _Rows | None = None
        self._held = np.zeros((0, 0), dtype=np.int64)  # token ids by row and column, -1 for none
        self._used = np.zeros(0, dtype=np.int64)  # the call that used a row last
        self._calls, self._weights = 0, self._weights_now()

    def _weights_now(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self.model.parameters()]

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None, sampling: Sampling
    ) -> list[list[int]]:
        """Continue each prompt to its first stop token, which the result includes, or to the limit.

        With seeds, a row does not depend on its neighbours in fp32; without, torch's global
        generator gives them. In bf16 rounding depends on
        the batch's shape, and about 3 greedy tokens in 1,000 do.

        Raises:
            UspError: a prompt that leaves no room for ``max_new_tokens`` in the context.
        """
        room = self.context - sampling.max_new_tokens
        for i, p in enumerate(prompts):
            if len(p) > room:
                raise UspError(
                    f"prompt {i} has {len(p)} tokens, but a context of {self.context} less "
                    f"{sampling.max_new_tokens} new ones holds {max(room, 0)}; shorten the profile "
                    "or dialogue, or lower max_new_tokens"
                )
        if seeds is None:
            seeds = torch.randint(2**62, (len(prompts),)).tolist()
        if self._weights_now() != self._weights:
            self.forget()
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        if len(order) <= self.batch_size:
            order.sort()
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        out: dict[int, list[int]] = {}
        with tqdm(
            total=len(order), unit="turn", delay=5, leave=False, disable=len(batches) < 2
        ) as bar:
            for chosen in batches:
                some = [list(prompts[i]) for i in chosen]
                new = self._batch(some, [int(seeds[i]) for i in chosen], sampling)
                out.update(zip(chosen, new, strict=True))
                bar.update(len(chosen))
        return [out[i] for i in range(len(prompts))]

    def _batch(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[list[int]]:
        limit = sampling.max_new_tokens
        self._reserve(len(prompts), max(map(len, prompts)) + limit)
        claims = self._claim(prompts)
        order = sorted(range(len(prompts)), key=claims.__getitem__)  # by row of the cache
        prompts, (rows, kept) = [prompts[i] for i in order], zip(*sorted(claims), strict=True)
        together = rows[-1] - rows[0] + 1 == len(rows)
        cache = self._cache.part(slice(rows[0], rows[-1] + 1) if together else list(rows))
        scores = self._read(cache, prompts, kept)
        draw = Draw(sampling, [seeds[i] for i in order], prompts, scores)
        new = self._write(cache, prompts, scores, draw, limit)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            known = prompt + new[i][:-1]  # the last token was drawn, not computed with
            self._held[row, : len(known)] = known
            if not together:
                self._cache.take(row, cache, i, slice(kept[i], len(known)))
        out = dict(zip(order, new, strict=True))
        return [out[i] for i in range(len(out))]

    def _reserve(self, rows: int, columns: int) -> None:
        """Make the cache large enough, keeping what is in it."""
        old_rows, old_columns = self._held.shape
        if rows <= old_rows and columns <= old_columns:
            return
        rows = max(rows, old_rows)
        if columns > old_columns:  # by half at least, so that growing dialogues seldom move
            columns = min(max(columns, old_columns * 3 // 2), self.context)
        columns = max(columns, old_columns)
        cache, held = _Rows.empty(self.model, rows, columns + 1), np.full((rows, columns), -1)
        held[:old_rows, :old_columns] = self._held
        for row in range(old_rows):
            cache.take(row, self._cache, row, slice(0, old_columns))
        self._used = np.concatenate([self._used, np.zeros(rows - old_rows, dtype=np.int64)])
        self._cache, self._held = cache, held

    def _claim(self, prompts: list[list[int]]) -> list[tuple[int, int]]:
        """Return for each prompt a row of the cache and how many of its first tokens lie there.

        The longest common beginnings are served first. The last token is always computed anew,
        since its scores are wanted.
        """
        self._calls += 1
        common = np.zeros((len(prompts), len(self._held)), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            differs = self._held[:, : len(prompt)] != np.asarray(prompt)
            differs[:, -1] = True
            common[i] = differs.argmax(axis=1)
        claims: dict[int, tuple[int, int]] = {}
        free = set(range(len(self._held)))
        oldest = np.broadcast_to(self._used, common.shape).ravel()
        for pair in np.lexsort((oldest, -common.ravel())):
            i, row = divmod(int(pair), len(self._held))
            if i not in claims and row in free:
                claims[i] = (row, int(common[i, row]))
                free.remove(row)
                self._used[row] = self._calls
                self._held[row, claims[i][1] :] = -1  # about to be overwritten
                if len(claims) == len(prompts):
                    break
        return [claims[i] for i in range(len(prompts))]

    def _read(
        self, cache: _Rows, prompts: list[list[int]], kept: Sequence[int]
    ) -> torch.FloatTensor:
        """Compute what is not in the cache yet; return the scores after each prompt."""
        scores, first = [], 0
        while first < len(prompts):
            last, longest = first, 0
            while last < len(prompts):  # neighbours, as many as PREFILL allows
                longer = max(longest, len(prompts[last]) - kept[last])
                if last > first and longer * (last + 1 - first) > self.PREFILL:
                    break
                last, longest = last + 1, longer
            ids, places = [], []
            for i in range(first, last):
                new = prompts[i][kept[i] :]
                ids.append([self.pad_id] * (longest - len(new)) + new)
                places.append([-1] * (longest - len(new)) + list(range(kept[i], len(prompts[i]))))
            scores.append(self._forward(cache.part(slice(first, last)), ids, places))
            first = last
        return torch.cat(scores)

    def _write(
        self, cache: _Rows, prompts: list[list[int]], scores, draw: Draw, limit: int
    ) -> list[list[int]]:
        """Draw tokens until each row has a stop token or the limit."""
        new: list[list[int]] = [[] for _ in prompts]
        rows, view = list(range(len(prompts))), cache  # the rows that a forward pass computes

        def give_back(j: int, i: int) -> None:
            if view is not cache:
                cache.take(i, view, j, slice(len(prompts[i]), len(prompts[i]) + len(new[i]) - 1))

        alive = set(rows)
        for place in range(limit):
            for i, token in zip(rows, draw(scores, rows, place), strict=True):
                if i in alive:
                    new[i].append(token)
                    if token in self.stop_ids:
                        alive.remove(i)
            if not alive or place == limit - 1:
                break
            if len(alive) <= self.SHRINK * len(rows):  # the others have ended: leave them out
                left = [j for j, i in enumerate(rows) if i in alive]
                for j, i in enumerate(rows):
                    if i not in alive:
                        give_back(j, i)
                rows, view = [rows[j] for j in left], view.part(left)
            ids = [[new[i][-1]] for i in rows]
            places = [[len(prompts[i]) + len(new[i]) - 1] for i in rows]
            scores = self._forward(view, ids, places)
        for j, i in enumerate(rows):
            give_back(j, i)
        return new

    def _forward(
        self, cache: _Rows, ids: list[list[int]], places: list[list[int]]
    ) -> torch.FloatTensor:
        """Compute new tokens of each row at their places (-1: padding); return the last scores."""
        device = self.model.device
        where = torch.tensor(places, device=device)
        position = where.clamp(min=0)
        cache.places = where.masked_fill(where < 0, cache.shape[1] - 1)
        cache.width = max(row[-1] for row in places) + 1
        seen = torch.arange(cache.width, device=device) <= position[:, None, :, None]
        return self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=attention_mask(self.model, seen),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
