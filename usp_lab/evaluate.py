"""What the experiment notebooks do with simulators: load them, score true turns, let them talk, and gather tidy tables of estimates.

A tidy table has the columns metric, arm, value, low, high, n, unit; `Run.record` writes it into metrics.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from usp_lab import behaviour, stats
from usp_lab.arms import another_user, contexts, profiles_for, swapped_reply
from usp_lab.assistants import ScriptedAssistant
from usp_lab.data import Corpus, Dialogue
from usp_lab.metrics import profile_copy
from usp_lab.scorers import turn_nll
from usp_lab.simulate import ModelAssistant, Simulated, TwinSimulator, UserSimulator, simulate
from usp_lab.simulators import EachItsOwn
from usp_lab.tidy import owners, row

# arm -> the trained model that speaks it
MODELS = {"usp": "usp", "shuffled": "usp", "empty": "usp", "plato": "plato", "usp_end": "usp_end"}


def owners_told(arm: str, dialogues: Sequence[Dialogue], seed: int = 0) -> list[str]:
    """Return as whom an arm speaks: each dialogue's owner, for `shuffled` the one whose profile it is told."""
    users = owners(dialogues)
    return [users[i] for i in another_user(dialogues, seed)] if arm == "shuffled" else users


def load_simulators(folder: Path, names: Sequence[str], **drawn: float) -> dict[str, UserSimulator]:
    """Load the simulators that `03_conditional_sft` trained, by name; ``drawn``: `engines.Sampling` fields."""
    return {
        name: UserSimulator.from_pretrained(
            folder / name, name=name, with_profile=name != "plato", **drawn
        )
        for name in names
    }


def turn_losses(
    simulator: UserSimulator, arm: str, dialogues: Sequence[Dialogue], seed: int = 0
) -> np.ndarray:
    """Return of each dialogue the loss of its true user turns as the arm reads them, and their tokens, shape (n, 2)."""
    scored = turn_nll(simulator, contexts(arm, dialogues, seed))
    return np.array([np.sum(turns, axis=0) for turns in scored])


def perplexities(
    simulators: Mapping[str, UserSimulator], splits: Mapping[str, Sequence[Dialogue]], arms: Sequence[str], unit: str, seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Return the perplexity of true user turns per metric (name -> dialogues) and arm, and the paired differences to `usp`."""
    rows = []
    for metric, dialogues in splits.items():
        sums = {}
        for arm in arms:
            sums[arm] = turn_losses(simulators[MODELS[arm]], arm, dialogues, seed)
            estimate = stats.perplexity(*sums[arm].T, owners(dialogues), unit)
            rows.append(row(metric, arm, estimate, better="lower", log=True))
        for arm in [a for a in arms if "usp" in sums and a != "usp"]:
            gain = stats.perplexity_difference(sums[arm], sums["usp"], owners(dialogues), unit)
            rows.append(row(metric, f"{arm}_minus_usp", gain, better="higher", log=False))
    return pd.DataFrame(rows)


def listening(
    simulator: UserSimulator, arm: str, dialogues: Sequence[Dialogue], unit: str, seed: int = 0
) -> pd.DataFrame:
    """Return the perplexity of last user turns after the true reply, after another dialogue's, and the difference."""
    long, last = [d for d in dialogues if d.n_turns > 1], {}
    ends = [_to_last_user_turn(d) for d in long]
    for kind, some in {"true": ends, "swapped": swapped_reply(long, seed)}.items():
        last[kind] = [turns[-1] for turns in turn_nll(simulator, contexts(arm, some, seed))]
    users = owners(long)
    per_kind = {k: stats.perplexity(*np.array(v).T, users, unit) for k, v in last.items()}
    difference = stats.perplexity_difference(last["swapped"], last["true"], users, unit)
    arms = {
        arm: per_kind["swapped"],
        "true_reply": per_kind["true"],
        f"swapped_minus_{arm}": difference,
    }
    return pd.DataFrame([row("ppl_swapped_reply", a, e) for a, e in arms.items()])


def _to_last_user_turn(dialogue: Dialogue) -> Dialogue:
    last = max(k for k, m in enumerate(dialogue.messages) if m["role"] == "user")
    return dialogue.model_copy(update={"messages": dialogue.messages[: last + 1]})


# --- free running -------------------------------------------------------------------------------------------------------


def partners(
    corpus: Corpus, targets: Sequence[Dialogue], folder: Path, **drawn: float
) -> dict[str, object]:
    """Return for each target's id the assistant it talks to: as helpful as the real user's, or the model trained on the file's assistant turns."""
    if corpus.is_population:
        return {t.id: ScriptedAssistant(t.truth["helpfulness"]) for t in targets}
    model = ModelAssistant.from_pretrained(folder / "assistant", name="assistant", **drawn)
    return {t.id: model for t in targets}


def run_free(
    simulator, arm: str, targets: Sequence[Dialogue], assistants: Mapping[str, object], out: Path, max_turns: int, seed: int = 0
) -> list[Simulated]:  # fmt: skip
    """Simulate every target with its own assistant, told what the arm is told; in the order of targets, resuming from the folder ``out``."""
    if arm in ("shuffled", "empty"):
        told = [
            t.model_copy(update={"profile": p})
            for t, p in zip(targets, profiles_for(arm, targets, seed), strict=True)
        ]
    else:
        told = list(targets)
    distinct = list(dict.fromkeys(assistants[t.id] for t in targets))
    partner = distinct[0] if len(distinct) == 1 else EachItsOwn(assistants)
    return simulate(
        simulator, partner, told, max_turns=max_turns, seed=seed, out=out / f"{arm}.jsonl"
    )


def talk(
    speakers: Mapping[str, object],
    assistants: Mapping[str, object],
    targets: Sequence[Dialogue],
    out: Path,
    max_turns: int,
    seed: int = 0,
) -> dict[tuple[str, str], list[Simulated]]:
    """Let every speaker talk to every assistant about every target: {(arm, assistant): dialogues}."""
    return {
        (arm, name): simulate(
            speaker,
            assistant,
            targets,
            max_turns=max_turns,
            seed=seed,
            out=out / f"{arm}-{name}.jsonl",
        )
        for name, assistant in assistants.items()
        for arm, speaker in speakers.items()
    }


def with_twin(speakers: Mapping[str, object], corpus: Corpus) -> dict[str, object]:
    """Return the speakers, and on the population its own user beside them."""
    return dict(speakers) | ({"twin": TwinSimulator()} if corpus.is_population else {})


def stop_table(talks: Mapping[tuple[str, str], Sequence[Simulated]]) -> pd.DataFrame:
    """Return the share of dialogues per stop reason, by assistant and arm."""
    stops = pd.DataFrame(
        [{"arm": a, "assistant": b, "stop": d.stop} for (a, b), ds in talks.items() for d in ds]
    )
    return pd.crosstab([stops["assistant"], stops["arm"]], stops["stop"], normalize="index")


def goals_and_manner(
    talks: Mapping[tuple[str, str], Sequence[Simulated]], targets: Sequence[Dialogue], seed: int = 0
) -> pd.DataFrame:
    """Return goal recall and mean habit AUC of each arm with the good assistant."""
    rows = []
    for (arm, assistant), dialogues in talks.items():
        if assistant == "good":
            rows.append(
                row(
                    "goal_recall",
                    arm,
                    behaviour.goal_recall(dialogues, targets, seed),
                    better="higher",
                )
            )
            rows.append(
                row(
                    "style_auc", arm, behaviour.style_auc(dialogues, targets, seed), better="higher"
                )
            )
    return pd.DataFrame(rows)


def reactions(
    talks: Mapping[tuple[str, str], Sequence[Simulated]],
    targets: Sequence[Dialogue],
    reader: behaviour.PushbackReader,
) -> pd.DataFrame:
    """Return pushback and giving up per arm with the good and the bad assistant, and the paired differences."""
    rows, users = [], owners(targets)
    for arm in dict.fromkeys(a for a, _ in talks):
        pushed = {b: reader.rates(talks[arm, b]) for b in ("good", "bad")}
        left = {b: behaviour.gave_up(talks[arm, b], targets) for b in ("good", "bad")}
        for b in ("good", "bad"):
            rows.append(row(f"pushback_rate_{b}", arm, stats.ratio(*pushed[b], users, "user")))
            rows.append(row(f"stop_rate_{b}", arm, stats.mean(left[b], users, "user")))
        rows.append(
            row(
                "pushback_rate_bad_minus_good",
                arm,
                stats.ratio_difference(pushed["bad"], pushed["good"], users, "user"),
            )
        )
        rows.append(
            row(
                "stop_rate_bad_minus_good",
                arm,
                stats.paired(left["bad"], left["good"], users, "user"),
            )
        )
    return pd.DataFrame(rows)


def copying(
    talks: Mapping[tuple[str, str], Sequence[Simulated]], targets: Sequence[Dialogue], unit: str
) -> pd.DataFrame:
    """Return per arm the share of the profile's 4-grams that the user's turns repeat (with the first assistant); `real` is the true dialogue."""
    first = next(iter(talks))[1]
    said = {arm: [d.user_turns for d in ds] for (arm, b), ds in talks.items() if b == first}
    said["real"] = [t.user_turns for t in targets]
    copied = {
        arm: [profile_copy(t.profile, s) for t, s in zip(targets, turns, strict=True)]
        for arm, turns in said.items()
    }
    return pd.DataFrame(
        [
            row("profile_copy", arm, stats.mean(v, owners(targets), unit), better="lower")
            for arm, v in copied.items()
        ]
    )
