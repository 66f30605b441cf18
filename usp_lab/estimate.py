"""What a simulation will ask of its two sides before it begins: calls, tokens and dollars.

    table = estimate(simulator, assistant, targets, max_turns=10, done=already_done(...))

Every call sends the whole dialogue so far, so the tokens sent grow with the square of its length.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.simulate import as_targets
from usp_lab.simulators import ChatModel
from usp_lab.store import FAILED, Simulated

ENOUGH_DONE = 10  # dialogues done from which the rest is estimated
_CHARACTERS = 4  # of English text a token, where no tokenizer is at hand
_FRAME = 5  # tokens of a chat template around a turn
_QUANTITIES = ("calls", "tokens_in", "tokens_out", "dollars")
_ENDED_BY_A_CALL = ("end token", "left", "empty turn")  # the simulator was asked and spoke no turn


def estimate(
    simulator,
    assistant,
    targets: Sequence[Dialogue | str],
    max_turns: int,
    done: Sequence[Simulated] = (),
    replicates: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimate what the dialogues that are still to be made will take.

    The interval is for their sum: it holds the uncertainty of the mean dialogue (`stats.mean`,
    dialogues resampled) and the chance in those to come. Calls that are tried again are not counted.
    Dialogues done first are the short ones: with few of them done the estimate is low.

    Args:
        simulator, assistant: as for `simulate`. A side's own tokenizer counts tokens; without one a
            token has 4 characters. Prices are those of its ``endpoint``, else nothing.
        targets: all that is to be simulated, ``replicates`` times each.
        max_turns: user turns at the most.
        done: dialogues that need not be made again; from ten on, the rest is taken to be like them.
            Before that the targets' own turns serve; where they have none, bounds are given.
        seed: of the resampling.

    Returns:
        One row a side ("simulator", "assistant", "both") and quantity ("calls", "tokens_in",
        "tokens_out", "dollars"; "both" has dollars alone): value, low and high of the 95 % interval,
        n dialogues that it comes from, and ``basis``. Bounds have no value (NaN).

    Raises:
        UspError: no target, two of one id, no turn or replicate.
    """
    if replicates < 1 or max_turns < 1:
        name = "replicates" if replicates < 1 else "max_turns"
        raise UspError(f"{name} must be at least 1, not {min(replicates, max_turns)}")
    targets = as_targets(targets)
    more = len(targets) * replicates - len(done)
    known = {t.id: t for t in targets}
    spoken = [(known[d.id], d) for d in done if d.stop != FAILED and d.id in known]
    own = [(t, t) for t in targets if len(t.messages) > 1]
    sides = {"simulator": simulator, "assistant": assistant}
    if len(spoken) >= ENOUGH_DONE or len(own) >= 2:
        rows = spoken if len(spoken) >= ENOUGH_DONE else own
        basis = "dialogues done" if rows is spoken else "the targets' own turns"
        taken = [_taken(sides, t, _cut(d, max_turns)) for t, d in rows]
        columns = {k: _total([x[k] for x in taken], more, seed) for k in taken[0]}
    else:
        rows, basis = targets, f"bounds: at most {max_turns} turns of the greatest length"
        ends = [[_bound(sides, t, turns) for t in targets] for turns in (1, max_turns)]
        columns = {
            k: (math.nan, *(more * float(np.mean([x[k] for x in end])) for end in ends))
            for k in ends[0][0]
        }
    return pd.DataFrame(
        [
            {"side": side, "quantity": quantity, "value": value, "low": low, "high": high}
            | {"n": len(rows), "basis": basis}
            for (side, quantity), (value, low, high) in columns.items()
        ]
    )


def _total(values: Sequence[float], n: int, seed: int) -> tuple[float, float, float]:
    """Return the sum of n more dialogues with its interval, from what each of a sample took."""
    e, chance = stats.mean(values, seed=seed), 1.96 * math.sqrt(n) * np.std(values, ddof=1)
    low, high = (math.hypot(n * (e.value - x), chance) for x in (e.low, e.high))
    return n * e.value, max(0.0, n * e.value - low), n * e.value + high


def _cut(dialogue: Dialogue, max_turns: int) -> Dialogue:
    """Return a dialogue up to the reply to its last user turn that is allowed."""
    users = [k for k, m in enumerate(dialogue.messages) if m["role"] == "user"]
    if len(users) <= max_turns:
        return dialogue
    return dialogue.model_copy(update={"messages": dialogue.messages[: users[max_turns]]})


def _taken(sides: dict, target: Dialogue, dialogue: Dialogue) -> dict[tuple[str, str], float]:
    """Return what each side of one dialogue takes."""
    start = sides["simulator"].start(target)
    system = [m for m in start if m["role"] == "system"]
    given = len(start) - len(system)  # turns that the simulator does not write
    turns, stop = dialogue.messages, getattr(dialogue, "stop", "")
    users = [k for k, m in enumerate(turns) if m["role"] == "user"]
    said = {"simulator": [k for k in users if k >= given], "assistant": [k + 1 for k in users]}
    if stop in _ENDED_BY_A_CALL:
        said["simulator"].append(len(turns))
    if stop == "context full" and users and users[-1] == len(turns) - 1:
        said["assistant"].pop()
    out = {}
    for name, places in said.items():
        count = _counter(sides[name])
        head = sum(map(count, system)) if name == "simulator" else 0
        sizes = [count(m) for m in turns]
        before = list(accumulate(sizes, initial=head + _FRAME))
        written = [sizes[k] - _FRAME + 1 if k < len(turns) else 1 for k in places]
        out |= _side(name, sides, len(places), sum(before[k] for k in places), sum(written))
    return out | _both(out)


def _bound(sides: dict, target: Dialogue, turns: int) -> dict[tuple[str, str], float]:
    """Return what each side takes in so many turns as long as may be; of a token, if one turn."""
    start, out = sides["simulator"].start(target), {}
    longest = {k: _longest(s) if turns > 1 else 1 for k, s in sides.items()}
    pair = sum(longest.values()) + 2 * _FRAME  # tokens by which the context grows
    for name, side in sides.items():
        head = _FRAME + (sum(map(_counter(side), start)) if name == "simulator" else 0)
        head += longest["simulator"] + _FRAME if name == "assistant" else 0
        sent = turns * head + pair * turns * (turns - 1) / 2
        out |= _side(name, sides, turns, sent, turns * longest[name])
    return out | _both(out)


def _side(name: str, sides: dict, calls: float, sent: float, written: float) -> dict:
    endpoint = getattr(sides[name], "endpoint", None)
    price = (endpoint.price_in, endpoint.price_out) if endpoint else (0.0, 0.0)
    dollars = (sent * price[0] + written * price[1]) / 1e6
    return {(name, q): v for q, v in zip(_QUANTITIES, (calls, sent, written, dollars), strict=True)}


def _both(out: dict) -> dict[tuple[str, str], float]:
    return {("both", "dollars"): out["simulator", "dollars"] + out["assistant", "dollars"]}


def _longest(side) -> int:
    return getattr(side, "sampling", Sampling()).max_new_tokens


def _counter(side):
    """Return what counts the tokens of a message as a side reads it."""
    if not isinstance(side, ChatModel):
        return lambda message: math.ceil(len(message["content"]) / _CHARACTERS) + _FRAME

    def count(message: Message) -> int:
        return len(side.tokenizer.encode(message["content"], add_special_tokens=False)) + _FRAME

    return count
