"""Embeddings: whole texts in windows, pooling as each checkpoint's authors define it, batches that change nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from usp_lab import encoders, look_alikes, models
from usp_lab.encoders import SentenceEncoder, windows
from usp_lab.errors import UspError

TEXTS = ["a flat in Lisbon", "how do I sharpen a chisel", "ok", "What would you pick? " * 9]


@pytest.fixture(scope="module")
def simcse(tmp_path_factory) -> Path:
    return look_alikes.simcse(tmp_path_factory.mktemp("encoders") / "sup-simcse")


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> Path:
    return look_alikes.style_encoder(tmp_path_factory.mktemp("encoders") / "style")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def read(folder: Path, text: str):
    """What the plain model makes of one text, without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        return model.eval()(**tokenizer([text], return_tensors="pt"))


def words(text: str) -> int:
    return len(text.split())


# --- windows --------------------------------------------------------------------------------------


def test_windows_hold_the_whole_text_and_fit():
    assert windows("Just this.", words, 2) == ["Just this."]
    text = "One two three. Four five! Six seven eight nine? Ten."
    cut = windows(text, words, 5)
    assert cut == ["One two three. Four five!", "Six seven eight nine? Ten."]
    assert windows(text, words, 4) == [
        "One two three.",
        "Four five!",
        "Six seven eight nine?",
        "Ten.",
    ]
    long = " ".join(f"word{i}" for i in range(1000))  # no sentence ends in it
    cut = windows(long, words, 60)
    assert " ".join(cut) == long and max(map(words, cut)) <= 60
    assert min(map(words, cut)) > 25  # of like length, so that a plain mean is fair
    assert windows("a paragraph\n\nand another one", words, 3) == ["a paragraph", "and another one"]


def test_windows_within_a_word_and_no_end_without():
    assert "".join(windows("x" * 100, len, 30)) == "x" * 100
    assert max(map(len, windows("x" * 100, len, 30))) <= 30
    assert windows("xy", lambda t: 9, 3) == [
        "x",
        "y",
    ]  # nothing fits: single letters, no endless loop


# --- any encoder ----------------------------------------------------------------------------------


def test_packaged_encoder():
    encoder = models.sentence_encoder()
    texts = ["a flat in Lisbon", " ", "an apartment in Lisbon", "how do I sharpen a chisel"]
    a, blank, b, c = rows = encoder.encode(texts)
    assert rows.shape == (4, 384) and rows.dtype == np.float32
    assert np.isnan(blank).all() and np.allclose(np.linalg.norm([a, b, c], axis=1), 1, atol=1e-5)
    assert a @ b > 0.6 > a @ c
    assert np.array_equal(encoder.encode(texts[::-1])[::-1], rows, equal_nan=True)
    assert encoder.encode([]).shape == (0, 384)
    assert models.sentence_encoder() is encoder and encoder.limit == 256


def test_a_long_paragraph_is_the_mean_of_its_windows_and_its_end_counts():
    encoder = models.sentence_encoder()
    start = "You plan a weekend in Lisbon with two small children. " * 30
    near, far = encoder.encode(
        [start, start + "You forge swords and breed goats in the hills. " * 30]
    )
    assert near @ far < 0.95  # cut at 256 tokens both would be the same
    cut = windows(start, encoder._model.count, encoder.limit)
    assert len(cut) > 1 and near == pytest.approx(unit(encoder.encode(cut).mean(axis=0)), abs=1e-5)


@pytest.mark.parametrize("kind", ["simcse", "style"])
def test_a_text_is_the_same_whatever_it_is_padded_to(kind, request):
    folder = str(request.getfixturevalue(kind))
    together = SentenceEncoder(folder).encode(TEXTS)
    alone = np.concatenate([SentenceEncoder(folder).encode([t]) for t in TEXTS])
    assert together == pytest.approx(alone, abs=1e-5)


# --- SimCSE ---------------------------------------------------------------------------------------


def test_simcse_is_pooled_by_its_own_pooler(simcse):
    encoder = SentenceEncoder(str(simcse))
    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        out = read(simcse, text)
        assert row == pytest.approx(unit(out.pooler_output[0].numpy()), abs=1e-5)
        assert row @ unit(out.last_hidden_state[0].mean(dim=0).numpy()) < 0.9  # and by no mean


def test_unsupervised_simcse_is_taken_before_the_pooler(simcse, tmp_path):
    folder = shutil.copytree(simcse, tmp_path / "unsup-simcse-roberta")
    [row] = SentenceEncoder(str(folder)).encode(TEXTS[:1])
    first = read(folder, TEXTS[0]).last_hidden_state[0, 0].numpy()
    assert row == pytest.approx(unit(first), abs=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_simcse_reads_as_far_as_its_positions_go(simcse, tmp_path, known):
    folder = shutil.copytree(simcse, tmp_path / "simcse")
    if not known:  # RoBERTa has 514 positions and reads 512 tokens
        settings = folder / "tokenizer_config.json"
        settings.write_text(settings.read_text().replace('"model_max_length": 512', '"x": 0'))
    encoder = SentenceEncoder(str(folder))
    assert encoder.limit == 512
    a, b = encoder.encode(["ok " * 3000, "ok " * 3000 + "My daughter is four. " * 300])
    assert np.isfinite([a, b]).all() and not np.allclose(a, b, atol=1e-3)


def test_style_encoder_is_pooled_by_the_mean_of_its_tokens(style):
    encoder = SentenceEncoder(str(style))
    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        mean = read(style, text).last_hidden_state[0].mean(dim=0).numpy()
        assert row == pytest.approx(unit(mean), abs=1e-5)


# --- bad input ------------------------------------------------------------------------------------


def test_a_model_without_a_pooler_is_no_encoder(tmp_path):
    folder = look_alikes.longformer_base(tmp_path / "base")  # a masked language model: no pooler
    with pytest.raises(UspError, match="no sentence encoder: it has neither") as error:
        SentenceEncoder(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/no/where", "./none"])
def test_what_is_not_there(path):
    with pytest.raises(UspError, match=f"sentence encoder {path}: no such folder"):
        SentenceEncoder(path)


def test_damaged_encoder(simcse, tmp_path):
    folder = shutil.copytree(simcse, tmp_path / "damaged")
    (folder / "config.json").write_text("{")
    with pytest.raises(UspError, match="sentence encoder"):
        SentenceEncoder(str(folder))


def test_examples():
    import doctest

    assert not doctest.testmod(encoders).failed
