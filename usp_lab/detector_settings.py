"""How an AI detector is trained, and what comes of it."""

from dataclasses import dataclass

from usp_lab.errors import UspError
from usp_lab.sft_settings import SftResult

# Encoders from scratch: (hidden size, layers, heads, feed-forward size); parameters with 4,000 tokens.
ENCODERS = {"0.3m": (64, 1, 2, 192), "4m": (256, 4, 4, 768), "30m": (512, 8, 8, 1536)}
CHOICES = {"loss": "eval_loss", "macro_f1": "eval_macro_f1"}


@dataclass(frozen=True)
class DetectorSettings:
    """What decides a training of a detector. Defaults are for a CPU; the paper's are in `detector_training`'s example.

    Attributes:
        base: checkpoint of an encoder to start from (folder or hub id); "" starts from scratch at ``size``.
        base_weights: its pickle file, by name, where it has no safetensors; the name is the consent.
        size: a name in `ENCODERS`; vocab_size: of the tokenizer trained along.
        pretrain_epochs: passes over the utterances in which an encoder from scratch guesses masked tokens first.
        epochs: of telling apart; most_steps: of either, at the most (0: no limit).
        batch: utterances a step, over all processes; micro_batch: of these, how many a process
            computes at once (0: all of its own).
        lr: peak learning rate (cosine); warmup: share of the steps in which it rises.
        max_length: tokens of an utterance that are read.
        choose: what keeps weights, on validation: "loss" or "macro_f1".
        patience: evaluations without a better one before stopping early; evals: evaluations in a run.
        bf16: autocast in bf16, on a machine that computes in it; else fp32.
    """

    base: str = ""
    base_weights: str = ""
    size: str = "0.3m"
    vocab_size: int = 4000
    pretrain_epochs: float = 0.0
    epochs: float = 2.0
    most_steps: int = 0
    batch: int = 16
    micro_batch: int = 0
    lr: float = 2e-3
    warmup: float = 0.1
    max_length: int = 256
    choose: str = "loss"
    patience: int = 3
    evals: int = 8
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "epochs", "batch", "lr", "max_length", "patience", "evals"):
            if getattr(self, name) <= 0:
                raise UspError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("most_steps", "micro_batch", "warmup", "pretrain_epochs"):
            if getattr(self, name) < 0:
                raise UspError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.base and self.pretrain_epochs:
            raise UspError("pretrain_epochs is for encoders from scratch; with a base leave it 0")
        if self.choose not in CHOICES:
            raise UspError(f"choose={self.choose!r}; choose by one of {', '.join(CHOICES)}")
        if not self.base and self.size not in ENCODERS:
            raise UspError(
                f"no encoder size {self.size!r}; choose one of {', '.join(ENCODERS)}, or train from a "
                "checkpoint (base=PATH)"
            )


@dataclass(frozen=True)
class DetectorResult(SftResult):
    """A finished training of a detector: as `SftResult`, and what validation chose besides."""

    temperature: float
    least_words: int
