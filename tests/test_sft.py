"""Training: what is learned, what is kept, and that interruptions and processes change nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trl import SFTTrainer

from usp_lab import from_scratch, look_alikes, models, optim, profile_generator, sft, trainer
from usp_lab.chat import END_TOKEN
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.profile_generator import ProfileGenerator
from usp_lab.sft import SftSettings, train_sft
from usp_lab.sft_data import encode, withhold_profiles
from usp_lab.simulate import ModelAssistant, UserSimulator

ROOT = Path(__file__).resolve().parents[1]
# 60 dialogues and 24 steps of 8 are more than three epochs.
TINY = SftSettings(
    size="0.3m", vocab_size=320, max_steps=24, batch=8, evals=8, max_length=256, bf16=False
)
PLACES = ("Lisbon", "Porto", "Faro", "Braga", "Evora")
WISHES = ("a quiet flat", "some good food", "the night bus", "a museum for kids", "cheap tickets")


def dialogues(n: int, start: int = 0) -> list[Dialogue]:
    out = []
    for i in range(start, start + n):
        place, wish = PLACES[i % 5], WISHES[i // 5 % 5]
        messages = [
            {"role": "user", "content": f"where in {place} is {wish}"},
            {"role": "assistant", "content": f"Try the old town of {place}."},
            {"role": "user", "content": f"and {i} minutes away from it?"},
            {"role": "assistant", "content": "Take a look near the river."},
        ][: 2 + 2 * (i % 3 > 0)]
        profile = f"You are going to {place}.\n\nYou want {wish} and ask {i} questions."
        out.append(Dialogue(id=str(i), messages=messages, profile=profile, user_id=str(i)))
    return out


TRAIN, VALIDATION = dialogues(60), dialogues(12, 60)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)  # shapes this small lose by sharing


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> sft.SftResult:
    return train_sft(TRAIN, VALIDATION, tmp_path_factory.mktemp("sft") / "whole", TINY, "f00d")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return look_alikes.look_alike(tmp_path_factory.mktemp("base"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return models.load_causal_lm(path).state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def loss_of(path: Path, data: list[Dialogue], s: SftSettings) -> float:
    """Mean loss of trained tokens, one dialogue at a time, by the plain model."""
    model, tokenizer = models.load_causal_lm(path), models.load_tokenizer(path, s.speaker)
    total, count = 0.0, 0
    for row in encode(data, tokenizer, s, Counter(), "test"):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
        count += (labels != -100).sum().item()
    return total / count


# --- what is learned ------------------------------------------------------------------------------


def trained_text(tokenizer, dialogue: Dialogue, s: SftSettings) -> list[str]:
    row = encode([dialogue], tokenizer, s, Counter(), "test")[0]
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    assert all(label in (-100, token) for token, label in pairs)
    text, out = "", []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label == -100 and text:
            out.append(text)
            text = ""
        text += "" if label == -100 else tokenizer.decode([token])
    return out + [text] * bool(text)


def test_loss_is_on_the_speakers_turns_and_their_eot(whole):
    tokenizer, d = models.load_tokenizer(whole.path), TRAIN[1]
    user = ["where in Porto is a quiet flat<|eot_id|>", "and 1 minutes away from it?<|eot_id|>"]
    said = ["Try the old town of Porto.<|eot_id|>", "Take a look near the river.<|eot_id|>"]
    for profile in (True, False):
        assert trained_text(tokenizer, d, replace(TINY, with_profile=profile)) == user
    assert trained_text(tokenizer, d, replace(TINY, speaker="assistant")) == said
    ending = replace(TINY, end_token=True)
    assert trained_text(tokenizer, d, ending) == [*user, f"{END_TOKEN}<|eot_id|>"]
    open_end = d.model_copy(update={"messages": d.messages[:3]})
    assert trained_text(tokenizer, open_end, ending) == user


def test_labels_token_by_token(whole):
    tokenizer = models.load_tokenizer(whole.path)
    d = Dialogue(
        id="d",
        messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        profile=None,
    )
    row = encode([d], tokenizer, replace(TINY, with_profile=False), Counter(), "test")[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    trained = [label != -100 for label in row["labels"]]
    user, content = tokens[2:-9], ["a", "<|eot_id|>"]
    at = tokens.index("a")
    assert tokens[0] == "<|begin_of_text|>" and user[0] != "<|eot_id|>"
    assert tokens[at : at + 2] == content
    assert trained == [at <= i <= at + 1 for i in range(len(tokens))]


def test_profile_is_read_or_not(whole):
    tokenizer = models.load_tokenizer(whole.path)
    rows = [
        encode(TRAIN[:1], tokenizer, replace(TINY, **change), Counter(), "test")[0]["input_ids"]
        for change in ({}, {"with_profile": False}, {"speaker": "assistant"})
    ]
    told, *untold = (tokenizer.decode(ids) for ids in rows)
    assert "your profile is: \nYou are going to Lisbon." in told
    assert all("profile" not in text for text in untold)


def test_profiles_are_withheld_at_the_share_asked_for():
    many = dialogues(400)
    some = replace(TINY, profile_dropout=0.25)
    told = [d.profile is not None for d in withhold_profiles(many, some)]
    assert 0.68 < sum(told) / len(told) < 0.82
    assert told == [d.profile is not None for d in withhold_profiles(many, some)]
    assert told != [d.profile is not None for d in withhold_profiles(many, replace(some, seed=1))]
    assert all(d.profile for d in many)  # the dialogues given stay as they are
    assert withhold_profiles(many, TINY) is many
    with pytest.raises(UspError, match=r"profile_dropout must lie in \[0, 1\), not 1"):
        replace(TINY, profile_dropout=1)


def test_long_dialogues_are_cut_at_whole_turns_and_counted(whole):
    tokenizer, counts = models.load_tokenizer(whole.path), Counter()
    full = [len(r) for r in encode(TRAIN[:3], tokenizer, TINY, Counter(), "a")["input_ids"]]
    limit = sorted(full)[0]  # the dialogue of one exchange
    assert limit < sorted(full)[1]
    rows = encode(TRAIN[:3], tokenizer, replace(TINY, max_length=limit + 8), counts, "train")
    assert counts["train: cut at a whole turn"] == 2 and counts["train: dialogues"] == 3
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        assert len(ids) <= limit + 8 and ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
        assert any(label != -100 for label in labels)
    long = TRAIN[0].model_copy(update={"profile": "You like walking. " * 100})
    counts.clear()
    assert len(encode([long, TRAIN[1]], tokenizer, TINY, counts, "train")) == 1
    assert counts["train: dropped, no user turn fits"] == 1
    with pytest.raises(UspError, match="no train dialogue fits 256 tokens with a user turn"):
        encode([long], tokenizer, TINY, counts, "train")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_moves(tmp_path, optimizer):
    s = replace(TINY, max_steps=2, evals=1, optimizer=optimizer)  # the first at learning rate 0
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", s)
    tokenizer = models.load_tokenizer(result.path)
    before = from_scratch.new_model(tokenizer, "0.3m", 2048, TINY.seed).state_dict()
    after = weights(result.path)
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_it_learns_and_keeps_the_best(whole):
    losses = [h["eval_loss"] for h in whole.history if "eval_loss" in h]
    assert losses[0] > losses[-1] and whole.best_loss == min(losses) < 4
    assert [h["step"] for h in whole.history if "eval_loss" in h] == list(range(3, 25, 3))
    assert loss_of(whole.path, VALIDATION, TINY) == pytest.approx(whole.best_loss, rel=1e-4)
    assert (
        whole.counts["train: dialogues"] == 60 and "train: cut at a whole turn" not in whole.counts
    )


def test_model_is_what_inference_wants(whole):
    names = {p.name for p in whole.path.iterdir()}
    assert names >= {"model.safetensors", "README.md", "training.json", "chat_template.jinja"}
    assert not names & {"checkpoints", "training.json.part"}
    simulator = UserSimulator.from_pretrained(whole.path, max_new_tokens=8)
    assert simulator.end_id is None and len(simulator.generate([TRAIN[0].messages], [0])) == 1
    card = (whole.path / "README.md").read_text()
    for text in ("library_name: transformers", f"{whole.best_loss:.4f}", "f00d", "| lr | 0.003 |"):
        assert text in card
    assert "dialogues: 60" in card and str(whole.path) not in card


def test_end_token_is_learned(tmp_path):
    s = replace(TINY, end_token=True, max_steps=40, evals=2, lr=1e-2)
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", s)
    simulator = UserSimulator.from_pretrained(result.path, temperature=0, max_new_tokens=24)
    assert simulator.end_id is not None
    assert END_TOKEN in (result.path / "README.md").read_text()
    whole_ones = [d for d in VALIDATION if d.n_turns == 2]
    ids = torch.tensor([simulator.prompt(whole_ones[0].messages)])
    chance = simulator.model(ids).logits[0, -1].softmax(0)
    assert chance.argmax() == simulator.end_id
    assert simulator.generate([whole_ones[0].messages]) == [END_TOKEN]


def test_assistant_is_trained_by_the_same_function(tmp_path):
    s = replace(TINY, speaker="assistant", max_steps=6, evals=1)
    bare = [d.model_copy(update={"profile": None}) for d in TRAIN]
    result = train_sft(bare, VALIDATION, tmp_path / "m", s)
    assistant = ModelAssistant.from_pretrained(result.path, max_new_tokens=8)
    assert len(assistant.reply([TRAIN[0].messages[:1]], [0])) == 1
    assert "# An assistant, without profiles" in (result.path / "README.md").read_text()
    with pytest.raises(UspError, match="does not speak as the user"):
        UserSimulator.from_pretrained(result.path)


@pytest.mark.parametrize("architecture", from_scratch.ARCHITECTURES)
def test_profile_generator_is_trained_by_the_same_function(tmp_path, architecture):
    s = replace(
        TINY, speaker="generator", architecture=architecture, max_steps=60, evals=2, lr=1e-2
    )
    s = replace(s, max_length=400)
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", s)
    assert "# A profile generator, from user turns" in (result.path / "README.md").read_text()
    generator = ProfileGenerator.from_pretrained(result.path, max_new_tokens=48)
    assert generator.model.config.model_type == architecture
    row = encode(TRAIN[1:2], generator.tokenizer, s, Counter(), "test")[0]
    read = generator.tokenizer.decode(row["input_ids"])
    assert profile_generator.INSTRUCTION + ".\n[User]: where in Porto" in read
    assert "Try the old town" not in read  # user turns only
    assert trained_text(generator.tokenizer, TRAIN[1], s) == [f"{TRAIN[1].profile}<|eot_id|>"]
    written = [w.text for w in generator.write(VALIDATION)]
    assert len(written) == len(VALIDATION) and result.best_loss < 2.5
    if architecture == "llama":  # the other takes more steps until it writes whole sentences
        assert all(re.fullmatch(r"You are going to \w+\.\n\nYou want .*", w) for w in written)
    with pytest.raises(UspError, match="does not speak as the user"):
        UserSimulator.from_pretrained(result.path)


# --- from a checkpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lora, end_token, kind",
    [
        (0, False, trainer.CpuSFTTrainer),
        (0, True, trainer.CpuSFTTrainer),
        (4, False, trainer.CpuSFTTrainer),
        (4, True, trainer.CpuSFTTrainer),
        (4, True, trainer.TokenMeanTrainer),  # what a GPU takes
    ],
)
def test_fine_tuning_a_checkpoint(release, tmp_path, monkeypatch, lora, end_token, kind):
    monkeypatch.setattr(trainer, "trainer_class", lambda: kind)
    s = replace(TINY, base=str(release), lora=lora, end_token=end_token, max_steps=8, evals=2)
    s = replace(s, max_length=512, lr=1e-2)
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", s)
    old, new = weights(release), weights(result.path)
    moved = {k for k in old if old[k].shape != new[k].shape or not torch.equal(old[k], new[k])}
    if lora:
        assert {k.split(".")[-2] for k in moved} >= {"q_proj", "down_proj"}
        assert not any("norm" in k for k in moved)
        assert ("model.embed_tokens.weight" in moved) == end_token
    else:
        assert moved == old.keys()
    assert loss_of(result.path, VALIDATION, s) == pytest.approx(result.best_loss, rel=1e-4)
    simulator = UserSimulator.from_pretrained(result.path)
    assert simulator.sampling.repetition_penalty == 1.2
    assert (simulator.end_id is not None) == end_token
    assert simulator.engine.stop_ids == UserSimulator.from_pretrained(release).engine.stop_ids
    card = (result.path / "README.md").read_text()
    assert f"from {release.name}" in card and "| architecture |" not in card  # the release decides
    assert str(release) not in card


def test_the_base_is_kept_where_no_look_at_validation_is_better(release, tmp_path):
    s = replace(TINY, base=str(release), max_steps=4, evals=2, max_length=512)
    better = train_sft(TRAIN, VALIDATION, tmp_path / "better", replace(s, lr=1e-2))
    first = better.history[0]
    assert first["step"] == 0 and first["eval_loss"] > better.best_loss and better.kept > 0
    again = replace(s, base=str(better.path), lr=0.5, optimizer="adamw")  # which spoils it
    worse = train_sft(TRAIN, VALIDATION, tmp_path / "worse", again)
    assert worse.kept == 0 and worse.best_loss == pytest.approx(better.best_loss, rel=1e-4)
    old, new = weights(better.path), weights(worse.path)
    assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert "at step 0: the weights it began with" in (worse.path / "README.md").read_text()
    assert train_sft(TRAIN, VALIDATION, tmp_path / "worse", again) == worse
    plato = train_sft(TRAIN, VALIDATION, tmp_path / "plato", replace(again, with_profile=False))
    assert plato.kept > 0  # it has to unlearn profiles
    asked = train_sft(TRAIN, VALIDATION, tmp_path / "asked", replace(again, keep_base=False))
    assert asked.kept > 0


@pytest.mark.parametrize("lora", [0, 2])
def test_base_without_template_or_header_tokens(tmp_path, lora):
    """As Llama-3's base model (no template), and one that never heard of headers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "where": 2, "river": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    from_scratch.new_model(tokenizer, "0.3m", 512).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    s = replace(TINY, base=str(tmp_path / "base"), max_steps=4, evals=1, max_length=512, lora=lora)
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", s)
    simulator = UserSimulator.from_pretrained(result.path, max_new_tokens=4)
    vocabulary = simulator.tokenizer.get_vocab()
    assert simulator.engine.stop_ids == {vocabulary["</s>"], vocabulary["<|eot_id|>"]}
    assert simulator.tokenizer.decode(simulator.prompt(TRAIN[0].messages)).startswith(
        "<|start_header_id|>"
    )
    assert loss_of(result.path, VALIDATION, s) == pytest.approx(result.best_loss, rel=1e-4)


# --- going on -------------------------------------------------------------------------------------


def test_finished_run_is_returned_without_training(whole, monkeypatch):
    def train(*args):
        raise RuntimeError("trains")

    monkeypatch.setattr(sft, "_train", train)
    assert train_sft(TRAIN, VALIDATION, whole.path, TINY, "f00d") == whole
    changed = TRAIN[0].model_copy(update={"profile": "another"})
    for train_on, validate_on, settings in (
        (TRAIN[1:], VALIDATION, TINY),
        ([changed, *TRAIN[1:]], VALIDATION, TINY),
        (TRAIN, VALIDATION[1:], TINY),
        (TRAIN, VALIDATION, replace(TINY, seed=1)),
    ):
        with pytest.raises(RuntimeError, match="trains"):
            train_sft(train_on, validate_on, whole.path, settings)


def test_other_settings_train_anew(tmp_path):
    short = replace(TINY, max_steps=2, evals=1)
    first = train_sft(TRAIN, VALIDATION, tmp_path / "m", short)
    (tmp_path / "m" / "mine.txt").write_text("kept")
    before = weights(first.path)
    second = train_sft(TRAIN, VALIDATION, tmp_path / "m", replace(short, seed=1))
    assert second.resumed_from == 0 and not same(before, weights(second.path))
    assert (tmp_path / "m" / "mine.txt").read_text() == "kept"


CHILD = """
import json, sys, time, torch
from usp_lab import trainer
from usp_lab.data import Dialogue
from usp_lab.sft import SftSettings, train_sft
torch.set_num_threads(1)
def slow(self, args, state, *rest, **more):
    time.sleep(0.3 * (state.global_step > 14))
trainer.Bar.on_step_end = slow
job = json.load(open(sys.argv[1]))
rows = [[Dialogue(**d) for d in job[k]] for k in ("train", "validation")]
train_sft(*rows, job["out"], SftSettings(**job["settings"]), "f00d")
"""


def test_killed_and_started_again_ends_in_the_same_weights(whole, tmp_path):
    job = {"out": str(tmp_path / "m"), "settings": asdict(TINY)}
    job |= {"train": [d.model_dump() for d in TRAIN]}
    job |= {"validation": [d.model_dump() for d in VALIDATION]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "job.json")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as child:
        seen = tmp_path / "m" / "checkpoints" / "checkpoint-15" / "trainer_state.json"
        while not seen.exists() and child.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()[-2000:]
    assert not (tmp_path / "m" / "training.json").exists()
    # A kill may also fall into the writing of a checkpoint.
    torn = tmp_path / "m" / "checkpoints" / "checkpoint-18"
    torn.mkdir(exist_ok=True)
    (torn / "model.safetensors").write_bytes(b"half")
    (torn / "trainer_state.json").write_text('{"half')
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", TINY, "f00d")
    assert result.resumed_from == 15
    assert same(weights(result.path), weights(whole.path))
    assert [h for h in result.history if "eval_loss" in h][-1]["eval_loss"] == whole.best_loss
    steps = [h["step"] for h in result.history if "loss" in h]
    assert steps == [h["step"] for h in whole.history if "loss" in h]


class Stopped(Exception):
    pass


def stop_at(step: int, monkeypatch) -> None:
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Stopped

    monkeypatch.setattr(trainer.Bar, "on_step_end", on_step_end)


@pytest.mark.parametrize(
    "change",
    [{"bf16": True}, {"lora": 4}, {"micro_batch": 3, "batch": 6}, {"optimizer": "muon"}],
    ids=lambda change: next(iter(change)),
)
def test_other_kinds_resume_too(release, tmp_path, monkeypatch, change):
    s = replace(TINY, max_steps=12, evals=4, **change)
    if s.lora:
        s = replace(s, base=str(release), end_token=True)
    uninterrupted = train_sft(TRAIN, VALIDATION, tmp_path / "a", s)
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(Stopped):
            train_sft(TRAIN, VALIDATION, tmp_path / "b", s)
    (tmp_path / "b").rename(tmp_path / "moved")  # paths in checkpoints must not matter
    resumed = train_sft(TRAIN, VALIDATION, tmp_path / "moved", s)
    assert resumed.resumed_from == 6
    if s.bf16:
        assert resumed.best_loss == pytest.approx(uninterrupted.best_loss, abs=5e-4)
    else:
        assert same(weights(resumed.path), weights(uninterrupted.path))


def test_early_stop_survives_a_kill_before_saving(tmp_path, monkeypatch, capfd):
    s = replace(TINY, lr=0.3, patience=2, max_steps=40, evals=20)
    stopped = train_sft(TRAIN, VALIDATION, tmp_path / "a", s)
    shown = capfd.readouterr()
    assert shown.out == "" and "/40" in shown.err and "step" in shown.err
    assert "{'loss'" not in shown.err and "warn" not in shown.err.lower(), shown.err
    losses = [h["eval_loss"] for h in stopped.history if "eval_loss" in h]
    assert len(losses) - 1 - int(np.argmin(losses)) == 2 and len(losses) < 20
    assert loss_of(stopped.path, VALIDATION, s) == pytest.approx(min(losses), rel=1e-4)

    def killed(*args):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(sft, "_save", killed)
        with pytest.raises(Stopped):
            train_sft(TRAIN, VALIDATION, tmp_path / "b", s)
    resumed = train_sft(TRAIN, VALIDATION, tmp_path / "b", s)
    assert resumed.resumed_from == 2 * len(losses)
    assert [h["eval_loss"] for h in resumed.history if "eval_loss" in h] == losses
    assert same(weights(resumed.path), weights(stopped.path))


def test_patience():
    stop = trainer.EarlyStop(2)
    for losses, reached in (
        ([], False),
        ([3, 2, 1], False),
        ([1, 2], False),
        ([1, 2, 3], True),
        ([1, 1, 1], True),  # no better is not better
        ([2, 3, 1, 4], False),
    ):
        assert stop.reached([{"eval_loss": x} for x in losses] + [{"loss": 0}]) is reached


def test_schedule_shows_each_row_once_an_epoch_in_batches_of_like_length():
    lengths = list(np.random.default_rng(0).integers(10, 500, size=96))
    rows = trainer.schedule(lengths, batch=4, steps=48, seed=0)
    assert sorted(rows) == sorted([*range(96)] * 2)
    assert sorted(rows[:96]) == [*range(96)] and rows[:96] != rows[96:]
    assert rows == trainer.schedule(lengths, 4, 48, 0) != trainer.schedule(lengths, 4, 48, 1)
    spread = np.ptp(np.array(lengths)[rows].reshape(-1, 4), axis=1).mean()
    assert (
        spread
        < 0.5 * np.ptp(np.random.default_rng(0).permutation(lengths).reshape(-1, 4), axis=1).mean()
    )
    assert sorted(trainer.schedule([5, 6], batch=3, steps=2, seed=0)) == [0, 0, 0, 1, 1, 1]


# --- TRL ------------------------------------------------------------------------------------------


def test_same_loss_and_gradients_as_stock_trl(whole, tmp_path):
    tokenizer = models.load_tokenizer(whole.path)
    rows = encode(TRAIN[:8], tokenizer, TINY, Counter(), "train")
    found = []
    for kind in (SFTTrainer, trainer.CpuSFTTrainer):
        each = kind(
            model=models.load_causal_lm(whole.path),
            args=trainer.arguments(TINY, tmp_path, 4),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
        )
        batch = next(iter(each.get_train_dataloader()))
        for count in (None, torch.tensor(77)):
            each.model.zero_grad()
            loss = each.compute_loss(each.model, dict(batch), num_items_in_batch=count)
            loss.backward()
            found.append((loss, {n: p.grad.clone() for n, p in each.model.named_parameters()}))
    _, outputs = each.compute_loss(each.model, dict(batch), return_outputs=True)
    assert len(outputs.logits) == (batch["labels"] != -100).sum()
    for (a, grads_a), (b, grads_b) in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        for name in grads_a:
            torch.testing.assert_close(grads_a[name], grads_b[name], rtol=1e-4, atol=1e-6)
    assert trainer.trainer_class() is (
        trainer.TokenMeanTrainer if torch.cuda.is_available() else trainer.CpuSFTTrainer
    )


def test_micro_batches_change_nothing(whole, tmp_path):
    result = train_sft(
        TRAIN, VALIDATION, tmp_path / "m", replace(TINY, micro_batch=2, max_steps=6, evals=2)
    )
    plain = train_sft(TRAIN, VALIDATION, tmp_path / "n", replace(TINY, max_steps=6, evals=2))
    assert result.best_loss == pytest.approx(plain.best_loss, rel=1e-4)


# --- from the command line ------------------------------------------------------------------------


def options(s: SftSettings) -> list[str]:
    out = []
    for name, value in asdict(s).items():
        flag = name.replace("_", "-")
        on_off = [f"--{flag}" if value else f"--no-{flag}"]
        out += on_off if isinstance(value, bool) else [f"--{flag}", str(value)]
    return out


def test_two_processes_train_as_one(tmp_path):
    data = tmp_path / "dialogues.jsonl"
    rows = [{"profile": d.profile, "conversation": d.messages} for d in dialogues(80)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    s = replace(TINY, max_steps=6, evals=2)
    launch = [
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "usp_lab.sft",
    ]
    command = [sys.executable, "-m", *launch, "--data", str(data), "--out", str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *options(s)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 1
    corpus = load_dialogues(data)
    one = train_sft(corpus.train, corpus.validation, tmp_path / "one", s)
    two = json.loads((tmp_path / "two" / "training.json").read_text())
    for a, b in zip(one.history, two["history"], strict=True):
        for name in {"loss", "eval_loss"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    ours, theirs = weights(one.path), weights(tmp_path / "two")
    for name in ours:  # Adam divides by the gradient's size, so rounding shows in single weights
        assert (ours[name] - theirs[name]).abs().max() < 1e-3
        torch.testing.assert_close(ours[name].norm(), theirs[name].norm(), rtol=1e-4, atol=0)


def test_help_names_every_setting():
    command = [sys.executable, "-m", "usp_lab.sft", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    for name in asdict(SftSettings()):
        assert f"--{name.replace('_', '-')}" in done.stdout


@pytest.mark.parametrize(
    "given, message",
    [
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--batch", "0"], "batch must be above 0, not 0"),
        (["--speaker", "system"], "speaker must be 'user'"),
        (["--speaker", "assistant", "--end-token"], "an assistant does not end dialogues"),
        (["--lora", "-1"], "lora must be 0 or more, not -1"),
        (["--optimizer", "sgd"], "choose adamw, or muon without lora"),
        (["--size", "7b"], "no model size '7b'; choose one of"),
        (["--base", "no/such/folder"], "no such folder"),
        (["--micro-batch", "5"], "batch=16 cannot be shared by 1 process"),
        (["--wrong", "1"], "unrecognized arguments: --wrong"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, given, message):
    data = tmp_path / "d.jsonl"
    rows = [{"profile": d.profile, "conversation": d.messages} for d in dialogues(40)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "m"
    monkeypatch.setattr(sys, "argv", ["sft", "--data", str(data), "--out", str(out), *given])
    with pytest.raises(SystemExit) as exit:
        sft.main()
    assert exit.value.code == 2 and not out.exists()
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert message in last and "error: " in last


def test_bad_input_from_python(release, tmp_path, monkeypatch):
    out = tmp_path / "m"
    with pytest.raises(UspError, match="no training dialogue"):
        train_sft([], VALIDATION, out, TINY)
    with pytest.raises(UspError, match="no validation dialogue"):
        train_sft(TRAIN, [], out, TINY)
    bare = [d.model_copy(update={"profile": None}) for d in TRAIN]
    with pytest.raises(
        UspError, match="training dialogue 0 has no profile; build profiles first, or train without"
    ):
        train_sft(bare, VALIDATION, out, TINY)
    with pytest.raises(UspError, match="training dialogue 0 has no profile; build profiles first$"):
        train_sft(bare, VALIDATION, out, replace(TINY, speaker="generator"))
    with pytest.raises(UspError, match="base and out are both"):
        train_sft(TRAIN, VALIDATION, release, replace(TINY, base=str(release)))
    with pytest.raises(UspError, match="max_length=1024 but .* has a context of 512; lower it"):
        train_sft(TRAIN, VALIDATION, out, replace(TINY, base=str(release), max_length=1024))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UspError, match="batch=8 cannot be shared by 3 process.* multiple of 6"):
        trainer.arguments(TINY, tmp_path, 4)
    assert not out.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 20"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_sentence(tmp_path, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(sft, "_train", full)
    with pytest.raises(
        UspError, match="no disk space left while training into .* checkpoint is kept"
    ):
        train_sft(TRAIN, VALIDATION, tmp_path / "m", TINY)


def test_diverging_training_is_one_sentence(tmp_path, monkeypatch):
    def evaluate(self, *args, **kwargs):
        self.callback_handler.on_evaluate(
            self.args, self.state, self.control, {"eval_loss": np.nan}
        )

    monkeypatch.setattr(trainer.CpuSFTTrainer, "evaluate", evaluate)
    monkeypatch.setattr(trainer, "trainer_class", lambda: trainer.CpuSFTTrainer)
    with pytest.raises(UspError, match="validation loss is nan at step 3; lower lr=0.003"):
        train_sft(TRAIN, VALIDATION, tmp_path / "m", TINY)


@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_left_to_machines_that_compute_in_it(tmp_path, monkeypatch, able):
    monkeypatch.setattr(trainer, "computes_bf16", lambda: able)
    assert trainer.arguments(replace(TINY, bf16=True), tmp_path, 8).bf16 is able
    assert not trainer.arguments(replace(TINY, bf16=False), tmp_path, 8).bf16


@pytest.mark.skipif(torch.cuda.is_available(), reason="decides by the GPU")
@pytest.mark.parametrize(("unit", "able"), [("amx_bf16", True), ("avx512_bf16", False)])
def test_a_cpu_gains_by_bf16_with_amx_alone(monkeypatch, unit, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True})
    assert models.computes_bf16() is able


def test_muon_in_fp32_steps_as_torch_does():
    """Up to the rounding of bf16; the state is torch's, so that a run may move to another machine."""
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 40), [torch.randn(24, 40) for _ in range(5)]
    ended, states = [], []
    for transposed in (False, True):
        for kind in (torch.optim.Muon, optim.Fp32Muon):
            p = torch.nn.Parameter((start.T if transposed else start).clone())
            optimizer = kind([p], lr=0.02, weight_decay=0.1)
            for g in gradients:
                p.grad = (g.T if transposed else g).clone()
                optimizer.step()
            ended.append(p.detach())
            states.append(optimizer.state_dict())
    for (a, b), (x, y) in zip((ended[:2], ended[2:]), (states[:2], states[2:]), strict=True):
        moved = (a - (start.T if a.shape[0] == 40 else start)).norm()
        assert (a - b).norm() < 0.02 * moved and moved > 0.1
        assert x["param_groups"] == y["param_groups"]
        assert torch.equal(x["state"][0]["momentum_buffer"], y["state"][0]["momentum_buffer"])


def test_warm_up_is_a_tenth_as_released_and_short_under_muon(tmp_path):
    for optimizer, steps in (("adamw", 412), ("muon", 200)):
        args = trainer.arguments(replace(TINY, optimizer=optimizer), tmp_path, 4119)
        assert args.warmup_steps == steps, optimizer
    assert trainer.arguments(TINY, tmp_path, 3).warmup_steps == 1


def test_repetition_penalty_is_kept_with_the_model(release, tmp_path):
    own = train_sft(
        TRAIN, VALIDATION, tmp_path / "own", replace(TINY, max_steps=1, repetition_penalty=1.3)
    )
    assert UserSimulator.from_pretrained(own.path).sampling.repetition_penalty == 1.3
    base = replace(TINY, max_steps=1, base=str(release))
    kept = train_sft(TRAIN, VALIDATION, tmp_path / "kept", base)
    assert UserSimulator.from_pretrained(kept.path).sampling.repetition_penalty == 1.2


def test_weights_in_shards_are_gathered_before_they_are_saved(
    whole, release, tmp_path, monkeypatch
):
    """As FSDP and ZeRO-3 do: what is saved is what the processes' shards amount to together."""
    gathered = []

    def get_state_dict(self, model, unwrap=True):
        gathered.append(model)
        return {
            k: torch.full_like(v, 0.5) for k, v in self.unwrap_model(model).state_dict().items()
        }

    monkeypatch.setattr("accelerate.Accelerator.get_state_dict", get_state_dict)
    result = train_sft(TRAIN, VALIDATION, tmp_path / "m", replace(TINY, max_steps=1))
    assert len(gathered) == 1 and all((w == 0.5).all() for w in weights(result.path).values())
    monkeypatch.setattr(sft, "_sharded", lambda trainer: True)
    with pytest.raises(UspError, match="lora=2 cannot be merged into weights in shards"):
        lora = replace(TINY, max_steps=1, lora=2, base=str(release))
        train_sft(TRAIN, VALIDATION, tmp_path / "lora", lora)
