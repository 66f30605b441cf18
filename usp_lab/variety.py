"""How much users vary: openings drawn for one intent, and how a trait's variance lies between users and within one.

opening_estimates({"usp": draw_openings(usp, targets, 4)}, users)
trait_estimates({"usp": [d.user_turns for d in dialogues]}, {"usp": users})

Tables as in `diversity`.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.chat import END_TOKEN
from usp_lab.data import Dialogue
from usp_lab.distributions import Scored, Unscorable, leave_one_out
from usp_lab.diversity import scored_row
from usp_lab.errors import UspError
from usp_lab.metrics import pairwise_difference
from usp_lab.simulate import turn_seed

# --- openings ------------------------------------------------------------------------------------


def draw_openings(
    simulator, targets: Sequence[Dialogue], n: int = 4, seed: int = 0
) -> list[list[str]]:
    """Let a simulator open the dialogue with each target several times.

    Args:
        simulator: anything with ``start`` and ``generate``.
        targets: one dialogue an intent.
        n: openings a target.
        seed: of the draws; no two openings have the same.

    Returns:
        Per target its openings, "" where the dialogue was ended instead; none for a simulator that is
        started from the target's true first turn and so has no opening of its own.
    """
    if n < 2:
        raise UspError(f"n={n} openings a target; give at least 2, which can be compared")
    starts = [simulator.start(t) for t in targets]
    if any(m["role"] == "user" for messages in starts for m in messages):
        return [[] for _ in targets]
    seeds = [turn_seed(seed, k, f"{t.id}/opening", 0) for t in targets for k in range(n)]
    said = simulator.generate([messages for messages in starts for _ in range(n)], seeds)
    texts = ["" if text == END_TOKEN else str(text) for text in said]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def first_turn_diversity(
    openings: Sequence[Sequence[str]], users: Sequence[Hashable], unit: str = "user", seed: int = 0
) -> Scored:
    """First-turn diversity (UserLM, arXiv 2510.06552): mean pairwise 1-gram difference among openings for one intent, 0 to 1, higher is more varied.

    Args:
        openings: several draws an intent (target); no list has any where a simulator is given the
            true opening.
        users: whose intent each is.

    Returns:
        The mean over intents with two openings with words; NaN, with the reason, without one.
    """
    e = stats.mean([pairwise_difference(o) for o in openings], users, unit, seed)
    if e.n:
        return Scored(e)
    given = not any(openings)
    return Scored(e, "no opening of its own" if given else "no intent with two openings with words")


def opening_estimates(
    openings: Mapping[str, Sequence[Sequence[str]]],
    users: Sequence[Hashable],
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Return `first_turn_diversity` by arm, best where it is like real people's."""
    name = "first_turn_diversity"
    scored = {a: first_turn_diversity(o, users, unit, seed) for a, o in openings.items()}
    return pd.DataFrame([scored_row(name, a, s, better="") for a, s in scored.items()])


# --- traits --------------------------------------------------------------------------------------

# name -> what figures call it, and how it is read from a dialogue's user turns
TRAITS: dict[str, tuple[str, Callable[[Sequence[str]], float]]] = {
    "words": (
        "words per turn (log)",
        lambda t: float(np.mean([math.log1p(len(x.split())) for x in t])),
    ),
    "lower_case": ("lower-case opening", lambda t: float(np.mean([x[:1].islower() for x in t]))),
    "final_mark": (
        "final . ? !",
        lambda t: float(np.mean([x.rstrip().endswith((".", "?", "!")) for x in t])),
    ),
    "question_mark": ("question mark", lambda t: float(np.mean(["?" in x for x in t]))),
    "capitals": (
        "share of capitals",
        lambda t: float(np.mean([c.isupper() for x in t for c in x])),
    ),
}


def trait_values(dialogues: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the `TRAITS` of each dialogue's user turns, shape (n, traits); NaN without a turn with words."""
    spoken = [[t for t in turns if t.strip()] for turns in dialogues]
    read = [[f(turns) if turns else math.nan for _, f in TRAITS.values()] for turns in spoken]
    return np.array(read, float).reshape(len(dialogues), len(TRAITS))


def intraclass(values: np.ndarray, users: Sequence[Hashable]) -> float:
    """Share of a trait's variance that lies between users: ICC(1) (Shrout & Fleiss, 1979), about -1 to 1.

    s_b / (s_b + s_w), with s_w the mean square within users and s_b = (MS between - s_w) / n0 of the
    one-way analysis of variance, n0 the (unbalanced) items a user. Like real users' is best; 0: a
    user's dialogues are as unlike as different users' are.

    Args:
        values: one number a dialogue, finite.
        users: whose it is.

    Raises:
        Unscorable: below two users, no user with two dialogues, no variance.

    >>> intraclass(np.array([1, 1, 3, 3]), "aabb")
    1.0
    """
    x = np.asarray(values, float)
    names = {u: i for i, u in enumerate(dict.fromkeys(users))}
    codes, m, n = np.array([names[u] for u in users], int), len(names), len(x)
    if m < 2 or n <= m:
        raise Unscorable(
            f"{n} dialogues of {m} users; two users are needed, one of them with two dialogues"
        )
    size = np.bincount(codes)
    mean = np.bincount(codes, weights=x) / size
    within = ((x - mean[codes]) ** 2).sum() / (n - m)
    between = (size * (mean - x.mean()) ** 2).sum() / (m - 1)
    if within + between <= 1e-12:
        raise Unscorable("all dialogues are alike: no variance to divide")
    own = (between - within) / ((n - (size**2).sum() / n) / (m - 1))
    return float(own / (own + within))


def between_share(values: Sequence[float], users: Sequence[Hashable], unit: str = "user") -> Scored:
    """Estimate `intraclass`; values that are NaN are left out.

    Returns:
        NaN, with the reason, where there is no variance to divide.
    """
    x = np.asarray(values, float)
    known = np.flatnonzero(np.isfinite(x))
    whose = [users[i] for i in known]

    def share(keep: np.ndarray) -> float:
        return intraclass(x[known][keep], [u for u, k in zip(whose, keep, strict=True) if k])

    return leave_one_out(share, whose, unit, bounds=(-1, 1))


def trait_estimates(
    said: Mapping[str, Sequence[Sequence[str]]],
    users: Mapping[str, Sequence[Hashable]],
    unit: str = "user",
) -> pd.DataFrame:
    """Return `between_share` of every trait by arm, best where it is like real people's.

    Args:
        said: arm -> user turns of each dialogue.
        users: arm -> who each dialogue speaks for.
    """
    rows = []
    for arm, dialogues in said.items():
        columns = trait_values(dialogues).T
        for (trait, (label, _)), values in zip(TRAITS.items(), columns, strict=True):
            scored = between_share(values, users[arm], unit)
            rows.append(scored_row(f"between_share_{trait}", arm, scored, better="", label=label))
    return pd.DataFrame(rows)
