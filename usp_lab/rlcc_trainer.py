"""TRL's GRPO trainer on whole dialogues: rollouts, rewards and advantages a turn, looks at validation users.

TRL gathers one reward a dialogue and nothing else across processes, once a step: dialogues of any number of turns
neither hang nor drop. What TRL marks as experimental (``rollout_func``) is used here alone.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import cross_entropy, pad
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import nanstd

from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.errors import UspError
from usp_lab.guards import Guards
from usp_lab.metrics import mean_known
from usp_lab.models import CPU_ROWS
from usp_lab.reward import CycleReward, Terms
from usp_lab.rlcc_looks import ROLLOUTS, add_lines
from usp_lab.rlcc_settings import RlccSettings
from usp_lab.rollouts import Policy, Rollout, roll_out, spoken
from usp_lab.sharding import whole_weights

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # we know, and pin TRL's version
# TRL reads the old name, which no user of ours can mend.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
_BARREN = 3  # steps in a row in which no dialogue earns a reward
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
        self._usual = math.nan  # mean r_ai of a step
        self._barren = 0  # steps in a row without a reward
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
            whole_weights(self.model_wrapped),
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
        self._usual = mean_known(gather_object([t.r_ai for t in terms]))
        self._turns = rollouts, terms
        self._write(targets, numbers, rollouts, terms, step)
        rewards = [t.total(s.lam, self._usual) for t in terms]
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
                "reward": one.total(self.rlcc.lam, self._usual),
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
        rows = gather_object(rows)
        add_lines(self.out / ROLLOUTS, rows, self.is_world_process_zero())
        earned = any(not math.isnan(r["reward"]) for r in rows)
        self._barren = 0 if earned else self._barren + 1
        if self._barren == _BARREN:
            why = next((r["error"] for r in rows if r["error"]), "no reason given")
            raise UspError(
                f"no dialogue of the last {_BARREN} steps earned a reward (the first: {why}); see to it and run again"
            )

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
        usual = self._usual
        own = torch.tensor([t.total(s.lam, usual) for t in terms], device=advantages.device)
        spread = self._spread(self.accelerator.gather(own).view(-1, s.generations))
        first = self.accelerator.process_index * len(terms)
        scale = spread[first : first + len(terms)].cpu().numpy()
        out = np.zeros((len(terms), width), np.float32)
        for i, (r, one) in enumerate(zip(rollouts, terms, strict=True)):
            each = np.append((one.per_turn(s.lam, usual) - one.total(s.lam, usual)) / scale[i], 0.0)
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


def _given(prompts, completions, given, **kwargs) -> list[float | None]:
    """Return what the rollout earned, as TRL asks a reward function for it."""
    return given


# --- looks at validation users -------------------------------------------------------------------
