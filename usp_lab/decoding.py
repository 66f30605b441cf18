"""How the next token is chosen: greedy or sampled, by a random stream of each row's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
    """Scramble 64-bit numbers: the finaliser of splitmix64 (doi 10.1145/2660193.2660195).

    Arithmetic wraps around; masks undo the sign that a right shift carries along.
    """
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def streams(seeds: Sequence[int], device: torch.device) -> torch.LongTensor:
    """Return a key for each seed, which may be any integer."""
    signed = [(s + 2**63) % 2**64 - 2**63 for s in seeds]
    return _mix(torch.tensor(signed, device=device) + _GOLDEN)


def uniform(keys: torch.LongTensor, place: int | torch.LongTensor) -> torch.DoubleTensor:
    """Return number ``place`` (of all keys, or of each) of each key's stream, in [0, 1).

    A generator a row takes five times as long on a CPU, and must hand its numbers to a GPU.
    """
    bits = _mix(keys + torch.as_tensor(place, device=keys.device) * _GOLDEN)
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


class Draw:
    """Chooses the next token of turns under way, each by a stream of random numbers of its own.

    The stream is a hash of seed and place, so batch neighbours cannot matter. For the same reason
    the repetition penalty counts a turn's own tokens and no padding. What is known of a turn is kept
    in one of ``slots``.
    """

    def __init__(self, sampling: Sampling, slots: int, scores: torch.FloatTensor) -> None:
        self.sampling, self.device, self.seen = sampling, scores.device, None
        self.keys = torch.zeros(slots, dtype=torch.long, device=self.device)
        if sampling.repetition_penalty != 1:
            shape = (slots, scores.shape[-1])
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def join(self, slots: list[int], seeds: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """Begin turns, in place of those that had these slots."""
        self.keys[slots] = streams(seeds, self.device)
        if self.seen is not None:
            for slot, text in zip(slots, texts, strict=True):
                self.seen[slot] = False
                self.seen[slot, torch.tensor(text, device=self.device)] = True

    def __call__(self, scores: torch.FloatTensor, slots: list[int], places: list[int]) -> list[int]:
        """Return the next token of each turn.

        Args:
            scores: shape (turns, vocabulary).
            slots: where each turn is kept.
            places: how many tokens of each were drawn before.
        """
        s, scores, at = self.sampling, scores.float(), torch.tensor(slots, device=self.device)
        if self.seen is not None:
            penalty = s.repetition_penalty
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self.seen[at], penalised, scores)
        if s.temperature == 0:
            tokens = scores.argmax(-1)
        else:
            u = uniform(self.keys[at], torch.tensor(places, device=self.device))
            tokens = self._sample(scores, u)
        if self.seen is not None:
            self.seen[at, tokens] = True
        return tokens.tolist()

    def _sample(self, scores: torch.FloatTensor, u: torch.DoubleTensor) -> torch.LongTensor:
        chance, order = (scores / self.sampling.temperature).softmax(-1), None
        if self.sampling.top_p < 1:
            chance, order = chance.sort(dim=-1, descending=True, stable=True)
            before = chance.cumsum(-1, dtype=torch.double) - chance
            chance = chance.masked_fill(before >= self.sampling.top_p, 0)
        total = chance.cumsum(-1, dtype=torch.double)  # a sum in fp32 would lose rare tokens
        index = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)
        index = index.clamp_(max=scores.shape[-1] - 1)
        return (index if order is None else order.gather(-1, index))[:, 0]
