"""Arms and authenticity: who is compared with whom, what each arm is told, and the whole way to the estimates."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usp_lab import arms, authenticity, synthetic
from usp_lab.arms import (
    another_user,
    contexts,
    next_turns,
    other_turns,
    profiles_for,
    swapped_reply,
    twin_turns,
)
from usp_lab.authenticity import METRICS, Judge, dialogue_rows, estimates, utterance_rows
from usp_lab.chat import END_TOKEN, read_profile
from usp_lab.data import Corpus, Dialogue
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.from_scratch import new_model, new_tokenizer
from usp_lab.models import sentence_encoder
from usp_lab.simulate import UserSimulator


def dialogue(
    name: str, *turns: str, user: str | None = None, profile: str | None = "p"
) -> Dialogue:
    """User turns, each answered with its own text in capitals."""
    messages = [
        m
        for t in turns
        for m in ({"role": "user", "content": t}, {"role": "assistant", "content": t.upper()})
    ]
    return Dialogue(id=name, messages=messages, user_id=user, profile=profile)


def by_users(users: list[str | None]) -> list[Dialogue]:
    return [dialogue(f"d{i}", f"hello {i}", user=u, profile=f"p{i}") for i, u in enumerate(users)]


FOUR = [
    dialogue("x", "one", "two", "three", user="u", profile="first"),
    dialogue("y", "four", user="v", profile="second"),
    dialogue("z", "five", "six", user="u", profile="third"),
    dialogue("w", "seven", "eight", user="v", profile="fourth"),
]


# --- another user --------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=2, max_size=25),
    st.integers(0, 9),
)
def test_another_user_is_another_and_used_evenly(users: list[str | None], seed: int) -> None:
    dialogues = by_users(users)
    names = [u if u is not None else f"alone {i}" for i, u in enumerate(users)]
    if len(set(names)) < 2:
        with pytest.raises(UspError, match="of one user"):
            another_user(dialogues, seed)
        return
    chosen = another_user(dialogues, seed)
    assert all(names[i] != names[j] for i, j in enumerate(chosen))
    (_, largest), used = Counter(names).most_common(1)[0], Counter(chosen)
    if 2 * largest <= len(names):
        assert sorted(chosen) == list(range(len(names)))
    else:
        assert max(used.values()) <= math.ceil(largest / (len(names) - largest))
    assert chosen == another_user(dialogues, seed)


def test_another_user_changes_with_the_seed_between_users() -> None:
    dialogues = by_users([f"user {i // 2}" for i in range(12)])
    met = {tuple(j // 2 for j in another_user(dialogues, seed)) for seed in range(8)}
    assert len(met) > 4


def test_another_user_of_none_and_of_one() -> None:
    assert another_user([]) == []
    with pytest.raises(UspError, match=r"1 dialogue\(s\) of one user"):
        another_user(by_users(["a"]))
    assert another_user(by_users(["d1", None])) == [1, 0]  # a name like an id is no id
    many = by_users([f"u{i // 3}" for i in range(3000)])
    assert sorted(another_user(many)) == list(range(3000))


# --- what each arm is told -----------------------------------------------------------------------


def test_profiles_for() -> None:
    own = ["first", "second", "third", "fourth"]
    assert profiles_for("usp", FOUR) == profiles_for("usp_end", FOUR) == own
    assert profiles_for("empty", FOUR) == [""] * 4 and profiles_for("plato", FOUR) == [None] * 4
    told = profiles_for("shuffled", FOUR, seed=3)
    assert sorted(told) == sorted(own)
    assert told == [own[i] for i in another_user(FOUR, 3)]
    assert all((own.index(p) % 2) != (i % 2) for i, p in enumerate(told))  # never the same user's
    with pytest.raises(UspError, match="arm 'twin' has no simulator"):
        profiles_for("twin", FOUR)


@pytest.mark.parametrize("arm", ["usp", "usp_end", "shuffled"])
def test_an_arm_with_profiles_refuses_dialogues_without(arm: str) -> None:
    mixed = [*FOUR, dialogue("bare", "hi", profile=None)]
    with pytest.raises(UspError, match=f"bare has no profile, which arm '{arm}' needs"):
        contexts(arm, mixed)
    assert len(contexts("plato", mixed)) == len(contexts("empty", mixed)) == 5


def test_contexts() -> None:
    for arm in ("usp", "empty", "plato"):
        for d, messages, profile in zip(
            FOUR, contexts(arm, FOUR), profiles_for(arm, FOUR), strict=True
        ):
            system = messages[: len(messages) - len(d.messages)]
            assert messages[len(system) :] == d.messages
            assert [read_profile(m["content"]) for m in system] == (
                [] if profile is None else [profile]
            )


# --- next turns ----------------------------------------------------------------------------------


class Parrot:
    """Says what it was last told, and ends the dialogue where that was "TWO"."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[dict], int]] = []

    def generate(self, batch, seeds) -> list[str]:
        self.seen += zip(batch, seeds, strict=True)
        return [END_TOKEN if m[-1]["content"] == "TWO" else m[-1]["content"] for m in batch]


def test_next_turns_are_written_in_the_true_context() -> None:
    parrot = Parrot()
    assert next_turns(parrot, "plato", FOUR) == [
        ["", "ONE", ""],
        [""],
        ["", "FIVE"],
        ["", "SEVEN"],
    ]
    assert [m for m, _ in parrot.seen] == [
        d.messages[: 2 * k] for d in FOUR for k in range(1, d.n_turns)
    ]
    opened = next_turns(Parrot(), "usp", FOUR)
    assert [len(t) for t in opened] == [3, 1, 2, 2]
    assert all(
        profile in t[0] for t, profile in zip(opened, profiles_for("usp", FOUR), strict=True)
    )
    assert next_turns(Parrot(), "plato", []) == []


def test_next_turns_have_seeds_of_their_own() -> None:
    seeds = {}
    for arm, seed in (("usp", 0), ("empty", 0), ("usp", 1), ("usp", 0)):
        parrot = Parrot()
        next_turns(parrot, arm, FOUR, seed)
        drawn = [s for _, s in parrot.seen]
        assert len(set(drawn)) == len(drawn) == 8
        assert seeds.setdefault((arm, seed), drawn) == drawn
    assert len({s for drawn in seeds.values() for s in drawn}) == 24


def test_next_turns_of_a_model_skip_what_its_context_cannot_hold() -> None:
    tokenizer = new_tokenizer(["one two three four"], vocab_size=300)
    model = new_model(tokenizer, "0.3m", context=160).eval()
    simulator = UserSimulator(model, tokenizer, Sampling(max_new_tokens=4), "random")
    long = dialogue("long", "one", "two " * 200, "three", user="t")
    turns = next_turns(simulator, "plato", [FOUR[0], long])
    assert [len(t) for t in turns] == [3, 3]
    assert turns[1][0] == turns[1][2] == ""  # nothing to open from; no room left
    again = next_turns(simulator, "plato", [long, FOUR[0]])
    assert again[::-1] == turns


# --- references ----------------------------------------------------------------------------------


def test_other_turns_are_matched_by_position() -> None:
    chosen, turns = another_user(FOUR, 2), other_turns(FOUR, 2)
    assert [len(t) for t in turns] == [d.n_turns for d in FOUR]
    for j, row in zip(chosen, turns, strict=True):
        real = FOUR[j].user_turns
        assert row == (real + ["", "", ""])[: len(row)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    sizes = {"train": 300, "validation": 100, "test": 40}
    return Corpus("population", {split: synthetic.draw(split, n, 0) for split, n in sizes.items()})


def test_twin_turns(corpus: Corpus) -> None:
    turns = twin_turns(corpus.test)
    assert [len(t) for t in turns] == [d.n_turns for d in corpus.test]
    assert all(t[0] for t in turns)  # nobody leaves before the opening
    flat = [
        (a, b)
        for d, row in zip(corpus.test, turns, strict=True)
        for a, b in zip(d.user_turns, row, strict=True)
    ]
    assert 0 < sum(b == "" for _, b in flat) < 0.3 * len(flat)
    assert sum(a == b for a, b in flat) < 0.15 * len(flat)  # another draw, not the same
    assert twin_turns(corpus.test) == turns != twin_turns(corpus.test, seed=2)
    with pytest.raises(UspError, match="x is not of the population"):
        twin_turns(FOUR)


def test_swapped_reply() -> None:
    swapped = swapped_reply(FOUR)
    assert [d.id for d in swapped] == ["x", "z", "w"]  # one turn has no reply to swap
    for d in swapped:
        real = next(t for t in FOUR if t.id == d.id)
        assert d.messages[-1] == real.messages[-2] and d.user_turns == real.user_turns
        assert d.messages[:-2] == real.messages[:-3]
        given = d.messages[-2]["content"]
        other = [t for t in FOUR if t.user_id != d.user_id and t.n_turns > 1]
        assert given in {t.messages[-1]["content"] for t in other}


# --- estimates -----------------------------------------------------------------------------------


def table(rows: list[tuple]) -> pd.DataFrame:
    columns = ["arm", "user", "dialogue", "turn", "value"]
    return pd.DataFrame(rows, columns=columns).assign(level="utterance", metric="sem_sim")


ROWS = [
    ("usp", "u", "x", 0, 0.5), ("usp", "u", "x", 1, 0.7), ("usp", "v", "y", 0, 0.9),
    ("plato", "u", "x", 0, np.nan), ("plato", "u", "x", 1, 0.1), ("plato", "v", "y", 0, 0.5),
    ("twin", "u", "x", 0, 1.0),
]  # fmt: skip


def test_estimates_by_hand() -> None:
    out = estimates(table(ROWS), "user").set_index("arm")
    assert set(out["metric"]) == {"sem_sim_utterance"} and set(out["unit"]) == {"user"}
    assert out["value"].to_dict() == pytest.approx(
        {"usp": 0.7, "plato": 0.3, "twin": 1.0, "usp_minus_plato": (0.6 + 0.4) / 2}
    )
    assert out["n"].to_dict() == {"usp": 3, "plato": 2, "twin": 1, "usp_minus_plato": 2}
    assert (
        math.isnan(out.loc["twin", "low"])
        and out.loc["usp", "low"] <= 0.7 <= out.loc["usp", "high"]
    )


def test_estimates_keep_levels_and_metrics_apart() -> None:
    both = pd.concat([table(ROWS), table(ROWS).assign(level="dialogue", metric="ava", value=1.0)])
    out = estimates(both, "dialogue", "plato", ("twin", "nobody"))
    assert list(dict.fromkeys(out["metric"])) == ["sem_sim_utterance", "ava_dialogue"]
    assert out["arm"].tolist() == ["usp", "plato", "twin", "plato_minus_twin"] * 2
    ava = out[out["metric"] == "ava_dialogue"].set_index("arm")["value"]
    assert ava.to_dict() == {"usp": 1, "plato": 1, "twin": 1, "plato_minus_twin": 0}


def test_estimates_of_one_arm_and_of_nothing() -> None:
    plato = table([r for r in ROWS if r[0] == "plato"])
    assert estimates(plato, "dialogue")["arm"].tolist() == ["plato"]
    empty = estimates(plato.iloc[:0], "dialogue")
    assert empty.empty and list(empty) == ["metric", "arm", "value", "low", "high", "n", "unit"]


def test_estimates_refuse_an_item_scored_twice() -> None:
    with pytest.raises(UspError, match="dialogue x, turn 0 is scored twice for arm 'usp'"):
        estimates(table([*ROWS, ROWS[0]]), "user")


# --- the whole way -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(corpus: Corpus) -> Judge:
    return Judge(corpus, sentence_encoder("minilm"))


def test_judge_learns_from_users(judge: Judge, corpus: Corpus) -> None:
    assert judge.kind == "users over their dialogues"
    assert set(judge.thresholds) == {"utterance", "dialogue"}
    auc = judge.style_auc(corpus.test + corpus.validation, True)
    assert auc.value > 0.8 and auc.unit == "user"


def test_references_lie_where_they_should(judge: Judge, corpus: Corpus) -> None:
    test = corpus.test[:24]
    said = {
        "usp": [d.user_turns for d in test],
        "twin": twin_turns(test),
        "other": other_turns(test),
    }
    rows = [utterance_rows(judge, arm, test, turns) for arm, turns in said.items()]
    whole = {"usp": said["usp"], "twin": [synthetic.twin(d).user_turns for d in test]}
    whole["other"] = [test[i].user_turns for i in another_user(test)]
    rows += [dialogue_rows(judge, arm, test, turns) for arm, turns in whole.items()]
    out = estimates(pd.concat(rows), "user", "twin", ("other",))
    assert set(out["metric"]) == {
        f"{m}_{level}" for m in METRICS for level in ("utterance", "dialogue")
    }
    value = out.set_index(["metric", "arm"])["value"]
    for metric in out["metric"].unique():
        assert value[metric, "usp"] == pytest.approx(1), metric  # itself
        assert value[metric, "other"] < value[metric, "twin"] <= 1, metric
        # a share of 24 dialogues can be all of them; a cosine of other words is below 1
        assert value[metric, "twin"] < 1 or metric.startswith("ava"), metric
    gains = out[out["arm"] == "twin_minus_other"]
    assert (gains["low"] > 0).all() and len(gains) == 6


def test_rows_say_where_a_score_belongs(judge: Judge, corpus: Corpus) -> None:
    test = corpus.test[:3]
    silent = [[""] * d.n_turns for d in test]
    rows = utterance_rows(judge, "empty", test, silent)
    assert len(rows) == 3 * sum(d.n_turns for d in test) and rows["value"].isna().all()
    places = rows[rows["metric"] == "ava"][["user", "dialogue", "turn"]].itertuples(index=False)
    assert list(map(tuple, places)) == [
        (d.user_id, d.id, k) for d in test for k in range(d.n_turns)
    ]
    rows = dialogue_rows(judge, "empty", test, [[], ["", "hello"], test[2].user_turns])
    ava = rows[rows["metric"] == "sem_sim"]["value"].tolist()
    assert math.isnan(ava[0]) and -1 <= ava[1] < 0.9 and ava[2] == pytest.approx(1)
    assert set(rows["turn"]) == {-1} and set(rows["arm"]) == {"empty"}
    assert utterance_rows(judge, "usp", [], []).empty
    with pytest.raises(ValueError):
        utterance_rows(judge, "usp", test, silent[:2])


class Blind:
    """An encoder for which all texts are alike."""

    def encode(self, texts) -> np.ndarray:
        return np.ones((len(texts), 2))


def unknown_users(dialogues: list[Dialogue]) -> list[Dialogue]:
    return [d.model_copy(update={"user_id": None, "truth": {}, "profile": None}) for d in dialogues]


def test_judge_of_unknown_users_takes_halves(corpus: Corpus) -> None:
    splits = {s: unknown_users(d) for s, d in corpus.splits.items()}
    judge = Judge(Corpus("a file", splits), Blind())
    assert judge.kind == "halves of dialogues" and judge.notes == []
    auc = judge.style_auc(splits["test"], False)
    assert auc.value > 0.6 and auc.unit == "dialogue"
    scores = judge.score([["hi"], [""]], [["hi"], ["hi"]], "utterance")
    for metric in METRICS:
        assert scores[metric] == pytest.approx([1, math.nan], nan_ok=True)


def test_judge_of_few_dialogues_says_what_it_did(corpus: Corpus) -> None:
    some = unknown_users([d for d in corpus.train if d.n_turns > 1][:20])
    few = Corpus("a file", {"train": some[:14], "validation": some[14:16], "test": some[16:]})
    judge = Judge(few, Blind())
    assert [n.split(":")[0] for n in judge.notes] == [
        "13 style dimensions instead of 24",
        "utterance threshold from training authors, cross-fitted",
        "dialogue threshold from training authors, cross-fitted",
    ]
    assert judge.style_auc(few.test, False).n > 0
    assert judge.style_auc(few.test[:1], False).n == 0  # no pair of two authors
    with pytest.raises(UspError, match="with two texts"):
        Judge(Corpus("a file", {"train": some[:2], "validation": [], "test": []}), Blind())


class Casing:
    """An encoder that sees a habit and nothing else: whether a text begins in lower case."""

    def encode(self, texts) -> np.ndarray:
        return np.array([[1.0, 0.0] if t.lstrip()[:1].islower() else [0.0, 1.0] for t in texts])


def test_judge_with_a_style_encoder_sees_what_the_encoder_sees(corpus: Corpus) -> None:
    judge = Judge(corpus, Blind(), style_encoder=Casing())
    low, high = ["where is it", "ok"], ["Where is it?"]
    scores = judge.score([low, low, [""]], [["fine"], high, low], "dialogue")
    assert scores["style_sim"] == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert scores["ava"] == pytest.approx([1, 0, math.nan], nan_ok=True) and judge.notes == []
    assert judge.style_auc(corpus.test, True).value > 0.6  # one habit tells some authors apart
    blind = Judge(corpus, Blind(), style_encoder=Blind())
    assert blind.style_auc(corpus.test, True).value == pytest.approx(0.5)
    some = unknown_users([d for d in corpus.train if d.n_turns > 1][:20])
    few = Corpus("a file", {"train": some[:14], "validation": some[14:16], "test": some[16:]})
    assert (
        len(Judge(few, Blind(), style_encoder=Casing()).notes) == 2
    )  # two thresholds, cross-fitted


def test_users_with_one_dialogue_each_are_as_good_as_unknown(corpus: Corpus) -> None:
    first = list({d.user_id: d for d in corpus.train}.values())
    singles = Corpus("a file", {"train": first, "validation": corpus.validation, "test": []})
    assert Judge(singles, Blind()).kind == "halves of dialogues"
    several = Corpus("a file", {"train": corpus.train, "validation": corpus.validation, "test": []})
    assert Judge(several, Blind()).kind == "users over their dialogues"


def test_modules_have_no_failing_example() -> None:
    import doctest

    assert not doctest.testmod(arms).failed and not doctest.testmod(authenticity).failed
