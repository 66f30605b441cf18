"""The arms of an experiment: who speaks, with which profile, beside which references.

`usp` own profile · `shuffled` another user's · `empty` none · `plato` trained without, from the true first
turn · `twin` another draw of the same user (ceiling) · `other` a real dialogue of another user (floor). The
names are fixed in the design.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from usp_lab.chat import END_TOKEN, Message, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.simulate import turn_seed
from usp_lab.simulators import UserSimulator


def another_user(dialogues: Sequence[Dialogue], seed: int = 0) -> list[int]:
    """Return for each dialogue the index of one by another user.

    A permutation, unless one user has more than half of the dialogues: then the others' are repeated
    evenly for that user. A dialogue without a known user is a user of its own.

    Raises:
        UspError: all dialogues are by one user.
    """
    if not dialogues:
        return []
    users = [
        ("user", d.user_id) if d.user_id is not None else ("dialogue", d.id) for d in dialogues
    ]
    if len(set(users)) < 2:
        raise UspError(
            f"{len(dialogues)} dialogue(s) of one user; comparing with another user needs two"
        )
    order = np.random.default_rng(seed).permutation(len(users)).tolist()
    place = {u: k for k, u in enumerate(dict.fromkeys(users[i] for i in order))}
    order.sort(
        key=lambda i: place[users[i]]
    )  # users in random order, each one's dialogues together
    top, largest = Counter(users).most_common(1)[0]
    if 2 * largest <= len(order):  # so far along there is always another user
        partners = order[largest:] + order[:largest]
        pairs = dict(zip(order, partners, strict=True))
    else:
        own, rest = [i for i in order if users[i] == top], [i for i in order if users[i] != top]
        pairs = {i: rest[k % len(rest)] for k, i in enumerate(own)} | dict(
            zip(rest, own, strict=False)
        )
    return [pairs[i] for i in range(len(users))]


def profiles_for(arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[str | None]:
    """Return what each arm's simulator is told.

    Its own profile, another user's, the empty text, or None (no system message).

    Raises:
        UspError: an arm that no simulator speaks for, or a dialogue without the profile that is needed.
    """
    if arm == "empty":
        return [""] * len(dialogues)
    if arm == "plato":
        return [None] * len(dialogues)
    if arm not in ("usp", "usp_end", "shuffled"):
        raise UspError(
            f"arm {arm!r} has no simulator to tell a profile; known: usp, usp_end, shuffled, empty, plato"
        )
    for d in dialogues:
        if d.profile is None:
            raise UspError(f"{d.id} has no profile, which arm {arm!r} needs; measure plato alone")
    who = another_user(dialogues, seed) if arm == "shuffled" else range(len(dialogues))
    return [dialogues[i].profile for i in who]


def contexts(arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[list[Message]]:
    """Return whole dialogues as an arm's simulator reads them, its system message in front."""
    profiles = profiles_for(arm, dialogues, seed)
    return [with_profile(d.messages, p) for d, p in zip(dialogues, profiles, strict=True)]


def next_turns(
    simulator, arm: str, dialogues: Sequence[Dialogue], seed: int = 0
) -> list[list[str]]:
    """Write each user turn anew in its true context (the paper's utterance level).

    Returns:
        Per dialogue, per true user turn, the simulated text. "" where there is none: `plato` has no
        opening of its own, a context may be full, and a simulator may end the dialogue instead.
    """
    batch, place, seeds = [], [], []
    for i, (d, messages) in enumerate(zip(dialogues, contexts(arm, dialogues, seed), strict=True)):
        users = [k for k, m in enumerate(messages) if m["role"] == "user"]
        for turn, k in enumerate(users):
            before = messages[:k]
            if not before or (isinstance(simulator, UserSimulator) and simulator.room(before) < 0):
                continue
            batch.append(before)
            place.append((i, turn))
            seeds.append(turn_seed(seed, 0, f"{d.id}/{arm}", turn))
    out = [[""] * d.n_turns for d in dialogues]
    for (i, turn), text in zip(place, simulator.generate(batch, seeds), strict=True):
        out[i][turn] = "" if text == END_TOKEN else str(text)
    return out


def twin_turns(dialogues: Sequence[Dialogue], seed: int = 1) -> list[list[str]]:
    """Let the population's own user speak again in each true context.

    Returns:
        Per dialogue, per true user turn, the text; "" where this draw leaves without a word.

    Raises:
        UspError: a dialogue that is not the population's.
    """
    from usp_lab.speaker import PopulationUser
    from usp_lab.synthetic import replay, task_of

    out = []
    for d in dialogues:
        if not d.truth:
            raise UspError(f"{d.id} is not of the population; only its users can be drawn again")
        user, messages = PopulationUser(task_of(d)), replay(d)
        places = [k for k, m in enumerate(messages) if m["role"] == "user"]
        turns = [user.next(messages[:k], f"next/{seed}/{d.id}") for k in places]
        out.append(["" if t is None else str(t) for t in turns])
    return out


def other_turns(dialogues: Sequence[Dialogue], seed: int = 0) -> list[list[str]]:
    """Return another user's real turns, matched by position; "" where that dialogue is shorter."""
    real = [dialogues[j].user_turns for j in another_user(dialogues, seed)]
    return [(t + [""] * d.n_turns)[: d.n_turns] for d, t in zip(dialogues, real, strict=True)]


def swapped_reply(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """Return dialogues of two user turns and more up to their last user turn, the assistant's turn before it exchanged for another dialogue's."""
    long = [d for d in dialogues if d.n_turns > 1]
    out = []
    for d, j in zip(long, another_user(long, seed), strict=True):
        last = max(k for k, m in enumerate(d.messages) if m["role"] == "user")
        messages = [dict(m) for m in d.messages[: last + 1]]
        messages[last - 1]["content"] = next(
            m["content"] for m in reversed(long[j].messages) if m["role"] == "assistant"
        )
        out.append(d.model_copy(update={"messages": messages}))
    return out
