"""One user looked at closely: a real dialogue written anew turn by turn, and what marks a simulator's manner.

messages, notes = reconstruct(simulator, target)
show_dialogue(messages, "usp", target.profile, notes=notes, praise=True)
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from usp_lab import stats
from usp_lab.chat import END_TOKEN, Message, Utterance, with_profile
from usp_lab.data import Dialogue
from usp_lab.metrics import profile_copy
from usp_lab.praise import praise_rate
from usp_lab.simulate import turn_seed
from usp_lab.simulators import UserSimulator
from usp_lab.tidy import row

ENDS, FULL, GIVEN, SILENT = "ends here", "context full", "given", "says nothing"


def reconstruct(simulator, target: Dialogue, seed: int = 0) -> tuple[list[Message], list[str]]:
    """Write each user turn of a dialogue anew in its true context (the paper's utterance level).

    Args:
        simulator: anything with ``start`` and ``generate``.
        target: the real dialogue. One of the population is drawn again, so that its own user can
            read what the replies did.
        seed: of the draws.

    Returns:
        The dialogue with the user's turns replaced, and a note a message: why a turn is empty
        ("ends here", "says nothing", "context full"), "given" for an opening that the simulator is
        started from, else "".
    """
    from usp_lab.synthetic import replay

    start = list(simulator.start(target))
    told = [m for m in start if m["role"] == "system"]
    true = replay(target) if target.truth else with_profile(target.messages, None)
    messages, notes, context = [dict(m) for m in true], [""] * len(true), list(true)
    for turn, k in enumerate(k for k, m in enumerate(true) if m["role"] == "user"):
        before = [*told, *context[:k]]
        if turn == 0 and len(told) < len(start):
            notes[k] = GIVEN
            continue
        if isinstance(simulator, UserSimulator) and simulator.room(before) < 0:
            text, notes[k] = "", FULL
        else:
            seeds = [turn_seed(seed, 0, f"{target.id}/case", turn)]
            text = simulator.generate([before], seeds)[0]
        meta = text.meta if isinstance(text, Utterance) else {}
        if text == END_TOKEN or meta.get("left"):
            text, notes[k] = "", ENDS
        elif not text.strip():
            text, notes[k] = "", notes[k] or SILENT
        messages[k] = {"role": "user", "content": str(text)}
        # What a speaker noted about its own turn it finds again; what was really said stays.
        context[k] = {**true[k], "meta": {**meta, **true[k].get("meta", {})}}
    return messages, notes


def habits(
    talks: Mapping[str, Sequence[Dialogue]],
    told: Mapping[str, Sequence[Dialogue]],
    users: Sequence[str],
    unit: str,
) -> pd.DataFrame:
    """Estimate per arm how much of its profile a user recites and how often it praises.

    Args:
        talks: arm -> dialogues.
        told: arm -> dialogues whose profiles the arm was told, in the same order.
        users: whose dialogues they are; resampled.
        unit: what ``users`` are.

    Returns:
        Tidy rows ``profile_copy`` (share of the profile's word 4-grams repeated), ``praise_rate``
        (share of user turns that praise), ``words_per_turn`` and ``turns``.
    """
    rows = []
    for arm, dialogues in talks.items():
        said = [d.user_turns for d in dialogues]
        words = [sum(len(t.split()) for t in turns) for turns in said]
        count = [float(len(turns)) for turns in said]
        pairs = zip(told[arm], said, strict=True)
        copied = [profile_copy(t.profile or "", turns) for t, turns in pairs]
        praised = [praise_rate(turns) * len(turns) for turns in said]
        estimates = {
            "profile_copy": stats.mean(copied, users, unit),
            "praise_rate": stats.ratio(praised, count, users, unit),
            "words_per_turn": stats.ratio(words, count, users, unit),
            "turns": stats.mean(count, users, unit),
        }
        rows += [row(m, arm, e) for m, e in estimates.items()]
    return pd.DataFrame(rows)
