"""How much a simulated user sounds like the real one: meaning, style, author; per utterance in the same context, per dialogue running freely.

Tidy rows (arm, user, dialogue, turn, metric, value) come out; `estimates` turns them into intervals and paired differences.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.data import Corpus, Dialogue
from usp_lab.errors import UspError
from usp_lab.scorers import StyleScorer, author_pairs, best_threshold, cosine, meaning

METRICS = ("sem_sim", "style_sim", "ava")


class Judge:
    """Scores pairs of texts for meaning, style and author. Style is learned on training users, the author threshold chosen on validation users."""

    def __init__(self, corpus: Corpus, encoder, max_texts: int = 4000, seed: int = 0) -> None:
        self.encoder = encoder
        texts, self.kind = _style_texts(corpus.train[:max_texts], corpus.is_population)
        self.style = StyleScorer(seed=seed).fit([t for t, _, _ in texts], [a for _, a, _ in texts])
        checks, _ = _style_texts(corpus.validation, corpus.is_population)
        self.thresholds = {level: self._threshold(checks, level, seed) for level in ("utterance", "dialogue")}

    def _threshold(self, texts, level: str, seed: int) -> float:
        if level == "utterance":  # one turn each
            texts = [([turn], a, t) for turns, a, t in texts for turn in turns[:2]]
        scores, same = self._pairs(texts, seed)
        return best_threshold(scores, same)

    def _pairs(self, texts, seed: int) -> tuple[np.ndarray, list[bool]]:
        pairs, same = author_pairs([t for _, _, t in texts], [a for _, a, _ in texts], seed)
        return self.style.similarity([texts[i][0] for i, _ in pairs], [texts[j][0] for _, j in pairs]), same

    def style_auc(self, dialogues: Sequence[Dialogue], population: bool, seed: int = 0) -> stats.Estimate:
        """AUC for one author on two topics against two authors on one topic (real files: two halves of a dialogue against two dialogues)."""
        texts, _ = _style_texts(dialogues, population)
        pairs, same = author_pairs([t for _, _, t in texts], [a for _, a, _ in texts], seed)
        scores = self.style.similarity([texts[i][0] for i, _ in pairs], [texts[j][0] for _, j in pairs])
        return stats.auc(scores, same, [texts[i][1] for i, _ in pairs], "user" if population else "dialogue", seed)

    def score(self, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], level: str) -> dict[str, np.ndarray]:
        """Return the three metrics for pairs of texts (lists of turns); NaN where a text is empty."""
        style = self.style.similarity(a, b)
        same = np.where(np.isnan(style), np.nan, style >= self.thresholds[level])
        return {"sem_sim": cosine(meaning(self.encoder, a), meaning(self.encoder, b)), "style_sim": style, "ava": same}


def _style_texts(dialogues: Sequence[Dialogue], population: bool) -> tuple[list[tuple[list[str], str, str]], str]:
    """Return (turns, author, topic): users over their dialogues, or, where users are unknown, halves of dialogues."""
    if population or all(d.user_id for d in dialogues):
        return [(d.user_turns, d.user_id, d.truth.get("topic", "")) for d in dialogues], "users over their dialogues"
    out = []
    for d in dialogues:
        if d.n_turns >= 2:
            half = d.n_turns // 2
            out += [(d.user_turns[:half], d.id, ""), (d.user_turns[half:], d.id, "")]
    if not out:
        raise UspError("no dialogue has two user turns; style needs two texts of one author")
    return out, "halves of dialogues"


def utterance_rows(judge: Judge, arm: str, dialogues: Sequence[Dialogue], turns: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Score simulated turns against the true ones of the same place."""
    index = [(d.user_id or d.id, d.id, k, real, said) for d, row in zip(dialogues, turns, strict=True) for k, (real, said) in enumerate(zip(d.user_turns, row, strict=True))]
    scores = judge.score([[said] for *_, said in index], [[real] for *_, real, _ in index], "utterance")
    return pd.concat(pd.DataFrame({"level": "utterance", "arm": arm, "user": [i[0] for i in index], "dialogue": [i[1] for i in index], "turn": [i[2] for i in index], "metric": m, "value": v}) for m, v in scores.items())


def dialogue_rows(judge: Judge, arm: str, dialogues: Sequence[Dialogue], said: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Score the user's side of free-running dialogues against the true ones."""
    scores = judge.score(said, [d.user_turns for d in dialogues], "dialogue")
    return pd.concat(pd.DataFrame({"level": "dialogue", "arm": arm, "user": [d.user_id or d.id for d in dialogues], "dialogue": [d.id for d in dialogues], "turn": -1, "metric": m, "value": v}) for m, v in scores.items())


def estimates(rows: pd.DataFrame, unit: str, reference: str = "usp", against: Sequence[str] = ("shuffled", "empty", "plato")) -> pd.DataFrame:
    """Summarise rows as metric_level x arm with intervals, and the paired differences reference_minus_arm on the items both have."""
    out = []
    for (level, metric), part in rows.groupby(["level", "metric"], sort=False):
        wide = part.pivot_table(index=["user", "dialogue", "turn"], columns="arm", values="value", dropna=False, observed=True)
        wide = wide.loc[wide.notna().any(axis=1)]
        users = wide.index.get_level_values("user").tolist()
        for arm in part["arm"].unique():
            out.append((f"{metric}_{level}", arm, stats.mean(wide[arm], users, unit)))
        for arm in against:
            if arm in wide and reference in wide:
                out.append((f"{metric}_{level}", f"{reference}_minus_{arm}", stats.paired(wide[reference], wide[arm], users, unit)))
    return pd.DataFrame([{"metric": m, "arm": a, **e.as_dict()} for m, a, e in out])
