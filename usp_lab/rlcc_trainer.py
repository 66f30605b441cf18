"""TRL's GRPO trainer on whole dialogues: rollouts, rewards and advantages a turn, looks at validation users.

TRL gathers one reward a dialogue and nothing else across processes, once a step: dialogues of any number of turns
neither hang nor drop. What TRL marks as experimental (``rollout_func``) is used here alone.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import cross_entropy, pad
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import nanstd

from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.guards import Guards, broken, summary
from usp_lab.models import CPU_ROWS
from usp_lab.reward import CycleReward, Terms
from usp_lab.rlcc_settings import RlccSettings
from usp_lab.rollouts import Policy, Rollout, roll_out, spoken

ROLLOUTS, GUARDS = "rollouts.jsonl", "guards.jsonl"
_MOST = 1_000_000  # rollouts a step at the most: numbers of different steps never meet


class CycleTrainer(GRPOTrainer):
    """GRPO whose dialogues are `rollouts.roll_out` of the model as it is, and whose reward is `CycleReward`'s.

    Args:
        settings: of the run.
        targets: what the prompts, numbers as text, stand for.
        assistant, reward, guards: see `rlcc.train_rlcc`.
        out: where every dialogue's terms and every look are written.
        kwargs: of `GRPOTrainer`.
    """

    def __init__(
        self,
        *,
        settings: RlccSettings,
        targets: Sequence[Dialogue],
        assistant,
        reward: CycleReward,
        guards: Guards,
        out: Path,
        **kwargs,
    ) -> None:
        self.rlcc, self.targets, self.assistant = settings, targets, assistant
        self.reward, self.guards, self.out = reward, guards, out
        self._turns: tuple[list[Rollout], list[Terms]] = ([], [])
        super().__init__(
            reward_funcs=_given, rollout_func=lambda prompts, trainer: trainer._roll_out(prompts), **kwargs
        )  # fmt: skip

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        """Yield the model as it is now, ready to speak."""
        s, training = self.rlcc, self.model.training
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
            torch.no_grad(),
            torch.autocast(self.accelerator.device.type, enabled=False),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            model.eval()
            wrapped = model.forward  # in accelerate's autocast, where turns are others
            model.forward = getattr(model, "_original_forward", wrapped)
            drawn = Sampling(temperature=s.temperature, max_new_tokens=s.max_new_tokens)
            yield Policy(model, self.processing_class, drawn, "policy")
            model.forward = wrapped
            model.train(training)

    # --- rollouts --------------------------------------------------------------------------------

    def _roll_out(self, prompts: Sequence[str]) -> dict[str, list]:
        """Let the policy talk about this process's share of a step's targets; what TRL asks of a rollout."""
        s, step = self.rlcc, self.state.global_step
        targets = [self.targets[int(p)] for p in prompts]
        first = step * _MOST + self.accelerator.process_index * len(prompts)
        numbers = list(range(first, first + len(prompts)))
        with self.policy() as policy:
            rollouts = roll_out(
                policy, self.assistant, targets, numbers, s.max_turns, s.max_length, s.seed, s.retries
            )  # fmt: skip
        terms = self.reward.score([t.profile for t in targets], spoken(rollouts, targets))
        self._turns = rollouts, terms
        self._write(targets, numbers, rollouts, terms, step)
        rewards = [t.total(s.lam) for t in terms]
        return {
            "prompt_ids": [r.prompt for r in rollouts],
            "completion_ids": [r.ids for r in rollouts],
            "logprobs": None,  # those of the model itself are computed anyway
            "env_mask": [r.mask for r in rollouts],
            "given": [None if math.isnan(r) else r for r in rewards],
        }

    def _write(self, targets, numbers, rollouts, terms, step: int) -> None:
        """Add every term of every dialogue to the log."""
        rows = [
            {
                "step": step,
                "number": n,
                "target": t.id,
                "reward": one.total(self.rlcc.lam),
                "objective": one.objective,
                "subjective": one.subjective,
                "r_cc": one.r_cc,
                "r_ai": one.r_ai,
                "human": list(one.human),
                "turns": r.dialogue.n_turns if r.dialogue else 0,
                "stop": r.dialogue.stop if r.dialogue else "failed",
                "error": r.error or one.error,
                "tried_again": r.tried_again,
                "retokenised": r.retokenised,
                "cut": r.cut,
                "reflected": one.reflected,
            }
            for t, n, r, one in zip(targets, numbers, rollouts, terms, strict=True)
        ]
        add_lines(self.out / ROLLOUTS, gather_object(rows), self.is_world_process_zero())

    def _generate_and_score_completions(self, inputs):
        """Give each turn its own advantage, where the settings ask for it."""
        out = super()._generate_and_score_completions(inputs)
        if self.rlcc.per_turn:
            out["advantages"] = self._per_turn(out["advantages"], out["completion_ids"].shape[1])
        return out

    def _per_turn(self, advantages: torch.Tensor, width: int) -> torch.Tensor:
        """Advantages of tokens, shape (dialogues, width): the dialogue's, plus how its turn differs from the mean.

        Both are in the same units, as TRL scales them.
        """
        s, (rollouts, terms) = self.rlcc, self._turns
        own = torch.tensor([t.total(s.lam) for t in terms], device=advantages.device)
        spread = self._spread(self.accelerator.gather(own).view(-1, s.generations))
        first = self.accelerator.process_index * len(terms)
        scale = spread[first : first + len(terms)].cpu().numpy()
        out = np.zeros((len(terms), width), np.float32)
        for i, (r, one) in enumerate(zip(rollouts, terms, strict=True)):
            each = np.append((one.per_turn(s.lam) - one.total(s.lam)) / scale[i], 0.0)
            turn = np.array(r.turn)
            out[i, : len(turn)] = np.nan_to_num(each)[turn]  # -1, no turn, is the last: 0
        return advantages[:, None] + torch.from_numpy(out).to(advantages)

    def _spread(self, rewards: torch.Tensor) -> torch.Tensor:
        """What a step's rewards, a row a group, are divided by, shape (dialogues,)."""
        if self.rlcc.scale_rewards == "none":
            return torch.ones_like(rewards).flatten()
        one = self.rlcc.scale_rewards == "batch"
        spread = nanstd(rewards) if one else nanstd(rewards, dim=1)[:, None]
        return spread.expand_as(rewards).flatten() + 1e-4

    # --- speed on a CPU --------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):  # fmt: skip
        """Compute log-probabilities by one plain projection, dialogues of like length together and without padding.

        TRL's tiles are made for GPUs, and its batch is as long as its longest dialogue. For entropies, which are
        only logged, stands their estimate from the tokens drawn.
        """
        if input_ids.is_cuda:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )  # fmt: skip
        opens = input_ids.shape[1] - logits_to_keep
        order = attention_mask.sum(1).argsort(stable=True)
        parts = []
        for rows in order.split(min(batch_size or CPU_ROWS, CPU_ROWS)):
            used = attention_mask[rows].any(0).nonzero()
            a, b = int(used[0]), max(int(used[-1]) + 1, opens + 1)
            with self.accelerator.autocast():
                scores = model(
                    input_ids=input_ids[rows, a:b],
                    attention_mask=attention_mask[rows, a:b],
                    logits_to_keep=b - opens + 1,
                    use_cache=False,
                ).logits[:, :-1]
            drawn = input_ids[rows, opens:b]
            scores = (scores.float() / self.temperature).flatten(0, 1)
            own = -cross_entropy(scores, drawn.flatten(), reduction="none").view_as(drawn)
            parts.append(pad(own, (0, logits_to_keep - own.shape[1])))
        logps = torch.cat(parts)[order.argsort()]
        return logps, -logps.detach() if compute_entropy else None, None


def counted(log: Path) -> dict[str, int]:
    """Sum up a log of rollouts: dialogues, those that failed for good, how often one was tried again, ..."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    counts = {"rollouts": len(rows), "failed": sum(r["stop"] == "failed" for r in rows)}
    named = {"tried again": "tried_again", "cut": "cut", "turns": "turns", "turns retokenised": "retokenised"}  # fmt: skip
    return counts | {name: sum(r[key] for r in rows) for name, key in named.items()}


def _given(prompts, completions, given, **kwargs) -> list[float | None]:
    """Return what the rollout earned, as TRL asks a reward function for it."""
    return given


# --- looks at validation users -------------------------------------------------------------------


class Looks(TrainerCallback):
    """Looks at validation users before the first step and after every so many; under the stop rule keeps the weights
    of the last within bounds.

    The history is read back from the log, so that a resumed run decides as an uninterrupted one does.
    """

    def __init__(self, every: int, best: Path) -> None:
        self.every, self.best = every, best
        self.trainer: CycleTrainer | None = None
        self.history: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Look at what training starts from."""
        log = self.trainer.out / GUARDS
        self.history = cut_lines(log, state.global_step, state.is_world_process_zero, "step")
        cut_lines(
            self.trainer.out / ROLLOUTS, state.global_step - 1, state.is_world_process_zero, "step"
        )
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
            weights = a.get_state_dict(t.model)
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


def cut_lines(path: Path, last: int, writes: bool, key: str) -> list[dict]:
    """Return the rows up to ``last``; a line that a crash cut short, and later ones, are taken off the file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    rows = [r for r in rows if r[key] <= last]
    if writes and path.exists():
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        part.replace(path)
    return rows
