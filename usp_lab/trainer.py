"""TRL's trainer as we use it: at CPU speed, quiet, and the same when interrupted or spread out."""

import logging
import math
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from usp_lab.errors import UspError
from usp_lab.models import CPU_ROWS, computes_bf16

if TYPE_CHECKING:
    from usp_lab.detector_settings import DetectorSettings
    from usp_lab.sft_settings import SftSettings


class TokenMeanTrainer(SFTTrainer):
    """TRL's trainer whose validation loss is the mean over trained tokens.

    The library's is a mean over dialogues of their batch's mean, and so depends on the batches.
    """

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Weigh a batch's loss by its trained tokens."""
        loss, *rest = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        labels = inputs["labels"]
        return loss * (labels != -100).sum() / len(labels) / self._tokens_a_dialogue, *rest

    @cached_property
    def _tokens_a_dialogue(self) -> float:
        rows = self.eval_dataset["labels"]
        return sum(label != -100 for labels in rows for label in labels) / len(rows)


class CpuSFTTrainer(TokenMeanTrainer):
    """The same with a plain output layer; same loss, same gradients.

    TRL projects trained positions through tiles made for Triton kernels; their eager form takes
    most of a CPU step (`benchmarks/sft.py`). Here a hook selects the trained positions and one
    projection follows, through the model's own forward, so that DDP, FSDP and adapters work as
    before.
    """

    _trained: torch.Tensor | None = None

    def __init__(self, model, *args, **kwargs) -> None:
        super().__init__(model, *args, **kwargs)
        self.model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, module, inputs):
        return None if self._trained is None else (inputs[0][self._trained],)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean cross-entropy of trained tokens, summed as `SFTTrainer` does."""
        target = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        trained = self._trained = target != -100
        try:
            # No attention mask: padding is on the right, where causal attention never looks from a
            # trained token, and without a mask attention takes its faster path.
            outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        finally:
            self._trained = None
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.float(), target[trained], reduction="sum"
        )
        loss = mean_of_step(self, loss, trained.sum(), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def mean_of_step(trainer: Trainer, total: torch.Tensor, count, items) -> torch.Tensor:
    """Return a micro-batch's part of the mean loss of a step, which micro-batches and processes do not change.

    Args:
        total: sum of the micro-batch's losses; count: of how many items (tensor or number).
        items: of the whole step, as the trainer passes ``num_items_in_batch``; None where nothing is accumulated.
    """
    loss = total / torch.as_tensor(count if items is None else items).clamp(min=1)
    if items is not None and trainer.args.average_tokens_across_devices:
        loss = loss * trainer.accelerator.num_processes  # it counts all of them, and DDP averages
    return loss


def trainer_class() -> type[SFTTrainer]:
    """Return the faster trainer for this machine."""
    return TokenMeanTrainer if torch.cuda.is_available() else CpuSFTTrainer


def arguments(s: "SftSettings", folder: Path, steps: int) -> SFTConfig:
    """Return TRL's configuration of a run of ``steps`` steps."""
    warmup = max(1, round(0.1 * steps))  # a tenth, as in USP's release
    if s.optimizer == "muon":
        warmup = min(200, warmup)
    return SFTConfig(
        **common_arguments(s, folder, steps, warmup),
        max_length=None,  # we have cut at whole turns; TRL would cut anywhere
        activation_checkpointing=torch.cuda.is_available(),
    )


def batch_share(batch: int, micro_batch: int, named: str) -> int:
    """Return how many items of a batch a process computes at once (``micro_batch`` 0: all of its own).

    Raises:
        UspError: processes cannot share it evenly; ``named`` says what it is.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    micro = micro_batch or batch // world
    if not micro or batch % (micro * world):
        raise UspError(
            f"{named} cannot be shared by {world} process(es) with micro_batch="
            f"{micro_batch}; make it a multiple of {max(micro, 1) * world}"
        )
    return micro


def common_arguments(
    s: "SftSettings | DetectorSettings", folder: Path, steps: int, warmup: int
) -> dict[str, object]:
    """Return what is configured alike in every supervised training.

    Args:
        s: settings.
        folder: of checkpoints.
        steps: length of the run; ``warmup``: of these, in which the rate rises.

    Raises:
        UspError: a batch that processes cannot share evenly.
    """
    world, every = int(os.environ.get("WORLD_SIZE", 1)), max(1, steps // s.evals)
    micro = batch_share(s.batch, s.micro_batch, f"batch={s.batch}")
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": s.batch // (micro * world),
        "per_device_eval_batch_size": s.micro_batch or (32 if cuda else CPU_ROWS),
        "train_sampling_strategy": "sequential",  # `schedule` has shuffled
        "learning_rate": s.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "bf16": s.bf16 and computes_bf16(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "seed": s.seed,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": max(1, every // 5),
        "report_to": "none",
    }


def quiet(trainer: SFTTrainer, *callbacks: TrainerCallback) -> None:
    """Replace the library's bar and its line a log by callbacks of ours, and stop false alarms."""
    # It would speak of special tokens that it aligns, and of checkpoints of one second.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    for callback in callbacks:
        trainer.add_callback(callback)
    if isinstance(trainer.model, PreTrainedModel):  # tied tensors are saved once, and not missing
        tied = trainer.model.all_tied_weights_keys
        trainer.model._keys_to_ignore_on_save = {*trainer.model._keys_to_ignore_on_save, *tied}


class Bar(TrainerCallback):
    """A bar with rate, remaining time and the latest losses; other processes show none."""

    def __init__(self, title: str) -> None:
        self.title, self.losses, self.bar = title, {}, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar at the step that training resumes from."""
        self.bar = tqdm(
            desc=self.title,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            leave=False,
            mininterval=1 if sys.stderr.isatty() else 5,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Count a step."""
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the latest losses at the next refresh."""
        names = {"loss": "loss", "eval_loss": "validation", "reward": "reward"}
        known = {k: v for k, v in (logs or {}).items() if k in names and v is not None}
        self.losses |= {names[k]: f"{v:.3f}" for k, v in known.items()}
        if self.bar is not None:  # None: a look before training
            self.bar.set_postfix(self.losses, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Take the bar off."""
        self.bar.close()


class EarlyStop(TrainerCallback):
    """Stop when ``patience`` evaluations in a row have not improved a metric, by default the validation loss.

    It reads the learning curve, which checkpoints keep, so that a resumed run stops where an
    uninterrupted one does.
    """

    def __init__(self, patience: int, metric: str = "eval_loss", higher: bool = False) -> None:
        self.patience, self.metric, self.sign = patience, metric, -1 if higher else 1

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Look at the curve after each evaluation."""
        if not math.isfinite(metrics["eval_loss"]):
            raise UspError(
                f"validation loss is {metrics['eval_loss']} at step {state.global_step}; "
                f"lower lr={args.learning_rate:g}"
            )
        control.should_training_stop |= self.reached(state.log_history)

    def reached(self, history: Sequence[dict]) -> bool:
        """Tell whether a learning curve has come to its stop."""
        losses = [self.sign * h[self.metric] for h in history if self.metric in h]
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.patience


def schedule(lengths: Sequence[int], batch: int, steps: int, seed: int) -> list[int]:
    """Return the rows of ``steps`` batches one after the other.

    Shuffled epochs in batches of like length, laid out before training and read in order. A run
    that is resumed, or spread over processes, therefore sees the same batches as one that is not.
    """
    rng, places = np.random.default_rng(seed), batch * steps
    epochs = [rng.permutation(len(lengths)) for _ in range(-(-places // len(lengths)))]
    rows, lengths = np.concatenate(epochs)[:places], np.asarray(lengths)
    window = batch * max(1, min(50, len(lengths) // (4 * batch)))  # sorted by length within
    out = []
    for start in range(0, places, window):
        part = rows[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        out.append(rng.permutation(part.reshape(-1, batch)).ravel())
    return np.concatenate(out).tolist()


def share_evenly(rows: Dataset, args: SFTConfig) -> Dataset:
    """Fill up with rows that carry no loss, where processes would otherwise see some rows twice."""
    short = -len(rows) % (args.world_size * args.eval_batch_size) if args.world_size > 1 else 0
    blank = {"input_ids": [[0]] * short, "labels": [[-100]] * short}
    return concatenate_datasets([rows, Dataset.from_dict(blank, features=rows.features)])
