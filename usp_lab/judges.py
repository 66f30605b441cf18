"""A language model as judge of the subjective half: Val.Score and SC.Score of the paper, 1 to 5.

    judged = Judge(Client(Endpoint(url, model))).score("sc_score", simulated, profiles)

Both figures are a judge's, whose prompts the paper does not publish; ours are in ``consistency.toml``. Without an
endpoint `manner` says what can be said offline.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from pydantic import BaseModel

from usp_lab import stats
from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.errors import UspError
from usp_lab.facts_llm import prompts
from usp_lab.manner import MannerReader, claims
from usp_lab.profiles import split_profile
from usp_lab.structured import GREEDY, ask_each
from usp_lab.tidy import row

KINDS = ("val_score", "sc_score")


class Verdict(BaseModel):
    """The form of a judge's answer."""

    score: float
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """One dialogue's score, 1 to 5, higher is better; NaN with the ``reason``, and what the judge wrote."""

    value: float
    reason: str = ""
    reply: str = ""


class Judge:
    """Asks a language model how well the subjective half of a profile fits a user's turns.

    Args:
        client: an `endpoints.Client`.
        sampling: how it draws; greedy when None.
    """

    def __init__(self, client, sampling: Sampling | None = None) -> None:
        self.client, self.sampling = client, sampling or GREEDY

    def score(
        self, kind: str, dialogues: Sequence[Dialogue], profiles: Sequence[str | None]
    ) -> list[Judged]:
        """Score each dialogue against the subjective half of its profile.

        ``val_score``: the profile was inferred from the dialogue; are its claims borne out? ``sc_score``: the
        dialogue was simulated from the profile; does it show it? (arXiv 2502.18968.) NaN, with the reason: a
        profile without a subjective half, no user turn, a failed request, a reply that stays invalid after one
        repair, a score outside 1 to 5.

        Raises:
            UspError: an unknown kind, or the key is refused.
        """
        if kind not in KINDS:
            raise UspError(f"no judgement {kind!r}; choose one of {', '.join(KINDS)}")
        items = [
            (split_profile(p or "")[1], "\n".join(d.user_turns).strip())
            for d, p in zip(dialogues, profiles, strict=True)
        ]
        asked = [self._prompt(kind, *item) for item in items if all(item)]
        answers = iter(ask_each(self.client, asked, Verdict, self.sampling))
        return [
            _judged(next(answers))
            if all(item)
            else Judged(
                math.nan, "no user turn" if item[0] else "no subjective half in the profile"
            )
            for item in items
        ]

    @staticmethod
    def _prompt(kind: str, profile: str, turns: str) -> list[dict]:
        told = prompts()["judge"]
        asked = told[kind].strip().replace("{profile}", profile).replace("{turns}", turns)
        return [
            {"role": "system", "content": told["system"].strip()},
            {"role": "user", "content": asked},
        ]


def _judged(answer) -> Judged:
    if answer.value is None:
        return Judged(math.nan, answer.reason, answer.reply)
    score = answer.value.score
    if not 1 <= score <= 5:
        return Judged(math.nan, f"the judge answered {score:g}, outside 1 to 5", answer.reply)
    return Judged(float(score), "", answer.reply)


def subjective_scores(
    kind: str,
    talks: Mapping[str, Sequence[Dialogue]],
    told: Mapping[str, Sequence[Dialogue]],
    judge: Judge | None = None,
    reader: MannerReader | None = None,
) -> pd.DataFrame:
    """Score each arm's dialogues against the subjective half of what the arm was told, by a judge or offline.

    Args:
        kind: "val_score" or "sc_score".
        talks: arm -> dialogues.
        told: arm -> dialogues whose profiles count, in the same order.
        judge: gives 1 to 5.
        reader: without a judge, on the population: gives the share of claims that it recovers, 0 to 1.

    Returns:
        arm, user, dialogue, value, reason, reply; no row where there is neither judge nor reader.
    """
    rows = []
    for arm, dialogues in talks.items():
        if judge is not None:
            scored = judge.score(kind, dialogues, [t.profile for t in told[arm]])
        elif reader is not None:
            turns = [d.user_turns for d in dialogues]
            shares = reader.recovered(turns, [claims(t) for t in told[arm]])
            scored = [
                Judged(v, "no claim or no user turn" if math.isnan(v) else "") for v in shares
            ]
        else:
            continue
        for d, s in zip(dialogues, scored, strict=True):
            rows.append((arm, d.user_id or d.id, d.id, s.value, s.reason, s.reply))
    return pd.DataFrame(rows, columns=["arm", "user", "dialogue", "value", "reason", "reply"])


def sc_table(scored: Mapping[str, pd.DataFrame], unit: str, seed: int = 0) -> pd.DataFrame:
    """Return the mean of `subjective_scores` per metric and arm as tidy rows, resampled by user; NaNs are left out."""
    rows = [
        row(
            metric, arm, stats.mean(own["value"], own["user"].tolist(), unit, seed), better="higher"
        )
        for metric, table in scored.items()
        for arm, own in table.groupby("arm", sort=False)
    ]
    columns = ["metric", "arm", "value", "low", "high", "n", "unit", "better"]
    return pd.DataFrame(rows, columns=columns)
