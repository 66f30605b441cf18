"""What the population's truth says of facts: texts that are known to support a fact, or known not to.

bags = calibration(corpus.validation)          # to fit `likeness.OfflineScorer` on
labelled = [b for b in bags if b.kind == "request"]
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
import pandas as pd

from usp_lab import stats
from usp_lab.arms import another_user
from usp_lab.data import Corpus, Dialogue
from usp_lab.entailment import Bag, Entailment
from usp_lab.facts import KINDS, WANTS, Fact, Facts, dialogue_facts, premises, profile_facts
from usp_lab.tidy import row
from usp_lab.users import tables
from usp_lab.utterances import content

_OTHERS = 2  # other users whose facts a text is held against


def calibration(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Bag]:
    """Return labelled texts and facts, both ways: a user's turns against a profile's facts, and a profile against a dialogue's.

    Supported: what a dialogue's own profile says, since it says just what the dialogue shows; what the
    user asks for, by its own profile. Not supported: what other users' profiles say, unless it is true
    of this one too; goals of the same topic that were not asked for; facts of the same user that never
    slipped out. Where truth does not say (a follow-up question), nothing is asked.

    Args:
        dialogues: of the population's validation users.
        seed: of the other users.
    """
    partners = [another_user(dialogues, seed + k) for k in range(_OTHERS)]
    profiles = [profile_facts(d.profile) for d in dialogues]
    out = []
    for i, d in enumerate(dialogues):
        others = [j[i] for j in partners]
        told = tuple(dict.fromkeys(text for _, text in premises(d.user_turns)))
        foreign = [f for j in others for f in profiles[j].items]
        out += _turns(d, told, profiles[i], foreign, Random(f"{seed}/{d.id}"))
        out += _profile(d, profiles[i], [profiles[j] for j in others])
    return out


def _turns(
    d: Dialogue, told: tuple[str, ...], own: Facts, foreign: Sequence[Fact], rng: Random
) -> list[Bag]:
    """Hold the user's turns against facts of the own profile, of others, and ones that were not said."""
    user = d.user_id or d.id
    true = {f.text for f in profile_facts(d.truth["profile_truth"]).items} | {
        f.text for f in own.items
    }
    supported = [Bag(told, f.sentence, True, f.kind, user) for f in own.items]
    false = [f for f in foreign if f.text not in true and not _shared(f, d)]
    false += unsaid(d, rng)
    return supported + [Bag(told, f.sentence, False, f.kind, user) for f in dict.fromkeys(false)]


def _profile(d: Dialogue, own: Facts, others: Sequence[Facts]) -> list[Bag]:
    """Hold the own profile and others' against what the user asks for and tells."""
    out, user = [], d.user_id or d.id
    for fact in dialogue_facts(d.messages).items:
        label = known(d, fact)
        if label is not None:
            out.append(Bag(own.sentences, fact.sentence, label, fact.kind, user))
            out += [
                Bag(o.sentences, fact.sentence, False, fact.kind, user)
                for o in others
                if not _near(d, o)
            ]
    return out


def known(d: Dialogue, fact: Fact) -> bool | None:
    """Tell whether a dialogue's own profile says what a fact of the dialogue says; None: truth does not tell."""
    turn = d.truth["turns"][fact.turn]
    if fact.kind == "request":
        return None if "follow" in turn["acts"] or not turn["goal"] else True
    words = set(content(fact.text))
    shown = [set(content(e["text"])) for e in d.truth["evidence"] if e["turn"] == fact.turn]
    return any(len(words & s) * 2 >= len(words) for s in shown)


def unsaid(d: Dialogue, rng: Random) -> list[Fact]:
    """Return what is near a dialogue and not said in it: two other goals of its topic, two facts of its user."""
    from usp_lab.synthetic import fill_title, task_of

    task = task_of(d)
    goals = [g["key"] for g in tables()["topics"][task.topic]["goal"]]
    left = [g for g in goals if g not in d.truth["asked"] and g not in d.truth["goals"]]
    titles = [fill_title(task, g) for g in rng.sample(left, min(2, len(left)))]
    shown = {f.text for f in profile_facts(d.profile).items}
    whole = [f for f in profile_facts(d.truth["profile_truth"]).items if f.kind == "self"]
    hidden = [f for f in whole if f.text not in shown and not _expressed(f, d)]
    return [Fact(WANTS + t, "request") for t in titles] + rng.sample(hidden, min(2, len(hidden)))


def _expressed(fact: Fact, d: Dialogue) -> bool:
    """Tell whether a fact words an attribute that the dialogue shows."""
    return _attribute(fact, d)[0] in {e["attr"] for e in d.truth["evidence"]}


def _shared(fact: Fact, d: Dialogue) -> bool:
    """Tell whether another user's fact holds of this user too, in other words."""
    attribute, value = _attribute(fact, d)
    return bool(attribute) and d.truth["user"][attribute] == value


def _attribute(fact: Fact, d: Dialogue) -> tuple[str, str]:
    """Return which attribute a fact words, and with which value; ("", "") where it words none."""
    place = d.truth["user"]["place"]
    if re.search(rf"\b{re.escape(place)}\b", fact.text):
        return "place", place
    return _worded().get(frozenset(content(fact.text)), ("", ""))


def _near(d: Dialogue, other: Facts) -> bool:
    """Tell whether another profile is on this dialogue's topic, so that it may cover what is asked."""
    name = set(content(tables()["topics"][d.truth["topic"]]["name"]))
    return any(f.kind == "topic" and set(content(f.text)) >= name for f in other.items)


@lru_cache(maxsize=1)
def _worded() -> dict[frozenset, tuple[str, str]]:
    """Return which attribute and value a profile's clause words, by its content words."""
    return {
        frozenset(content(f.text)): (attribute, value)
        for attribute, values in tables()["attributes"].items()
        if attribute != "place"
        for value, table in values.items()
        for clause in table["fact"]
        for f in profile_facts(clause + ".").items
    }


def known_users(
    corpus: Corpus, learn: int = 80, check: int = 120, seed: int = 0
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return validation and test dialogues whose truth is known: the corpus' own, or newly drawn ones.

    Real files have no truth; entailment is then calibrated, and checked, on the population.

    Args:
        corpus: of the run.
        learn: validation dialogues at the most. 80 are enough: 200 move no AUC by 0.002.
        check: test dialogues at the most.
        seed: of drawn ones.
    """
    if corpus.is_population:
        return corpus.validation[:learn], corpus.test[:check]
    from usp_lab.synthetic import draw

    return draw("validation", learn, seed), draw("test", check, seed)


def auc_table(bags: Sequence[Bag], probabilities: Sequence[float], seed: int = 0) -> pd.DataFrame:
    """Return ``entailment_auc`` per kind of fact as tidy rows: P(a supported fact scores higher than another).

    0 to 1, 0.5 is chance; resampled by user; facts that could not be judged (NaN) are left out.
    """
    p, rows = np.asarray(probabilities, float), []
    for kind in dict.fromkeys(b.kind for b in bags):
        own = [i for i, b in enumerate(bags) if b.kind == kind]
        labels, users = [bags[i].label for i in own], [bags[i].user for i in own]
        e = stats.auc(p[own], labels, users, "user", seed)
        rows.append(row("entailment_auc", kind, e, better="higher"))
    return pd.DataFrame(rows)


def examples(bags: Sequence[Bag], entailment: Entailment, seed: int = 0) -> pd.DataFrame:
    """Return one fact of each kind that was found, missed, rejected and wrongly found, with its best premise."""
    rows, wanted = [], {(k, t, p) for k in KINDS for t in (True, False) for p in (True, False)}
    for i in np.random.default_rng(seed).permutation(len(bags)).tolist():
        bag = bags[i]
        found = entailment.support([bag.premises], [[bag.fact]])[0]
        case = (bag.kind, bag.label, bool(found.probability[0] >= 0.5))
        if case in wanted and found.premise[0] >= 0:
            wanted.remove(case)
            premise = bag.premises[found.premise[0]]
            rows.append((*case[:2], bag.fact, premise, float(found.probability[0])))
        if not wanted:
            break
    columns = ["kind", "true", "fact", "best premise", "P"]
    return pd.DataFrame(rows, columns=columns).sort_values(["kind", "true", "P"], ascending=False)


def roc_curve(
    bags: Sequence[Bag], probabilities: Sequence[float], threshold: float = 0.5
) -> pd.DataFrame:
    """Return ROC curves per kind of fact: kind, fpr, tpr, auc, n, at (the threshold in use); NaNs are left out.

    >>> curve = roc_curve([Bag((), "a", True, "self"), Bag((), "b", False, "self")], [0.9, 0.2])
    >>> float(curve["auc"].iloc[0]), curve[curve["at"]][["fpr", "tpr"]].values.tolist()
    (1.0, [[0.0, 1.0]])
    """
    labels, p = np.array([b.label for b in bags], bool), np.asarray(probabilities, float)
    kinds, parts = np.array([b.kind for b in bags]), []
    for kind in dict.fromkeys(kinds.tolist()):
        keep = (kinds == kind) & ~np.isnan(p)
        y, s = labels[keep], p[keep]
        if not y.any() or y.all():
            continue
        cuts = np.unique(np.concatenate([s, [threshold, np.inf]]))[::-1]
        curve = {
            "fpr": [float((s[~y] >= c).mean()) for c in cuts],
            "tpr": [float((s[y] >= c).mean()) for c in cuts],
        }
        whole = {"kind": kind, "auc": stats.area(s, y), "n": len(s), "at": cuts == threshold}
        parts.append(pd.DataFrame(curve).assign(**whole))
    columns = ["kind", "fpr", "tpr", "auc", "n", "at"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
