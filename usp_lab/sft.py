"""Conditional supervised fine-tuning: maximise the likelihood of user turns given profile and context (paper, section 4).

    python -m usp_lab.sft --data population --out runs/usp --size 2m --max-steps 400
    torchrun --nproc_per_node 2 -m usp_lab.sft --data dialogues.jsonl.gz --out runs/usp --base meta-llama/Meta-Llama-3-8B --lora 16

TRL trains; here are what it is given (user turns and their <|eot_id|> carry the loss, long dialogues are cut at whole turns), what is kept (checkpoints,
learning curve, model card), and the three ways to begin: from scratch, full fine-tuning, LoRA. The same function trains an assistant.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from usp_lab.chat import END_TOKEN, chat_template, cut_to_turns, token_ids, with_profile
from usp_lab.data import Corpus, Dialogue, load_dialogues
from usp_lab.errors import UspError

FINAL = "training.json"


@dataclass(frozen=True)
class SftSettings:
    """What decides a training run. Defaults are for the population on a CPU; `docs` and presets give the paper's.

    Attributes:
        speaker: whose turns are learned, "user" (a simulator) or "assistant" (its partner).
        with_profile: put the profile in the system message; False is the profile-free baseline (`plato`).
        end_token: end each dialogue with a user turn that is the end-of-dialogue token.
        base: checkpoint to start from (folder or hub id); "" starts from scratch at ``size``.
        size: a name in `models.SIZES`; vocab_size: of the tokenizer trained along.
        lora: rank of LoRA adapters, merged at the end; 0 trains all weights.
        epochs, max_steps: length; max_steps > 0 wins.
        batch: dialogues a step; lr: peak learning rate (cosine, warm-up 0.1 of the steps).
        max_length: tokens a dialogue at the most; the rest is cut at whole turns and counted.
        patience: evaluations without a better validation loss before stopping early; evals: evaluations in a run.
        bf16: autocast in bf16.
    """

    speaker: str = "user"
    with_profile: bool = True
    end_token: bool = False
    base: str = ""
    size: str = "2m"
    vocab_size: int = 4096
    lora: int = 0
    epochs: float = 1.0
    max_steps: int = 0
    batch: int = 16
    lr: float = 3e-3
    max_length: int = 1024
    patience: int = 3
    evals: int = 8
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class SftResult:
    """A finished training: folder of the model, learning curve (rows of step, loss or eval_loss), counts, and where it resumed."""

    path: Path
    history: list[dict]
    counts: dict[str, int]
    resumed_from: int


def train_sft(
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    out: str | Path,
    settings: SftSettings | None = None,
    fingerprint: str = "",
) -> SftResult:
    """Train and save a model; a run that was cut off goes on from its last checkpoint, a finished one is returned as it is.

    Args:
        train, validation: dialogues; validation user-turn loss decides when to stop and which weights are kept.
        out: folder of the model; checkpoints lie in ``out/checkpoints`` until the end.
        settings: see `SftSettings`.
        fingerprint: of the data, for the model card and to tell a finished run of other data from this one.

    Raises:
        UspError: no usable dialogue, profiles asked for but missing, a base that does not load, out of disk space.
    """
    s, out = settings or SftSettings(), Path(out)
    key = hashlib.sha256(
        json.dumps([asdict(s), fingerprint, [d.id for d in train]]).encode()
    ).hexdigest()[:16]
    done = _finished(out, key)
    if done:
        return done
    if out.exists() and (out / "key").exists() and (out / "key").read_text() != key:
        shutil.rmtree(out)  # of other settings or data
    for name, dialogues in (("training", train), ("validation", validation)):
        if not dialogues:
            raise UspError(f"no {name} dialogue; give at least one")
        missing = next(
            (
                d.id
                for d in dialogues
                if s.with_profile and s.speaker == "user" and d.profile is None
            ),
            None,
        )
        if missing:
            raise UspError(
                f"{name} dialogue {missing} has no profile; train without profiles (with_profile=False) or build profiles first"
            )
    try:
        return _train(train, validation, out, s, key, fingerprint)
    except OSError as e:
        if e.errno == 28:
            raise UspError(
                f"no disk space left while training into {out}; free some and start again, the last checkpoint is kept"
            ) from e
        raise


def _train(train, validation, out: Path, s: SftSettings, key: str, fingerprint: str) -> SftResult:
    from transformers import EarlyStoppingCallback
    from transformers.trainer_utils import get_last_checkpoint

    tokenizer, model = _start(train, s)
    counts: dict[str, int] = {}
    data = {
        name: _encode(d, tokenizer, s, counts, name)
        for name, d in (("train", train), ("validation", validation))
    }
    world = int(os.environ.get("WORLD_SIZE", 1))
    per_step = max(1, s.batch // world)
    steps = s.max_steps or max(1, round(s.epochs * len(data["train"]) / (per_step * world)))
    config = _config(s, out / "checkpoints", steps, per_step)
    trainer = _trainer_class()(
        model=model,
        args=config,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(s.patience)],
        peft_config=_lora(s),
    )
    last = get_last_checkpoint(config.output_dir) if Path(config.output_dir).is_dir() else None
    out.mkdir(parents=True, exist_ok=True)
    (out / "key").write_text(key)
    trainer.train(resume_from_checkpoint=last)
    resumed = int(last.rsplit("-", 1)[1]) if last else 0
    result = SftResult(out, trainer.state.log_history, counts, resumed)
    if trainer.is_world_process_zero():
        _save(trainer, tokenizer, result, s, key, fingerprint)
    trainer.accelerator.wait_for_everyone()
    return result


def _config(s: SftSettings, folder: Path, steps: int, per_step: int):
    import torch
    from trl import SFTConfig

    every, cuda = max(1, steps // s.evals), torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=per_step,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        max_length=None,  # we have cut at whole turns; TRL would cut anywhere
        learning_rate=s.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.1 * steps)),
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=s.bf16,
        gradient_checkpointing=cuda,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        seed=s.seed,
        data_seed=s.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 5),
        report_to="none",
    )


def _trainer_class():
    """Return TRL's SFTTrainer, on a CPU with a plain output layer.

    TRL projects trained positions through tiles made for Triton kernels; their eager form takes most of a CPU step (`benchmarks/sft.py`). Here a hook
    selects the trained positions and one projection follows, through the model's own forward, so that DDP, FSDP and adapters work as before.
    """
    import torch
    from trl import SFTTrainer

    class CpuSFTTrainer(SFTTrainer):
        _keep = None

        def __init__(self, model, *args, **kwargs):
            super().__init__(model, *args, **kwargs)
            head = self.model.get_output_embeddings()
            head.register_forward_pre_hook(
                lambda module, inputs: inputs if self._keep is None else (inputs[0][self._keep],)
            )

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            target = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
            self._keep = target != -100
            try:
                outputs = model(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    use_cache=False,
                )
            finally:
                keep, self._keep = self._keep, None
            loss = torch.nn.functional.cross_entropy(
                outputs.logits.float(), target[keep], reduction="sum"
            )
            loss = loss / torch.as_tensor(
                keep.sum() if num_items_in_batch is None else num_items_in_batch
            ).clamp(min=1)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = (
                    loss * self.accelerator.num_processes
                )  # the count is over all processes, and DDP averages
            return (loss, outputs) if return_outputs else loss

    return SFTTrainer if torch.cuda.is_available() else CpuSFTTrainer


def _start(train: Sequence[Dialogue], s: SftSettings):
    """Return (tokenizer, model) to begin with."""
    import torch

    from usp_lab.models import Device, load_causal_lm, load_tokenizer, new_llama, new_tokenizer

    extra = [END_TOKEN] if s.end_token else []
    if not s.base:
        texts = (
            m["content"]
            for d in train
            for m in with_profile(d.messages, d.profile if s.with_profile else None)
        )
        tokenizer = new_tokenizer(texts, s.vocab_size, s.speaker, extra)
        return tokenizer, new_llama(tokenizer, s.size, max(2 * s.max_length, 2048), s.seed)
    tokenizer = load_tokenizer(s.base, s.speaker)
    model = load_causal_lm(
        s.base, device=Device("cpu", torch.float32, "master weights; the trainer moves them")
    )
    if extra and tokenizer.add_special_tokens({"additional_special_tokens": extra}):
        model.resize_token_embeddings(len(tokenizer))
    return tokenizer, model


def _lora(s: SftSettings):
    if not s.lora:
        return None
    from peft import LoraConfig

    trained = ["embed_tokens", "lm_head"] if s.end_token else None  # a new token needs its own row
    return LoraConfig(
        r=s.lora,
        lora_alpha=2 * s.lora,
        target_modules="all-linear",
        modules_to_save=trained,
        task_type="CAUSAL_LM",
    )


def to_messages(dialogue: Dialogue, s: SftSettings) -> list[dict]:
    """Return what a dialogue is trained as: with or without its profile, with or without an end token."""
    profile = dialogue.profile if s.with_profile and s.speaker == "user" else None
    messages = [
        {"role": m["role"], "content": m["content"]}
        for m in with_profile(dialogue.messages, profile)
    ]
    if s.end_token and messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": END_TOKEN})
    return messages


def _encode(
    dialogues: Sequence[Dialogue], tokenizer, s: SftSettings, counts: dict[str, int], name: str
):
    """Return token ids and labels (-100 where no loss is taken); long dialogues are cut at whole turns and counted."""
    from datasets import Dataset

    template, rows = chat_template(s.speaker, training=True), []
    for start in range(0, len(dialogues), 256):
        batch = [to_messages(d, s) for d in dialogues[start : start + 256]]
        out = tokenizer.apply_chat_template(
            batch,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        for messages, ids, mask in zip(
            batch, out["input_ids"], out["assistant_masks"], strict=True
        ):
            if len(ids) > s.max_length:
                kept, _ = cut_to_turns(tokenizer, messages, s.max_length)
                short = len(token_ids(tokenizer, kept))
                ids, mask = ids[:short], mask[:short]
                counts[f"{name}: cut at a whole turn"] = (
                    counts.get(f"{name}: cut at a whole turn", 0) + 1
                )
            if not any(mask):
                counts[f"{name}: dropped, no {s.speaker} turn fits"] = (
                    counts.get(f"{name}: dropped, no {s.speaker} turn fits", 0) + 1
                )
                continue
            rows.append(
                {
                    "input_ids": ids,
                    "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)],
                }
            )
    counts[f"{name}: dialogues"], counts[f"{name}: tokens"] = (
        len(rows),
        sum(len(r["input_ids"]) for r in rows),
    )
    counts[f"{name}: trained tokens"] = sum(x != -100 for r in rows for x in r["labels"])
    if not rows:
        raise UspError(
            f"no {name} dialogue fits {s.max_length} tokens with a {s.speaker} turn; raise max_length or shorten profiles"
        )
    return Dataset.from_list(rows)


def _save(
    trainer, tokenizer, result: SftResult, s: SftSettings, key: str, fingerprint: str
) -> None:
    """Save the model for inference: weights as safetensors, the published template, a model card; then mark it finished."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if s.lora:
        model = model.merge_and_unload()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    model.save_pretrained(result.path)
    tokenizer.chat_template = chat_template(s.speaker)
    tokenizer.save_pretrained(result.path)
    record = {
        "key": key,
        "settings": asdict(s),
        "data": fingerprint,
        "counts": result.counts,
        "history": result.history,
        "resumed_from": result.resumed_from,
    }
    (result.path / "README.md").write_text(
        model_card(record, sum(p.numel() for p in model.parameters())), encoding="utf-8"
    )
    shutil.rmtree(result.path / "checkpoints", ignore_errors=True)
    part = result.path / f"{FINAL}.part"
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    part.replace(result.path / FINAL)


def _finished(out: Path, key: str) -> SftResult | None:
    """Return the result of a finished run with this key, None when there is none."""
    if not (out / FINAL).exists():
        return None
    record = json.loads((out / FINAL).read_text(encoding="utf-8"))
    if record["key"] != key:
        return None
    return SftResult(out, record["history"], record["counts"], record["resumed_from"])


def model_card(record: dict, parameters: int) -> str:
    """Return a model card (markdown) written from a training's record."""
    s, losses = record["settings"], [h["eval_loss"] for h in record["history"] if "eval_loss" in h]
    role = "user simulator" if s["speaker"] == "user" else "assistant"
    given = (
        "conditioned on a profile in the system message"
        if s["with_profile"] and s["speaker"] == "user"
        else "without profiles"
    )
    counts = "\n".join(f"- {k}: {v:,}" for k, v in record["counts"].items())
    settings = "\n".join(f"| {k} | {v} |" for k, v in s.items())
    best = f"{min(losses):.4f} nats a token" if losses else "not evaluated"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [user-simulation]
---

# A {role}, {given}

{parameters:,} parameters, {"from scratch" if not s["base"] else "from " + Path(s["base"]).name}, trained by `usp_lab.sft` after USP (arXiv 2502.18968): loss on
{s["speaker"]} turns and their `<|eot_id|>` alone. Best validation loss: {best}. Data fingerprint: {record["data"] or "not given"}.
{"It ends a dialogue with `" + END_TOKEN + "`." if s["end_token"] else "It has no end-of-dialogue token."}

{counts}

| setting | value |
|---|---|
{settings}

Made for research on simulated users. It repeats what its training dialogues contain and must not stand in for real people's opinions.
"""


def main() -> None:
    """Command line: every field of `SftSettings` is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.sft",
        description="Train a user simulator (or an assistant) on dialogues.",
    )
    parser.add_argument(
        "--data",
        default="population",
        help="population, a .jsonl/.jsonl.gz/.parquet file, a folder with splits, or hub:NAME",
    )
    parser.add_argument("--out", required=True, help="folder of the model")
    parser.add_argument("--n", type=int, default=None, help="dialogues at the most")
    parser.add_argument(
        "--on-bad", choices=["raise", "skip"], default="raise", help="what to do with bad rows"
    )
    for name, default in asdict(SftSettings()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    args = vars(parser.parse_args())
    where = {k: args.pop(k) for k in ("data", "out", "n", "on_bad")}
    try:
        settings = SftSettings(**args)
        corpus: Corpus = load_dialogues(
            where["data"], n=where["n"], seed=settings.seed, on_bad=where["on_bad"]
        )
        result = train_sft(
            corpus.train, corpus.validation, where["out"], settings, corpus.fingerprint
        )
    except UspError as e:
        raise SystemExit(f"error: {e}") from None
    losses = [h["eval_loss"] for h in result.history if "eval_loss" in h]
    print(f"saved {result.path}; best validation loss {min(losses):.4f}; {result.counts}")


if __name__ == "__main__":
    main()
