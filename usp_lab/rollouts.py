"""Whole dialogues that a policy has with an assistant, as what reinforcement trains on.

A rollout is one `simulate.simulate` dialogue of the model as it is now. The loss is on the tokens of its turns, as it
drew them, and on nothing else; an end token by which it leaves (`usp_end`) is no turn, so that when to leave is not
learned here. Later turns were drawn after the text of earlier ones, tokenised again: where that gives other tokens,
they are counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from usp_lab.chat import Utterance, trained_mask
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.scorers import runs
from usp_lab.simulate import Simulated, UserSimulator, simulate
from usp_lab.store import FAILED


class Policy(UserSimulator):
    """The model that is being trained, speaking; its turns carry the tokens that were drawn."""

    @property
    def identity(self) -> str:
        """Nothing of the weights, which change with each step, and cannot be read while they are shared (FSDP 2)."""
        return f"in training {self.tokenizer.chat_template} {self.sampling}"

    def text(self, ids: Sequence[int]) -> Utterance:
        """Return the turn with its tokens in ``meta``."""
        return Utterance(super().text(ids), {"ids": list(ids)})


@dataclass(frozen=True)
class Rollout:
    """One dialogue to learn from.

    Attributes:
        dialogue: as simulated; None where it failed for good.
        prompt, ids: tokens of profile and opened header, and of all that follows.
        mask: of ``ids``, 1 where the policy drew the token.
        turn: of ``ids``, which user turn a token belongs to, -1 for none.
        error: why it failed.
        tried_again: how often.
        retokenised: its user turns whose text has other tokens than were drawn.
        cut: whether not all of it fits.
    """

    dialogue: Simulated | None
    prompt: list[int]
    ids: list[int]
    mask: list[int]
    turn: list[int]
    error: str = ""
    tried_again: int = 0
    retokenised: int = 0
    cut: bool = False


def roll_out(
    policy: Policy,
    assistant,
    targets: Sequence[Dialogue],
    numbers: Sequence[int],
    max_turns: int,
    max_length: int,
    seed: int,
    retries: int = 2,
) -> list[Rollout]:
    """Let the policy talk about every target once; what fails is tried again.

    Args:
        policy, assistant: the two sides.
        targets: whose profiles the policy is told; one may be there several times.
        numbers: what makes each rollout's draws its own, one a target.
        max_turns: user turns at the most.
        max_length: tokens of a dialogue at the most; the loss ends there, at a whole turn.
        seed: of the run.
        retries: how often a failed dialogue is tried again.

    Returns:
        Rollouts in the order of targets; one that failed for good has no token to learn from.

    Raises:
        UspError: as `simulate`; as many numbers as targets are needed.
    """
    if len(numbers) != len(targets):
        raise UspError(f"{len(targets)} targets and {len(numbers)} numbers; give each its own")
    waiting = {
        n: t.model_copy(update={"id": f"{t.id}/{n}"}) for n, t in zip(numbers, targets, strict=True)
    }
    done: dict[int, Simulated] = {}
    again: Counter[int] = Counter()
    for attempt in range(retries + 1):
        talks = simulate(
            policy,
            assistant,
            list(waiting.values()),
            max_turns=max_turns,
            seed=seed,
            replicate=attempt,
            progress=False,
        )
        done.update(zip(waiting, talks, strict=True))
        waiting = {n: t for n, t in waiting.items() if done[n].stop == FAILED}
        if not waiting:
            break
        again.update(list(waiting) if attempt < retries else ())
    return [
        replace(_encoded(policy, t, done[n], max_length), tried_again=again[n])
        for n, t in zip(numbers, targets, strict=True)
    ]


def spoken(rollouts: Sequence[Rollout], targets: Sequence[Dialogue]) -> list[Dialogue]:
    """Return the dialogues of rollouts; without a turn where one failed for good."""
    return [
        r.dialogue or t.model_copy(update={"messages": []})
        for r, t in zip(rollouts, targets, strict=True)
    ]


def _encoded(policy: Policy, target: Dialogue, d: Simulated, most: int) -> Rollout:
    start = policy.start(target)
    prompt = policy.prompt(start)
    eot = policy.tokenizer.get_vocab()["<|eot_id|>"]
    if d.stop == FAILED or not d.n_turns:
        error = d.error if d.stop == FAILED else "the user said nothing"
        return Rollout(None if d.stop == FAILED else d, prompt, [eot], [0], [-1], error)
    rendered, mask = trained_mask(policy.tokenizer, [*start, *d.messages])
    drawn = [m["meta"]["ids"] for m in d.messages if m["role"] == "user"]
    ids, learned, turn, ends, at, others = [], [], [], [], 0, 0
    for k, ((a, b), own) in enumerate(zip(runs(mask), drawn, strict=True)):
        closed = own if own[-1] in policy.engine.stop_ids else [*own, eot]  # the limit cut it off
        others += closed != rendered[a:b]
        ids += rendered[at:a] + closed
        learned += [0] * (a - at) + [1] * len(own) + [0] * (len(closed) - len(own))
        turn += [-1] * (a - at) + [k] * len(closed)
        ends.append(len(ids))
        at = b
    first = len(prompt)
    end = max([e for e in ends if e <= most], default=first)
    counts = {"retokenised": others, "cut": end < ends[-1]}
    if end == first:  # not even the opening fits
        return Rollout(d, prompt, [eot], [0], [-1], **counts)
    return Rollout(d, ids[:first], ids[first:end], learned[first:end], turn[first:end], **counts)
