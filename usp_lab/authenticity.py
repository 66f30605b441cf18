"""How much a simulated user sounds like the real one: meaning, style, author.

Per utterance in the same context, and per dialogue running freely. Tidy rows (level, arm, user, dialogue,
turn, metric, value) come out; `estimates` turns them into intervals and paired differences.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.data import Corpus, Dialogue
from usp_lab.errors import UspError
from usp_lab.scorers import cosine, meaning
from usp_lab.style import EncodedStyle, StyleScorer, author_pairs, best_threshold

METRICS = ("sem_sim", "style_sim", "ava")
_FEWEST_PAIRS = 20  # of one author, and of two, that a threshold is chosen on

_Text = tuple[list[str], str, str]  # turns, author, topic


class Judge:
    """Scores pairs of texts for meaning, style and author.

    Style is learned on training users, the author threshold chosen on validation users.

    Attributes:
        kind: what counts as one author's texts: "users over their dialogues", or, where users are
            unknown, "halves of dialogues", whose topic is one and the same.
        thresholds: least style similarity of one author, by level ("utterance", "dialogue").
        notes: what few data changed.
    """

    def __init__(
        self, corpus: Corpus, encoder, max_texts: int = 4000, seed: int = 0, style_encoder=None
    ) -> None:
        """Learn from a corpus.

        Args:
            corpus: dialogues with training and validation splits.
            encoder: `encoders.SentenceEncoder`.
            max_texts: training dialogues that style is learned from at the most.
            seed: of the pairs that thresholds are chosen on.
            style_encoder: one trained on authorship, in place of the style that is learned here.

        Raises:
            UspError: fewer than three authors with two texts (six, where validation is small).
        """
        self.encoder, self.seed = encoder, seed
        train = corpus.train[:max_texts]
        self.by_user = corpus.is_population or _users_known(train)
        self.kind = "users over their dialogues" if self.by_user else "halves of dialogues"
        texts = _style_texts(train, self.by_user)
        self._new_style = partial(EncodedStyle, style_encoder) if style_encoder else StyleScorer
        self.style = self._new_style().fit([t for t, *_ in texts], [a for _, a, _ in texts])
        self.notes = [self.style.note_] if self.style.note_ else []
        validation = _style_texts(corpus.validation, self.by_user)
        self.thresholds = {
            level: self._threshold(level, validation, texts) for level in ("utterance", "dialogue")
        }

    def _threshold(self, level: str, validation: list[_Text], train: list[_Text]) -> float:
        cut = _single_turns if level == "utterance" else list
        scores, same, _ = _pairs(self.style, cut(validation), self.seed)
        if (
            sum(same) < _FEWEST_PAIRS
        ):  # too few: pairs of training authors that style did not learn from
            self.notes.append(
                f"{level} threshold from training authors, cross-fitted: validation has only "
                f"{sum(same)} pair(s) of one author's texts"
            )
            authors = list(dict.fromkeys(a for _, a, _ in train))
            for side in (set(authors[::2]), set(authors[1::2])):
                learn = [t for t in train if t[1] not in side]
                style = self._new_style()
                style.fit([t for t, *_ in learn], [a for _, a, _ in learn])
                judged = _pairs(style, cut([t for t in train if t[1] in side]), self.seed)
                scores, same = np.concatenate([scores, judged[0]]), same + judged[1]
        return best_threshold(scores, same)

    def style_auc(
        self, dialogues: Sequence[Dialogue], population: bool, seed: int = 0
    ) -> stats.Estimate:
        """AUC of style similarity for one author on two topics against two authors on one topic.

        On real files without known users, two halves of a dialogue against halves of two dialogues: there
        topic helps, so that figure does not show that style alone is seen.
        """
        by_user = population or self.by_user
        scores, same, authors = _pairs(self.style, _style_texts(dialogues, by_user), seed)
        return stats.auc(scores, same, authors, "user" if by_user else "dialogue", seed)

    def score(
        self, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], level: str
    ) -> dict[str, np.ndarray]:
        """Return the three metrics for pairs of texts (lists of turns); NaN where a text is empty.

        ``sem_sim`` and ``style_sim`` are cosines, -1 to 1; ``ava`` is 1 where one author is judged to
        have written both, else 0. Higher is closer in all.
        """
        style = self.style.similarity(a, b)
        same = np.where(np.isnan(style), np.nan, style >= self.thresholds[level])
        meant = cosine(meaning(self.encoder, a), meaning(self.encoder, b))
        return {"sem_sim": meant, "style_sim": style, "ava": same}


def _users_known(dialogues: Sequence[Dialogue]) -> bool:
    """Tell whether most dialogues are by users who have several."""
    count = Counter(d.user_id for d in dialogues if d.user_id is not None)
    return 2 * sum(n for n in count.values() if n > 1) >= max(len(dialogues), 1)


def _style_texts(dialogues: Sequence[Dialogue], by_user: bool) -> list[_Text]:
    """Return (turns, author, topic) of users' dialogues or of dialogues' halves."""
    if by_user:
        return [(d.user_turns, d.user_id or d.id, d.truth.get("topic", "")) for d in dialogues]
    turns = {d.id: d.user_turns for d in dialogues if d.n_turns >= 2}
    halves = [(i, t[: len(t) // 2], t[len(t) // 2 :]) for i, t in turns.items()]
    return [(half, i, "") for i, *both in halves for half in both]


def _single_turns(texts: list[_Text]) -> list[_Text]:
    return [([turn], a, t) for turns, a, t in texts for turn in turns[:2]]


def _pairs(
    style: StyleScorer | EncodedStyle, texts: list[_Text], seed: int
) -> tuple[np.ndarray, list[bool], list[str]]:
    """Return (style similarity, one author?, first author) of pairs of texts."""
    pairs, same = author_pairs([t for *_, t in texts], [a for _, a, _ in texts], seed)
    first, second = ([texts[p[side]][0] for p in pairs] for side in (0, 1))
    return style.similarity(first, second), same, [texts[i][1] for i, _ in pairs]


def utterance_rows(
    judge: Judge, arm: str, dialogues: Sequence[Dialogue], turns: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Score simulated turns against the true ones of the same place; "" gives NaN."""
    places, real, said = [], [], []
    for d, row in zip(dialogues, turns, strict=True):
        for k, (true, simulated) in enumerate(zip(d.user_turns, row, strict=True)):
            places.append((d.user_id or d.id, d.id, k))
            real.append([true])
            said.append([simulated])
    return _rows("utterance", arm, places, judge.score(said, real, "utterance"))


def dialogue_rows(
    judge: Judge, arm: str, dialogues: Sequence[Dialogue], said: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Score the user's side of free-running dialogues against the true ones; turn is -1."""
    places = [(d.user_id or d.id, d.id, -1) for d in dialogues]
    return _rows(
        "dialogue", arm, places, judge.score(said, [d.user_turns for d in dialogues], "dialogue")
    )


def _rows(level: str, arm: str, places: list[tuple], scores: dict[str, np.ndarray]) -> pd.DataFrame:
    place = pd.DataFrame(places, columns=["user", "dialogue", "turn"])
    parts = [place.assign(metric=m, value=v) for m, v in scores.items()]
    return pd.concat(parts, ignore_index=True).assign(level=level, arm=arm)[
        ["level", "arm", "user", "dialogue", "turn", "metric", "value"]
    ]


def estimates(
    rows: pd.DataFrame,
    unit: str,
    reference: str = "usp",
    against: Sequence[str] = ("shuffled", "empty", "plato"),
) -> pd.DataFrame:
    """Summarise rows as metric_level × arm with intervals over users.

    Args:
        rows: of `utterance_rows` and `dialogue_rows`.
        unit: how results call what is in column ``user``.
        reference, against: paired differences reference_minus_arm, on the items that both have.

    Raises:
        UspError: an item that an arm has twice.
    """
    item, out = ["user", "dialogue", "turn"], []
    twice = rows.duplicated(["level", "metric", "arm", *item])
    if twice.any():
        row = rows[twice].iloc[0]
        raise UspError(
            f"dialogue {row['dialogue']}, turn {row['turn']} is scored twice for arm {row['arm']!r}; "
            "give each arm's rows once"
        )
    for (level, metric), part in rows.groupby(["level", "metric"], sort=False):
        wide = part.set_index([*item, "arm"])["value"].unstack("arm", sort=False)
        users = wide.index.get_level_values("user").tolist()
        cells = {arm: stats.mean(wide[arm], users, unit) for arm in wide.columns}
        for arm in against:
            if arm in wide and reference in wide:
                difference = stats.paired(wide[reference], wide[arm], users, unit)
                cells[f"{reference}_minus_{arm}"] = difference
        for arm, e in cells.items():
            out.append({"metric": f"{metric}_{level}", "arm": arm, **e.as_dict()})
    return pd.DataFrame(out, columns=["metric", "arm", "value", "low", "high", "n", "unit"])
