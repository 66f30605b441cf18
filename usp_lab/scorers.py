"""Model-backed scores: perplexity of real turns, likeness of meaning.

Offline, meaning is all-MiniLM-L6-v2; with a hub within reach the paper's encoder is used by name.
Style is in `style`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from usp_lab.chat import Message, trained_mask
from usp_lab.models import rows_at_once

_LOGITS = 40_000_000  # logits held at once: a batch has at most this many tokens x vocabulary


@torch.inference_mode()
def turn_nll(simulator, dialogues: Sequence[Sequence[Message]]) -> list[list[tuple[float, int]]]:
    """Score real user turns under a simulator, each in its own context.

    Args:
        simulator: `simulate.UserSimulator`.
        dialogues: messages as the simulator reads them, its system message (or none) included.

    Returns:
        Per dialogue, per user turn: (negative log-likelihood in nats, tokens), the closing ``<|eot_id|>``
        included. A dialogue longer than the context gives (NaN, 0) for every turn.
    """
    model, tokenizer = simulator.model, simulator.tokenizer
    encoded = [trained_mask(tokenizer, d, "user") for d in dialogues]
    out = [[(math.nan, 0) for m in d if m["role"] == "user"] for d in dialogues]
    fits = [i for i, (ids, _) in enumerate(encoded) if len(ids) <= simulator.engine.context]
    order, start = sorted(fits, key=lambda i: len(encoded[i][0])), 0
    with tqdm(total=len(order), unit="dialogue", delay=5, mininterval=1, leave=False) as bar:
        while start < len(order):
            rows = order[start : start + rows_at_once(model.device)]
            while len(rows) * len(encoded[rows[-1]][0]) * model.config.vocab_size > _LOGITS:
                if len(rows) == 1:
                    break
                rows = rows[: len(rows) // 2]
            start += len(rows)
            for i, nll in zip(rows, _token_nll(model, [encoded[i] for i in rows]), strict=True):
                out[i] = [(float(nll[a:b].sum(dtype=float)), b - a) for a, b in runs(encoded[i][1])]
            bar.update(len(rows))
    return out


def _token_nll(model, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """Return the loss of each token given those before it, 0 where the mask is 0: shape (rows, width)."""
    width = max(len(ids) for ids, _ in rows)
    ids, mask, trained = torch.zeros(3, len(rows), width, dtype=torch.long)  # padded on the right
    for row, (tokens, marks) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        trained[row, : len(tokens)] = torch.tensor(marks)
    ids, mask, wanted = ids.to(model.device), mask.to(model.device), trained[:, 1:].bool()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    wanted = wanted.to(model.device)
    nll = torch.zeros(len(rows), width)
    loss = cross_entropy(logits[wanted].float(), ids[:, 1:][wanted], reduction="none")
    nll[:, 1:][wanted.cpu()] = loss.cpu()
    return nll.numpy()


def runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Return [start, end) of each run of ones: of each turn that a mask marks.

    >>> runs([0, 1, 1, 0, 1])
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine of two arrays of vectors, -1 to 1; NaN where a row is NaN or zero.

    >>> cosine(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])).round(3)
    array([0.707,   nan])
    """
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norm > 0, (a * b).sum(axis=1) / np.where(norm > 0, norm, 1), np.nan)


def meaning(encoder, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Embed users' sides of dialogues: unit mean of the embeddings of their turns.

    Args:
        encoder: `encoders.SentenceEncoder`, or anything with its ``encode``; it cuts nothing off.
        texts: one list of turns a text.

    Returns:
        Shape (len(texts), dimension); a row of NaN for a text without words.
    """
    said = [[turn for turn in turns if turn.strip()] for turns in texts]
    vectors = encoder.encode([turn for row in said for turn in row])
    out, start = np.full((len(texts), vectors.shape[1]), np.nan), 0
    for i, row in enumerate(said):
        if row:
            mean = vectors[start : start + len(row)].mean(axis=0)
            out[i] = mean / np.linalg.norm(mean)
        start += len(row)
    return out
