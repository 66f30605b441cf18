"""Entailment: the best premise counts, a pair is asked once, and the offline scorer learns what supports what."""

import json
import math

import numpy as np
import pytest
import torch

from usp_lab import evidence, synthetic
from usp_lab.data import Corpus
from usp_lab.entailment import Bag, Entailment
from usp_lab.errors import UspError
from usp_lab.facts import profile_facts
from usp_lab.likeness import OfflineScorer
from usp_lab.nli import NLI, said


class Words:
    """A scorer that counts what it is asked: the share of a fact's words that the premise has."""

    identity = "words"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs) -> np.ndarray:
        self.asked += pairs
        return np.array([self.one(*p) for p in pairs])

    @staticmethod
    def one(premise: str, fact: str) -> float:
        if "unreadable" in premise:
            return math.nan
        words = fact.split()
        return sum(w in premise.split() for w in words) / len(words)


PREMISES = [["a b", "c d"], [], ["unreadable", "a"], ["unreadable"]]
FACTS = [["a b", "a c", "d"], ["a"], ["a b"], ["a"]]


def test_the_best_premise_counts():
    found = Entailment(Words()).support(PREMISES, FACTS)
    assert found[0].probability.tolist() == [1.0, 0.5, 1.0]
    assert found[0].premise.tolist() == [0, 0, 1]
    assert found[2].probability.tolist() == [0.5] and found[2].premise.tolist() == [1]


def test_what_has_no_readable_premise_is_nan():
    found = Entailment(Words()).support(PREMISES, FACTS)
    for k in (1, 3):
        assert math.isnan(found[k].probability[0]) and found[k].premise.tolist() == [-1]
    nothing = Entailment(Words()).support([["a"], []], [[], []])
    assert [len(s.probability) for s in nothing] == [0, 0]
    assert Entailment(Words()).support([], []) == []


def test_each_distinct_pair_is_asked_once():
    scorer = Words()
    entailment = Entailment(scorer)
    first = entailment.support(PREMISES * 3, FACTS * 3)
    assert len(scorer.asked) == len(set(scorer.asked)) == entailment.calls == 9
    again = entailment.support(PREMISES, FACTS)
    assert len(scorer.asked) == 9
    for a, b in zip(first, again, strict=False):
        np.testing.assert_array_equal(a.probability, b.probability)


def test_answers_outlive_the_process_and_belong_to_their_model(tmp_path):
    file = tmp_path / "deep" / "entailment.jsonl"
    Entailment(Words(), file).support(PREMISES, FACTS)
    with file.open("a") as f:
        f.write('["torn li')
    scorer = Words()
    found = Entailment(scorer, file).support(PREMISES, FACTS)
    assert scorer.asked == [] and math.isnan(found[3].probability[0])
    other = Words()
    other.identity = "another model"
    Entailment(other, file).support(PREMISES, FACTS)
    assert len(other.asked) == 9


def test_a_torn_file_is_gone_on_with(tmp_path):
    file = tmp_path / "e.jsonl"
    Entailment(Words(), file).score([("a", "a")])
    file.write_text(file.read_text() + '["torn')
    Entailment(Words(), file).score([("b", "a")])  # written behind the torn line
    scorer = Words()
    assert Entailment(scorer, file).score([("a", "a"), ("b", "a")]).tolist() == [1.0, 0.0]
    assert scorer.asked == []


# --- offline -------------------------------------------------------------------------------------


class Letters:
    """An encoder: how often a text has each letter, as a unit vector."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, texts) -> np.ndarray:
        self.encoded += len(texts)
        raw = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts])
        return raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1)


THINGS = (
    "kettle bicycle novel garden violin passport kitchen laptop marathon sofa pension puppy".split()
)


def bags() -> list[Bag]:
    out = []
    for i, thing in enumerate(THINGS):
        other = THINGS[(i + 5) % len(THINGS)]
        told = (f"my old {thing} broke", "thanks a lot", f"where do i get a {thing}")
        for kind, text in (("self", "has a {}"), ("request", "wants to know where to get a {}")):
            for word, label in ((thing, True), (other, False)):
                out.append(Bag(told, f"The user {text.format(word)}", label, kind, str(i)))
    return out


def test_the_offline_scorer_learns_what_supports_what():
    scorer = OfflineScorer(Letters(), "letters").fit(bags())
    p = Entailment(scorer).best(bags())
    labels = np.array([b.label for b in bags()])
    assert p[labels].min() > 0.5 > p[~labels].max()
    assert ((0 <= p) & (p <= 1)).all()
    table = evidence.auc_table(bags(), p)
    assert table["value"].tolist() == [1.0, 1.0] and table["n"].tolist() == [24, 24]


def test_the_identity_is_what_was_learned():
    one, two = (OfflineScorer(Letters(), "letters").fit(b) for b in (bags(), bags()))
    other = OfflineScorer(Letters(), "letters").fit(bags()[:20])
    assert one.identity == two.identity != other.identity


def test_an_encoder_is_asked_for_each_text_once():
    encoder = Letters()
    scorer = OfflineScorer(encoder).fit(bags())
    before = encoder.encoded
    scorer.score([(p, b.fact) for b in bags() for p in b.premises])
    assert encoder.encoded == before


def test_texts_without_words_score_low_and_nothing_scores_nothing():
    scorer = OfflineScorer(Letters()).fit(bags())
    assert np.isfinite(scorer.score([("", "The user has a kettle"), ("?!", "The user")])).all()
    assert scorer.score([]).tolist() == []


def test_calibration_needs_both_kinds_and_comes_first():
    with pytest.raises(UspError, match="all of one kind"):
        OfflineScorer(Letters()).fit([b for b in bags() if b.label])
    with pytest.raises(UspError, match="call fit first"):
        OfflineScorer(Letters()).score([("a", "b")])


# --- what is known -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population():
    return synthetic.draw("validation", 40, 5)


def test_calibration_labels_what_the_truth_says(population):
    found = evidence.calibration(population, 5)
    assert found == evidence.calibration(population, 5) != evidence.calibration(population, 6)
    assert {(b.kind, b.label) for b in found} == {
        (k, y) for k in ("request", "topic", "self") for y in (True, False)
    }
    by_user = {}
    for d in population:
        by_user.setdefault(d.user_id, set()).update(profile_facts(d.profile).sentences)
    for b in found:
        forth = not b.premises or not b.premises[0].startswith("The user")
        if forth and b.label:
            assert b.fact in by_user[b.user]
    sides = {(b.user, b.premises, b.fact): set() for b in found}
    for b in found:
        sides[b.user, b.premises, b.fact].add(b.label)
    assert all(len(labels) == 1 for labels in sides.values()), "never both"


def test_a_fact_of_the_same_user_that_did_not_slip_out_is_not_supported(population):
    from random import Random

    for d in population[:10]:
        hidden = evidence.unsaid(d, Random("x"))
        assert not {f.text for f in hidden} & {f.text for f in profile_facts(d.profile).items}


def test_known_users_are_the_populations_own_or_drawn(population):
    own = Corpus("population", {"train": [], "validation": population[:3], "test": population[3:9]})
    assert evidence.known_users(own, 4, 4) == (population[:3], population[3:7])
    validation, test = evidence.known_users(Corpus("mine.jsonl", {"test": []}), 5, 5, seed=5)
    assert len(validation) == len(test) == 5 and all(d.truth for d in validation + test)
    assert not {d.user_id for d in validation} & {d.user_id for d in test}


def test_roc_by_hand():
    items = [Bag((), str(i), y, "self") for i, y in enumerate([True, True, False, False, True])]
    curve = evidence.roc_curve(items, [0.9, 0.4, 0.6, 0.1, math.nan])
    assert curve["auc"].iloc[0] == 0.75 and curve["n"].iloc[0] == 4
    assert curve[curve["at"]][["fpr", "tpr"]].values.tolist() == [[0.5, 0.5]]
    assert (curve["fpr"].diff().dropna() >= 0).all() and curve["tpr"].iloc[-1] == 1
    assert evidence.roc_curve(items[:2], [0.1, 0.2]).empty
    assert evidence.roc_curve([], []).empty and evidence.auc_table([], []).empty


def test_examples_show_hits_and_misses():
    table = evidence.examples(bags(), Entailment(Words()))
    assert set(table["true"]) == {True, False} and set(table["kind"]) == {"self", "request"}
    assert evidence.examples([], Entailment(Words())).empty


# --- NLI -----------------------------------------------------------------------------------------


def tiny_nli(folder, labels=("contradiction", "Entailment", "neutral"), context=64):
    """Write a random cross-encoder of BERT's form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"the user has a dog my is old says : . kettle".split(),
    ]
    words = {w: i for i, w in enumerate(words)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")  # fmt: skip
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=context, num_labels=len(labels), id2label=dict(enumerate(labels)),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight *= 30  # far from uniform
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PAIRS = [
    ("my dog is old", "The user has a dog"),
    ("The user has a kettle", "The user has a dog"),
    ("a", "The user"),
    ("kettle " * 200, "The user has a kettle"),
]


def test_nli_is_the_softmax_of_the_entailment_label(tmp_path):
    nli = NLI(tiny_nli(tmp_path / "nli"))
    scores = nli.score(PAIRS)
    assert math.isnan(scores[3]), "longer than the model reads"
    for pair, score in zip(PAIRS[:3], scores, strict=False):
        inputs = nli.tokenizer(said(pair[0]), pair[1], return_tensors="pt")
        with torch.inference_mode():
            logits = nli.model(**inputs).logits[0]
        assert score == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)
    nli.batch = 1
    assert nli.score(PAIRS[:3]) == pytest.approx(scores[:3], abs=1e-5)
    assert nli.score([]).tolist() == []


def test_nli_answers_are_kept_under_its_weights(tmp_path):
    nli = NLI(tiny_nli(tmp_path / "nli"))
    first = Entailment(nli, tmp_path / "e.jsonl").score(PAIRS)
    nli.score = lambda pairs: pytest.fail("asked again")
    np.testing.assert_array_equal(Entailment(nli, tmp_path / "e.jsonl").score(PAIRS), first)
    assert str(tmp_path) in nli.identity


def test_models_that_are_none_are_refused(tmp_path):
    with pytest.raises(UspError, match="one called entailment"):
        NLI(tiny_nli(tmp_path / "sentiment", labels=("good", "bad")))
    with pytest.raises(UspError, match="one called entailment"):
        NLI(tiny_nli(tmp_path / "both", labels=("entailment", "entailed")))
    with pytest.raises(UspError, match="no such folder"):
        NLI(tmp_path / "nothing")
    base = tiny_nli(tmp_path / "base")
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, base / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(UspError, match="give a whole checkpoint of a trained sequence classifier"):
        NLI(base)


def test_remote_code_stays_off(tmp_path):
    folder = tiny_nli(tmp_path / "nli")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoModelForSequenceClassification": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UspError, match="NLI model"):
        NLI(folder)
