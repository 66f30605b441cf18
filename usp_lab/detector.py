"""How human does an utterance sound? A sequence classifier that sees one utterance at a time, without context.

    detector = AIDetector.from_pretrained("wangkevin02/AI_Detect_Model")      # a hub id or a folder
    detector.probabilities(["ok but which one", "Certainly! Here are five tips."])    # -> P(human)

It was taught users' turns against assistants' turns (arXiv 2502.18968, section 4): `detector_training`. What it was
calibrated with, and which utterances are too short for it, lies beside the weights in ``detector.json``; the
published checkpoint has no such file and is taken as it is.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from scipy.special import expit
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from usp_lab import models
from usp_lab.encoders import token_limit
from usp_lab.errors import UspError
from usp_lab.files import write_json

LABELS = ("user", "assistant")  # the release's order
FILE = "detector.json"
EMBEDDED = "detector-tiny"  # the detector that comes along, also called "embedded"
_HUMAN = re.compile(r"user|human|person|people|real")
_MACHINE = re.compile(r"assistant|machine|\bai\b|bot|generated|gpt|llm|fake|synthetic|simulat")
_TOKENS = 16_384  # of a batch, padding included


class AIDetector:
    """A classifier of utterances: P(human).

    Args:
        model, tokenizer: a sequence classifier with two labels and its tokenizer.
        temperature: log-odds are divided by it.
        least_words: it abstains (NaN) from utterances of fewer words, blanks in between; from those without any it
            always does.
        name: in error messages.

    Raises:
        UspError: the model's labels do not tell which one is human, or a temperature that is not above 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer,
        temperature: float = 1.0,
        least_words: int = 1,
        name: str = "the detector",
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise UspError(f"{name}: temperature must be above 0, not {temperature}")
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.least_words = float(temperature), max(1, int(least_words))
        self.human = _human_label(model.config.id2label, name)
        self.limit = token_limit(tokenizer, model.config)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        temperature: float | None = None,
        least_words: int | None = None,
        weights: str | None = None,
        device: models.Device | None = None,
    ) -> "AIDetector":
        """Load from a folder, by an embedded name, or from the hub.

        Weights are computed in fp32 whatever they are saved in: near 1, bf16 knows four probabilities.

        Args:
            path: with config, tokenizer and safetensors, and ``detector.json`` if it was trained here.
            temperature, least_words: in place of what the folder says; 1 and 1 where it says nothing.
            weights: consent to a pickle file, by its name (see `models.load_model`).
            device: where to compute; picked when None.

        Raises:
            UspError: nothing there, not a classifier with two labels, damaged, pickles only, needs its own code.
        """
        path = EMBEDDED if str(path) == "embedded" else path
        where = device or models.pick_device()
        where = models.Device(where.name, torch.float32, where.why)
        kind = AutoModelForSequenceClassification
        model = models.load_model(kind, path, weights, where, "AI detector")
        tokenizer = models.load_tokenizer(path, speaker=None, padding="right")
        kept = _kept(path)
        given = {"temperature": temperature, "least_words": least_words}
        kept |= {k: v for k, v in given.items() if v is not None}
        return cls(model, tokenizer, name=f"AI detector {path}", **kept)

    def __repr__(self) -> str:
        weights = models.weights_fingerprint(self.model)
        return f"AIDetector({weights}, temperature={self.temperature:.6g}, least_words={self.least_words})"

    def probabilities(self, utterances: Sequence[str]) -> np.ndarray:
        """Return P(human) of each utterance, shape (n,), 0 to 1; NaN where it is too short to tell.

        An utterance that comes again is computed once; one that is longer than the model reads is cut.
        """
        z = self.log_odds(utterances)
        short = [len(u.split()) < self.least_words for u in utterances]
        return np.where(short, np.nan, expit(z / self.temperature))

    @torch.inference_mode()
    def log_odds(self, utterances: Sequence[str]) -> np.ndarray:
        """Return log P(human) / P(not) of each utterance as the model has it: not calibrated, shape (n,).

        NaN for an utterance without a word.
        """
        distinct = list(dict.fromkeys(u for u in utterances if u.strip()))
        ids = self._ids(distinct)
        order, known = sorted(range(len(ids)), key=lambda i: len(ids[i])), {}
        with tqdm(total=len(order), unit="utterance", delay=5, leave=False) as bar:
            while order:
                size = max(1, min(64, _TOKENS // len(ids[order[0]])))
                while size > 1 and size * len(ids[order[:size][-1]]) > _TOKENS:
                    size //= 2
                rows, order = order[:size], order[size:]
                batch = {"input_ids": [ids[i] for i in rows]}
                inputs = self.tokenizer.pad(batch, return_tensors="pt").to(self.model.device)
                logits = self.model(**inputs).logits.double().cpu().numpy()
                odds = logits[:, self.human] - logits[:, 1 - self.human]
                known |= {distinct[i]: float(z) for i, z in zip(rows, odds, strict=True)}
                bar.update(len(rows))
        return np.array([known.get(u, np.nan) for u in utterances], float)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write weights, tokenizer and what it was calibrated with, as `from_pretrained` reads them.

        Args:
            folder: is made.
            dtype: of the weights in the file (torch.float16 halves it); the model's own when None.
        """
        folder = Path(folder)
        state = {k: v.to(dtype or v.dtype).contiguous() for k, v in self.model.state_dict().items()}
        with models.quiet_bars():
            self.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)
        kept = {"temperature": self.temperature, "least_words": self.least_words}
        write_json(folder / FILE, kept)
        return folder


def _kept(path: str | Path) -> dict[str, float]:
    """Return what a checkpoint's ``detector.json`` says; nothing where there is none, as in the release."""
    source = models.source_of(path, "AI detector")
    file = Path(source) / FILE
    if not Path(source).is_dir():
        try:
            file = Path(huggingface_hub.hf_hub_download(source, FILE))
        except huggingface_hub.errors.LocalEntryNotFoundError as e:  # connection lost
            raise UspError(models.not_loaded(path, "AI detector", e)) from e
        except huggingface_hub.errors.EntryNotFoundError:
            return {}
    elif not file.is_file():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {"temperature": float(kept["temperature"]), "least_words": int(kept["least_words"])}
    except (ValueError, TypeError, KeyError) as e:
        raise UspError(
            f"{file} is no JSON object with numbers temperature and least_words ({e}); remove it, or "
            "save the detector again"
        ) from None


def _human_label(id2label: dict, name: str) -> int:
    """Return which of two labels is human: as they are named, 0 where they have numbers for names (the release)."""
    labels = [str(id2label[i]).lower() for i in sorted(id2label, key=int)]
    human = [i for i, label in enumerate(labels) if _HUMAN.search(label)]
    human = [i for i in human if not _MACHINE.search(labels[i])]
    machine = [i for i, label in enumerate(labels) if _MACHINE.search(label)]
    if len(labels) == 2 and all(re.fullmatch(r"(label_)?\d", label) for label in labels):
        return 0
    if len(labels) == 2 and len(human) == 1 and len(machine) == 1:
        return human[0]
    raise UspError(
        f"{name} labels its outputs {', '.join(labels)}; give a classifier with two labels, one of them "
        "named user or human and the other assistant or AI"
    )
