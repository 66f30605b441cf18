"""Looks at validation users while a simulator is reinforced, and the two logs that a run keeps."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainerCallback

from usp_lab.files import atomic, whole_lines
from usp_lab.guards import broken, summary

ROLLOUTS, GUARDS = "rollouts.jsonl", "guards.jsonl"


def counted(log: Path) -> dict[str, int]:
    """Sum up a log of rollouts: dialogues, those that failed for good, those without a reward, how often one was tried
    again, ...
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    counts = {"rollouts": len(rows), "failed": sum(r["stop"] == "failed" for r in rows)}
    counts["without reward"] = sum(math.isnan(r["reward"]) for r in rows)
    named = {"tried again": "tried_again", "cut": "cut", "turns": "turns", "turns retokenised": "retokenised"}  # fmt: skip
    return counts | {name: sum(r[key] for r in rows) for name, key in named.items()}


class Looks(TrainerCallback):
    """Looks at validation users before the first step and after every so many; under the stop rule keeps the weights
    of the last within bounds.

    The history is read back from the log, so that a resumed run decides as an uninterrupted one does.
    """

    def __init__(self, every: int, best: Path) -> None:
        self.every, self.best = every, best
        self.trainer = None  # the `CycleTrainer`, which is made with this
        self.history: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Look at what training starts from."""
        log = self.trainer.out / GUARDS
        self.history = cut_lines(log, state.global_step, state.is_world_process_zero)
        cut_lines(self.trainer.out / ROLLOUTS, state.global_step - 1, state.is_world_process_zero)
        self.trainer.accelerator.wait_for_everyone()
        if not self.history:
            self._look(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        """Look after every so many steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(state, control)

    def _look(self, state, control) -> None:
        t = self.trainer
        a = t.accelerator
        with t.policy() as policy:
            rows = t.guards.look(policy, slice(a.process_index, None, a.num_processes))
        now = {"step": state.global_step} | summary(gather_object(rows))
        now["broken"] = broken(now, self.history[0]) if self.history else []
        self.history.append(now)
        add_lines(t.out / GUARDS, [now], t.is_world_process_zero())
        if t.rlcc.stop_rule and kept(self.history) == state.global_step:
            weights = a.get_state_dict(t.model_wrapped)
            if t.is_world_process_zero():
                a.unwrap_model(t.model).save_pretrained(self.best, state_dict=weights)
        if t.rlcc.stop_rule and stopped(self.history):
            control.should_training_stop = True


def kept(history: Sequence[dict]) -> int:
    """Return the step of the last look within bounds, the first of all where there is none.

    Not the one with the highest reward: over some dozens of users looks differ by chance more than by what was learned.
    """
    return max((h["step"] for h in history if not h["broken"]), default=history[0]["step"])


def stopped(history: Sequence[dict]) -> str:
    """Return why to end early: what was out of bounds at the last two looks; "" where nothing was."""
    last = [h["broken"] for h in history[-2:]]
    return "; ".join(last[-1]) if len(last) == 2 and all(last) else ""


def add_lines(path: Path, rows: Sequence[dict], writes: bool) -> None:
    """Append rows to a file of JSON lines, in one process."""
    if writes:
        with path.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)


def cut_lines(path: Path, last: int, writes: bool) -> list[dict]:
    """Return the rows up to ``last``; a line that a crash cut short, and later ones, are taken off the file."""
    rows = [json.loads(line) for line in whole_lines(path)[0]] if path.exists() else []
    rows = [r for r in rows if r["step"] <= last]
    if writes and path.exists():
        with atomic(path) as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return rows
