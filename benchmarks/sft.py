"""Seconds a training step on the population, TRL's trainer and ours side by side.

    python benchmarks/sft.py [--size 2m] [--steps 6] [--rounds 3] [--no-bf16]

Both see the same batches, in turns, so that whatever else the machine does falls on both. Prints
one line a trainer and `ratio stock/ours R` of the medians.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback
from trl import SFTTrainer

from usp_lab import load_dialogues
from usp_lab.from_scratch import new_model, new_tokenizer
from usp_lab.sft import SftSettings
from usp_lab.sft_data import encode, to_messages
from usp_lab.trainer import CpuSFTTrainer, arguments, quiet, schedule


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.times.append(time.perf_counter())


def seconds(kind: type[SFTTrainer], rows, tokenizer, s: SftSettings, steps: int) -> list[float]:
    """Train afresh and return the seconds of each step but the first."""
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(s, Path(folder), steps + 1)
        args.eval_strategy = args.save_strategy = "no"
        args.load_best_model_at_end = False
        model = new_model(tokenizer, s.size, 2048)
        trainer = kind(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        quiet(trainer, clock := Clock())
        trainer.train()
    return np.diff(clock.times).tolist()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default=SftSettings.size)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=SftSettings.bf16)
    options = parser.parse_args()
    s = SftSettings(size=options.size, bf16=options.bf16)
    train = load_dialogues("population", n=400).train
    texts = (m["content"] for d in train for m in to_messages(d, s))
    tokenizer = new_tokenizer(texts, s.vocab_size)
    rows = encode(train, tokenizer, s, Counter(), "train")
    lengths = [len(ids) for ids in rows["input_ids"]]
    rows = rows.select(schedule(lengths, s.batch, options.steps + 1, s.seed))
    kinds, found = {"stock": SFTTrainer, "ours": CpuSFTTrainer}, {"stock": [], "ours": []}
    for _ in range(options.rounds):
        for name, kind in kinds.items():
            found[name] += seconds(kind, rows, tokenizer, s, options.steps)
    model = new_model(tokenizer, s.size)
    print(
        f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, batch {s.batch} of "
        f"{np.mean(lengths):.0f} tokens, {'bf16' if s.bf16 else 'fp32'}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, times in found.items():
        low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
        print(f"{name}: {middle:.3f} s a step (quartiles {low:.3f}, {high:.3f}; n={len(times)})")
    print(f"ratio stock/ours {np.median(found['stock']) / np.median(found['ours']):.2f}")


if __name__ == "__main__":
    main()
