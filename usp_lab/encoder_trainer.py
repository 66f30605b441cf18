"""Classifiers of utterances from scratch, and transformers' Trainer as we use it on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DataCollatorForTokenClassification,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from usp_lab.files import atomic
from usp_lab.finished import last_checkpoint
from usp_lab.from_scratch import new_tokenizer
from usp_lab.models import quiet_bars
from usp_lab.trainer import Bar, common_arguments, mean_of_step, quiet, schedule

if TYPE_CHECKING:
    from usp_lab.detector_settings import DetectorSettings

MASKED = 0.3  # share of tokens, as ModernBERT was trained


class EncoderTrainer(Trainer):
    """The library's trainer with a loss that micro-batches and processes do not change.

    Its own leaves the mean to the model, which knows of one micro-batch alone.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean cross-entropy of utterances."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
        loss = mean_of_step(self, loss, len(labels), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class MaskedTrainer(Trainer):
    """The same for masked language modelling: the mean is over the masked tokens of a step."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean cross-entropy of masked tokens."""
        outputs = model(**inputs)
        masked = (inputs["labels"] != -100).sum()
        loss = mean_of_step(self, outputs.loss * masked, masked, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def pretrained(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], tokenizer, s: "DetectorSettings", folder: Path, steps: int
) -> PreTrainedModel:  # fmt: skip
    """Let a new encoder learn the language of its utterances first, by guessing masked tokens; return the classifier.

    What its large counterparts bring along from the hub. It resumes from ``folder``, and what it learned stays there.

    Args:
        model: a ModernBERT classifier; its body is trained.
        rows: token ids of utterances.
        tokenizer: whose end token stands for what is masked, since no utterance has one.
        s: settings.
        folder: of checkpoints.
        steps: of training, of ``s.batch`` utterances.
    """
    from datasets import Dataset
    from safetensors.torch import load_file, save_file

    learned = folder / "pretrained.safetensors"
    if not learned.is_file():
        order = schedule([len(r) for r in rows], s.batch, steps, s.seed + 1)
        masked = [_masked(rows[i], tokenizer.eos_token_id, s.seed, k) for k, i in enumerate(order)]
        ids, labels = zip(*masked, strict=True)
        config = type(model.config).from_dict(model.config.to_dict() | {"sparse_prediction": True})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            guesser = AutoModelForMaskedLM.from_config(config)
        guesser.model.load_state_dict(model.model.state_dict())
        looks = {"eval_strategy": "no", "load_best_model_at_end": False, "save_only_model": False}
        warmup = max(1, round(s.warmup * steps))
        args = TrainingArguments(**common_arguments(s, folder, steps, warmup) | looks)
        trainer = MaskedTrainer(
            model=guesser,
            args=args,
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
            processing_class=tokenizer,
            data_collator=DataCollatorForTokenClassification(tokenizer),
        )
        quiet(trainer, Bar("learning the language"))
        last, _ = last_checkpoint(folder)
        with quiet_bars():
            trainer.train(resume_from_checkpoint=last and str(last))
        if trainer.is_world_process_zero():
            body = trainer.accelerator.unwrap_model(trainer.model).model.state_dict()
            with atomic(learned) as part:
                save_file(body, part)
        trainer.accelerator.wait_for_everyone()
    model.model.load_state_dict(load_file(learned))
    return model


def _masked(ids: Sequence[int], mask: int, seed: int, place: int) -> tuple[list[int], list[int]]:
    """Return ids with three tokens in ten masked, at least one, and what they were (-100 elsewhere)."""
    rng = np.random.default_rng((seed, place))
    hit = rng.random(len(ids)) < MASKED
    hit[0] = False  # the mark that each begins with
    if not hit.any():
        hit[rng.integers(1, len(ids)) if len(ids) > 1 else 0] = True
    ids = np.asarray(ids)
    return np.where(hit, mask, ids).tolist(), np.where(hit, ids, -100).tolist()


def arguments(s: "DetectorSettings", folder: Path, steps: int, metric: str) -> TrainingArguments:
    """Return the configuration of a run of ``steps`` steps whose best weights by ``metric`` are kept."""
    better = {"metric_for_best_model": metric, "greater_is_better": metric != "eval_loss"}
    warmup = max(1, round(s.warmup * steps))
    return TrainingArguments(**common_arguments(s, folder, steps, warmup) | better)


def macro_f1(predicted) -> dict[str, float]:
    """Return the unweighted mean of the labels' F1, 0 to 1: what the release chose its detector by."""
    from sklearn.metrics import f1_score

    return {"macro_f1": float(f1_score(predicted.label_ids, predicted.predictions.argmax(-1), average="macro"))}  # fmt: skip


def new_encoder_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that keeps case and blanks, and begins each text with a mark."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = new_tokenizer(texts, vocab_size)
    begin, begin_id = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, begin_id)]
    )
    tokenizer.chat_template, tokenizer.padding_side = None, "right"
    return tokenizer


def new_encoder(
    tokenizer: PreTrainedTokenizerFast,
    size: tuple[int, int, int, int],
    labels: Sequence[str],
    context: int,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a randomly initialised ModernBERT classifier (Warner et al., arXiv 2412.13663), the same for the same seed.

    It classifies the mean over tokens: beside BERT's first token that saw more of small data, faster.

    Args:
        tokenizer: its vocabulary and special tokens.
        size: (hidden size, layers, heads, feed-forward size).
        labels: names of the outputs.
        context: tokens that it is to read.
        seed: of the weights.
    """
    hidden, layers, heads, inner = size
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        global_attn_every_n_layers=1,
        classifier_pooling="mean",
        embedding_dropout=0.1,
        mlp_dropout=0.1,
        classifier_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config)
