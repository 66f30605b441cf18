"""How probable an end is to a simulator, at each decision of real dialogues (see `termination`).

P(end) = P(silence) + P(closing turn). A language model is asked by its next two tokens (`by_tokens`),
without drawing; whoever has no probabilities speaks several times (`by_draws`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from usp_lab.chat import (
    END_TOKEN,
    Message,
    Utterance,
    is_closing,
    trained_mask,
    without_special_tokens,
)
from usp_lab.data import Dialogue
from usp_lab.engines import attention_mask
from usp_lab.models import rows_at_once
from usp_lab.simulate import turn_seed

_TOKENS, _LOGITS = 256, 40_000_000  # tokens of one of `rows_at_once`, and logits, at the most
_DRAWN = 64  # contexts that draws are taken from at once


def histories(simulator, dialogues: Sequence[Dialogue]) -> list[tuple[list[Message], int]]:
    """Return dialogues as a simulator reads them: (messages, how many of its own are in front).

    In front is the system message that `start` gives, if any. On the population messages say in
    ``meta`` what their speakers did, as in the simulating loop: scripted simulators go by that.
    """
    from usp_lab.synthetic import replay

    out = []
    for d in dialogues:
        front = [m for m in simulator.start(d) if m["role"] == "system"]
        out.append((front + (replay(d) if d.truth else d.messages), len(front)))
    return out


def by_draws(
    simulator, dialogues: Sequence[Dialogue], at: pd.DataFrame, draws: int = 8, seed: int = 0
) -> pd.DataFrame:
    """Ask any simulator by letting it speak: which share of draws ends here?

    Returns:
        One row a decision: silent (end token, or left without a word), closing (a turn that
        `chat.is_closing` reads as a goodbye), draws.
    """
    read = histories(simulator, dialogues)
    batch = [read[i][0][: read[i][1] + k] for i, k in zip(at["dialogue"], at["place"], strict=True)]
    names = [f"{dialogues[i].id}/end" for i in at["dialogue"]]
    counts = np.zeros((len(batch), 2))
    for start in range(0, len(batch), _DRAWN):
        rows = range(start, min(start + _DRAWN, len(batch)))
        for draw in range(draws):
            seeds = [turn_seed(seed, draw, names[i], len(batch[i])) for i in rows]
            said = simulator.generate([batch[i] for i in rows], seeds)
            for i, text in zip(rows, said, strict=True):
                meta = text.meta if isinstance(text, Utterance) else {}
                silent = text == END_TOKEN or (not text.strip() and bool(meta.get("left")))
                counts[i] += (silent, not silent and is_closing(text))
    out = pd.DataFrame(counts / draws, columns=["silent", "closing"], index=at.index)
    return out.assign(draws=draws)


@dataclass(frozen=True)
class ClosingReader:
    """Reads the probability of a closing turn off a model's next two tokens, without drawing.

    P(closing) = sum over first tokens w of P(w) c(w), where c(w) is the share of closing turns
    among training turns that begin with w. For the first tokens that leave most open ("Thanks"),
    the second decides: sum over v of P(v | w) c(w, v).

    Attributes:
        first: c(w), shape (vocabulary,). It is 0 for special tokens.
        branches: ids of the first tokens whose second is looked at, shape (m,).
        second: c(w, v) of these, shape (m, vocabulary).
    """

    first: np.ndarray
    branches: np.ndarray
    second: np.ndarray

    @classmethod
    def fit(cls, simulator, at: pd.DataFrame, branches: int = 12) -> "ClosingReader":
        """Count over training decisions at which the user said something.

        Shares are drawn towards the overall one by one turn's weight (c(w, v) towards c(w)), so
        that what was never seen says nothing. Where users never say goodbye, or nothing after their
        first turn, all shares are 0.

        Args:
            simulator: `simulators.UserSimulator`; its tokenizer is used.
            at: training `decisions`.
            branches: first tokens at the most whose second is looked at.
        """
        spoken = at[at["said"].str.strip() != ""]
        tokenizer, size = simulator.tokenizer, simulator.model.config.vocab_size
        if not spoken["ended"].any():
            return cls(np.zeros(size), np.zeros(0, int), np.zeros((0, size)))
        turns = [[{"role": "user", "content": t}] for t in spoken["said"]]
        start = trained_mask(tokenizer, turns[0])[1].index(1)  # the header is the same for all
        turns = [without_special_tokens(tokenizer, t) for t in turns]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        ids, closing = [row[start : start + 2] for row in ids], spoken["ended"].to_numpy()
        w = np.array([row[0] for row in ids])
        n, k = (np.bincount(w, x, size) for x in (None, closing))
        first = (k + closing.mean()) / (n + 1)
        first[list(tokenizer.added_tokens_decoder)] = 0
        order = np.argsort(-k * (n - k) / np.maximum(n, 1), kind="stable")[:branches]
        order = order[(k * (n - k))[order] > 0]
        second = np.repeat(first[order][:, None], size, axis=1)
        pairs = Counter(map(tuple, ids))
        ends = Counter(tuple(row) for row, c in zip(ids, closing, strict=True) if c)
        place = {t: i for i, t in enumerate(order.tolist())}
        for (a, b), times in ((p, c) for p, c in pairs.items() if p[0] in place):
            second[place[a], b] = (ends[a, b] + first[a]) / (times + 1)
        return cls(first, order, second)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return P(closing turn).

        Args:
            first: P(w), shape (decisions, vocabulary).
            second: P(v | w) of each branch, shape (decisions, m, vocabulary).
        """
        sure = self.first.copy()
        sure[self.branches] = 0
        branched = np.einsum("dmv,mv->dm", second, self.second)
        return first @ sure + (first[:, self.branches] * branched).sum(axis=1)


def by_tokens(
    simulator, dialogues: Sequence[Dialogue], at: pd.DataFrame, reader: ClosingReader
) -> pd.DataFrame:
    """Ask a language model by its probabilities, in one pass a dialogue.

    Returns:
        One row a decision: silent (P(end token); 0 for a model without), closing (P(closing turn)
        by ``reader``); NaN where the context is too long for the model.
    """
    out = np.full((len(at), 2), np.nan)
    rows = []
    read = histories(simulator, dialogues)
    at = at.reset_index(drop=True)
    for i, own in at.groupby("dialogue"):
        messages, front = read[i]
        messages = [*messages[: front + own["place"].max()], {"role": "user", "content": "x"}]
        ids, mask = trained_mask(simulator.tokenizer, messages)
        turns = np.flatnonzero(np.diff([0, *mask]) == 1)  # where user turns start
        places = turns[own["turn"]] - 1  # whose scores are of a turn's first token
        fits = places + 2 <= simulator.engine.context
        if fits.any():
            rows.append((ids[: places[fits].max() + 1], places[fits], own.index[fits]))
    rows.sort(key=lambda r: len(r[0]))
    while rows:
        some = _fitting(rows, len(reader.branches), simulator.model)
        rows = rows[len(some) :]
        chances = _two_tokens(simulator.model, some, reader)
        for (_, _, index), (first, second) in zip(some, chances, strict=True):
            out[index, 0] = 0 if simulator.end_id is None else first[:, simulator.end_id]
            out[index, 1] = reader(first, second)
    return pd.DataFrame(out, columns=["silent", "closing"])


def _fitting(rows: list, branches: int, model) -> list:
    """Return as many of the first rows as are computed at once."""
    n, room = 1, rows_at_once(model.device) * _TOKENS
    while n < len(rows):
        most = max(len(p) for _, p, _ in rows[: n + 1])
        tokens = (n + 1) * (len(rows[n][0]) + most * branches)
        kept = (n + 1) * sum(len(p) for _, p, _ in rows[: n + 1]) + (n + 1) * most * branches
        if tokens > room or kept * model.config.vocab_size > _LOGITS:
            break
        n += 1
    return rows[:n]


def _two_tokens(model, rows: list, reader: ClosingReader) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (P(first token), P(second | branch)) per row: (decisions, v), (decisions, m, v).

    The branches are appended to a row as leaves of a tree: each attends to the dialogue before its
    decision and to itself.
    """
    m, width = len(reader.branches), max(len(ids) for ids, _, _ in rows)
    most = max(len(places) for _, places, _ in rows)
    total = width + most * m
    ids, where = np.zeros((len(rows), total), int), np.tile(np.arange(total), (len(rows), 1))
    seen = np.zeros((len(rows), total, total), bool)
    seen[:, :width, :width] = np.tri(width, dtype=bool)
    seen |= np.eye(total, dtype=bool)
    for r, (tokens, places, _) in enumerate(rows):
        ids[r, : len(tokens)] = tokens
        for j in range(most):
            leaves = slice(width + j * m, width + (j + 1) * m)
            place = places[min(j, len(places) - 1)]
            ids[r, leaves], where[r, leaves] = reader.branches, place + 1
            seen[r, leaves, : place + 1] = True
    kept = np.unique(np.concatenate([p for _, p, _ in rows] + [np.arange(width, total)]))
    with torch.inference_mode():
        mask = torch.tensor(seen[:, None], device=model.device)
        chance = (
            model(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=attention_mask(model, mask),
                position_ids=torch.tensor(where, device=model.device),
                use_cache=False,
                logits_to_keep=torch.tensor(kept, device=model.device),
            )
            .logits.float()
            .softmax(-1)
            .cpu()
            .numpy()
        )
    out = []
    for r, (_, places, _) in enumerate(rows):
        leaves = chance[r, len(kept) - most * m :].reshape(most, m, chance.shape[-1])
        out.append((chance[r, np.searchsorted(kept, places)], leaves[: len(places)]))
    return out
