"""What an AI detector is worth: does it see what it is to see, and what would there be to see?

sides = {"users_vs_assistants": utterances(corpus.test), "simulated_vs_true": pairs(targets, turns)}
scores = detector_scores(sides, {"detector": detector.probabilities, "bag_of_words": words.probabilities})
detector_estimates(scores)
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.bag_of_words import classifier
from usp_lab.calibration import ece
from usp_lab.data import Dialogue
from usp_lab.detector_training import Utterances
from usp_lab.tidy import owners, row

SATURATED = 0.99  # P(human) above which the reward has next to no slope
DETECTOR = "detector"
Judge = Callable[[Sequence[str]], np.ndarray]


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
    found = cross_val_predict(classifier(), side.texts, side.human, groups=side.owners, cv=split, method="predict_proba")  # fmt: skip
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
