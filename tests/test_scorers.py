"""Scorers: losses against a plain loop, likeness of meaning, and a style scorer that sees style and not topic."""

import doctest
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from usp_lab import load_dialogues, scorers, style, synthetic
from usp_lab.chat import END_TOKEN, system_message, token_ids
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.from_scratch import new_model, new_tokenizer
from usp_lab.models import sentence_encoder
from usp_lab.scorers import cosine, meaning, turn_nll
from usp_lab.simulate import UserSimulator
from usp_lab.style import StyleScorer, author_pairs, best_threshold, distort

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def test_doctests() -> None:
    for module, least in ((scorers, 1), (style, 1)):
        result = doctest.testmod(module)
        assert result.attempted >= least and not result.failed


# --- losses --------------------------------------------------------------------------------------


def chat(*texts: str, profile: str | None = None) -> list[dict]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
    return messages if profile is None else [system_message(profile), *messages]


DIALOGUES = [
    chat(
        "where is it",
        "Over there.",
        "ok thanks",
        profile="You like trams.\n\nYou write short lines.",
    ),
    chat(
        "a much longer opening turn, with a comma and a question?",
        "Yes.",
        "and",
        "No.",
        "bye",
        "Bye.",
    ),
    chat("hm", profile=""),
    chat("only one turn", "And its answer, which nothing follows."),
    chat("first", "Second.", END_TOKEN),
]


@pytest.fixture(scope="module")
def simulator() -> UserSimulator:
    """A tiny random model."""
    texts = [m["content"] for d in DIALOGUES for m in d]
    tokenizer = new_tokenizer(texts, vocab_size=400, extra_tokens=[END_TOKEN])
    return UserSimulator(
        new_model(tokenizer, "0.3m", context=256).eval(), tokenizer, Sampling(), "random"
    )


@torch.inference_mode()
def plain_loop(simulator: UserSimulator, messages: list[dict]) -> list[tuple[float, int]]:
    """One dialogue, one token at a time; what is a user's token is read off the generation prompt."""
    tokenizer, system, turns = simulator.tokenizer, [system_message("")], []
    header = token_ids(tokenizer, system, generate=True)[len(token_ids(tokenizer, system)) :]
    for k, m in enumerate(messages):
        if m["role"] != "user":
            continue
        before = (token_ids(tokenizer, messages[:k]) or [tokenizer.bos_token_id]) + header
        after = token_ids(tokenizer, messages[: k + 1])
        assert after[: len(before)] == before
        nll = 0.0
        for t in range(len(before), len(after)):
            logits = simulator.model(torch.tensor([after[:t]])).logits[0, -1]
            nll -= float(logits.log_softmax(-1)[after[t]])
        turns.append((nll, len(after) - len(before)))
    return turns


def test_turn_nll_is_a_plain_loop(simulator: UserSimulator) -> None:
    scored = turn_nll(simulator, DIALOGUES)
    for messages, turns in zip(DIALOGUES, scored, strict=True):
        expected = plain_loop(simulator, messages)
        assert [n for _, n in turns] == [n for _, n in expected]
        assert [v for v, _ in turns] == pytest.approx([v for v, _ in expected], rel=1e-5)
    assert [len(t) for t in scored] == [2, 3, 1, 1, 2]
    assert scored[4][1][1] == 2  # the end token and its <|eot_id|>


def test_turn_nll_does_not_depend_on_the_batch(simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    together = turn_nll(simulator, DIALOGUES)
    alone = [turn_nll(simulator, [d])[0] for d in DIALOGUES]
    turned = turn_nll(simulator, DIALOGUES[::-1])[::-1]
    monkeypatch.setattr(scorers, "_LOGITS", 1)
    small = turn_nll(simulator, DIALOGUES * 3)[len(DIALOGUES) : 2 * len(DIALOGUES)]
    for other in (alone, turned, small):
        for a, b in zip(together, other, strict=True):
            assert np.array(a) == pytest.approx(np.array(b), rel=1e-5)


def test_a_dialogue_past_the_context_is_nan_and_its_neighbours_are_not(simulator) -> None:
    long = chat("first", "word " * 400, "last")
    scored = turn_nll(simulator, [DIALOGUES[0], long, DIALOGUES[1]])
    assert [(math.isnan(v), n) for v, n in scored[1]] == [(True, 0), (True, 0)]
    assert np.array(scored[0]) == pytest.approx(
        np.array(turn_nll(simulator, DIALOGUES[:1])[0]), rel=1e-5
    )
    assert not any(math.isnan(v) for v, _ in scored[2])


def test_turn_nll_of_nothing(simulator) -> None:
    assert turn_nll(simulator, []) == []


# --- meaning -------------------------------------------------------------------------------------


class Letters:
    """An encoder: how often a text has a, b and c."""

    def encode(self, texts) -> np.ndarray:
        return np.array([[t.count(c) for c in "abc"] for t in texts], float).reshape(-1, 3)


def test_cosine_by_hand() -> None:
    a = np.array([[1, 0], [3, 4], [0, 0], [np.nan, 1], [1, 1]], float)
    b = np.array([[2, 0], [4, 3], [1, 0], [1, 1], [-2, -2]], float)
    assert cosine(a, b) == pytest.approx([1, 0.96, math.nan, math.nan, -1], nan_ok=True)
    assert cosine(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


def test_meaning_is_the_unit_mean_of_the_turns() -> None:
    out = meaning(Letters(), [["a", "b"], ["aaa"], [], ["", "  "], ["c", ""]])
    r = math.sqrt(0.5)
    expected = [[r, r, 0], [1, 0, 0], [math.nan] * 3, [math.nan] * 3, [0, 0, 1]]
    assert out == pytest.approx(np.array(expected), nan_ok=True)
    assert meaning(Letters(), []).shape == (0, 3)


def test_no_end_of_a_long_turn_is_cut_off() -> None:
    encoder, start = sentence_encoder("minilm"), "We talked about the weather of the day. " * 40
    texts = [[start], [start + "The dog barked at the postman and bit him. " * 20]]
    assert cosine(*meaning(encoder, texts)[:, None])[0] < 0.95


def test_meaning_with_the_packaged_encoder() -> None:
    a = [["where can my kids play"], ["which tram goes to the beach?"], [""]]
    b = [["a playground for children?"], ["a playground for children?"], ["x"]]
    near, far, none = cosine(*(meaning(sentence_encoder("minilm"), t) for t in (a, b)))
    assert near > 0.5 > 0.4 > far and math.isnan(none)


# --- style: small --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("Which tram goes to Belem?", "Which x x to X?"),
        ("i DON'T like 'trams' (10.50)", "i DON'T like 'x' (#.#)"),
        ("don’t, café — 3pm\n\nok!!", "don’t, x — #x\n\nok!!"),
        ("zoë's_house", "x_x"),
        ("東京 is nice", "x is x"),
    ],
)
def test_distort(text: str, expected: str) -> None:
    assert distort(text) == expected


def authors(n: int, texts: int = 3) -> tuple[list[list[str]], list[str]]:
    """n authors who differ in marks and casing, three texts each."""
    marks, out, names = [".", "!", "...", "?", ""], [], []
    for a in range(n):
        for k in range(texts):
            word = f"{'the' if a % 2 else 'The'} thing{'s' * k} is here{marks[a % 5]}"
            out.append([word + (" and so on" * (a // 5)), "ok" + marks[a % 5]])
            names.append(f"author {a}")
    return out, names


def test_few_authors_cap_the_dimensions_and_it_says_so() -> None:
    scorer = StyleScorer().fit(*authors(6))
    assert scorer.dimensions_ == 5 and scorer.embed([["hi there"]]).shape == (1, 5)
    assert scorer.note_ == "5 style dimensions instead of 24: 6 authors with two texts"
    assert StyleScorer(dimensions=3).fit(*authors(6)).note_ == ""


def test_too_few_authors() -> None:
    texts, names = authors(2)
    for more in ([], [["one text is not enough"]]):
        with pytest.raises(UspError, match=r"only 2 author\(s\) with two texts"):
            StyleScorer().fit(texts + more, names + ["new"] * len(more))
    with pytest.raises(UspError, match=r"only 0 author"):
        StyleScorer().fit([], [])
    with pytest.raises(UspError, match=r"only 2 author"):  # a text without a character is none
        StyleScorer().fit([*texts, ["so it is"], [""]], [*names, "c", "c"])


def test_authors_of_one_text_do_not_matter() -> None:
    texts, names = authors(5)
    a = StyleScorer().fit(texts, names)
    b = StyleScorer().fit([*texts, ["Completely different; alone"]], [*names, "single"])
    assert np.array_equal(a.embed(texts), b.embed(texts))


def test_texts_without_a_character_are_nan() -> None:
    scorer = StyleScorer().fit(*authors(6))
    out = scorer.embed([[], [""], [" \n"], ["", "hello."]])
    assert np.isnan(out[:3]).all() and not np.isnan(out[3]).any()
    assert scorer.embed([]).shape == (0, 5)
    same = scorer.similarity([["hello."], [""]], [["hello."], ["hello."]])
    assert same == pytest.approx([1, math.nan], nan_ok=True)


def test_texts_that_are_all_alike_do_not_break_it() -> None:
    scorer = StyleScorer().fit([["the same"]] * 8, list("aabbccdd"))
    assert scorer.embed([["another one!"]]).shape == (1, 3)


def test_content_words_do_not_matter() -> None:
    """Words exchanged for unknown others of the same length and case: the same embedding."""
    scorer = StyleScorer().fit(*authors(8))
    a, b = scorer.embed([["Which tram goes to Belem at 10?"], ["Which kite goes to Texas at 99?"]])
    assert a == pytest.approx(b)
    c = scorer.embed([["which tram goes to Belem at 10"]])[0]
    assert np.abs(a - c).max() > 0.01


def test_best_threshold() -> None:
    assert best_threshold([0, 1, 2, 3], [False, False, True, True]) == 1.5
    assert best_threshold([3, math.nan, 1, 0], [True, True, False, False]) == 2
    rng = np.random.default_rng(0)
    same = rng.random(200) < 0.3
    scores = (rng.normal(size=200) + same).round(1)
    cut = best_threshold(scores, same)
    reached = [balanced_accuracy_score(same, scores >= c) for c in np.unique(scores)]
    assert balanced_accuracy_score(same, scores >= cut) == pytest.approx(max(reached))
    for labels in ([True, True], [False, False]):
        with pytest.raises(UspError, match="one of the kinds is missing"):
            best_threshold([0, 1], labels)


def test_author_pairs() -> None:
    topics, names = list("xyzxyzxyx"), list("aaabbbccd")
    pairs, same = author_pairs(topics, names)
    assert len(pairs) == len(same) == len(set(pairs)) and sum(same) * 2 == len(same) > 0
    for (i, j), one in zip(pairs, same, strict=True):
        assert (names[i] == names[j]) == one and (topics[i] == topics[j]) != one
    assert author_pairs(topics, names) == (pairs, same)
    assert author_pairs(topics, names, seed=1)[0] != pairs
    pairs, same = author_pairs([""] * 4, list("aabb"))  # topics unknown
    assert sum(same) == 2 and all(
        (i < 2) == (j < 2) for (i, j), s in zip(pairs, same, strict=True) if s
    )
    assert author_pairs([], []) == author_pairs(["x"], ["a"]) == ([], [])


# --- style: on the population --------------------------------------------------------------------


class Setting:
    """Texts of the population with their authors and topics."""

    def __init__(self, dialogues, single_turns: bool = False) -> None:
        rows = [(d.user_turns, d.user_id, d.truth["topic"]) for d in dialogues]
        if single_turns:
            rows = [([turn], user, topic) for turns, user, topic in rows for turn in turns[:2]]
        texts, users, topics = zip(*rows, strict=True)
        self.texts, self.users, self.topics = list(texts), np.array(users), np.array(topics)

    def author_auc(self, scorer: StyleScorer) -> float:
        """One author on another topic against another author on the same topic."""
        pairs, same = author_pairs(self.topics.tolist(), self.users.tolist())
        e = scorer.embed(self.texts)
        i, j = np.array(pairs).T
        return roc_auc_score(same, cosine(e[i], e[j]))

    def topic_auc(self, scorer: StyleScorer) -> float:
        """Another author on the same topic against another author on another topic."""
        i, j = np.triu_indices(len(self.texts), 1)
        differ = self.users[i] != self.users[j]
        i, j, e = i[differ], j[differ], scorer.embed(self.texts)
        return roc_auc_score(self.topics[i] == self.topics[j], cosine(e[i], e[j]))


@pytest.fixture(scope="module")
def scorer() -> StyleScorer:
    train = synthetic.draw("train", 1500, 0)
    return StyleScorer().fit([d.user_turns for d in train], [d.user_id for d in train])


@pytest.fixture(scope="module")
def tested() -> list:
    return synthetic.draw("test", 400, 0)


def test_style_scorer_sees_the_author_and_not_the_topic(scorer, tested) -> None:
    setting = Setting(tested)
    assert setting.author_auc(scorer) >= 0.88
    assert 0.44 <= setting.topic_auc(scorer) <= 0.56


def test_style_scorer_on_single_turns(scorer, tested) -> None:
    setting = Setting(tested, single_turns=True)
    assert setting.author_auc(scorer) >= 0.8
    assert 0.44 <= setting.topic_auc(scorer) <= 0.56


def test_style_scorer_on_topics_and_phrasings_it_never_saw(scorer) -> None:
    for side in ("topics", "phrasings"):
        setting = Setting(synthetic.draw(f"test_new_{side}", 200, 0, **{f"sealed_{side}": True}))
        assert setting.author_auc(scorer) >= 0.85, side
        assert 0.42 <= setting.topic_auc(scorer) <= 0.58, side


@pytest.mark.skipif(
    not SHARED.exists(), reason="no ../shared/data: real conversations do not come along"
)
def test_style_scorer_on_a_small_real_file() -> None:
    corpus = load_dialogues(SHARED / "oasst_dev.jsonl.gz")
    halves = [(h, d.id) for d in corpus for h in (d.user_turns[:1], d.user_turns[1:])]
    assert all(any(t.strip() for t in h) for h, _ in halves) and len(corpus) == 73
    scorer = StyleScorer().fit([h for h, _ in halves[:100]], [i for _, i in halves[:100]])
    assert scorer.dimensions_ == 24 and scorer.note_ == ""
    few = StyleScorer().fit([h for h, _ in halves[:20]], [i for _, i in halves[:20]])
    assert few.dimensions_ == 9 and "10 authors" in few.note_
    assert not np.isnan(few.embed([h for h, _ in halves])).any()


@pytest.mark.skipif(
    not SHARED.exists(), reason="no ../shared/data: real conversations do not come along"
)
def test_style_scorer_tells_real_writers_apart() -> None:
    with gzip.open(SHARED / "wildchat_dev.jsonl.gz", "rt", encoding="utf-8") as f:
        rows = [json.loads(line)["messages"] for line in f]
    turns = [[m["content"] for m in r if m["role"] == "user"] for r in rows]
    texts = [h for t in turns for h in (t[: len(t) // 2], t[len(t) // 2 :])]
    owner = [i for i in range(len(turns)) for _ in range(2)]
    scorer = StyleScorer().fit(texts[:300], owner[:300])
    pairs, same = author_pairs([""] * (len(texts) - 300), owner[300:])
    e = scorer.embed(texts[300:])
    assert roc_auc_score(same, cosine(*(e[list(side)] for side in zip(*pairs, strict=True)))) > 0.65
