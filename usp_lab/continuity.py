"""Does a dialogue go on like a real one? Repetition and endless thanks (ESR), when users stop, how many turns.

The rules are explicit and their thresholds parameters, since the paper (arXiv 2502.18968) names
early stops without saying what counts as one. Stopping is scored as survival.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.behaviour import USER_ENDS
from usp_lab.chat import is_closing
from usp_lab.data import Dialogue
from usp_lab.simulate import Simulated
from usp_lab.termination import ending
from usp_lab.tidy import halves, row

_PRAISE = re.compile(
    r"\b(thank(s| you)|thx|grateful|appreciate|(so|very|most) (kind|helpful|useful)|my pleasure|"
    r"(you'?re|you are) (very |most )?welcome|glad (to|i|you|that)|happy to (help|hear)|"
    r"great|excellent|amazing|wonderful|fantastic|brilliant|awesome|impressive|insightful|perfect|"
    r"love (it|that|this)|well (said|put|done))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rules:
    """When a dialogue counts as dead.

    Attributes:
        similarity: share of common character n-grams (Jaccard) from which two user turns of a
            dialogue are near-duplicates.
        ngram: characters of an n-gram.
        least_characters: letters and digits below which a turn ("ok", "thanks") is no duplicate.
        repeats: near-duplicates of an earlier turn that a dialogue dies of.
        closings: closing turns in a row that it dies of.
        loop: near-duplicates in a row, each of one of the two turns before it, that make a loop.
        praise: exchanges in a row in which both sides thank or praise that make mutual praise.
    """

    similarity: float = 0.8
    ngram: int = 3
    least_characters: int = 12
    repeats: int = 1
    closings: int = 2
    loop: int = 2
    praise: int = 2


def likeness(a: str, b: str, rules: Rules | None = None) -> float:
    """Jaccard index of two texts' character n-grams, letters and digits alone, 0 to 1.

    NaN where one has fewer than ``least_characters``.

    >>> likeness("Where do I park the car?", "where do i park the car")
    1.0
    """
    rules = rules or Rules()
    first, second = (_letters(t) for t in (a, b))
    if min(len(first), len(second)) < rules.least_characters:
        return float("nan")
    grams = [
        {t[i : i + rules.ngram] for i in range(len(t) - rules.ngram + 1)} for t in (first, second)
    ]
    return len(grams[0] & grams[1]) / max(len(grams[0] | grams[1]), 1)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def duplicates(turns: Sequence[str], rules: Rules | None = None, back: int = 0) -> list[bool]:
    """Tell of each turn whether it nearly repeats an earlier one (of the last ``back``; 0: any)."""
    rules, out = rules or Rules(), []
    for k, turn in enumerate(turns):
        before = turns[max(0, k - back) if back else 0 : k]
        out.append(any(likeness(turn, b, rules) >= rules.similarity for b in before))
    return out


def longest_run(flags: Sequence[bool]) -> int:
    """Return the length of the longest run of true flags.

    >>> longest_run([True, False, True, True])
    2
    """
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def read_dialogue(dialogue: Dialogue, rules: Rules | None = None) -> dict[str, float]:
    """Apply the rules to one dialogue.

    Returns:
        esr (dead: repeats, or closings in a row), repeats, endless_thanks (of these, which), loops,
        mutual_praise: each 1.0 or 0.0; praise: the share of user turns that thank or praise.
    """
    rules, turns = rules or Rules(), dialogue.user_turns
    repeats = sum(duplicates(turns, rules)) >= rules.repeats
    thanks = longest_run([is_closing(t) for t in turns]) >= rules.closings
    loop = longest_run(duplicates(turns, rules, back=2)) >= rules.loop
    praised = [bool(_PRAISE.search(m["content"])) for m in dialogue.messages]
    both = [
        praised[k] and praised[k + 1]
        for k, m in enumerate(dialogue.messages[:-1])
        if m["role"] == "user"
    ]
    flags = {
        "esr": repeats or thanks,
        "repeats": repeats,
        "endless_thanks": thanks,
        "loops": loop,
        "mutual_praise": longest_run(both) >= rules.praise,
    }
    own = [p for p, m in zip(praised, dialogue.messages, strict=True) if m["role"] == "user"]
    return {k: float(v) for k, v in flags.items()} | {"praise": float(np.mean(own))}


# --- when users stop -----------------------------------------------------------------------------


def stopping_times(dialogues: Sequence[Dialogue], max_turns: int) -> pd.DataFrame:
    """Return how many decisions each user took, and whether the last was to end.

    A decision follows each reply (see `termination`); that after turn t has the number t. Whoever
    was stopped from outside (turn limit, full context, empty turn or reply) is censored, and so is
    a real dialogue that reaches ``max_turns``, where the loop would have cut it off.

    Returns:
        One row a dialogue: time (number of the last decision), ended (1.0, or 0.0: censored).
    """
    rows = []
    for d in dialogues:
        if isinstance(d, Simulated):
            ended = d.stop in USER_ENDS
            turns = d.n_turns - (d.stop == "closing")  # a goodbye is what was decided on
        else:
            place, ended = ending(d)
            turns = sum(m["role"] == "user" for m in d.messages[:place])
        if turns >= max_turns:
            turns, ended = max_turns, False
        rows.append((turns if ended else max(turns - 1, 0), float(ended)))
    return pd.DataFrame(rows, columns=["time", "ended"])


def stopping_curves(
    times: pd.DataFrame,
    users: Sequence[str],
    arm: str,
    last: int,
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Estimate hazard and survival of stopping (Kaplan & Meier, JASA 1958) with intervals over users.

    hazard(t) = ended at t / decided at t; survival(t) = product over s <= t of 1 - hazard(s).

    Args:
        times: of `stopping_times`.
        users: whose dialogues they are; resampled.
        arm: the rows' name.
        last: the last decision shown.

    Returns:
        Rows of quantity ("hazard", "survival"), arm, turn, value, low, high, n (dialogues at risk;
        NaN beyond the last of them), unit.
    """
    time, ended = times["time"].to_numpy(), times["ended"].to_numpy()
    at = np.arange(1, last + 1)
    risk = (time[:, None] >= at).astype(float)
    stops = (time[:, None] == at) * ended[:, None]
    rows = []
    for t in at:
        hazard = stats.ratio(stops[:, t - 1], risk[:, t - 1], users, unit, seed)
        columns = [*stops[:, :t].T, *risk[:, :t].T]
        survival = stats.of_sums(columns, _survival, users, unit, seed)
        n = int(risk[:, t - 1].sum())
        for quantity, e in (("hazard", hazard), ("survival", survival)):
            rows.append({"quantity": quantity, "arm": arm, "turn": int(t), **e.as_dict(), "n": n})
    return pd.DataFrame(rows)


def _survival(*sums):
    half = len(sums) // 2
    out = 1.0
    for stops, risk in zip(sums[:half], sums[half:], strict=True):
        out = out * (1 - stops / risk)
    return out


def true_hazards(hazards: Sequence[float], turns: Sequence[int], last: int) -> pd.DataFrame:
    """Return the population's own mean hazard by turn, and the survival that follows; no interval.

    Args:
        hazards, turns: of `termination.decisions`.
    """
    means = pd.Series(np.asarray(hazards, float)).groupby(np.asarray(turns)).agg(["mean", "size"])
    means = means.reindex(range(1, last + 1))
    both = {"hazard": means["mean"], "survival": (1 - means["mean"]).cumprod()}
    rows = [
        {"quantity": q, "arm": "population", "turn": t, "value": v, "low": v, "high": v, "n": n}
        for q, values in both.items()
        for (t, v), n in zip(values.items(), means["size"], strict=True)
    ]
    return pd.DataFrame(rows).assign(unit="user")


# --- how many turns ------------------------------------------------------------------------------


def turn_distances(
    simulated: Sequence[float],
    real: Sequence[float],
    users: Sequence[str],
    unit: str = "user",
    seed: int = 0,
) -> dict[str, stats.Estimate]:
    """Estimate how far apart two distributions of turn counts lie; 0 is best.

    ``turns_w1``: Wasserstein-1, the area between the distribution functions, in turns.
    ``turns_ks``: Kolmogorov-Smirnov, their largest difference, 0 to 1. Both are above 0 for two
    samples of one distribution: compare `human_split` and `twin`.

    Args:
        simulated, real: one number of turns an item; NaN where the item is not of that side (for two
            halves of one corpus).
        users: whose item it is; both sides of a user are resampled together.

    >>> round(turn_distances([1, 2, 3], [2, 3, 4], "abc")["turns_w1"].value, 6)
    1.0
    """
    sides = [np.asarray(x, float) for x in (simulated, real)]
    top = int(np.nanmax(np.concatenate(sides), initial=1))
    columns = []
    for x in sides:
        columns.append(~np.isnan(x) * 1.0)
        columns += [(np.nan_to_num(x) >= t) * 1.0 for t in range(1, top + 1)]

    def gaps(*sums):
        a, b = np.array(sums[: top + 1]), np.array(sums[top + 1 :])
        return np.abs(a[1:] / a[0] - b[1:] / b[0])

    statistics = {"turns_w1": lambda *s: gaps(*s).sum(0), "turns_ks": lambda *s: gaps(*s).max(0)}
    return {
        name: stats.of_sums(columns, f, list(users), unit, seed) for name, f in statistics.items()
    }


def human_split(counts: Sequence[float], users: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """Return the counts of two random halves of the users, NaN for those of the other half."""
    half = halves(users, seed)
    mine, counts = np.array([half[u] for u in users]), np.asarray(counts, float)
    return [np.where(mine, counts, np.nan), np.where(mine, np.nan, counts)]


def estimates(
    free: Mapping[str, Sequence[Dialogue]],
    real: Sequence[Dialogue],
    users: Sequence[str],
    max_turns: int,
    rules: Rules | None = None,
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Summarise free-running dialogues as a tidy table (metric, arm, value, low, high, n, unit, better).

    Args:
        free: simulated dialogues per arm, in the order of ``real``.
        real: their targets; the arm `real` of what `read_dialogue` reads.
        users: whose targets they are.
        max_turns: where the loop cut dialogues off; real ones are counted up to there.
    """
    rows = []

    for arm, dialogues in {**free, "real": real}.items():
        read = pd.DataFrame([read_dialogue(d, rules) for d in dialogues])
        for metric in read:
            e = stats.mean(read[metric], users, unit, seed)
            rows.append(row(metric, arm, e, better="" if metric == "praise" else "lower"))
    counted = [min(d.n_turns, max_turns) for d in real]
    sides = {arm: ([d.n_turns for d in dialogues], counted) for arm, dialogues in free.items()}
    sides["human_split"] = human_split(counted, users, seed)
    for arm, (simulated, true) in sides.items():
        for metric, e in turn_distances(simulated, true, users, unit, seed).items():
            rows.append(row(metric, arm, e, better="lower"))
    return pd.DataFrame(rows)
