"""DPC put to the test: it must fall as a profile's facts are exchanged for another user's, dose by dose.

table, slope = dose_response(corpus.test, entailment)
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.arms import another_user
from usp_lab.consistency import dpc, dpc_of_sums, score, share_sums
from usp_lab.data import Dialogue
from usp_lab.entailment import Entailment
from usp_lab.facts import Facts, RuleFacts
from usp_lab.tidy import owners

DOSES = (0.0, 0.1, 0.25, 0.5, 1.0)


def swapped(
    profiles: Sequence[Facts], dialogues: Sequence[Dialogue], dose: float, seed: int = 0
) -> list[Facts]:
    """Return profiles in which a share of the facts is exchanged for facts of other users.

    A share of a few facts is rounded up or down by chance, so that the mean over profiles is the dose. With the
    same seed a larger dose exchanges what a smaller one does, and more.

    Args:
        profiles: facts of each dialogue's own profile.
        dialogues: whose users are known apart.
        dose: share of facts exchanged, 0 to 1.
        seed: of which facts go and whose come.
    """
    partner = another_user(dialogues, seed)
    users, out = owners(dialogues), []
    for i, own in enumerate(profiles):
        rng = np.random.default_rng([seed, i])
        order, spare = rng.permutation(len(own.items)), rng.random()
        n = min(len(own.items), math.floor(dose * len(own.items) + spare))
        known = {f.text for f in own.items}
        foreign, j, tried = [], partner[i], 0
        while len(foreign) < n and tried < len(profiles):
            if users[j] != users[i]:
                foreign += [f for f in profiles[j].items if f.text not in known]
                known |= {f.text for f in foreign}
            j, tried = partner[j], tried + 1
        kept = [own.items[k] for k in sorted(order[n:])]
        out.append(Facts((*kept, *foreign[:n]), own.reason))
    return out


def dose_response(
    dialogues: Sequence[Dialogue],
    entailment: Entailment,
    reader=None,
    unit: str = "user",
    doses: Sequence[float] = DOSES,
    seed: int = 0,
) -> tuple[pd.DataFrame, stats.Estimate]:
    """Estimate DPC with a growing share of the profile's facts exchanged (`swapped`).

    Returns:
        (dose, value, low, high, n, unit: the `dpc` at each dose; the slope: of a straight line fitted to these,
        in DPC per 100 % exchanged, -1 to 1, its interval by resampling users with all their doses). A metric that
        sees consistency has a slope below 0.
    """
    facts = (reader or RuleFacts()).profiles([d.profile for d in dialogues])
    users, rows, columns = owners(dialogues), [], []
    for dose in doses:
        s = score(dialogues, swapped(facts, dialogues, dose, seed), entailment, reader)
        rows.append({"dose": dose, **dpc(s["dp_p"], s["dp_r"], users, unit, seed).as_dict()})
        columns += share_sums(s["dp_p"], s["dp_r"])
    x = np.asarray(doses) - np.mean(doses)

    def slope(*sums):
        values = [dpc_of_sums(*sums[4 * k : 4 * k + 4]) for k in range(len(doses))]
        return sum(w * v for w, v in zip(x, values, strict=True)) / (x @ x)

    return pd.DataFrame(rows), stats.of_sums(columns, slope, users, unit, seed)
