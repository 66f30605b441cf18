"""Exports, read back by LLaMA-Factory's own rules to the tokens and labels that `train_sft` trains on."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from usp_lab import load_dialogues, look_alikes
from usp_lab.chat import chat_template
from usp_lab.data import Corpus, Dialogue
from usp_lab.errors import UspError
from usp_lab.export import INFO, SLOTS, TASKS, export, template_file
from usp_lab.models import load_tokenizer
from usp_lab.sft_data import encode
from usp_lab.sft_settings import SftSettings

ROOT = Path(__file__).resolve().parents[1]
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = {  # LLaMA-Factory's template of that name
    "format_system": HEADER.format("system") + "{{content}}<|eot_id|>",
    "format_user": HEADER.format("user") + "{{content}}<|eot_id|>" + HEADER.format("assistant"),
    "format_assistant": "{{content}}<|eot_id|>",
}
SETTINGS = {
    "sft": SftSettings(max_length=8000),
    "generator": SftSettings(speaker="generator", max_length=8000),
}
AWKWARD = [
    {"role": "user", "content": "  \n?? how<|eot_id|> do I…  \n"},
    {
        "role": "assistant",
        "content": "\n\n1. Open it.\n\n\n2. «Close» it. <|start_header_id|>user ",
    },
    {"role": "user", "content": "{{content}} thx 😀"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = load_tokenizer(look_alikes.llama_base(tmp_path_factory.mktemp("t") / "base"), None)
    tokenizer.chat_template = chat_template("user")
    return tokenizer


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    drawn = load_dialogues("population", n=300)
    odd = Dialogue(id="awkward", messages=AWKWARD, profile=" You <|eot_id|>.\n\nYou write oddly.. ")
    return Corpus("a file", {"train": [*drawn.train[:30], odd], "validation": drawn.validation[:4]})


def align(row: dict, info: dict) -> tuple[str, list[tuple[str, str]]]:
    """LLaMA-Factory's converter of sharegpt rows: (system, [(kind, text)]), or an AssertionError."""
    tags = info["tags"]
    kinds = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant"}
    kinds |= {tags["observation_tag"]: "observation", tags["function_tag"]: "function"}
    messages = [
        (m[tags["role_tag"]], m[tags["content_tag"]]) for m in row[info["columns"]["messages"]]
    ]
    system = ""
    if messages[0][0] == tags["system_tag"]:
        (_, system), *messages = messages
    turns = [(kinds[role], text) for role, text in messages]
    for i, (kind, _) in enumerate(turns):
        assert kind in (("user", "observation"), ("assistant", "function"))[i % 2], (
            "invalid role tag"
        )
    assert len(turns) % 2 == 0, "invalid message count"
    return system, turns


def tokens(tokenizer, system: str, turns: list, slots: dict) -> tuple[list[int], list[int]]:
    """Its encoding of many turns: prefix, each part by itself, labels on the trained side's part alone."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for i, (kind, text) in enumerate(turns):
        part = slots["format_system"].replace("{{content}}", system, 1) if system and not i else ""
        part += slots[f"format_{kind}"].replace("{{content}}", text, 1)
        new = tokenizer.encode(part, add_special_tokens=False)
        ids += new
        labels += new if kind == "assistant" else [-100] * len(new)
    return ids, labels


@pytest.mark.parametrize("task", TASKS)
def test_read_back_it_trains_on_the_same_tokens(task, corpus, tokenizer, tmp_path):
    done = export(corpus, tmp_path, task)
    assert done.datasets == (f"usp_{task}", f"usp_{task}_validation")
    info = json.loads((tmp_path / INFO).read_text())
    slots = SLOTS if task == "sft" else LLAMA3
    for name, split in zip(done.datasets, ("train", "validation"), strict=True):
        entry = info[name]
        assert entry["formatting"] == "sharegpt" and len(set(entry["tags"].values())) == 7
        rows = json.loads((tmp_path / entry["file_name"]).read_text())
        ours = encode(corpus.splits[split], tokenizer, SETTINGS[task], Counter(), "train")
        assert len(rows) == len(ours) == done.counts[split]
        for row, own in zip(rows, ours, strict=True):
            ids, labels = tokens(tokenizer, *align(row, entry), slots)
            assert own["input_ids"][: len(ids)] == ids and own["labels"][: len(ids)] == labels
            # what is left out carries no loss: a last reply to a simulator
            assert set(own["labels"][len(ids) :]) <= {-100}
            assert task == "sft" or len(ids) == len(own["input_ids"])
            assert any(label != -100 for label in labels)


def test_long_dialogues_are_cut_at_whole_turns_and_counted(corpus, tokenizer, tmp_path):
    most = 300  # not all openings fit, and few whole dialogues
    done = export(corpus, tmp_path, "sft", tokenizer, most)
    entry = json.loads((tmp_path / INFO).read_text())["usp_sft"]
    counts: Counter[str] = Counter()
    settings = SftSettings(max_length=most)
    ours = encode(corpus.train, tokenizer, settings, counts, "train")
    rows = json.loads((tmp_path / entry["file_name"]).read_text())
    assert len(rows) == len(ours) < len(corpus.train)
    for row, own in zip(rows, ours, strict=True):
        ids, labels = tokens(tokenizer, *align(row, entry), SLOTS)
        assert len(ids) <= most and own["labels"][: len(ids)] == labels
    dropped = len(corpus.train) - len(rows)
    assert done.counts["train: dropped, no trained turn fits"] == dropped
    assert counts["train: dropped, no user turn fits"] == dropped
    assert done.counts["train: cut at a whole turn"] > 0


def test_both_tasks_share_a_folder_and_foreign_entries_stay(corpus, tmp_path):
    (tmp_path / INFO).write_text('{"theirs": {"file_name": "x.json"}}')
    for task in TASKS:
        export(corpus, tmp_path, task)
    info = json.loads((tmp_path / INFO).read_text())
    assert set(info) == {"theirs"} | {f"usp_{t}{s}" for t in TASKS for s in ("", "_validation")}
    assert (tmp_path / "chat_template.jinja").read_text() == chat_template("user")


def test_template_file_registers_what_was_checked():
    tree = ast.parse(template_file())
    calls = {
        n.func.id: n for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")
    }
    given = {k.arg: k.value for k in calls["register_template"].keywords}
    for name, slot in SLOTS.items():
        assert ast.literal_eval(given[name].keywords[0].value) == [slot]
    assert ast.literal_eval(given["name"]) == "usp"
    assert ast.literal_eval(given["format_prefix"].keywords[0].value) == [{"bos_token"}]
    assert "run_exp" in calls


def test_bad_input(corpus, tmp_path):
    bare = Corpus("a file", {"train": [corpus.train[0].model_copy(update={"profile": None})]})
    for words, call in (
        ("no task 'dpo'; choose one of sft, generator", lambda: export(corpus, tmp_path, "dpo")),
        ("has no profile; build profiles first", lambda: export(bare, tmp_path)),
        ("counts tokens; give the tokenizer", lambda: export(corpus, tmp_path, max_length=9)),
    ):
        with pytest.raises(UspError, match=words):
            call()
    (tmp_path / "file").write_text("")
    with pytest.raises(UspError, match="could not be written"):
        export(corpus, tmp_path / "file")


def test_nothing_that_fits_is_said(corpus, tokenizer, tmp_path):
    with pytest.raises(UspError, match="no train dialogue fits 9 tokens; raise max_length"):
        export(corpus, tmp_path, "sft", tokenizer, 9)


def test_command_line(tmp_path):
    base = look_alikes.llama_base(tmp_path / "base")
    command = [sys.executable, "-m", "usp_lab.export", "--data", "population", "--n", "80"]
    more = ["--task", "sft", "--out", str(tmp_path / "out"), "--tokenizer", str(base)]
    done = subprocess.run(
        [*command, *more, "--max-length", "4096"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("saved usp_sft, usp_sft_validation, usp_sft_test")
    assert "usp_sft" in json.loads((tmp_path / "out" / INFO).read_text())
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "x"), "--max-length", "5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: max_length=5 counts tokens")
