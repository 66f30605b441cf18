"""A token that a model has never seen starts where the model, as it is, would want it."""

import numpy as np
import pytest
import torch

from usp_lab.look_alikes import look_alike
from usp_lab.models import load_causal_lm, load_tokenizer
from usp_lab.new_token import fit_row, turn_starts

TOKEN = 300


@pytest.fixture
def model(tmp_path):
    model = load_causal_lm(look_alike(tmp_path)).float().eval()
    assert model.config.vocab_size > TOKEN and load_tokenizer(tmp_path).convert_ids_to_tokens(TOKEN)
    return model


def made_rows(n: int = 60) -> list[dict]:
    """Dialogues of two turns; the second is the token where the reply before it is word 40."""
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        reply, length = (40, 41)[i % 3 > 0], int(rng.integers(1, 6))
        turn = rng.integers(50, 200, length).tolist()
        ids = [1, 2, *turn, 3, reply, 2, TOKEN if reply == 40 else 60, 3]
        labels = [-100, -100, *turn, 3, -100, -100, *ids[-2:]]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def test_turn_starts_are_where_a_turn_s_first_token_is_predicted(model):
    rows = made_rows(7)
    states, others, comes = turn_starts(model, rows, TOKEN, batch=3)
    assert states.shape == (14, model.config.hidden_size) and others.shape == (14,)
    assert comes.sum() == sum(TOKEN in r["input_ids"] for r in rows)
    row = min(rows, key=lambda r: len(r["input_ids"]))
    alone = model(torch.tensor([row["input_ids"]])).logits[0, 1]
    alone[TOKEN] = -torch.inf
    assert torch.isclose(others[0], alone.logsumexp(-1), atol=1e-4)


def test_the_row_tells_where_the_token_comes_and_changes_nothing_else(model):
    rows = made_rows()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit_row(model, rows, TOKEN)
    states, others, comes = turn_starts(model, rows, TOKEN)
    chance = torch.sigmoid(states @ model.get_output_embeddings().weight[TOKEN] - others)
    assert chance[comes == 1].mean() > 0.7 and chance[comes == 0].mean() < 0.15
    for name, now in model.state_dict().items():
        changed = (now != before[name]).any(dim=-1) if now.dim() == 2 else now != before[name]
        assert changed.nonzero().flatten().tolist() in ([], [TOKEN]), name


def test_the_row_stays_where_the_token_never_comes(model):
    before = model.get_output_embeddings().weight.clone()
    fit_row(model, [r for r in made_rows() if TOKEN not in r["input_ids"]], TOKEN)
    assert torch.equal(before, model.get_output_embeddings().weight)
