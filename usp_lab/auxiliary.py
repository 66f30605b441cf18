"""What RLCC's two helpers are worth: does the detector see what it is to see, does the generator read what is there?

sides = {"users_vs_assistants": utterances(corpus.test), "simulated_vs_true": pairs(targets, turns)}
detector_estimates(sides, {"detector": detector.probabilities, "bag_of_words": words.probabilities})
generator_estimates({"generator": profiles, "rules": by_rules}, dialogues)
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.calibration import ece
from usp_lab.data import Dialogue
from usp_lab.detector_training import Utterances
from usp_lab.goals import goal_finder
from usp_lab.profile_quality import judge
from usp_lab.profiles import Profile, sentences, split_profile
from usp_lab.reward import HALVES, half_cosines
from usp_lab.surface import measure_style
from usp_lab.synthetic import said_by_chance
from usp_lab.tidy import owners, row
from usp_lab.users import STYLE

SATURATED = 0.99  # P(human) above which the reward has next to no slope
DETECTOR = "detector"
Judge = Callable[[Sequence[str]], np.ndarray]


# --- the detector -------------------------------------------------------------------------------


class BagOfWords:
    """The baseline that any detector must be held against: words and letters counted, a logistic regression."""

    def fit(self, utterances: Utterances) -> "BagOfWords":
        """Learn from training utterances."""
        self.model_ = _counted().fit(utterances.texts, utterances.human)
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return P(human) of each text, shape (n,)."""
        return self.model_.predict_proba(list(texts))[:, 1] if len(texts) else np.zeros(0)


def _counts(most: int, letters: tuple[int, int]) -> list:
    """Return counters of words and of letters' n-grams, of so many features each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    how = {"sublinear_tf": True, "max_features": most, "dtype": np.float32}
    return [
        TfidfVectorizer(ngram_range=(1, 2), **how),
        TfidfVectorizer(analyzer="char_wb", ngram_range=letters, lowercase=False, **how),
    ]


def _counted():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    model = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
    return make_pipeline(make_union(*_counts(50_000, (2, 4))), model)


def shortness(texts: Sequence[str]) -> np.ndarray:
    """Score texts by how short they are, in words: what length alone tells of who wrote them."""
    return -np.array([len(t.split()) for t in texts], float)


def pairs(dialogues: Sequence[Dialogue], turns: Sequence[Sequence[str]]) -> Utterances:
    """Return true user turns (True) and what was said in their place (False), where both say something."""
    rows = []
    for user, d, said in zip(owners(dialogues), dialogues, turns, strict=True):
        for true, other in zip(d.user_turns, said, strict=True):
            if true.strip() and other.strip():
                rows += [(true, True, user), (other, False, user)]
    texts, human, whose = (list(c) for c in zip(*rows, strict=True)) if rows else ([], [], [])
    return Utterances(texts, np.array(human, bool), whose)


def on_purpose(side: Utterances, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Return P(true) of each utterance from a bag of words that was taught this very difference, on other users.

    What there is to see for one who looks for it: a detector of assistants need not. NaN where there are fewer than
    two users.
    """
    from sklearn.model_selection import GroupKFold, cross_val_predict

    n = min(folds, len(set(side.owners)))
    if n < 2:
        return np.full(len(side.texts), np.nan)
    split = GroupKFold(n, shuffle=True, random_state=seed)
    found = cross_val_predict(_counted(), side.texts, side.human, groups=side.owners, cv=split, method="predict_proba")  # fmt: skip
    return found[:, 1]


def detector_scores(
    sides: Mapping[str, Utterances], judges: Mapping[str, Judge]
) -> dict[str, pd.DataFrame]:
    """Score every side by every judge: side -> text, human, owner, and a column a judge.

    A text that comes in several sides is asked once. Where the detector is silent, so are all: arms of a side are
    over the same items.
    """
    texts = list(dict.fromkeys(t for side in sides.values() for t in side.texts))
    known = {name: dict(zip(texts, ask(texts), strict=True)) for name, ask in judges.items()}
    out = {}
    for name, side in sides.items():
        table = pd.DataFrame({"text": side.texts, "human": side.human, "owner": side.owners})
        for judge_name in judges:
            table[judge_name] = [float(known[judge_name][t]) for t in side.texts]
        if DETECTOR in judges:
            silent = table[DETECTOR].isna()
            table.loc[silent, list(judges)] = np.nan
        out[name] = table
    return out


def detector_estimates(
    scores: Mapping[str, pd.DataFrame], unit: str = "user", seed: int = 0
) -> pd.DataFrame:
    """Return ``detector_auc`` of each side as the arm <side> (the detector), <side>_<judge>, and what the detector is
    better by, <side>_minus_<judge>.

    Args:
        scores: as `detector_scores` gives them.
        unit: what owners are called; seed: of the resampling.

    Returns:
        A tidy table, with side and judge.
    """
    rows = []
    for side, table in scores.items():
        whose, human = table["owner"].tolist(), table["human"].to_numpy()
        judges = [c for c in table if c not in ("text", "human", "owner")]
        for name in judges:
            arm = side if name == DETECTOR else f"{side}_{name}"
            e = stats.auc(table[name], human, whose, unit, seed)
            rows.append(row("detector_auc", arm, e, better="higher", side=side, judge=name))
        for name in [j for j in judges if j != DETECTOR and DETECTOR in judges]:
            e = stats.auc_difference(table[DETECTOR], table[name], human, whose, unit, seed)
            rows.append(row("detector_auc", f"{side}_minus_{name}", e, better="higher", side=side))
    return pd.DataFrame(rows)


def detector_levels(
    groups: Mapping[str, tuple[Sequence[str], Sequence[str]]], judge_: Judge, unit: str = "user", seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return how human a detector finds whose utterances: ``naturalness`` (mean P(human)), ``r_ai_saturated`` (share
    above 0.99, where the reward has next to no slope) and ``detector_abstains`` (share it is silent on), an arm a group.

    Args:
        groups: arm -> (utterances, owners).
        judge_: P(human) of texts.
    """
    rows = []
    for arm, (texts, whose) in groups.items():
        p = np.asarray(judge_(list(texts)), float)
        high = np.where(np.isnan(p), np.nan, p > SATURATED)
        for metric, values, better in (
            ("naturalness", p, "higher"),
            ("r_ai_saturated", high, "lower"),
            ("detector_abstains", np.isnan(p).astype(float), ""),
        ):
            rows.append(row(metric, arm, stats.mean(values, whose, unit, seed), better=better))
    return pd.DataFrame(rows)


def calibration_estimates(
    table: pd.DataFrame, judges: Sequence[str], unit: str = "user", seed: int = 0
) -> pd.DataFrame:
    """Return ``detector_ece`` per judge over one side's scores (`detector_scores`)."""
    whose, human = table["owner"].tolist(), table["human"].to_numpy()
    found = {j: ece(table[j], human, whose, unit, seed=seed) for j in judges}
    return pd.DataFrame(
        [row("detector_ece", judge, e, better="lower") for judge, e in found.items()]
    )


# --- the generator ------------------------------------------------------------------------------


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

    reader, scale = make_union(*_counts(20_000, (1, 3))), StandardScaler()

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
