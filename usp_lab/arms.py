"""The arms of an experiment: who speaks, with which profile, beside which references (names fixed in the design).

`usp` own profile · `shuffled` another user's · `empty` none · `plato` trained without, from the true first turn · `twin` another draw of the same user
(ceiling) · `other` a real dialogue of another user (floor).
"""

from collections.abc import Sequence

import numpy as np

from usp_lab.chat import Message, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.simulate import turn_seed


def another_user(dialogues: Sequence[Dialogue], seed: int = 0) -> list[int]:
    """Return for each dialogue the index of one by another user, each index once as far as users allow.

    Raises:
        UspError: all dialogues are by one user.
    """
    users = [d.user_id if d.user_id is not None else d.id for d in dialogues]
    if len(set(users)) < 2:
        raise UspError(f"{len(dialogues)} dialogue(s) of one user; comparing with another user needs two")
    order = np.random.default_rng(seed).permutation(len(dialogues)).tolist()
    order.sort(key=lambda i: users[i])  # stable: users together, shuffled within
    largest = max(users.count(u) for u in set(users))
    out = [0] * len(order)
    for place, i in enumerate(order):
        shift = largest
        while users[order[(place + shift) % len(order)]] == users[i]:
            shift += 1
        out[i] = order[(place + shift) % len(order)]
    return out


def profiles_for(arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[str | None]:
    """Return what each arm's simulator is told: its own profile, another user's, the empty text, or None (no system message)."""
    if arm in ("usp", "usp_end"):
        return [d.profile for d in dialogues]
    if arm == "shuffled":
        return [dialogues[i].profile for i in another_user(dialogues, seed)]
    if arm == "empty":
        return [""] * len(dialogues)
    if arm == "plato":
        return [None] * len(dialogues)
    raise UspError(f"arm {arm!r} has no simulator to tell a profile; known: usp, usp_end, shuffled, empty, plato")


def contexts(arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[list[Message]]:
    """Return whole dialogues as an arm's simulator reads them, its system message in front."""
    return [with_profile(d.messages, p) for d, p in zip(dialogues, profiles_for(arm, dialogues, seed), strict=True)]


def next_turns(simulator, arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[list[str]]:
    """Write each user turn anew in its true context (the paper's utterance level).

    Returns:
        Per dialogue, per true user turn, the simulated text; "" where the arm cannot write it (`plato` has no opening of its own).
    """
    batch, place, seeds = [], [], []
    for i, (d, messages) in enumerate(zip(dialogues, contexts(arm, dialogues, seed), strict=True)):
        turn = 0
        for k, m in enumerate(messages):
            if m["role"] != "user":
                continue
            if messages[:k]:
                batch.append(messages[:k])
                place.append((i, turn))
                seeds.append(turn_seed(seed, 0, f"{d.id}/{arm}", turn))
            turn += 1
    out = [[""] * d.n_turns for d in dialogues]
    for (i, turn), text in zip(place, simulator.generate(batch, seeds), strict=True):
        out[i][turn] = text
    return out


def twin_turns(dialogues: Sequence[Dialogue], seed: int = 1) -> list[list[str]]:
    """Let the population's own user speak again in each true context; "" where this draw leaves without a word."""
    from usp_lab.speaker import PopulationUser
    from usp_lab.synthetic import replay, task_of

    out = []
    for d in dialogues:
        user, messages = PopulationUser(task_of(d)), replay(d)
        turns = [user.next(messages[:k], f"next/{seed}/{d.id}") for k, m in enumerate(messages) if m["role"] == "user"]
        out.append(["" if t is None else str(t) for t in turns])
    return out


def other_turns(dialogues: Sequence[Dialogue], seed: int = 0) -> list[list[str]]:
    """Return another user's real turns, matched by position; "" where the other dialogue is shorter."""
    pairs = zip(dialogues, another_user(dialogues, seed), strict=True)
    return [[t for t, _ in zip([*dialogues[j].user_turns, *[""] * d.n_turns], range(d.n_turns), strict=False)] for d, j in pairs]


def swapped_reply(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """Return dialogues of two user turns and more up to their last user turn, the assistant's turn before it exchanged for another dialogue's."""
    long = [d for d in dialogues if d.n_turns > 1]
    out = []
    for d, j in zip(long, another_user(long, seed), strict=True):
        last = max(k for k, m in enumerate(d.messages) if m["role"] == "user")
        messages = [dict(m) for m in d.messages[: last + 1]]
        messages[last - 1]["content"] = next(m["content"] for m in reversed(long[j].messages) if m["role"] == "assistant")
        out.append(d.model_copy(update={"messages": messages}))
    return out
