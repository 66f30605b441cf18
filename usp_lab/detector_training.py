"""Training of the AI detector: users' turns against assistants' turns, one at a time (arXiv 2502.18968, section 4).

    python -m usp_lab.detector_training --data population --out runs/detector --most-steps 800
    torchrun --nproc_per_node 2 -m usp_lab.detector_training --data dialogues.jsonl.gz --out runs/detector \\
        --base allenai/longformer-base-4096 --base-weights pytorch_model.bin --lr 2e-5 --batch 128 --warmup 0.01 \\
        --choose macro_f1 --max-length 4096                                        # as the release trained

transformers' Trainer trains. Validation users choose the weights, the temperature that makes probabilities mean what
they say, and from how many words on the detector speaks at all.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from usp_lab import stats
from usp_lab.calibration import fit_temperature, shortest_told
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.detector import LABELS, AIDetector
from usp_lab.detector_settings import CHOICES, ENCODERS, DetectorResult, DetectorSettings
from usp_lab.errors import UspError
from usp_lab.files import room_on_disk
from usp_lab.finished import FINAL, finish, finished
from usp_lab.model_card import detector_card
from usp_lab.options import add_fields, add_source, exit_on_error
from usp_lab.sft_data import drawn


class Utterances(NamedTuple):
    """Utterances one by one: texts, whether a user's, and whose dialogue (the unit of resampling)."""

    texts: list[str]
    human: np.ndarray
    owners: list[str]


def utterances(dialogues: Sequence[Dialogue]) -> Utterances:
    """Return every utterance of both sides that has a word in it, in order."""
    rows = [
        (m["content"], m["role"] == "user", d.user_id or d.id)
        for d in dialogues
        for m in d.messages
        if m["content"].strip()
    ]
    texts, human, owners = (list(c) for c in zip(*rows, strict=True)) if rows else ([], [], [])
    return Utterances(texts, np.array(human, bool), owners)


def train_detector(
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    out: str | Path,
    settings: DetectorSettings | None = None,
    fingerprint: str = "",
) -> DetectorResult:
    """Train, calibrate and save a detector; a run that was cut off goes on, a finished one is returned as it is.

    Args:
        train, validation: dialogues, of which each utterance is an item.
        out: folder of the detector, which `AIDetector.from_pretrained` loads.
        settings: see `DetectorSettings`.
        fingerprint: of the data, for the model card.

    Raises:
        UspError: dialogues without utterances of both sides, a base that does not load, a batch that
            processes cannot share evenly, a loss that is not finite, no disk space.
    """
    s, out = settings or DetectorSettings(), Path(out)
    parts = {"training": utterances(train), "validation": utterances(validation)}
    for name, part in parts.items():
        if not part.human.any() or part.human.all():
            n = int(part.human.sum())
            raise UspError(
                f"{n} user and {len(part.texts) - n} assistant utterances for {name}; give dialogues with "
                "some of both"
            )
    if s.base and Path(s.base).resolve() == out.resolve():
        raise UspError(f"base and out are both {out}; name another folder for the trained detector")
    key = _key(parts, s)
    if done := finished(out, key):
        kept = (done[k] for k in ("history", "counts", "resumed_from", "temperature"))
        return DetectorResult(out, *kept, done["least_words"])
    with room_on_disk(out):
        return _train(parts["training"], parts["validation"], out, s, key, fingerprint)


def _train(train: Utterances, held: Utterances, out: Path, s: DetectorSettings, key, fingerprint):
    from transformers import DataCollatorWithPadding

    from usp_lab.encoder_trainer import EncoderTrainer, arguments, macro_f1, pretrained
    from usp_lab.finished import last_checkpoint, prepare_folder
    from usp_lab.models import quiet_bars
    from usp_lab.trainer import Bar, EarlyStop, quiet, schedule

    pairs = list(zip(train.texts, train.human, strict=True))
    length = len(pairs) / s.batch  # steps of one pass
    most = s.most_steps or sys.maxsize
    steps = min(max(1, round(s.epochs * length)), most)
    first = min(round(s.pretrain_epochs * length), most)
    pairs = drawn(pairs, max(first, steps) * s.batch, s.seed)
    tokenizer, model = _start([text for text, _ in pairs], s)
    counts: Counter[str] = Counter()
    rows = _encode(pairs, tokenizer, s, counts, "train")
    folder = out / "checkpoints"
    stop = EarlyStop(s.patience, CHOICES[s.choose], higher=s.choose != "loss")
    args = arguments(s, folder, steps, CHOICES[s.choose])
    with args.main_process_first(local=False):
        if args.process_index == 0:
            for each in (folder, folder / "pretraining") if first else (folder,):
                prepare_folder(each, key)
            (out / FINAL).unlink(missing_ok=True)
    if first:
        model = pretrained(model, rows["input_ids"], tokenizer, s, folder / "pretraining", first)
        counts["train: steps of guessing"] = first
    last, state = last_checkpoint(folder)
    if stop.reached(state.get("log_history", [])):  # killed between its early stop and its end
        args.max_steps = state["global_step"]
    order = schedule([len(r) for r in rows["input_ids"]], s.batch, args.max_steps, s.seed)
    checked = list(zip(held.texts, held.human, strict=True))
    trainer = EncoderTrainer(
        model=model,
        args=args,
        train_dataset=rows.select(order),
        eval_dataset=_encode(checked, tokenizer, s, counts, "validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=macro_f1,
    )
    quiet(trainer, stop, Bar(out.name))
    with quiet_bars():
        trainer.train(resume_from_checkpoint=last and str(last))
    trainer.accelerator.wait_for_everyone()  # each has loaded the best weights
    curve = [h for h in trainer.state.log_history if "loss" in h or "eval_loss" in h]
    result = DetectorResult(out, curve, dict(counts), state.get("global_step", 0), 1.0, 1)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model).float().eval()
        result = _calibrated(AIDetector(model, tokenizer), held, result)
        _save(model, tokenizer, held, result, replace(s, bf16=args.bf16), key, fingerprint)
    trainer.accelerator.wait_for_everyone()
    return result


def _start(texts: Sequence[str], s: DetectorSettings):
    """Return (tokenizer, model) to begin with; the tokenizer reads ``max_length`` tokens."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from usp_lab.encoder_trainer import new_encoder, new_encoder_tokenizer
    from usp_lab.models import Device, load_model, load_tokenizer

    if not s.base:
        tokenizer = new_encoder_tokenizer(texts, s.vocab_size)
        model = new_encoder(tokenizer, ENCODERS[s.size], LABELS, s.max_length, s.seed)
    else:
        cpu = Device("cpu", torch.float32, "the trainer moves them")
        tokenizer = load_tokenizer(s.base, speaker=None, padding="right")
        kind, pickle = AutoModelForSequenceClassification, s.base_weights or None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)  # of a new head
            model = load_model(kind, s.base, pickle, cpu, "encoder", labels=LABELS)
    limit = AIDetector(model, tokenizer).limit
    if s.max_length > limit:
        raise UspError(f"max_length={s.max_length} but {s.base} reads {limit} tokens; lower it")
    tokenizer.model_max_length = s.max_length
    return tokenizer, model


def _encode(pairs, tokenizer, s: DetectorSettings, counts: Counter, name: str):
    """Return rows of token ids and labels."""
    from datasets import Dataset

    texts = [text for text, _ in pairs]
    ids = tokenizer(texts, truncation=True, max_length=s.max_length)["input_ids"]
    counts[f"{name}: user utterances"] = int(sum(human for _, human in pairs))
    counts[f"{name}: assistant utterances"] = len(pairs) - counts[f"{name}: user utterances"]
    counts[f"{name}: tokens"] = sum(map(len, ids))
    counts[f"{name}: as long as is read"] = sum(len(i) == s.max_length for i in ids)
    labels = [0 if human else 1 for _, human in pairs]  # `LABELS`
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def _calibrated(detector: AIDetector, held: Utterances, result: DetectorResult) -> DetectorResult:
    """Choose temperature and least words on validation."""
    z = detector.log_odds(held.texts)
    least = shortest_told(held.texts, z, held.human)
    long = np.array([len(t.split()) >= least for t in held.texts])
    both = 0 < held.human[long].sum() < long.sum()
    chosen = long if both else np.ones(len(long), bool)
    return replace(
        result, temperature=fit_temperature(z[chosen], held.human[chosen]), least_words=least
    )


def _key(parts: dict[str, Utterances], s: DetectorSettings) -> str:
    """Return 16 hex digits over everything that decides the weights."""
    from usp_lab.models import weights_digest

    digest = hashlib.sha256(json.dumps(asdict(s)).encode())
    digest.update(weights_digest(s.base))
    for part in parts.values():
        rows = zip(part.texts, part.human.tolist(), strict=True)
        digest.update(json.dumps(list(rows)).encode() + b"\n")
    return digest.hexdigest()[:16]


def _save(model, tokenizer, held, result: DetectorResult, s: DetectorSettings, key, fingerprint):
    """Save the detector and its card; then mark the run finished."""
    detector = AIDetector(model, tokenizer, result.temperature, result.least_words)
    detector.save(result.path)
    p = detector.probabilities(held.texts)
    auc = stats.auc(p, held.human, held.owners, "user")
    card = detector_card(s, result, model.num_parameters(), auc, fingerprint)
    (result.path / "README.md").write_text(card, encoding="utf-8")
    record = {"key": key, "settings": asdict(s), "data": fingerprint} | asdict(result)
    finish(result.path, {k: v for k, v in record.items() if k != "path"})


def main() -> None:
    """Command line: every field of `DetectorSettings` is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.detector_training",
        description="Train an AI detector on users' turns against assistants' turns.",
    )
    add_source(parser, "folder of the detector")
    add_fields(parser, DetectorSettings)
    args = vars(parser.parse_args())
    data, out, n, on_bad = (args.pop(k) for k in ("data", "out", "n", "on_bad"))
    with exit_on_error():
        settings = DetectorSettings(**args)
        corpus = load_dialogues(data, n=n, seed=settings.seed, on_bad=on_bad)
        result = train_detector(corpus.train, corpus.validation, out, settings, corpus.fingerprint)
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"saved {result.path}; best validation loss {result.best_loss:.4f}, temperature "
            f"{result.temperature:.3f}, speaks from {result.least_words} words on"
        )


if __name__ == "__main__":
    main()
