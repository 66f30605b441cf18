"""Termination: what a decision is, F1 and its thresholds, and how probable an end is to whoever is asked."""

import doctest
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from usp_lab import endings, synthetic, termination
from usp_lab.chat import END_TOKEN, Utterance, system_message, token_ids
from usp_lab.data import Dialogue
from usp_lab.endings import ClosingReader, by_draws, by_tokens
from usp_lab.engines import Sampling
from usp_lab.from_scratch import new_model, new_tokenizer
from usp_lab.simulate import TwinSimulator, UserSimulator
from usp_lab.termination import best_threshold, decisions, f1, f1_difference, look_ahead, say

NAN = math.nan


def dialogue(*texts: str, name: str = "d", profile: str | None = "You like trams.\n\nBrief."):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
    return Dialogue(id=name, messages=messages, profile=profile)


@pytest.fixture(scope="module")
def population() -> dict[str, list[Dialogue]]:
    sizes = {"train": 1200, "validation": 240, "test": 240}
    return {split: synthetic.draw(f"{split}-end", n, 7) for split, n in sizes.items()}


def test_doctests() -> None:
    attempted = [doctest.testmod(module) for module in (termination, endings)]
    assert sum(r.attempted for r in attempted) >= 2 and not any(r.failed for r in attempted)


# --- decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "places", "ended"),
    [
        (("where?", "There.", "how far?", "A mile."), [2, 4], [0, 1]),  # left in silence
        (("where?", "There.", "thanks, bye", "Bye."), [2], [1]),  # the goodbye is the end
        (("where?", "There.", "thanks!", "Welcome.", "ok bye", "Bye."), [2], [1]),
        (("where?", "There.", "thanks, bye"), [2], [1]),
        (("where?", "There.", "how far?"), [2], [0]),  # breaks off: no end was seen
        (("thanks", "For what?"), [2], [1]),  # an opening is never the goodbye
        (("thanks, bye", "Wait.", "thanks, bye", "Bye."), [2], [1]),
        (("where?", "There.", "thanks!", "Welcome.", "and how far?", "A mile."), [2, 4, 6], [0, 0, 1]),
        (("where?",), [], []),
    ],
)  # fmt: skip
def test_decisions_of_real_dialogues(texts, places, ended) -> None:
    at = decisions([dialogue(*texts)])
    assert at["place"].tolist() == places and at["ended"].tolist() == ended
    assert at["turn"].tolist() == [k // 2 for k in places] and at["hazard"].isna().all()
    assert at["said"].tolist() == [texts[k] if k < len(texts) else "" for k in places]


def test_decisions_of_the_population_are_its_hazards(population) -> None:
    at = decisions(population["test"])
    for i, d in enumerate(population["test"]):
        own = at[at["dialogue"] == i]
        assert own["hazard"].tolist() == d.truth["hazard"][1:]
        assert own["ended"].tolist() == [0] * (len(own) - 1) + [1]
        assert (own["said"].iloc[-1] == "") == (d.truth["stop"] == "left")
        assert set(own["user"]) == {d.user_id}
    assert at["ended"].mean() == pytest.approx(at["hazard"].mean(), abs=0.05)  # they are drawn so


def test_looking_ahead_is_knowing_more(population) -> None:
    some = population["test"]
    at = decisions(some)
    told = look_ahead(some, at)
    assert set(np.unique(told - at["hazard"].to_numpy()).round(6)) > {0.0}
    assert (told[at["ended"] == 1] > 0).all()  # never sure of going on where the user ended
    went_on = at["ended"] == 0
    assert (told[went_on] == 0).mean() > 0.5
    first = at[(at["dialogue"] == 0)].index
    goals = [t["goal"] for t in some[0].truth["turns"]]
    for k in first:
        raised = set(goals[: at["turn"][k]])
        assert (told[k] == 0) == bool(set(some[0].truth["asked"]) - raised)


# --- thresholds and F1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_threshold_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    scores = rng.integers(0, 6, n) / 5  # many ties
    for ended in (rng.random(n) < 0.4, rng.random(n)):
        ended = np.asarray(ended, float)
        if not ended.sum():
            assert math.isnan(best_threshold(scores, ended))
            continue

        def expected(taken, ended=ended):
            return 2 * (ended * taken).sum() / (taken.sum() + ended.sum())

        best = max(expected(scores >= t) for t in (*scores, 2.0))
        assert expected(scores >= best_threshold(scores, ended)) == pytest.approx(best)


def test_threshold_edges() -> None:
    assert best_threshold([0.5], [1]) == 0.5
    assert best_threshold([NAN, 0.2, 0.8], [1, 0, 1]) == 0.5
    assert math.isnan(best_threshold([], [])) and math.isnan(best_threshold([0.3], [0]))


def test_no_rule_passes_the_true_probabilities() -> None:
    """`bayes` by expectation: outcomes drawn again and again from known hazards."""
    rng = np.random.default_rng(0)
    hazard = rng.choice([0.02, 0.1, 0.3, 0.5, 0.9], size=400)
    bayes = say(hazard, best_threshold(hazard, hazard))
    rules = [say(hazard, t) for t in (0, 0.06, 0.2, 0.6, 0.95)]
    rules += [say(hazard + rng.normal(0, s, 400), 0.35) for s in (0.05, 0.2, 0.5)]
    rules += [(rng.random(400) < hazard).astype(float)]  # another draw of the same users
    draws = [(rng.random(400) < hazard).astype(float) for _ in range(300)]

    def mean_f1(said):
        return np.mean([2 * (y * said).sum() / (y + said).sum() for y in draws])

    assert all(mean_f1(said) <= mean_f1(bayes) + 1e-9 for said in rules)


def test_f1_is_the_usual_one_and_resamples_users() -> None:
    rng = np.random.default_rng(1)
    y, a, b = (rng.random((3, 300)) < 0.4).astype(float)
    users = [f"u{i // 10}" for i in range(300)]
    e = f1(y, a, users)
    assert e.value == pytest.approx(f1_score(y, a)) and e.low < e.value < e.high
    assert (e.n, e.unit) == (300, "user")
    a[:10] = NAN
    assert f1(y, a, users).value == pytest.approx(f1_score(y[10:], a[10:]))
    assert f1(y, a, users).n == 290
    gap = f1_difference(y, a, b, users)
    assert gap.value == pytest.approx(f1_score(y[10:], a[10:]) - f1_score(y[10:], b[10:]))
    assert gap.n == 290 and f1_difference(y, b, b, users).value == 0
    # all of a user's decisions alike: the interval must be that of 30 users, not of 300 decisions
    alike = np.repeat((rng.random(30) < 0.5).astype(float), 10)
    truth = np.repeat((rng.random(30) < 0.5).astype(float), 10)
    wide, narrow = f1(truth, alike, users), f1(truth, alike, list(range(300)))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_f1_where_nothing_can_be_scored() -> None:
    assert math.isnan(f1([0, 0], [0, 0], ["a", "b"]).value)  # no end, none said
    assert f1([], [], []).n == 0 and f1([1, 0], [NAN, NAN], ["a", "b"]).n == 0
    assert np.isnan(say([0.2, 0.8], NAN)).all() and say([NAN, 0.8], 0.5)[1] == 1


def test_skill_is_nothing_for_saying_yes_always_and_one_for_the_best(population) -> None:
    at = decisions(population["test"])
    said = {
        "always_stop": np.ones(len(at)),
        "bayes": say(at["hazard"], 0.35),
        "again": say(at["hazard"], 0.35),
        "yes": np.ones(len(at)),
        "mute": np.where(np.arange(len(at)) % 2, np.nan, 1.0),
    }
    table = termination.skills(at, said).set_index("arm")
    assert list(table.index) == ["again", "yes", "mute"]
    assert table.loc["again", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["yes", "value"] == 0 and table.loc["mute", "n"] == (len(at) + 1) // 2
    value = {a: f1(at["ended"], s, at["user"]).value for a, s in said.items()}
    half = say(at["hazard"], 0.2)
    found = termination.skills(at, {"half": half, **said}).set_index("arm").loc["half"]
    gain = f1(at["ended"], half, at["user"]).value - value["always_stop"]
    assert found["value"] == pytest.approx(gain / (value["bayes"] - value["always_stop"]))
    assert found["low"] < found["value"] < found["high"]


def test_estimates_have_every_arm(population) -> None:
    at = decisions(population["test"])
    always = np.ones(len(at))
    said = {"usp_end": say(at["hazard"], 0.3), "always_stop": always}
    table = termination.estimates(at, {"usp_end": at["hazard"]}, said)
    value = table.set_index(["metric", "arm"])["value"]
    share = at["ended"].mean()
    assert value["termination_f1", "always_stop"] == pytest.approx(2 * share / (1 + share))
    gap = value["termination_f1", "usp_end"] - value["termination_f1", "always_stop"]
    assert value["termination_f1", "usp_end_minus_always_stop"] == pytest.approx(gap)
    assert value["mean_p_end", "real"] == pytest.approx(share)
    assert value["termination_auc", "usp_end"] > 0.85
    hits = (at["ended"] * at["hazard"]).sum()
    spoken = 2 * hits / (at["ended"].sum() + at["hazard"].sum())
    assert value["termination_f1_spoken", "usp_end"] == pytest.approx(spoken)
    assert {"metric", "arm", "value", "low", "high", "n", "unit"} <= set(table)


def test_reliability_of_true_probabilities_and_of_constants(population) -> None:
    at = decisions(population["train"])
    table = termination.reliability(at["hazard"], at["ended"], at["user"], bins=5)
    assert table["n"].sum() == len(at) and table["predicted"].is_monotonic_increasing
    assert (abs(table["predicted"] - table["value"]) < 0.06).all()
    one = termination.reliability(np.full(len(at), 0.25), at["ended"], at["user"])
    assert one["n"].tolist() == [len(at)] and one["value"][0] == pytest.approx(at["ended"].mean())
    assert not len(termination.reliability([NAN], [1.0], ["a"]))


# --- asking by draws -----------------------------------------------------------------------------


class Says:
    """A simulator that says one of some texts, by its seed."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def start(self, target):
        return [system_message(target.profile)]

    def generate(self, batch, seeds):
        assert all(m[-1]["role"] == "assistant" and m[0]["role"] == "system" for m in batch)
        return [self.texts[s % len(self.texts)] for s in seeds]


SOME = [
    dialogue("where?", "There.", "how far?", "A mile.", name="a"),
    dialogue("why?", "Because.", "thanks, bye", "Bye.", name="b"),
]


@pytest.mark.parametrize(
    ("said", "silent", "closing"),
    [
        (END_TOKEN, 1, 0),
        (Utterance("", {"left": True}), 1, 0),
        ("", 0, 0),  # a turn that came out empty is no decision to end
        ("thanks, that is all", 0, 1),
        ("thanks, and how far is it?", 0, 0),
    ],
)
def test_what_a_drawn_turn_says(said, silent, closing) -> None:
    at = decisions(SOME)
    out = by_draws(Says(said), SOME, at, draws=3)
    assert out["silent"].tolist() == [silent] * 3 and out["closing"].tolist() == [closing] * 3


def test_draws_are_counted_and_repeat_by_seed() -> None:
    at = decisions(SOME)
    both = Says("thanks, bye", "how far?")
    first, again, other = (by_draws(both, SOME, at, 50, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert (first["closing"] != other["closing"]).any()
    assert first["closing"].between(0.2, 0.8).all()


def test_the_twin_ends_as_often_as_its_hazard_says(population) -> None:
    some = population["test"][:25]
    at = decisions(some)
    out = by_draws(TwinSimulator(), some, at, draws=60)
    drawn = out["silent"] + out["closing"]
    assert abs(drawn - at["hazard"]).max() < 0.3 and abs(drawn - at["hazard"]).mean() < 0.06


# --- asking by tokens ----------------------------------------------------------------------------

TEXTS = [m["content"] for d in SOME for m in d.messages] + ["You like trams.", "Brief.", "thanks"]


def simulator(end: bool = True, context: int = 256, with_profile: bool = True) -> UserSimulator:
    tokenizer = new_tokenizer(TEXTS * 3, vocab_size=400, extra_tokens=[END_TOKEN] if end else [])
    model = new_model(tokenizer, "0.3m", context=context).eval()
    with torch.no_grad():  # as sharp as a trained model's
        for p in model.parameters():
            p.mul_(3.0)
    return UserSimulator(model, tokenizer, Sampling(), "random", with_profile=with_profile)


LEARN = pd.DataFrame(
    [("thanks, bye", 1.0), ("thanks, bye", 1.0), ("thanks a lot", 1.0), ("thanks, but how far", 0.0), ("how far?", 0.0),
     ("why?", 0.0), ("", 1.0)],
    columns=["said", "ended"],
)  # fmt: skip


def test_closing_shares_by_hand() -> None:
    one = simulator()
    reader = ClosingReader.fit(one, LEARN, branches=4)
    ids = [token_ids(one.tokenizer, [{"role": "user", "content": t}]) for t in LEARN["said"][:6]]
    start = next(k for k in range(99) if len({row[k] for row in ids}) > 1)
    thanks, how = ids[0][start], ids[4][start]
    assert reader.first[thanks] == pytest.approx((3 + 0.5) / (4 + 1))
    assert reader.first[how] == pytest.approx((0 + 0.5) / (1 + 1))
    assert reader.branches.tolist() == [thanks]  # the only opener that leaves it open
    comma = ids[0][start + 1]
    assert comma == ids[3][start + 1]
    expected = (2 + reader.first[thanks]) / (3 + 1)
    assert reader.second[0, comma] == pytest.approx(expected)
    assert reader.first[one.end_id] == 0 and reader.first[one.tokenizer.eos_token_id] == 0
    unseen = int(np.setdiff1d(np.arange(len(reader.first)), np.array(sum(ids, [])))[-1])
    assert reader.first[unseen] == pytest.approx(0.5)


def test_where_nobody_says_goodbye_no_closing_is_foreseen() -> None:
    one = simulator()
    for at in (LEARN[LEARN["ended"] == 0], LEARN.iloc[:0], LEARN.iloc[6:]):
        reader = ClosingReader.fit(one, at)
        out = by_tokens(one, SOME, decisions(SOME), reader)
        assert (out["closing"] == 0).all() and (out["silent"] > 0).all()


@torch.inference_mode()
def plainly(one: UserSimulator, some: list[Dialogue], reader: ClosingReader) -> np.ndarray:
    """Ask at each decision by forward passes of their own, a first token at a time."""
    out = []
    for d, k in zip(decisions(some)["dialogue"], decisions(some)["place"], strict=True):
        front = [m for m in one.start(some[d]) if m["role"] == "system"]
        ids = token_ids(one.tokenizer, front + some[d].messages[:k], generate=True)

        def chance(ids: list[int]) -> np.ndarray:
            return one.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()

        first, closing = chance(ids), 0.0
        for w, p in enumerate(first):
            if w in reader.branches:
                row = reader.second[reader.branches.tolist().index(w)]
                closing += p * (chance([*ids, w]) * row).sum()
            else:
                closing += p * reader.first[w]
        out.append((0.0 if one.end_id is None else first[one.end_id], closing))
    return np.array(out)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("with_profile", [True, False])
def test_one_pass_says_what_single_passes_say(end: bool, with_profile: bool, monkeypatch) -> None:
    some = [
        *SOME,
        dialogue("why?", "Because.", "how far?", "A mile.", "where?", "There.", name="c"),
        dialogue("where?", "There.", name="e", profile="You like long walks and trams.\n\nBrief."),
    ]
    one = simulator(end, with_profile=with_profile)
    rng = np.random.default_rng(0)
    size = one.model.config.vocab_size
    reader = ClosingReader(rng.random(size), np.array([5, 40, 99]), rng.random((3, size)))
    expected = plainly(one, some, reader)
    for tokens in (8192, 1):  # all at once, and one dialogue at a time
        monkeypatch.setattr(endings, "_TOKENS", tokens)
        out = by_tokens(one, some, decisions(some), reader)
        np.testing.assert_allclose(out.to_numpy(), expected, atol=2e-5)
    assert len(np.unique(expected[:, 1].round(4))) > 3  # contexts differ: the test could fail


def test_what_the_model_cannot_hold_is_not_scored() -> None:
    long = [
        dialogue("where?", "There.", "how far?", "A mile. " * 300, "why?", "Because.", name="l")
    ]
    one = simulator(context=400)
    out = by_tokens(one, [*SOME, *long], decisions([*SOME, *long]), ClosingReader.fit(one, LEARN))
    assert out["silent"].isna().tolist() == [False] * 4 + [True] * 2
    at = decisions([*SOME, *long])
    assert f1(at["ended"], say(out["silent"] + out["closing"], 0.1), at["user"]).n == 4


def test_two_tokens_are_enough_in_principle(population) -> None:
    """A perfect model, read through two tokens, comes near `bayes`; by the end token alone it cannot."""
    tokenizer = new_tokenizer([t for d in population["train"] for t in d.user_turns], 2000)
    one = UserSimulator(
        new_model(tokenizer, "0.3m", context=256), tokenizer, Sampling(), "no model"
    )
    reader = ClosingReader.fit(one, decisions(population["train"]))
    place = {t: i for i, t in enumerate(reader.branches.tolist())}
    twin, scores, bayes, tables = TwinSimulator(), {}, {}, {}
    for split in ("validation", "test"):
        some = population[split]
        tables[split] = at = decisions(some)
        read = endings.histories(twin, some)
        silent, closing = np.zeros(len(at)), np.zeros(len(at))
        batch = [read[i][0][: 1 + k] for i, k in zip(at["dialogue"], at["place"], strict=True)]
        for draw in range(15):
            texts = twin.generate(batch, [draw * 10**6 + i for i in range(len(batch))])
            for i, text in enumerate(texts):
                if not text:
                    silent[i] += 1 / 15
                    continue
                ids = token_ids(tokenizer, [{"role": "user", "content": str(text)}])
                start = len(token_ids(tokenizer, [{"role": "user", "content": ""}])) - 1
                w, v = ids[start : start + 2]
                closing[i] += (reader.second[place[w], v] if w in place else reader.first[w]) / 15
        scores[split], bayes[split] = {"both": silent + closing, "silent": silent}, at["hazard"]

    def judged(name: str) -> float:
        limit = best_threshold(scores["validation"][name], tables["validation"]["ended"])
        at = tables["test"]
        return f1(at["ended"], say(scores["test"][name], limit), at["user"]).value

    best = say(bayes["test"], best_threshold(bayes["validation"], bayes["validation"]))
    reached = f1(tables["test"]["ended"], best, tables["test"]["user"]).value
    assert judged("both") >= 0.9 * reached > judged("silent")
