"""The AI detector: what loads, which label is human, when it is silent, and that interruptions change nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    RobertaTokenizer,
)

from usp_lab import detector_training, encoder_trainer, stats, trainer
from usp_lab.calibration import ece, equal_bins, fit_temperature, shortest_told
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.detector import FILE, AIDetector
from usp_lab.detector_settings import DetectorResult, DetectorSettings
from usp_lab.detector_training import train_detector, utterances
from usp_lab.errors import UspError
from usp_lab.finished import FINAL

ROOT = Path(__file__).resolve().parents[1]
TINY = DetectorSettings(vocab_size=330, epochs=9.0, most_steps=40, batch=8, evals=5, max_length=48)
THINGS = "kettle bicycle novel garden violin passport kitchen laptop marathon sofa".split()
SAID = ["whats a good {0} if ur new to it", "ok and a {0} for {1} people?", "is the {0} any good"]
REPLIED = [
    "A {0} is a wonderful choice. Here are {1} things to consider before you decide.",
    "Certainly! I recommend the {0} that has been reviewed {1} times.",
]


def dialogues(n: int, start: int = 0) -> list[Dialogue]:
    out = []
    for i in range(start, start + n):
        turns = []
        for k in range(2):
            turns.append(SAID[(i + k) % 3].format(THINGS[i % 10], i + 2))
            turns.append(REPLIED[(i // 3 + k) % 2].format(THINGS[(i + 3) % 10], i + k + 2))
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
        out.append(Dialogue(id=str(i), messages=messages, user_id=f"u{i // 2}"))
    return out


TRAIN, VALIDATION = dialogues(60), dialogues(24, 60)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> DetectorResult:
    out = tmp_path_factory.mktemp("detector") / "whole"
    return train_detector(TRAIN, VALIDATION, out, TINY, "f00d")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """As wangkevin02/AI_Detect_Model lies on the hub: Longformer, no names of labels, no tokenizer settings."""
    return longformer(tmp_path_factory.mktemp("hub") / "AI_Detect_Model")


def longformer(folder: Path, kind=LongformerForSequenceClassification) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*SAID, *REPLIED], learn)
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) for m in trained["merges"]]
    tokenizer = RobertaTokenizer(vocab=trained["vocab"], merges=merges)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_window=[16],
        max_position_embeddings=66,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    return folder


@pytest.fixture
def copy(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def rewritten(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


TEXTS = ["ok and a sofa for 3 people?", "Certainly! I recommend the sofa.", "yes", "is it"]


# --- the published checkpoint ----------------------------------------------------------------------


def test_published_checkpoint_is_the_softmax_of_its_first_label(published):
    detector = AIDetector.from_pretrained(published)
    assert not (published / FILE).exists()
    assert (detector.temperature, detector.least_words, detector.human) == (1.0, 1, 0)
    found = detector.probabilities(TEXTS)
    for text, p in zip(TEXTS, found, strict=True):
        inputs = detector.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            logits = detector.model(**inputs).logits[0]
        assert p == pytest.approx(float(logits.softmax(-1)[0]), abs=1e-5)
    assert np.ptp(found) > 0.01
    warm = AIDetector.from_pretrained(published, temperature=2.0).probabilities(TEXTS)
    np.testing.assert_allclose(warm, 1 / (1 + np.sqrt(1 / found - 1)), atol=1e-6)


@pytest.mark.parametrize(
    "names, human",
    [
        (("LABEL_0", "LABEL_1"), 0),
        (("0", "1"), 0),
        (("user", "assistant"), 0),
        (("assistant", "user"), 1),
        (("AI", "Human"), 1),
        (("human-written", "machine-generated"), 0),
        (("simulated user", "real user"), 1),
    ],
)
def test_label_order_is_the_config_s(copy, published, names, human):
    rewritten(copy, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    detector = AIDetector.from_pretrained(copy)
    assert detector.human == human
    first = AIDetector.from_pretrained(published).probabilities(TEXTS)
    np.testing.assert_allclose(
        detector.probabilities(TEXTS), first if human == 0 else 1 - first, atol=1e-6
    )


@pytest.mark.parametrize("names", [("good", "bad"), ("user", "user two"), ("a", "b", "user")])
def test_labels_that_do_not_say_who_is_human(copy, names):
    rewritten(copy, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    if len(names) == 3:  # the head has two outputs
        shutil.rmtree(copy)
        longformer(copy)
        model = LongformerForSequenceClassification.from_pretrained(copy)
        model.config.id2label = dict(enumerate(names))
        with pytest.raises(UspError, match="labels its outputs a, b, user; give a classifier with"):
            AIDetector(model, None)
        return
    with pytest.raises(UspError, match=f"labels its outputs {', '.join(names)}; give a classifier"):
        AIDetector.from_pretrained(copy)


def test_a_long_utterance_is_cut_where_the_model_stops_reading(published):
    detector = AIDetector.from_pretrained(published)
    assert detector.limit == 64  # two of the 66 positions are the padding's
    long = "is the sofa any good " * 40
    start = detector.tokenizer(long, truncation=True, max_length=64)["input_ids"]
    assert len(start) == 64
    with torch.inference_mode():
        logits = detector.model(input_ids=torch.tensor([start])).logits[0]
    assert detector.probabilities([long])[0] == pytest.approx(
        float(logits.softmax(-1)[0]), abs=1e-5
    )


def test_each_distinct_utterance_is_computed_once_in_any_batch(published, monkeypatch):
    detector = AIDetector.from_pretrained(published)
    alone = [detector.probabilities([t])[0] for t in TEXTS]
    asked = []
    read = detector._ids
    monkeypatch.setattr(detector, "_ids", lambda texts: asked.extend(texts) or read(texts))
    many = detector.probabilities([*TEXTS, *TEXTS[::-1], "", TEXTS[0], "  \n"])
    assert asked == TEXTS
    np.testing.assert_allclose(many[:8], [*alone, *alone[::-1]], atol=1e-5)
    assert many[0] == many[7] == many[9] and np.isnan(many[[8, 10]]).all()
    assert detector.probabilities([]).shape == (0,)


def test_it_is_silent_on_what_is_too_short(published):
    detector = AIDetector.from_pretrained(published, least_words=3)
    assert np.isnan(detector.probabilities(TEXTS)).tolist() == [False, False, True, True]
    assert not np.isnan(detector.log_odds(TEXTS)).any()


def test_what_is_no_detector_is_refused_in_a_sentence(published, copy, tmp_path):
    for path in (tmp_path / "none", "no/such/folder"):
        with pytest.raises(UspError, match="AI detector .*no such folder"):
            AIDetector.from_pretrained(path)
    with pytest.raises(
        UspError, match="lacks 4 of its tensors .classifier.*trained sequence class"
    ):
        AIDetector.from_pretrained(longformer(tmp_path / "base", LongformerForMaskedLM))
    with pytest.raises(UspError, match="temperature must be above 0, not 0"):
        AIDetector.from_pretrained(published, temperature=0)
    for text in ("{", "[1]", '{"temperature": 1}', '{"temperature": "x", "least_words": 2}'):
        (copy / FILE).write_text(text)
        with pytest.raises(UspError, match="detector.json is no JSON object with numbers") as error:
            AIDetector.from_pretrained(copy)
        assert "\n" not in str(error.value)


def test_pickles_and_code_of_its_own_are_refused(copy):
    model = LongformerForSequenceClassification.from_pretrained(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UspError, match="pickled weights only"):
        AIDetector.from_pretrained(copy)
    assert AIDetector.from_pretrained(copy, weights="pytorch_model.bin").human == 0
    auto = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    rewritten(copy, model_type="own", auto_map=auto)
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(UspError, match="code of its own, which is never run"):
        AIDetector.from_pretrained(copy, weights="pytorch_model.bin")
    assert not (copy / "ran").exists()


# --- calibration -----------------------------------------------------------------------------------


def test_temperature_undoes_what_was_overdone():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 20_000)
    y = rng.random(20_000) < 1 / (1 + np.exp(-z))
    assert fit_temperature(z, y) == pytest.approx(1, abs=0.05)
    assert fit_temperature(5 * z, y) == pytest.approx(5, abs=0.25)
    assert fit_temperature(z / 3, y) == pytest.approx(1 / 3, abs=0.02)
    with_nan = fit_temperature(np.append(5 * z, np.nan), np.append(y, True))
    assert with_nan == pytest.approx(fit_temperature(5 * z, y))


def test_no_error_in_a_hundred_is_not_certainty():
    z, y = np.tile([4.0, -4.0], 50), np.tile([True, False], 50)
    p = 1 / (1 + math.exp(-4 / fit_temperature(z, y)))
    assert p == pytest.approx(51 / 52, abs=1e-3)  # Platt's target
    with pytest.raises(UspError, match="2 of 2 items to calibrate on are of the one kind"):
        fit_temperature([1, 2], [True, True])


def test_ece_of_right_and_of_wrong_probabilities():
    rng = np.random.default_rng(0)
    p, users = rng.random(8_000), [f"u{i // 4}" for i in range(8_000)]
    y = rng.random(8_000) < p
    right, wrong = ece(p, y, users), ece(p, rng.random(8_000) < p**3, users)
    assert right.value < 0.03 and right.unit == "user" and right.n == 8_000
    assert wrong.low < wrong.value < wrong.high and 0.2 < wrong.low
    assert ece([1.0, 0.0, math.nan], [False, True, True]).value == 1
    assert ece([1.0, 0.0, math.nan], [True, False, True]).n == 2
    assert math.isnan(ece([math.nan], [True]).value)


def test_bins_are_of_equal_size_and_never_part_equal_scores():
    assert np.bincount(equal_bins(np.arange(100.0), 10)).tolist() == [10] * 10
    where = equal_bins([0.2] * 5 + [0.9] * 95, 10)
    assert len(set(where[:5])) == len(set(where[5:])) == 1
    assert equal_bins([], 3).tolist() == []


def test_shortest_told_is_what_validation_shows():
    words = np.repeat([1, 2, 3, 4, 5, 6], 40)
    texts = [" ".join(["w"] * n) for n in words]
    human = np.tile([True, False], 120)
    told = np.where(human, 2.0, -2.0)
    noise = np.tile([1.0, 1.0, -1.0, -1.0], 60)
    assert shortest_told(texts, told, human) == 1
    assert shortest_told(texts, np.where(words <= 2, noise, told), human) == 3
    assert shortest_told(texts, noise, human) == 5
    lone = human | (words <= 3)  # no assistant says so little: nothing was shown
    assert (
        shortest_told(texts, np.where(lone, 2.0, -2.0), lone) == 2
    )  # what has 4 words is within its reach
    assert shortest_told([], np.zeros(0), np.zeros(0, bool)) == 5


# --- training --------------------------------------------------------------------------------------


def test_utterances_are_both_sides_one_by_one():
    d = TRAIN[0].model_copy(
        update={"messages": [*TRAIN[0].messages, {"role": "user", "content": " "}]}
    )
    found = utterances([d, TRAIN[1].model_copy(update={"user_id": None})])
    assert found.texts == [m["content"] for x in TRAIN[:2] for m in x.messages]
    assert found.human.tolist() == [True, False] * 4
    assert found.owners == ["u0"] * 4 + ["1"] * 4
    assert utterances([]).texts == []


def test_it_learns_is_calibrated_and_kept(whole):
    detector, held = AIDetector.from_pretrained(whole.path), utterances(VALIDATION)
    p = detector.probabilities(held.texts)
    assert stats.auc(p, held.human).value > 0.95
    assert (detector.temperature, detector.least_words) == (whole.temperature, whole.least_words)
    assert whole.least_words == 5  # nothing so short is said here: not shown
    z = detector.log_odds(held.texts)
    assert whole.temperature == pytest.approx(fit_temperature(z, held.human))
    losses = [h["eval_loss"] for h in whole.history if "eval_loss" in h]
    nll = np.logaddexp(0, np.where(held.human, -z, z)).mean()
    assert nll == pytest.approx(min(losses), rel=1e-4) and whole.best_loss == min(losses)
    names = {f.name for f in whole.path.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", FILE, FINAL}  # fmt: skip
    card = (whole.path / "README.md").read_text()
    for text in ("f00d", f"loss {whole.best_loss:.4f}", f"temperature {whole.temperature:.3f}", "| lr | 0.002 |", "n 96"):  # fmt: skip
        assert text in card
    assert json.loads((whole.path / "config.json").read_text())["id2label"] == {"0": "user", "1": "assistant"}  # fmt: skip


def test_default_size_is_below_a_megabyte_in_16_bit(tmp_path):
    texts = [f"{w} {i}" for i, w in enumerate(THINGS * 2000)]
    tokenizer, model = detector_training._start(texts, DetectorSettings())
    detector = AIDetector(model.eval(), tokenizer, 1.5, 2)
    detector.save(tmp_path / "half", torch.float16)
    assert (tmp_path / "half" / "model.safetensors").stat().st_size <= 1_000_000
    again = AIDetector.from_pretrained(tmp_path / "half")
    assert again.model.dtype == torch.float32
    np.testing.assert_allclose(again.probabilities(TEXTS), detector.probabilities(TEXTS), atol=2e-3)
    assert again.limit == detector.limit == 256


def test_saved_and_loaded_gives_the_same(whole, tmp_path):
    detector = AIDetector.from_pretrained(whole.path)
    again = AIDetector.from_pretrained(detector.save(tmp_path / "again"))
    np.testing.assert_array_equal(again.probabilities(TEXTS), detector.probabilities(TEXTS))
    assert (
        repr(again) == repr(detector) != repr(AIDetector.from_pretrained(whole.path, least_words=4))
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return AIDetector.from_pretrained(path).model.state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_parameter_moves(tmp_path):
    s = replace(TINY, most_steps=3, evals=1)
    result = train_detector(TRAIN, VALIDATION, tmp_path / "m", s)
    pairs = list(zip(*utterances(TRAIN)[:2], strict=True))
    drawn = [t for t, _ in detector_training.drawn(pairs, 24, s.seed)]
    before = detector_training._start(drawn, s)[1].state_dict()
    after = weights(result.path)
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_from_a_masked_language_model(tmp_path):
    base = longformer(tmp_path / "base", LongformerForMaskedLM)
    s = replace(TINY, base=str(base), most_steps=4, evals=2, choose="macro_f1", lr=2e-3)
    result = train_detector(TRAIN, VALIDATION, tmp_path / "m", s)
    detector = AIDetector.from_pretrained(result.path)
    assert detector.model.config.model_type == "longformer" and detector.limit == 48
    assert all("eval_macro_f1" in h for h in result.history if "eval_loss" in h)
    card = (result.path / "README.md").read_text()
    assert "from base," in card and str(base) not in card
    with pytest.raises(UspError, match="max_length=65 but .* reads 64 tokens; lower it"):
        train_detector(TRAIN, VALIDATION, tmp_path / "n", replace(s, max_length=65))


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> DetectorSettings:
    """A start without dropout, whose draws would differ between processes."""
    base = longformer(tmp_path_factory.mktemp("base") / "mlm", LongformerForMaskedLM)
    return replace(TINY, base=str(base), most_steps=6, evals=2, lr=2e-3)


def test_micro_batches_change_nothing(steady, tmp_path):
    plain = train_detector(TRAIN, VALIDATION, tmp_path / "a", steady)
    micro = train_detector(TRAIN, VALIDATION, tmp_path / "b", replace(steady, micro_batch=2))
    close(plain.history, micro.history)


def close(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) > 2
    for a, b in zip(one, other, strict=True):
        for key in {"loss", "eval_loss", "grad_norm"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-3), (key, a["step"])


class Stopped(Exception):
    pass


def test_interrupted_and_started_again_ends_in_the_same_weights(whole, tmp_path, monkeypatch):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 21:
            raise Stopped

    out = tmp_path / "m"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Bar, "on_step_end", on_step_end)
        with pytest.raises(Stopped):
            train_detector(TRAIN, VALIDATION, out, TINY, "f00d")
    assert not (out / FINAL).exists()
    resumed = train_detector(TRAIN, VALIDATION, out, TINY, "f00d")
    assert resumed.resumed_from == 16
    assert resumed.best_loss == whole.best_loss
    assert same(weights(out), weights(whole.path))
    assert (resumed.temperature, resumed.least_words) == (whole.temperature, whole.least_words)


def test_finished_run_is_returned_without_training(whole, monkeypatch):
    def train(*args):
        raise Stopped

    monkeypatch.setattr(detector_training, "_train", train)
    assert train_detector(TRAIN, VALIDATION, whole.path, TINY, "f00d") == whole
    for train_on, held, s in (
        (TRAIN[1:], VALIDATION, TINY),
        (TRAIN, VALIDATION[1:], TINY),
        (TRAIN, VALIDATION, replace(TINY, seed=1)),
    ):
        with pytest.raises(Stopped):
            train_detector(train_on, held, whole.path, s)


def test_early_stop_looks_at_what_chooses():
    higher = trainer.EarlyStop(2, "eval_macro_f1", higher=True)
    curve = [{"eval_macro_f1": f, "eval_loss": -i} for i, f in enumerate([0.5, 0.7, 0.6, 0.7])]
    assert higher.reached(curve) and not higher.reached(curve[:3])
    assert not trainer.EarlyStop(2).reached(curve)


def test_bad_input_from_python(whole, tmp_path):
    out = tmp_path / "m"
    with pytest.raises(UspError, match="0 user and 0 assistant utterances for training"):
        train_detector([], VALIDATION, out, TINY)
    mute = [d.model_copy(update={"messages": d.messages[:1]}) for d in VALIDATION]
    with pytest.raises(UspError, match="24 user and 0 assistant utterances for validation"):
        train_detector(TRAIN, mute, out, TINY)
    with pytest.raises(UspError, match="base and out are both"):
        train_detector(TRAIN, VALIDATION, whole.path, replace(TINY, base=str(whole.path)))
    for change, message in (
        ({"size": "7b"}, "no encoder size '7b'; choose one of 0.3m"),
        ({"choose": "accuracy"}, "choose by one of loss, macro_f1"),
        ({"lr": 0}, "lr must be above 0"),
        ({"warmup": -1}, "warmup must be 0 or more"),
    ):
        with pytest.raises(UspError, match=message):
            replace(TINY, **change)
    assert not out.exists()


def test_two_processes_train_as_one_from_the_command_line(steady, tmp_path):
    data = tmp_path / "dialogues.jsonl"
    rows = [{"conversation": d.messages} for d in dialogues(80)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words += [
        "-m",
        "usp_lab.detector_training",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "two"),
    ]
    for name, value in asdict(steady).items():
        flag = name.replace("_", "-")
        words += [f"--{flag}", str(value)] if not isinstance(value, bool) else [f"--no-{flag}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 1 and "speaks from" in done.stdout
    corpus = load_dialogues(data)
    one = train_detector(corpus.train, corpus.validation, tmp_path / "one", steady)
    two = json.loads((tmp_path / "two" / FINAL).read_text())
    close(one.history, two["history"])
    assert two["temperature"] == pytest.approx(one.temperature, rel=1e-3)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--size", "7b"], "no encoder size '7b'"),
        (["--base", "no/such/folder"], "no such folder"),
        (["--batch", "9", "--micro-batch", "4"], "batch=9 cannot be shared by 1 process"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, given, message):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"conversation": d.messages}) + "\n" for d in dialogues(40)))
    words = ["detector", "--data", str(data), "--out", str(tmp_path / "m"), *given]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit:
        detector_training.main()
    assert exit.value.code == 2 and not (tmp_path / "m").exists()
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert message in last and "error: " in last


# --- guessing first --------------------------------------------------------------------------------


def test_an_encoder_that_guessed_first_resumes_and_ends_in_the_same_weights(tmp_path, monkeypatch):
    s = replace(TINY, pretrain_epochs=1.0, most_steps=12, evals=3)  # bounded: 12 steps of guessing
    whole = train_detector(TRAIN, VALIDATION, tmp_path / "a", s)
    assert whole.counts["train: steps of guessing"] == 12
    plain = train_detector(TRAIN, VALIDATION, tmp_path / "c", replace(s, pretrain_epochs=0))
    assert not same(weights(whole.path), weights(plain.path))

    def stopping(step: int):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step and (self.title == "b") == (step == 9):
                raise Stopped

        return on_step_end

    for step in (6, 9):  # first while it guesses, then while it learns to tell
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Bar, "on_step_end", stopping(step))
            with pytest.raises(Stopped):
                train_detector(TRAIN, VALIDATION, tmp_path / "b", s)
    resumed = train_detector(TRAIN, VALIDATION, tmp_path / "b", s)
    assert resumed.resumed_from == 8 and same(weights(resumed.path), weights(whole.path))
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_what_is_masked():
    ids = [0, *range(10, 60)]
    seen, labels = encoder_trainer._masked(ids, 4, seed=0, place=1)
    hit = [i for i, label in enumerate(labels) if label != -100]
    assert 0 not in hit and 5 < len(hit) < 25
    assert [labels[i] for i in hit] == [ids[i] for i in hit] and {seen[i] for i in hit} == {4}
    assert all(seen[i] == ids[i] for i in range(51) if i not in hit)
    assert encoder_trainer._masked(ids, 4, 0, 1) == (seen, labels)
    assert encoder_trainer._masked(ids, 4, 0, 2) != (seen, labels)
    for short in ([0, 9], [0]):  # a row without a guess would have no loss
        assert sum(label != -100 for label in encoder_trainer._masked(short, 4, 0, 0)[1]) == 1
    with pytest.raises(UspError, match="pretrain_epochs is for encoders from scratch"):
        replace(TINY, base="x", pretrain_epochs=1.0)
