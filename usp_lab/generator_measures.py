"""What a profile generator is worth: does it read what the turns show, and is it like the true profile?

generator_estimates({"generator": profiles, "rules": by_rules}, dialogues)
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.bag_of_words import counters
from usp_lab.data import Dialogue
from usp_lab.goals import goal_finder
from usp_lab.profile_quality import judge
from usp_lab.profiles import Profile, sentences, split_profile
from usp_lab.reward import HALVES, half_cosines
from usp_lab.surface import measure_style
from usp_lab.synthetic import said_by_chance
from usp_lab.tidy import owners, row
from usp_lab.users import STYLE


def topic_of(profile: Profile | str | None) -> str | None:
    """Return the population's topic that a profile's objective half is about, as the truth checker reads it."""
    text = profile.to_text() if isinstance(profile, Profile) else profile or ""
    said = sentences(split_profile(text)[0])
    found = [intent for intent in goal_finder().find(said) if intent] if said else []
    return max(found, key=lambda i: i.score).topic if found else None


def generator_estimates(
    found: Mapping[str, Sequence[Profile | None]],
    dialogues: Sequence[Dialogue],
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Return per extractor ``generator_topic``: share of dialogues whose topic the profile names; ``generator_style``:
    share of the habits of writing that the turns show which the profile gets right; ``generator_style_mentioned``: of all
    that the true profile mentions, with the unremarkable ones that it mentions one time in four by chance (no reader of
    the turns can know when); ``generator_style_precision``: share of the habits claimed that it mentions.

    Args:
        found: arm -> a profile a dialogue, None where it failed, which misses all.
        dialogues: of the population.
    """
    rows, whose = [], owners(dialogues)
    chance = [said_by_chance(d.truth["user"]) for d in dialogues]
    for arm, profiles in found.items():
        named = [float(topic_of(p) == d.truth["topic"]) for d, p in zip(dialogues, profiles, strict=True)]  # fmt: skip
        rows.append(row("generator_topic", arm, stats.mean(named, whose, unit, seed), better="higher"))  # fmt: skip
        judged = [
            [r for r in judge(d, p) if r[0] in STYLE]
            for d, p in zip(dialogues, profiles, strict=True)
        ]
        items = [[r for r in own if r[1] == "item"] for own in judged]
        counted = {
            "generator_style": [[r for r in own if r[0] not in c] for own, c in zip(items, chance, strict=True)],
            "generator_style_mentioned": items,
            "generator_style_precision": [[r for r in own if r[1] == "claim"] for own in judged],
        }  # fmt: skip
        for metric, some in counted.items():
            right = [float(sum(r[2] for r in own)) for own in some]
            e = stats.ratio(right, [float(len(own)) for own in some], whose, unit, seed)
            rows.append(row(metric, arm, e, better="higher"))
    return pd.DataFrame(rows)


def _measured(turns: Sequence[str]) -> list[float]:
    """Return what can be counted of a user's habits."""
    found = measure_style(turns)
    return [*map(float, found.values()), math.log1p(found["words"])]


def _shows(habit: str, dialogue: Dialogue) -> bool:
    truth = dialogue.truth
    return habit in truth["expressed"] and habit not in said_by_chance(truth["user"])


def habits_on_purpose(
    learned: Sequence[Dialogue], tests: Mapping[str, Sequence[Dialogue]], unit: str = "user", seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return ``generator_style`` of a linear reader that is taught nothing else, by the truth: what there is to see.

    For each habit a logistic regression over words, letters and what `measure_style` counts, on the dialogues that
    express it; when read it is told which habits those are, which a generator must find out.

    Args:
        learned: training dialogues of the population.
        tests: suffix of the arm ``on_purpose`` -> dialogues.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union
    from sklearn.preprocessing import StandardScaler

    reader, scale = make_union(*counters(20_000, (1, 3))), StandardScaler()

    def features(some: Sequence[Dialogue], fit: bool = False):
        said = ["\n".join(d.user_turns) for d in some]
        habits = [_measured(d.user_turns) for d in some]
        if fit:
            reader.fit(said)
            scale.fit(habits)
        return hstack([reader.transform(said), csr_matrix(scale.transform(habits))]).tocsr()

    x = features(learned, fit=True)
    seen = {k: features(some) for k, some in tests.items()}
    right = {k: np.zeros((len(STYLE), len(some))) for k, some in tests.items()}
    shown = {
        k: np.array([[_shows(h, d) for d in some] for h in STYLE]) for k, some in tests.items()
    }
    for i, habit in enumerate(STYLE):
        own = [j for j, d in enumerate(learned) if _shows(habit, d)]
        values = [learned[j].truth["user"][habit] for j in own]
        if not own:
            continue
        several = len(set(values)) > 1
        model = LogisticRegression(C=10.0, max_iter=200, tol=1e-3) if several else DummyClassifier()
        model.fit(x[own], values)
        for k, some in tests.items():
            found = zip(some, model.predict(seen[k]), strict=True)
            right[k][i] = [d.truth["user"][habit] == v for d, v in found]
    rows = []
    for k, some in tests.items():
        e = stats.ratio((right[k] * shown[k]).sum(0), shown[k].sum(0).astype(float), owners(some), unit, seed)  # fmt: skip
        rows.append(row("generator_style", f"on_purpose{k}", e, better="higher"))
    return pd.DataFrame(rows)


def likeness(
    written: Mapping[str, Sequence[str]],
    dialogues: Sequence[Dialogue],
    encoder: str = "minilm",
    unit: str = "user",
    seed: int = 0,
) -> pd.DataFrame:
    """Return how like written profiles are to those of the dialogues, half by half, as RLCC's reward compares them:
    ``generator_objective`` and ``generator_subjective``, cosines per arm, and what the first arm is above the others.

    Args:
        written: arm -> a profile's text a dialogue, "" where there is none, which scores 0.
        dialogues: with profiles; one whose profile lacks a half is left out there.
    """
    whose, rows = owners(dialogues), []
    cosines = {a: half_cosines([d.profile for d in dialogues], t, encoder) for a, t in written.items()}  # fmt: skip
    first, *others = cosines
    for k, half in enumerate(HALVES):
        metric = f"generator_{half}"
        for arm, found in cosines.items():
            e = stats.mean(found[:, k], whose, unit, seed)
            rows.append(row(metric, arm, e, better="higher"))
        for arm in others:
            e = stats.paired(cosines[first][:, k], cosines[arm][:, k], whose, unit, seed)
            rows.append(row(metric, f"{first}_minus_{arm}", e, better="higher"))
    return pd.DataFrame(rows)
