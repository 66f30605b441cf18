"""What reinforcement may not cost: looks at validation users while a simulator is being rewarded.

A reward can be raised by reciting the profile, by saying more, by saying always the same. Each look lets the
policy talk about validation users, with the same draws every time, and measures what such shortcuts change,
beside the loss of real turns. A look is within bounds when no guard has moved further from the start than `BOUNDS`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from usp_lab.chat import with_profile
from usp_lab.data import Dialogue
from usp_lab.metrics import mean_known, pairwise_difference, profile_copy
from usp_lab.reward import CycleReward
from usp_lab.rollouts import Policy, roll_out, spoken
from usp_lab.scorers import turn_nll

# guard -> (kind, least, most): of the difference to the start ("minus") or of the ratio to it ("over")
BOUNDS = {
    "reward": ("minus", -0.1, math.inf),
    "profile_copy": ("minus", -math.inf, 0.02),
    "first_turn_diversity": ("over", 0.97, math.inf),
    "words_per_turn": ("over", 0.8, 1.25),
    "turns": ("over", 0.7, 1.3),
    "human": ("minus", -0.05, math.inf),
    "ppl": ("over", -math.inf, 1.03),
}


@dataclass
class Guards:
    """Looks at a policy on validation users.

    Attributes:
        targets: validation dialogues; their true turns give ``ppl``, their profiles the rollouts.
        assistant, reward, lam, max_turns, seed: as in training.
    """

    targets: Sequence[Dialogue]
    assistant: object
    reward: CycleReward
    lam: float
    max_turns: int
    seed: int

    def look(self, policy: Policy, part: slice = slice(None)) -> list[dict]:
        """Measure on a part of the users (another process takes another); one row a user.

        Columns: failed, reward, r_cc, r_ai, profile_copy, words, turns, human, nll and tokens of real turns, opening.
        """
        targets, numbers = list(self.targets)[part], list(range(len(self.targets)))[part]
        if not targets:  # more processes than users
            return []
        rollouts = roll_out(
            policy, self.assistant, targets, numbers, self.max_turns, 10**6, self.seed
        )
        talks = spoken(rollouts, targets)
        terms = self.reward.score([t.profile for t in targets], talks)
        real = turn_nll(policy, [with_profile(t.messages, t.profile) for t in targets])
        rows = []
        for t, d, one, nll, r in zip(targets, talks, terms, real, rollouts, strict=True):
            said = d.user_turns
            loss, tokens = np.sum([x for x in nll if x[1]] or [(0.0, 0)], axis=0)
            rows.append(
                {
                    "id": t.id,
                    "reward": one.total(self.lam),
                    "r_cc": one.r_cc,
                    "r_ai": one.r_ai,
                    "profile_copy": profile_copy(t.profile, said),
                    "failed": r.dialogue is None,
                    "words": sum(len(x.split()) for x in said),
                    "turns": len(said),
                    "human": one.r_ai / 2,
                    "nll": float(loss),
                    "tokens": int(tokens),
                    "opening": said[0] if said else "",
                }
            )
        return rows


def summary(rows: Sequence[Mapping]) -> dict[str, float]:
    """Return a look's guards and rewards over all users; NaN for what nobody has."""
    there = [r for r in rows if not r["failed"]]  # what failed says nothing of the policy
    turns, tokens = sum(r["turns"] for r in there), sum(r["tokens"] for r in rows)
    return {
        **{
            name: mean_known(r[name] for r in there)
            for name in ("reward", "r_cc", "r_ai", "profile_copy", "turns", "human")
        },
        "first_turn_diversity": pairwise_difference([r["opening"] for r in there]),
        "words_per_turn": sum(r["words"] for r in there) / turns if turns else math.nan,
        "ppl": math.exp(sum(r["nll"] for r in rows) / tokens) if tokens else math.nan,
        "n": len(rows),
        "failed": len(rows) - len(there),
    }


def broken(now: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    """Return the guards that have moved out of bounds, in words; but for the reward, what cannot be measured holds.

    >>> broken({"ppl": 3.0}, {"ppl": 2.0})
    ['ppl 2.000 -> 3.000']
    """
    out = []
    for name, (kind, least, most) in BOUNDS.items():
        a, b = start.get(name, math.nan), now.get(name, math.nan)
        if name == "reward" and name in now and math.isnan(b):
            out.append("reward: none, of all dialogues")
        if math.isnan(a) or math.isnan(b) or (kind == "over" and not a):
            continue
        moved = b - a if kind == "minus" else b / a
        if not least <= moved <= most:
            out.append(f"{name} {a:.3f} -> {b:.3f}")
    return out


def guard_table(runs: Mapping[str, object]) -> pd.DataFrame:
    """Return the looks of finished runs as one tidy table, with the bounds of each guard.

    Args:
        runs: name -> `RlccResult`.

    Returns:
        Columns run, step, metric, value, least, most (NaN for no bound), n.
    """
    rows = []
    for name, result in runs.items():
        lines = (result.path / "guards.jsonl").read_text(encoding="utf-8").splitlines()
        looks = [json.loads(line) for line in lines]
        for look in looks:
            for metric in look.keys() - {"step", "n", "failed", "broken"}:
                kind, least, most = BOUNDS.get(metric, ("minus", -math.inf, math.inf))
                start = looks[0][metric]
                ends = [start + b if kind == "minus" else start * b for b in (least, most)]
                low, high = (b if math.isfinite(b) else math.nan for b in ends)
                named = {"run": name, "step": look["step"], "metric": metric}
                rows.append(
                    named | {"value": look[metric], "least": low, "most": high, "n": look["n"]}
                )
    return pd.DataFrame(rows).sort_values(["run", "metric", "step"], ignore_index=True)
