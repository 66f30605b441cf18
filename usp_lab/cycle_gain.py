"""What reinforcement with cycle consistency has bought, by others than the reward's own models.

A generator that is rewarded for being agreed with can be agreed with more while nobody else notices. Gains are
therefore told by a second profile generator (other architecture, tokenizer, seed and users) and by the population's
truth, beside the reward's own models. The unit of resampling is seed x profile, which takes reinforcements of one
profile for independent; beside it stand intervals over profiles and over seeds alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_curve

from usp_lab import stats
from usp_lab.behaviour import goals_raised
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.evaluate import turn_losses
from usp_lab.metrics import pairwise_difference, profile_copy
from usp_lab.reward import CycleReward
from usp_lab.surface import HABITS, measure_style
from usp_lab.tidy import owners, row

UNIT = "seed × profile"
POWER = 2.8  # standard errors at which a two-sided test at 5 % finds an effect four times in five

Judge = Callable[[Sequence[Dialogue], Sequence[Dialogue]], np.ndarray]


def cycle_judge(reward: CycleReward) -> Judge:
    """Return a judge by reading profiles back: r_cc of each dialogue, -2 to 2, higher is better; NaN where nothing was said."""
    return lambda targets, said: np.array(
        [t.r_cc for t in reward.score([t.profile for t in targets], said)]
    )


class TruthChecker:
    """A judge by the population's truth: the share of what a profile says that shows in the user's turns, 0 to 1.

    A goal shows when a turn asks for it (`behaviour.goals_raised`), a habit when its feature lies on its side of a
    threshold chosen on true dialogues of other users. Only goals and habits that the target's profile expresses
    count; facts let slip in asides are not read.
    """

    def fit(self, dialogues: Sequence[Dialogue]) -> "TruthChecker":
        """Choose each habit's threshold (Youden's J) on true dialogues; one that nobody or everybody has is left out."""
        features = pd.DataFrame([measure_style(d.user_turns) for d in dialogues])
        self.thresholds_: dict[str, float] = {}
        for habit, (attribute, value, feature, sign) in HABITS.items():
            has = np.array([d.truth["user"][attribute] == value for d in dialogues])
            scores = sign * features[feature].to_numpy(float)
            known = np.isfinite(scores)
            if 0 < has[known].sum() < known.sum():
                false, true, at = roc_curve(has[known], scores[known], drop_intermediate=False)
                self.thresholds_[habit] = float(at[1:][np.argmax((true - false)[1:])])
        return self

    def __call__(self, targets: Sequence[Dialogue], said: Sequence[Dialogue]) -> np.ndarray:
        """Return the share of each target's goals and habits that shows, shape (n,); NaN where nothing was said."""
        out = []
        for t, d, raised in zip(targets, said, goals_raised(said), strict=True):
            if not d.n_turns:
                out.append(math.nan)
                continue
            shown = [f"{t.truth['topic']}/{g}" in raised for g in t.truth["asked"]]
            features = measure_style(d.user_turns)
            for habit, (attribute, value, feature, sign) in HABITS.items():
                told = attribute in t.truth["expressed"] and t.truth["user"][attribute] == value
                if told and habit in self.thresholds_:
                    shown.append(sign * features[feature] >= self.thresholds_[habit])
            out.append(float(np.mean(shown)) if shown else math.nan)
        return np.array(out)


def judged(
    judges: Mapping[str, Judge], targets: Sequence[Dialogue], said: Sequence[Dialogue], **named: object
) -> pd.DataFrame:  # fmt: skip
    """Return what every judge makes of dialogues: target, a column a judge, and ``named`` columns."""
    scores = {name: judge(targets, said) for name, judge in judges.items()}
    return pd.DataFrame({"target": [t.id for t in targets], **scores}).assign(**named)


def gains(
    table: pd.DataFrame, judges: Sequence[str], metric: str = "r_cc_gain", seed: int = 0
) -> pd.DataFrame:
    """Estimate how much better each judge finds dialogues after reinforcement than before, paired by seed and profile.

    Args:
        table: of `judged`, with columns ``seed`` and ``arm`` ("usp" and "usp_rlcc").
        judges: columns to compare.
        metric: how results call it.
        seed: of the resampling.

    Returns:
        Rows of metric, arm (the judge), value, low, high, n, unit; and ``detectable``: the gain that would have been
        found four times in five (2.8 standard errors, by the interval's width). With several seeds also
        <judge>_over_profiles (seeds averaged first, profiles resampled) and <judge>_over_seeds (Student's t over the
        seeds' means: what another reinforcement would do, wide for few seeds).

    Raises:
        UspError: a seed and profile that has not one dialogue of each arm.
    """
    there = table.groupby(["seed", "target", "arm"]).size().unstack("arm", fill_value=0)
    if not (there.reindex(columns=["usp", "usp_rlcc"], fill_value=0) == 1).all(axis=None):
        raise UspError(
            "each seed and profile needs one dialogue of usp and one of usp_rlcc to be compared"
        )
    wide = table.pivot(index=["seed", "target"], columns="arm", values=list(judges))
    rows, items = [], [f"{s}/{t}" for s, t in wide.index]
    for judge in judges:
        after, before = (wide[judge, arm].to_numpy(float) for arm in ("usp_rlcc", "usp"))
        e = stats.paired(after, before, items, UNIT, seed)
        detectable = POWER * (e.high - e.low) / (2 * 1.96)
        rows.append(row(metric, judge, e, better="higher", detectable=detectable))
        gained = pd.Series(after - before, index=wide.index)
        of_seeds = gained.groupby("seed").mean()
        if len(of_seeds) > 1:
            of_profiles = gained.groupby("target").mean()
            e = stats.mean(of_profiles, of_profiles.index.tolist(), "profile", seed)
            rows.append(row(metric, f"{judge}_over_profiles", e, better="higher"))
            e = student(of_seeds, "seed")
            rows.append(row(metric, f"{judge}_over_seeds", e, better="higher"))
    return pd.DataFrame(rows)


def student(values: Sequence[float], unit: str = "seed") -> stats.Estimate:
    """Estimate a mean of a few independent values by Student's t, where resampling would be too sure.

    >>> e = student([1.0, 2.0, 3.0]); round(e.low, 2), e.value, round(e.high, 2)
    (-0.48, 2.0, 4.48)
    """
    known = np.array([v for v in values if not math.isnan(v)], float)
    if len(known) < 2:
        return stats.Estimate(
            float(known.mean()) if len(known) else math.nan, math.nan, math.nan, len(known), unit
        )
    low, high = ttest_1samp(known, 0.0).confidence_interval()
    return stats.Estimate(float(known.mean()), float(low), float(high), len(known), unit)


def by_weight(
    table: pd.DataFrame, tested: Mapping[str, Sequence[Dialogue]], judges: Sequence[str], seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return `gains` for each value of the column ``lam`` and each group of targets, whose name is the metric."""
    parts = []
    for lam, at in table.groupby("lam"):
        for name, some in tested.items():
            own = at[at["target"].isin([t.id for t in some])]
            found = gains(own, judges, name, seed)
            parts.append(found[found["arm"].isin(judges)].assign(lam=lam))
    return pd.concat(parts, ignore_index=True)


def levels(table: pd.DataFrame, judges: Sequence[str], metric: str = "r_cc", seed: int = 0) -> pd.DataFrame:  # fmt: skip
    """Return the mean score of every arm by each judge: metric ``metric`` and judge, arm, value, low, high, n, unit."""
    rows = []
    for arm, own in table.groupby("arm", sort=False):
        items = (own["seed"].astype(str) + "/" + own["target"]).tolist()
        for judge in judges:
            e = stats.mean(own[judge], items, UNIT, seed)
            rows.append(row(f"{metric}_{judge}", arm, e, better="higher"))
    return pd.DataFrame(rows)


def costs(
    said: Mapping[tuple[int, str], Sequence[Dialogue]], targets: Sequence[Dialogue], seed: int = 0
) -> pd.DataFrame:
    """Estimate what reinforcement may cost: copying the profile, openings that resemble one another.

    Args:
        said: dialogues by seed and arm, each in the order of ``targets``.
        targets: whose profiles were told.
        seed: of the resampling.

    Returns:
        Rows of ``profile_copy`` by arm, and of ``first_turn_diversity`` by arm with the ratio
        ``usp_rlcc_over_usp``, whose intervals leave out one profile at a time.
    """
    from usp_lab.distributions import leave_one_out

    rows, arms = [], list(dict.fromkeys(arm for _, arm in said))
    for arm in arms:
        runs = {s: d for (s, a), d in said.items() if a == arm}
        copied = [
            (f"{s}/{t.id}", profile_copy(t.profile, d.user_turns))
            for s, own in runs.items()
            for t, d in zip(targets, own, strict=True)
        ]
        items, values = zip(*copied, strict=True)
        rows.append(row("profile_copy", arm, stats.mean(values, items, UNIT, seed), better="lower"))

    def diversity(arm: str, keep: np.ndarray) -> float:
        each = []
        for (_, a), own in said.items():
            if a == arm:
                opened = [
                    d.user_turns[0] for d, k in zip(own, keep, strict=True) if k and d.n_turns
                ]
                each.append(pairwise_difference(opened))
        return float(np.mean(each))

    names = [t.id for t in targets]
    for arm in arms:
        e = leave_one_out(lambda keep, a=arm: diversity(a, keep), names, "profile", bounds=(0, 1))
        rows.append(row("first_turn_diversity", arm, e.estimate, better="higher"))
    if {"usp", "usp_rlcc"} <= set(arms):
        e = leave_one_out(
            lambda keep: diversity("usp_rlcc", keep) / diversity("usp", keep), names, "profile"
        )
        rows.append(row("first_turn_diversity", "usp_rlcc_over_usp", e.estimate, better="higher"))
    return pd.DataFrame(rows)


def forgetting(
    simulators: Mapping[tuple[int, str], object], dialogues: Sequence[Dialogue], unit: str, seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return the perplexity of real turns before and after, over all seeds, and the ratio ``usp_rlcc_over_usp``."""
    users, sums = owners(dialogues), {}
    distinct = {
        id(simulator): simulator for simulator in simulators.values()
    }  # usp is every seed's
    losses = {i: turn_losses(s, "usp", dialogues, seed) for i, s in distinct.items()}
    for (_, arm), simulator in simulators.items():
        sums.setdefault(arm, []).append(losses[id(simulator)])
    total = {arm: np.sum(each, axis=0) for arm, each in sums.items()}
    rows = [
        row("ppl", arm, stats.perplexity(*t.T, users, unit), better="lower")
        for arm, t in total.items()
    ]
    columns = [total["usp_rlcc"][:, 0], total["usp_rlcc"][:, 1], *total["usp"].T]
    e = stats.of_sums(columns, lambda a, n, b, m: np.exp(a / n - b / m), users, unit, seed)
    return pd.DataFrame([*rows, row("ppl", "usp_rlcc_over_usp", e, better="lower")])
