"""What decides a reinforcement with cycle consistency, and what comes out of it."""

from dataclasses import dataclass
from pathlib import Path

from usp_lab.errors import UspError


@dataclass(frozen=True)
class RlccSettings:
    """Defaults are for `usp-tiny` on a CPU; the paper's stand in `docs/paper-trace.md`.

    Attributes:
        base: the simulator to start from, and the reference that the KL term holds on to.
        lam: weight of cycle consistency against the detector, 0 to 1.
        per_turn: give each turn its own r_ai, in place of the dialogue's mean.
        steps: optimizer steps.
        profiles, generations: of a step: so many targets, each with so many dialogues that are compared
            with each other (the group of GRPO, arXiv 2402.03300). Their product is the rollout batch.
        scale_rewards: what advantages are divided by: the standard deviation of the "batch", or of each "group", which
            makes as much of a target whose dialogues hardly differ (arXiv 2508.08221); "none": nothing.
        iterations: steps on the same dialogues; above 1 the clip matters.
        lr: constant after a warm-up of a tenth of the steps, where these are twenty and more.
        beta: weight of the KL term. clip: of the probability ratio, PPO's epsilon.
        temperature, max_turns, max_new_tokens: of rollouts.
        max_length: tokens of a dialogue that the loss sees.
        micro_batch: dialogues that a process computes at once (0: all of its own).
        retries: how often a failed dialogue is tried again.
        evals: looks at validation users (`guards`); more than one in a row out of bounds ends the run.
        bf16: autocast, where the machine computes in it.
        stop_rule: end early, and keep the weights of the last look within bounds; without, the last ones.
    """

    base: str = "usp-tiny"
    lam: float = 0.8
    per_turn: bool = True
    steps: int = 16
    profiles: int = 8
    generations: int = 4
    scale_rewards: str = "batch"
    iterations: int = 1
    lr: float = 6e-5
    beta: float = 0.01
    clip: float = 0.2
    temperature: float = 1.0
    max_turns: int = 8
    max_new_tokens: int = 64
    max_length: int = 1024
    micro_batch: int = 0
    retries: int = 2
    evals: int = 4
    bf16: bool = True
    stop_rule: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise UspError(f"lam={self.lam}; give a weight of 0 to 1")
        if self.generations < 2:
            raise UspError(
                f"generations={self.generations}; a dialogue is compared with others of its target, "
                "give at least 2"
            )
        if self.scale_rewards not in ("batch", "group", "none"):
            raise UspError(f"scale_rewards={self.scale_rewards!r}; give batch, group or none")
        least = {"steps": 1, "profiles": 1, "iterations": 1, "max_turns": 1, "max_new_tokens": 1, "max_length": 16, "evals": 1}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UspError(f"{name}={getattr(self, name)}; give at least {low}")
        for name in ("lr", "temperature"):
            if getattr(self, name) <= 0:
                raise UspError(f"{name}={getattr(self, name)}; give more than 0")
        for name in ("beta", "clip", "micro_batch", "retries"):
            if getattr(self, name) < 0:
                raise UspError(f"{name}={getattr(self, name)}; give 0 or more")

    @property
    def batch(self) -> int:
        """Dialogues a step."""
        return self.profiles * self.generations


@dataclass(frozen=True)
class RlccResult:
    """A finished reinforcement.

    Attributes:
        path: folder of the model, with ``rollouts.jsonl`` (every dialogue's terms) and
            ``guards.jsonl`` (validation users).
        kept: the step whose weights were kept; 0: those it began with.
        stopped: why it ended early, "" where it did not.
        counts: rollouts, failed, tried again, turns retokenised, ...
        resumed_from: step of the checkpoint it went on from, 0 for none.
    """

    path: Path
    kept: int
    stopped: str
    counts: dict[str, int]
    resumed_from: int
