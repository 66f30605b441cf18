"""Conditional supervised fine-tuning: the likelihood of user turns given profile and context.

    python -m usp_lab.sft --data population --out runs/usp --size 2m --max-steps 400
    torchrun --nproc_per_node 2 -m usp_lab.sft --data dialogues.jsonl.gz --out runs/usp \\
        --base meta-llama/Meta-Llama-3-8B --lora 16 --micro-batch 1

TRL trains (paper, section 4). User turns and their <|eot_id|> carry the loss, long dialogues are
cut at whole turns; checkpoints, learning curve and model card are kept; it begins from scratch or
from a checkpoint, with all weights or LoRA. The same function trains an assistant.
"""

import argparse
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from usp_lab.chat import END_TOKEN, SPECIAL_TOKENS, chat_template
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.files import room_on_disk
from usp_lab.finished import FINAL, finish, finished
from usp_lab.model_card import model_card
from usp_lab.options import add_fields, add_source, exit_on_error
from usp_lab.sft_data import drawn, encode, to_messages, withhold_profiles
from usp_lab.sft_settings import SftResult, SftSettings

_ROWS = 400  # dialogues that the row of a new end token is fitted on


def train_sft(
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    out: str | Path,
    settings: SftSettings | None = None,
    fingerprint: str = "",
) -> SftResult:
    """Train and save a model; a run that was cut off goes on, a finished one is returned as it is.

    Args:
        train, validation: dialogues; validation loss decides when to stop and which weights are
            kept, be it those of the base that it goes on from (of one that learns with profiles, whole: no
            LoRA, no shards, no new token).
        out: folder of the model; checkpoints lie in ``out/checkpoints`` until the end.
        settings: see `SftSettings`.
        fingerprint: of the data, for the model card.

    Raises:
        UspError: no usable dialogue, profiles asked for but missing, a base that does not load, a
            batch that processes cannot share evenly, a loss that is not finite, no disk space.
    """
    s, out = settings or SftSettings(), Path(out)
    for name, dialogues in (("training", train), ("validation", validation)):
        if not dialogues:
            raise UspError(f"no {name} dialogue; give at least one")
        missing = next((d.id for d in dialogues if s.needs_profile and d.profile is None), None)
        if missing is not None:
            raise UspError(
                f"{name} dialogue {missing} has no profile; build profiles first"
                + (", or train without them (with_profile=False)" if s.reads_profile else "")
            )
    if s.base and Path(s.base).resolve() == out.resolve():
        raise UspError(f"base and out are both {out}; name another folder for the trained model")
    key = _key(train, validation, s)
    if done := finished(out, key):
        return SftResult(out, done["history"], done["counts"], done["resumed_from"])
    with room_on_disk(out):
        return _train(train, validation, out, s, key, fingerprint)


def _train(train, validation, out: Path, s: SftSettings, key: str, fingerprint: str) -> SftResult:
    from usp_lab.finished import last_checkpoint, prepare_folder
    from usp_lab.models import quiet_bars
    from usp_lab.new_token import fit_row
    from usp_lab.optim import MuonAdamW
    from usp_lab.rewording import reworded
    from usp_lab.trainer import (
        Bar,
        EarlyStop,
        arguments,
        quiet,
        schedule,
        share_evenly,
        trainer_class,
    )

    steps = s.max_steps or max(1, round(s.epochs * len(train) / s.batch))
    train = drawn(train, steps * s.batch, s.seed)
    tokenizer, model, new_tokens = _start(train, s)
    counts: Counter[str] = Counter()
    told = reworded(train, s.reword, s.seed) if s.reword else withhold_profiles(train, s)
    rows = encode(told, tokenizer, s, counts, "train")
    if s.end_token and s.base and new_tokens:
        end = tokenizer.get_vocab()[END_TOKEN]
        fit_row(model, rows.select(range(min(len(rows), _ROWS))), end)
    folder, stop = out / "checkpoints", EarlyStop(s.patience)
    args = arguments(s, folder, steps)
    with args.main_process_first(local=False):
        if args.process_index == 0:
            prepare_folder(folder, key)
            (out / FINAL).unlink(missing_ok=True)
    last, state = last_checkpoint(folder)
    if stop.reached(state.get("log_history", [])):  # killed between its early stop and its end
        args.max_steps = state["global_step"]
    order = schedule([len(r) for r in rows["input_ids"]], s.batch, args.max_steps, s.seed)
    trainer = trainer_class()(
        model=model,
        args=args,
        train_dataset=rows.select(order),
        eval_dataset=share_evenly(encode(validation, tokenizer, s, counts, "validation"), args),
        processing_class=tokenizer,
        peft_config=_lora(model, s, new_tokens),
        optimizers=(MuonAdamW(model, s.lr) if s.optimizer == "muon" else None, None),
    )
    if s.lora and _sharded(trainer):
        raise UspError(
            f"lora={s.lora} cannot be merged into weights in shards (FSDP, ZeRO-3); train it on one GPU "
            "or several whole copies (torchrun), or all weights (lora=0)"
        )
    quiet(trainer, stop, Bar(out.name))
    # One that is to learn without profiles must not stay one that learned with them.
    known = s.base and s.keep_base and s.with_profile
    known = known and not (new_tokens or s.lora or _sharded(trainer))
    with quiet_bars():
        before = [trainer.evaluate() | {"step": 0}] if known else []
        trainer.train(resume_from_checkpoint=last and str(last))
    trainer.accelerator.wait_for_everyone()  # each has loaded the best weights
    curve = [h for h in trainer.state.log_history if "loss" in h or "eval_loss" in h]
    result = SftResult(out, before + curve, dict(counts), state.get("global_step", 0))
    # gathered from all processes, where each holds a shard; LoRA's are merged when they are saved
    weights = None if s.lora else trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if result.kept == 0:
        weights = _start(train, s)[1].state_dict()
    if trainer.is_world_process_zero():
        _save(trainer, weights, tokenizer, result, replace(s, bf16=args.bf16), key, fingerprint)
    trainer.accelerator.wait_for_everyone()
    return result


def _start(train: Sequence[Dialogue], s: SftSettings):
    """Return (tokenizer, model, whether tokens are new to the model) to begin with."""
    import torch

    from usp_lab.from_scratch import new_model, new_tokenizer
    from usp_lab.models import Device, load_causal_lm, load_tokenizer

    extra = [END_TOKEN] if s.end_token else []
    if not s.base:
        texts = (
            m["content"] for d in train for m in to_messages(d, s) if m["content"] not in extra
        )
        tokenizer = new_tokenizer(texts, s.vocab_size, s.template, extra)
        context = max(2 * s.max_length, 2048)
        return tokenizer, new_model(tokenizer, s.size, context, s.seed, s.architecture), True
    tokenizer = load_tokenizer(s.base, speaker=None)
    model = load_causal_lm(s.base, device=Device("cpu", torch.float32, "the trainer moves them"))
    context = model.config.max_position_embeddings
    if s.max_length > context:
        raise UspError(
            f"max_length={s.max_length} but {s.base} has a context of {context}; lower it"
        )
    tokenizer.chat_template = chat_template(s.template)
    used = [t for t in SPECIAL_TOKENS if "header" in t or "eot" in t] + extra
    new = [t for t in used if t not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            told = logging.getLogger("transformers.modeling_utils")
            level = told.level
            told.setLevel(logging.ERROR)  # it would explain at length how new rows begin
            model.resize_token_embeddings(len(tokenizer))
            told.setLevel(level)
    return tokenizer, model, bool(new)


def _lora(model, s: SftSettings, new_tokens: bool):
    if not s.lora:
        return None
    from peft import LoraConfig

    trained, tied = None, model.config.tie_word_embeddings
    if new_tokens:  # they need rows of their own
        rows = (model.get_input_embeddings(), model.get_output_embeddings())
        trained = [
            n.rsplit(".", 1)[-1] for n, m in model.named_modules() if any(m is r for r in rows)
        ]
    return LoraConfig(
        r=s.lora,
        lora_alpha=2 * s.lora,
        target_modules="all-linear",
        modules_to_save=trained,
        ensure_weight_tying=bool(trained and tied),
        task_type="CAUSAL_LM",
    )


def _key(train, validation, s: SftSettings) -> str:
    """Return 16 hex digits over everything that decides the weights."""
    from usp_lab.models import weights_digest

    digest = hashlib.sha256(json.dumps(asdict(s)).encode())
    digest.update(weights_digest(s.base))
    for dialogues in (train, validation):
        for d in dialogues:
            digest.update(json.dumps(to_messages(d, s)).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _sharded(trainer) -> bool:
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def _save(trainer, weights, tokenizer, result: SftResult, s: SftSettings, key, fingerprint: str):
    """Save weights, published template and model card; then mark the run finished."""
    from usp_lab.models import quiet_bars

    model = trainer.accelerator.unwrap_model(trainer.model)
    if s.lora:
        model = model.merge_and_unload()
    ends = {tokenizer.eos_token_id, tokenizer.get_vocab()["<|eot_id|>"]} - {None}
    model.generation_config.eos_token_id = sorted(ends)
    if s.repetition_penalty:
        model.generation_config.repetition_penalty = s.repetition_penalty
    with quiet_bars():
        model.save_pretrained(result.path, state_dict=weights)
    tokenizer.save_pretrained(result.path)
    card = model_card(s, result, model.num_parameters(), fingerprint)
    (result.path / "README.md").write_text(card, encoding="utf-8")
    record = {
        "key": key,
        "settings": asdict(s),
        "data": fingerprint,
        "counts": result.counts,
        "history": result.history,
        "resumed_from": result.resumed_from,
    }
    finish(result.path, record)


def history_table(results: Mapping[str, SftResult]):
    """Return learning curves as one pandas table: model, step, loss, split.

    ``split`` is "train" or "validation".
    """
    import pandas as pd

    rows = [
        {"model": name, "step": h["step"], "loss": h[key], "split": split}
        for name, r in results.items()
        for h in r.history
        for key, split in (("loss", "train"), ("eval_loss", "validation"))
        if key in h
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Command line: every field of `SftSettings` is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.sft",
        description="Train a user simulator (or an assistant) on dialogues.",
    )
    add_source(parser, "folder of the model")
    add_fields(parser, SftSettings)
    args = vars(parser.parse_args())
    data, out, n, on_bad = (args.pop(k) for k in ("data", "out", "n", "on_bad"))
    with exit_on_error():
        settings = SftSettings(**args)
        corpus = load_dialogues(data, n=n, seed=settings.seed, on_bad=on_bad)
        result = train_sft(corpus.train, corpus.validation, out, settings, corpus.fingerprint)
    if int(os.environ.get("RANK", 0)) == 0:
        counts = ", ".join(f"{k} {v:,}" for k, v in result.counts.items())
        print(f"saved {result.path}; best validation loss {result.best_loss:.4f}; {counts}")


if __name__ == "__main__":
    main()
