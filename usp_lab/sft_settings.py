"""What decides a training run, and what comes out of it."""

from dataclasses import dataclass
from pathlib import Path

from usp_lab.chat import chat_template
from usp_lab.errors import UspError

GENERATOR = "generator"  # the speaker that writes profiles


@dataclass(frozen=True)
class SftSettings:
    """What decides a training run. Defaults are for the population on a CPU.

    Attributes:
        speaker: whose turns are learned, "user" (a simulator), "assistant" (its partner), "both"
            (a base language model to start the others from; it is never told a profile), or
            "generator": the dialogue's profile from its user turns (`profile_generator`).
        with_profile: put the profile in the system message; False is the profile-free baseline
            (`plato`).
        profile_dropout: share of training dialogues that are learned without their profile, so that
            one model can also speak as nobody in particular.
        reword: share of a generator's training dialogues in which words that turns and profile share are exchanged
            for others, so that it learns to copy what it has not met (`rewording`).
        end_token: end each dialogue with a user turn that is the end-of-dialogue token.
        base: checkpoint to start from (folder or hub id); "" starts from scratch at ``size``.
        size: a name in `from_scratch.SIZES`; vocab_size: of the tokenizer trained along; architecture: a
            name in `from_scratch.ARCHITECTURES`.
        lora: rank of LoRA adapters, merged at the end; 0 trains all weights.
        epochs, max_steps: length; max_steps > 0 wins.
        batch: dialogues a step, over all processes; micro_batch: of these, how many a process
            computes at once (0: all of its own).
        lr: peak learning rate (cosine, warm-up a tenth of the steps; under muon 200 at most).
        optimizer: "adamw", or "muon" for small models on one machine (`optim.MuonAdamW`).
        max_length: tokens a dialogue at the most; the rest is cut at whole turns and counted.
        patience: evaluations without a better validation loss before stopping early; evals:
            evaluations in a run.
        repetition_penalty: kept in the model's generation settings, which whoever draws turns from it
            reads; 0: as the base has it.
        bf16: autocast in bf16, on a machine that computes in it (`models.computes_bf16`); else fp32.
        keep_base: where no look at validation finds better weights than those of the base, keep these; False: train
            in any case, as without profiles (a base that learned with them must not stay as it is).
    """

    speaker: str = "user"
    with_profile: bool = True
    profile_dropout: float = 0.0
    reword: float = 0.0
    end_token: bool = False
    base: str = ""
    size: str = "2m"
    vocab_size: int = 4096
    architecture: str = "llama"
    lora: int = 0
    epochs: float = 1.0
    max_steps: int = 0
    batch: int = 16
    micro_batch: int = 0
    lr: float = 3e-3
    optimizer: str = "adamw"
    max_length: int = 1024
    patience: int = 3
    evals: int = 8
    repetition_penalty: float = 0.0
    bf16: bool = True
    keep_base: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        chat_template(self.template)  # raises for any other speaker
        if self.end_token and self.speaker != "user":
            raise UspError(
                "end_token=True needs speaker='user': an assistant does not end dialogues"
            )
        for name in ("vocab_size", "epochs", "batch", "lr", "max_length", "patience", "evals"):
            if getattr(self, name) <= 0:
                raise UspError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.optimizer not in ("adamw", "muon") or (self.lora and self.optimizer == "muon"):
            raise UspError(
                f"optimizer={self.optimizer!r} with lora={self.lora}; choose adamw, or muon without "
                "lora"
            )
        if not 0 <= self.reword <= 1 or (self.reword and self.speaker != GENERATOR):
            raise UspError(
                f"reword={self.reword} with speaker={self.speaker!r}; give a share of 0 to 1, of a generator"
            )
        if not 0 <= self.profile_dropout < 1:
            raise UspError(f"profile_dropout must lie in [0, 1), not {self.profile_dropout}")
        for name in ("lora", "max_steps", "micro_batch", "repetition_penalty"):
            if getattr(self, name) < 0:
                raise UspError(f"{name} must be 0 or more, not {getattr(self, name)}")

    @property
    def template(self) -> str:
        """Whose header the chat template's generation prompt opens."""
        return "assistant" if self.speaker == GENERATOR else self.speaker

    @property
    def learned(self) -> str:
        """What carries the loss, in words."""
        return "profile" if self.speaker == GENERATOR else f"{self.speaker} turn"

    @property
    def needs_profile(self) -> bool:
        """Whether each dialogue must have a profile, to be told or to be written."""
        return self.reads_profile or self.speaker == GENERATOR

    @property
    def reads_profile(self) -> bool:
        """Whether the speaker is told a profile."""
        return self.with_profile and self.speaker == "user"


@dataclass(frozen=True)
class SftResult:
    """A finished training.

    Attributes:
        path: folder of the model.
        history: learning curve, rows of step and loss or eval_loss (nats a trained token).
        counts: dialogues, tokens, and what was cut or dropped.
        resumed_from: step of the checkpoint it went on from, 0 for none.
    """

    path: Path
    history: list[dict]
    counts: dict[str, int]
    resumed_from: int

    @property
    def best_loss(self) -> float:
        """The validation loss of the weights that were kept."""
        return self._best["eval_loss"]

    @property
    def kept(self) -> int:
        """The step whose weights were kept; 0: those it began with, which no look at validation found worse."""
        return self._best["step"]

    @property
    def _best(self) -> dict:
        return min((h for h in self.history if "eval_loss" in h), key=lambda h: h["eval_loss"])
