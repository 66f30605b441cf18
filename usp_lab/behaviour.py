"""What free-running simulated users do, checked against the population's truth: goals raised, manner kept, pushing back, leaving unhelped."""

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.chat import is_closing
from usp_lab.data import Dialogue
from usp_lab.goals import goal_finder
from usp_lab.surface import HABITS, measure_style

if TYPE_CHECKING:
    from usp_lab.simulate import Simulated

USER_ENDS = ("closing", "left", "end token")  # stop reasons that are the user's doing
PUSHES = {"push", "annoyed", "wrong", "rude_back", "insist", "rephrase"}


def goals_raised(dialogues: Sequence[Dialogue]) -> list[list[str | None]]:
    """Return per dialogue, per user turn, the goal ("topic/goal") that the turn asks for as the truth checker reads it, or None."""
    flat, topics = [], []
    for d in dialogues:
        topic = None
        for t in d.user_turns:
            flat.append(t)
            topics.append(topic)
            found = goal_finder().find([t], [topic])[0] if topic is None else None
            topic = topic or (found.topic if found else None)
    found = goal_finder().find(flat, topics) if flat else []
    out, row = [], 0
    for d in dialogues:
        block = found[row : row + d.n_turns]
        row += d.n_turns
        out.append([f"{i.topic}/{i.goal}" if i else None for i in block])
    return out


def goal_recall(
    simulated: Sequence[Dialogue], targets: Sequence[Dialogue], seed: int = 0
) -> stats.Estimate:
    """Share of the goals raised in the true dialogues that the simulated ones raise too; 0 to 1, higher is better. Resampled by user."""
    hits, wanted = [], []
    for raised, t in zip(goals_raised(simulated), targets, strict=True):
        goals = {f"{t.truth['topic']}/{g}" for g in t.truth["asked"]}
        hits.append(len(goals & set(raised)))
        wanted.append(len(goals))
    return stats.ratio(hits, wanted, [t.user_id for t in targets], "user", seed)


def style_table(
    simulated: Sequence[Dialogue], targets: Sequence[Dialogue], arm: str, seed: int = 0
) -> pd.DataFrame:
    """Return per habit the AUC of its feature in simulated turns, users with the habit against users without (`surface.HABITS`)."""
    features = pd.DataFrame([measure_style(d.user_turns) for d in simulated])
    users, rows = [t.user_id for t in targets], []
    for habit, (attribute, value, feature, sign) in HABITS.items():
        labels = [t.truth["user"][attribute] == value for t in targets]
        rows.append(
            {
                "habit": habit,
                "arm": arm,
                **_renamed(stats.auc(sign * features[feature], labels, users, "user", seed)),
            }
        )
    return pd.DataFrame(rows)


def _renamed(e: stats.Estimate) -> dict:
    return {"auc": e.value, "low": e.low, "high": e.high, "n": e.n, "unit": e.unit}


def style_auc(
    simulated: Sequence[Dialogue], targets: Sequence[Dialogue], seed: int = 0, draws: int = 300
) -> stats.Estimate:
    """Mean over habits of `style_table`'s AUC, its interval from resampling users; habits that no or every user has are left out."""
    features = pd.DataFrame([measure_style(d.user_turns) for d in simulated]).to_numpy()
    names = list(measure_style(["a"]))
    labels = np.array(
        [[t.truth["user"][a] == v for a, v, _, _ in HABITS.values()] for t in targets]
    )
    columns = np.array([names.index(f) for _, _, f, _ in HABITS.values()])
    scores = features[:, columns] * np.array([s for *_, s in HABITS.values()])
    keep = ~np.isnan(scores).any(axis=1)
    scores, labels = scores[keep], labels[keep]
    users = [t.user_id for t, k in zip(targets, keep, strict=True) if k]

    def value(rows: np.ndarray) -> float:
        s, y = scores[rows], labels[rows]
        both = [h for h in range(s.shape[1]) if 0 < y[:, h].sum() < len(y)]
        return float(np.mean([stats.area(s[:, h], y[:, h]) for h in both])) if both else np.nan

    members: dict[str, list[int]] = {}
    for i, u in enumerate(users):
        members.setdefault(u, []).append(i)
    groups, rng = [np.array(m) for m in members.values()], np.random.default_rng(seed)
    drawn = [
        value(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(draws)
    ]
    low, high = (
        np.nanpercentile(drawn, [2.5, 97.5]).tolist()
        if not np.isnan(drawn).all()
        else (np.nan, np.nan)
    )
    return stats.Estimate(value(np.arange(len(users))), low, high, len(users), "user")


def gave_up(simulated: "Sequence[Simulated]", targets: Sequence[Dialogue]) -> list[float]:
    """Per dialogue, 1 where the user ended it with a goal that the true dialogue raised still unmet (scripted assistants say what they met)."""
    out = []
    for d, t in zip(simulated, targets, strict=True):
        met = {g for m in d.messages for g in m.get("meta", {}).get("met", [])}
        out.append(float(d.stop in USER_ENDS and bool(set(t.truth["asked"]) - met)))
    return out


class PushbackReader:
    """Tells turns that push back (insist, rephrase, complain) from others: n-gram logistic regression on training users' turns, whose acts are known.

    ``acts`` are those that count as pushing back.
    """

    def __init__(self, acts: Set[str] = frozenset(PUSHES)) -> None:
        self.acts = acts

    def fit(self, dialogues: Sequence[Dialogue]) -> "PushbackReader":
        """Learn from the acts in the population's truth."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        texts, labels = _turns_with_acts(dialogues, self.acts)
        vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), max_features=30_000, sublinear_tf=True
        )
        self.model_ = make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=300)).fit(
            texts, labels
        )
        return self

    def check(self, dialogues: Sequence[Dialogue], seed: int = 0) -> stats.Estimate:
        """AUC on dialogues whose acts are known."""
        texts, labels = _turns_with_acts(dialogues, self.acts)
        users = [d.user_id for d in dialogues for _ in d.truth["turns"]]
        return stats.auc(self.model_.predict_proba(texts)[:, 1], labels, users, "user", seed)

    def rates(self, dialogues: Sequence[Dialogue]) -> tuple[list[float], list[int]]:
        """Return per dialogue (turns after the opening that push back, turns after the opening)."""
        flat = [t for d in dialogues for t in d.user_turns[1:]]
        found = self.model_.predict(flat).tolist() if flat else []
        hits, counts, row = [], [], 0
        for d in dialogues:
            n = max(d.n_turns - 1, 0)
            hits.append(float(sum(found[row : row + n])))
            counts.append(n)
            row += n
        return hits, counts


def _turns_with_acts(dialogues: Sequence[Dialogue], acts: Set[str]) -> tuple[list[str], list[bool]]:
    pairs = [
        (text, not acts.isdisjoint(turn["acts"]))
        for d in dialogues
        for text, turn in zip(d.user_turns, d.truth["turns"], strict=True)
    ]
    return [t for t, _ in pairs], [p for _, p in pairs]


def still_there(
    simulated: "Sequence[Simulated]",
    targets: Sequence[Dialogue],
    arm: str,
    assistant: str,
    max_turns: int,
) -> pd.DataFrame:
    """Return the share of dialogues with a user turn t, t = 1..max_turns, with intervals over users."""
    users, n = [t.user_id for t in targets], [d.n_turns for d in simulated]
    rows = []
    for turn in range(1, max_turns + 1):
        e = stats.mean([float(k >= turn) for k in n], users, "user")
        rows.append(
            {
                "assistant": assistant,
                "arm": arm,
                "turn": turn,
                "share_left": e.value,
                "low": e.low,
                "high": e.high,
                "n": e.n,
            }
        )
    return pd.DataFrame(rows)


def reader_accuracy(dialogues: Sequence[Dialogue], seed: int = 0) -> dict[str, stats.Estimate]:
    """Check the readers of goals and of leave-taking on true turns, whose acts are known.

    Returns:
        ``goal_reader_recall``: asking turns whose goal is read right; ``goal_reader_precision``: turns read as asking that ask for just that;
        ``closing_reader_recall`` and ``closing_reader_precision`` likewise for goodbyes after the opening.
    """
    asked, read, right, bye, said_bye, both, users, later = [], [], [], [], [], [], [], []
    for d, raised in zip(dialogues, goals_raised(dialogues), strict=True):
        for k, (turn, found, text) in enumerate(
            zip(d.truth["turns"], raised, d.user_turns, strict=True)
        ):
            true = f"{d.truth['topic']}/{turn['goal']}" if turn["goal"] else None
            asked.append(float(true is not None))
            read.append(float(found is not None))
            right.append(float(true is not None and found == true))
            users.append(d.user_id)
            if k:
                bye.append(float(true is None))
                said_bye.append(float(is_closing(text)))
                both.append(float(true is None and is_closing(text)))
                later.append(d.user_id)
    return {
        "goal_reader_recall": stats.ratio(right, asked, users, "user", seed),
        "goal_reader_precision": stats.ratio(right, read, users, "user", seed),
        "closing_reader_recall": stats.ratio(both, bye, later, "user", seed),
        "closing_reader_precision": stats.ratio(both, said_bye, later, "user", seed),
    }
