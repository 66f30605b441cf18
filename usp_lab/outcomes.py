"""What simulated dialogues come to for the assistant: goals asked and met, annoyance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from usp_lab.arms import another_user
from usp_lab.assistants import HELPFULNESS, scripted
from usp_lab.behaviour import PUSHES, PushbackReader
from usp_lab.chat import is_closing
from usp_lab.data import Corpus, Dialogue
from usp_lab.simulate import ModelAssistant, Simulated

EVASIVE = (0.0, 0.3, 0.6, 0.9)  # how often the graded versions of a trained assistant evade
_ENOUGH = 1500  # training dialogues that the reader of annoyance learns from


def graded(corpus: Corpus, folder: Path, **drawn: float) -> tuple[dict[str, object], dict]:
    """Return assistants of known quality by name, and how often each helps (0 to 1).

    On the population the scripted ones; on other data the assistant of ``03_conditional_sft`` in
    ``folder``, made evasive at known rates.

    Args:
        corpus: decides which.
        folder: run folder with the model ``assistant``.
        drawn: `engines.Sampling` fields of that model.
    """
    if corpus.is_population:
        return {name: scripted(name) for name in HELPFULNESS}, dict(HELPFULNESS)
    from usp_lab.wrapped import Wrapped

    model = ModelAssistant.from_pretrained(folder / "assistant", name="assistant", **drawn)
    names = {f"evasive {100 * rate:.0f} %": rate for rate in EVASIVE}
    wrapped = {name: Wrapped(model, evasive=rate) for name, rate in names.items()}
    return wrapped, {name: 1 - rate for name, rate in names.items()}


def audience(arm: str, targets: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """Return the targets as an arm's users are told them: `shuffled` gets another user's profile.

    The goals that go with that profile come along, so that `goals_met` counts what was told.
    """
    if arm != "shuffled":
        return list(targets)
    others = [targets[j] for j in another_user(targets, seed)]
    return [
        t.model_copy(update={"profile": o.profile, "truth": o.truth})
        for t, o in zip(targets, others, strict=True)
    ]


def annoyance_reader(corpus: Corpus, seed: int = 0) -> PushbackReader:
    """Return a reader of turns that push back, complain or give up aloud.

    It learns from acts that the population alone knows. For other data it is the population's, and
    nothing there says how well it reads them.
    """
    from usp_lab.synthetic import draw

    known = corpus.train[:_ENOUGH] if corpus.is_population else draw("train", _ENOUGH, seed)
    return PushbackReader(acts=PUSHES | {"give_up"}).fit(known)


def outcomes(
    talks: Mapping[tuple[str, str], Sequence[Simulated]],
    told: Mapping[str, Sequence[Dialogue]],
    reader: PushbackReader,
) -> pd.DataFrame:
    """Return what each dialogue came to.

    Args:
        talks: (arm, assistant) -> dialogues, in the order of ``told[arm]``.
        told: arm -> targets as the arm was told them (`audience`).
        reader: of annoyance.

    Returns:
        One row a dialogue: arm, assistant, id, user (the target's), wanted, asked, met (numbers of
        goals; NaN where goals are unknown), annoyed, decisions (after the opening), turns, stop.
    """
    rows = []
    for (arm, assistant), dialogues in talks.items():
        pushed, later = reader.rates(dialogues)
        for d, t, hits, count in zip(dialogues, told[arm], pushed, later, strict=True):
            goals = _goals(d, t)
            said_bye = bool(d.user_turns) and is_closing(d.user_turns[-1])
            silent = d.stop in ("left", "end token") and not said_bye
            left = silent and bool(t.truth)  # without known goals, silence says nothing
            unhelped = left and goals["met"] < goals["wanted"]
            who = {"arm": arm, "assistant": assistant, "id": d.id, "user": t.user_id or t.id}
            did = goals | {"annoyed": hits + unhelped, "decisions": float(count + left)}
            rows.append(who | did | {"turns": d.n_turns, "stop": d.stop})
    return pd.DataFrame(rows)


def _goals(dialogue: Dialogue, told: Dialogue) -> dict[str, float]:
    """Count the goals told, and those of them that the replies show as asked for and as met."""
    if not told.truth:
        return dict.fromkeys(("wanted", "asked", "met"), float("nan"))
    replies = [m["meta"] for m in dialogue.messages if m["role"] == "assistant" and m.get("meta")]
    wanted = {(told.truth["topic"], g) for g in told.truth["asked"]}
    asked = wanted & {(m.get("topic"), m.get("goal")) for m in replies}
    met = wanted & {(m.get("topic"), g) for m in replies for g in m.get("met", ())}
    return {"wanted": float(len(wanted)), "asked": float(len(asked)), "met": float(len(met))}
