"""Entailment by an NLI cross-encoder (sequence classification), by name: `NLI("cross-encoder/nli-deberta-v3-base")`.

Weights load as safetensors and remote code stays off, as everywhere (`models`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from usp_lab import models
from usp_lab.encoders import token_limit
from usp_lab.entailment import Pair
from usp_lab.errors import UspError


class NLI:
    """An NLI cross-encoder (sequence classification) by name: P(entailment | premise, fact).

    Args:
        name: a folder or hub id. One of its labels must be called entailment.
        device: from `models.pick_device` when None.
        batch: pairs at once.

    Raises:
        UspError: it cannot be loaded, has no entailment label, or needs code of its own.
    """

    def __init__(
        self, name: str | Path, device: models.Device | None = None, batch: int = 64
    ) -> None:
        self.device, self.batch = device or models.pick_device(), batch
        kind = AutoModelForSequenceClassification
        self.model = models.load_model(kind, name, device=self.device, what="NLI model")
        self.tokenizer = models.load_tokenizer(name, speaker=None, padding="right")
        labels = {int(i): str(label) for i, label in self.model.config.id2label.items()}
        wanted = [i for i, label in labels.items() if label.lower().startswith("entail")]
        if len(wanted) != 1:
            raise UspError(
                f"{name} labels its outputs {', '.join(labels.values())}; an NLI model has one called "
                "entailment, give such a one"
            )
        self.label = wanted[0]
        self.limit = token_limit(self.tokenizer, self.model.config)
        self.identity = f"nli {name} {models.weights_fingerprint(self.model)}"

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return P(entailment) of each pair; NaN where a pair is longer than the model reads."""
        out = np.full(len(pairs), np.nan)
        lengths = [len(self.tokenizer(said(p), f)["input_ids"]) for p, f in pairs]
        fits = sorted(
            (i for i, n in enumerate(lengths) if n <= self.limit), key=lengths.__getitem__
        )
        for start in range(0, len(fits), self.batch):
            rows = fits[start : start + self.batch]
            texts = zip(*((said(pairs[i][0]), pairs[i][1]) for i in rows), strict=True)
            inputs = self.tokenizer(*map(list, texts), padding=True, return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**inputs.to(self.device.name)).logits.float()
            out[rows] = logits.softmax(-1)[:, self.label].cpu().numpy()
        return out


def said(premise: str) -> str:
    """Say who speaks where a premise is a user's own words.

    >>> said("my girls are four"), said("The user has two girls")
    ('The user says: my girls are four', 'The user has two girls')
    """
    return premise if premise.startswith("The user") else f"The user says: {premise}"
