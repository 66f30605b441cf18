"""The in-process engine: batched generation in which a row depends on its prompt and seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessor, PreTrainedModel

from usp_lab.errors import UspError


@dataclass(frozen=True)
class Sampling:
    """How turns are drawn. ``temperature=0`` is greedy; USP's release has a penalty of 1.2."""

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not (
            self.temperature >= 0
            and 0 < self.top_p <= 1
            and self.repetition_penalty > 0
            and self.max_new_tokens >= 1
        ):
            raise UspError(
                f"{self} cannot be; give temperature >= 0, 0 < top_p <= 1, repetition_penalty > 0 "
                "and max_new_tokens >= 1"
            )


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mix(x: torch.LongTensor) -> torch.LongTensor:
    """Scramble 64-bit numbers in place: the finaliser of splitmix64 (doi 10.1145/2660193.2660195).

    Arithmetic wraps around; masks undo the sign that a right shift carries along.
    """
    shifted = x >> 30
    x.bitwise_xor_(shifted.bitwise_and_(2**34 - 1)).mul_(0xBF58476D1CE4E5B9 - 2**64)
    torch.bitwise_right_shift(x, 27, out=shifted)
    x.bitwise_xor_(shifted.bitwise_and_(2**37 - 1)).mul_(0x94D049BB133111EB - 2**64)
    torch.bitwise_right_shift(x, 31, out=shifted)
    return x.bitwise_xor_(shifted.bitwise_and_(2**33 - 1))


class _Streams:
    """A stream of random numbers a seed, drawn by counting, so that all rows are drawn at once.

    A generator a row takes five times as long on a CPU, and must hand its numbers to a GPU.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        signed = [(s + 2**63) % 2**64 - 2**63 for s in seeds]  # any integer is a seed
        self.keys, self.drawn = _mix(torch.tensor(signed, device=device) + _GOLDEN), 0

    def exponential(self, size: int) -> torch.FloatTensor:
        """Return the next ``size`` standard exponential numbers of each stream."""
        places = torch.arange(self.drawn, self.drawn + size, device=self.keys.device) * _GOLDEN
        self.drawn += size
        bits = _mix(self.keys[:, None] + places).bitwise_and_(2**63 - 1)
        return bits.float().mul_(-(2.0**-63)).log1p_().neg_()


class _SeededDraw(LogitsProcessor):
    """Turn greedy search into sampling with a random stream a row (Gumbel-max).

    Batch neighbours then cannot matter. For the same reason the repetition penalty is applied here
    and to a row's own tokens: the stock processor also counts the padding, which depends on the
    batch.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[int] | None, mask: torch.LongTensor
    ) -> None:
        self.sampling, self.mask, self.seen = sampling, mask, None
        self.streams = None if seeds is None else _Streams(seeds, mask.device)

    def __call__(self, ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        s, scores = self.sampling, scores.float()
        if s.repetition_penalty != 1:
            penalty = s.repetition_penalty
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self._own_tokens(ids, scores.shape[-1]), penalised, scores)
        if s.temperature == 0:
            return scores
        scores = scores / s.temperature
        if s.top_p < 1:
            ordered, index = scores.sort(dim=-1, descending=True, stable=True)
            chance = ordered.softmax(-1)
            before = chance.cumsum(-1) - chance
            kept = ordered.masked_fill(before >= s.top_p, -torch.inf)
            scores = scores.scatter(-1, index, kept)
        if self.streams is None:
            noise = torch.empty_like(scores).exponential_()
        else:
            noise = self.streams.exponential(scores.shape[-1])
        return scores - noise.log_()

    def _own_tokens(self, ids: torch.LongTensor, size: int) -> torch.BoolTensor:
        """Return which tokens each row holds, padding apart; shape (rows, size)."""
        new = ids[:, -1:]
        if self.seen is None:  # the prompts; padding goes to a column of its own
            self.seen = torch.zeros(len(ids), size + 1, dtype=torch.bool, device=ids.device)
            new = ids.masked_fill(self.mask == 0, size)
        return self.seen.scatter_(1, new, True)[:, :size]


class LocalEngine:
    """Generates with a transformers model in this process."""

    def __init__(
        self, model: PreTrainedModel, pad_id: int, stop_ids: Sequence[int], batch_size: int = 64
    ) -> None:
        self.model, self.pad_id, self.stop_ids = model, pad_id, list(stop_ids)
        self.batch_size = batch_size

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model attends to."""
        return self.model.config.max_position_embeddings

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None, sampling: Sampling
    ) -> list[list[int]]:
        """Continue each prompt to its first stop token, which the result includes, or to the limit.

        Prompts are batched by length and padded on the left. With seeds, a row does not depend on
        its neighbours in fp32. In bf16 rounding depends on the batch's shape, and about 3 greedy
        tokens in 1,000 do.

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
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        out: dict[int, list[int]] = {}
        with tqdm(
            total=len(order), unit="turn", delay=5, leave=False, disable=len(batches) < 2
        ) as bar:
            for rows in batches:
                row_seeds = None if seeds is None else [int(seeds[i]) for i in rows]
                new = self._batch([prompts[i] for i in rows], row_seeds, sampling)
                out.update(zip(rows, new, strict=True))
                bar.update(len(rows))
        return [out[i] for i in range(len(prompts))]

    def _batch(
        self, prompts: list[Sequence[int]], seeds: list[int] | None, sampling: Sampling
    ) -> list[list[int]]:
        width, device = max(map(len, prompts)), self.model.device
        pads = [width - len(p) for p in prompts]
        rows = zip(pads, prompts, strict=True)
        ids = torch.tensor([[self.pad_id] * n + list(p) for n, p in rows], device=device)
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads], device=device)
        new = self.model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
            logits_processor=[_SeededDraw(sampling, seeds, mask)],
        )[:, width:].tolist()
        return [self._cut(row) for row in new]

    def _cut(self, ids: list[int]) -> list[int]:
        stop = next((i for i, t in enumerate(ids) if t in self.stop_ids), None)
        return ids if stop is None else ids[: stop + 1]
