"""Where the row of a token that a model has never seen should start."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

_RIDGE = 1e-3


@torch.no_grad()
def turn_starts(
    model, rows: Sequence[dict], token: int, batch: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a model thinks where a turn's first token is to be predicted.

    Args:
        model: a causal language model.
        rows: token ids and labels, as `sft_data.encode` makes them.
        token: the new token's id.
        batch: rows computed at once.

    Returns:
        Hidden states, shape (turns, hidden size); the log of the sum of all other tokens' exponentiated
        scores, shape (turns,); whether the token comes there, shape (turns,).
    """
    states, others, comes = [], [], []
    rows = sorted(rows, key=lambda r: len(r["input_ids"]))
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        width = max(len(r["input_ids"]) for r in some)
        ids = torch.zeros(len(some), width, dtype=torch.long)
        starts = torch.zeros(len(some), width, dtype=torch.bool)
        for i, r in enumerate(some):  # padded on the right, where causal attention never looks
            trained = np.asarray(r["labels"]) != -100
            ids[i, : len(trained)] = torch.as_tensor(np.asarray(r["input_ids"]), dtype=torch.long)
            starts[i, : len(trained) - 1] = torch.as_tensor(trained[1:] & ~trained[:-1])
        state = model.base_model(input_ids=ids.to(model.device)).last_hidden_state[
            starts.to(model.device)
        ]
        scores = model.get_output_embeddings()(state).float()
        scores[:, token] = -torch.inf
        states.append(state.float())
        others.append(scores.logsumexp(-1))
        comes.append((ids[:, 1:] == token)[starts[:, :-1]].float())
    return torch.cat(states), torch.cat(others), torch.cat(comes).to(model.device)


def fit_row(model, rows: Sequence[dict], token: int) -> None:
    """Give a new token the output row that fits a model as it is, in place.

    It is the logistic regression of "the token comes now" on the model's own hidden states, so that
    training need not move all weights fast in order to find one row. Where the token never comes the
    row stays. The input row is the same where the two are tied.
    """
    states, others, comes = turn_starts(model, rows, token)
    if not comes.any():
        return
    weights = model.get_output_embeddings().weight
    row = torch.zeros(weights.shape[1], device=states.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([row], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        out = binary_cross_entropy_with_logits(states @ row - others, comes)
        out = out + _RIDGE * row.square().sum()
        out.backward()
        return out

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        weights[token] = row.detach().to(weights)
