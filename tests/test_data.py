"""Dialogue files in and out: every form that is read, everything that can be wrong with one."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from usp_lab import data, synthetic
from usp_lab.chat import system_message
from usp_lab.data import SPLITS, Corpus, Dialogue, load_dialogues, write_dataset
from usp_lab.errors import UspError
from usp_lab.splits import groups

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = sorted(p for p in SHARED.glob("*.jsonl.gz") if not p.name.startswith("annotations"))
TOPICS = "tulips granite jazz yoghurt lighthouses chess velvet rockets bamboo opera".split()
USER = {"role": "user", "content": "hi there"}
BOT = {"role": "assistant", "content": "Hello!"}


def turns(i: int) -> list[dict]:
    return [{"role": "user", "content": f"{TOPICS[i]} please"}, BOT]


def rows(form: str = "messages", **more) -> list[dict]:
    return [{"id": f"r{i}", form: turns(i), **more} for i in range(len(TOPICS))]


def encode(row: object) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def write(path: Path, content: list) -> Path:
    lines = b"".join(encode(row) + b"\n" for row in content)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def error(source: object, **how) -> str:
    """Return the sentence that a source is refused with."""
    with pytest.raises(UspError) as caught:
        load_dialogues(source, **how)
    text = str(caught.value)
    assert "\n" not in text and "; " in text, "not one sentence that says what to do"
    return text


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["messages", "conversation"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_both_forms_in_every_file_type(tmp_path, form, suffix):
    content = [{**r, "profile": f"p {r['id']}", "user_id": 7, "more": 1} for r in rows(form)]
    content = [{**r, "user_id": i // 2, "source": "here"} for i, r in enumerate(content)]
    corpus = load_dialogues(write(tmp_path / f"chats.{suffix}", content))
    assert {s: len(d) for s, d in corpus.splits.items()} == {"train": 6, "validation": 2, "test": 2}
    assert sorted(corpus, key=lambda d: d.id) == [
        Dialogue(
            id=f"r{i}", messages=turns(i), profile=f"p r{i}", user_id=str(i // 2), source="here"
        )
        for i in range(10)
    ]
    assert corpus.skipped == {} and corpus.has_profiles and not corpus.is_population
    assert corpus.name == f"chats.{suffix}"


def test_optional_fields_may_be_missing_null_or_blank(tmp_path):
    content = rows("conversation")
    content[0] = {"conversation": turns(0), "profile": " ", "user_id": None, "truth": None}
    content[1] |= {"id": 0, "messages": None, "licence": {"any": "thing"}, "source": 3}
    path = write(tmp_path / "chats.jsonl", ["\ufeff".encode() + encode(content[0]), b" ", *content[1:]])
    by_id = {d.id: d for d in load_dialogues(path)}
    first = by_id["chats.jsonl:1"]
    assert (first.profile, first.user_id, first.source, first.truth) == (None, None, "", {})
    assert by_id["0"].source == "3"
    assert not load_dialogues(path).has_profiles


def test_a_system_prompt_gives_the_profile_and_is_no_turn(tmp_path):
    content = rows()
    content[0]["messages"] = [system_message("You are Ann."), *turns(0)]
    content[1]["messages"] = [system_message("You are Ann."), *turns(1)]
    content[1]["profile"] = "You are Bob."
    content[2]["messages"] = [{"role": "system", "content": "Be brief."}, *turns(2)]
    by_id = {d.id: d for d in load_dialogues(write(tmp_path / "chats.jsonl", content))}
    assert [by_id[f"r{i}"].profile for i in range(3)] == ["You are Ann.", "You are Bob.", None]
    assert [by_id[f"r{i}"].messages for i in range(3)] == [turns(0), turns(1), turns(2)]


def test_a_dialogue_knows_its_user_turns():
    d = Dialogue(id="d", messages=[USER, BOT, {"role": "user", "content": "bye"}])
    assert (d.user_turns, d.opening, d.n_turns) == (["hi there", "bye"], "hi there", 2)


def test_the_first_n_are_taken_and_no_more_are_read(tmp_path):
    path = write(tmp_path / "chats.jsonl", [*rows()[:5], b"not JSON"])
    assert sorted(d.id for d in load_dialogues(path, n=5)) == [f"r{i}" for i in range(5)]
    assert "line 6" in error(path, n=6)


def test_fingerprint_follows_texts_profiles_users_and_splits(tmp_path):
    content = rows(profile="p", user_id="u")
    content = [{**r, "user_id": f"u{i}"} for i, r in enumerate(content)]

    def fingerprint(**how) -> str:
        return load_dialogues(write(tmp_path / "chats.jsonl", content), **how).fingerprint

    seen = [fingerprint(), fingerprint(seed=1)]
    for change in ({"profile": "q"}, {"user_id": "w"}, {"messages": [USER, BOT]}):
        content[3] = content[3] | change
        seen.append(fingerprint())
    assert len(set(seen)) == 5 and seen[-1] == fingerprint()


# --- bad rows -------------------------------------------------------------------------------------

BAD_ROWS = [
    (b'{"messages": [}', "", "not JSON", "not JSON (Expecting value at character 14)", "[}"),
    (b"", "", None, None, None),
    (b'{"messages": 1', "", "not JSON", "not JSON (", ""),
    (b"9" * 5000, "", "not JSON", "not JSON (", "b'9999"),
    (b"[" * 100_000, "", "not JSON", "not JSON (", "b'[[["),
    (b'{"id": "caf\xe9"}', "", "not UTF-8", "not UTF-8", "caf\\xe9"),
    ([USER, BOT], "", "row is not an object", None, "hi there"),
    ({"text": "hi"}, "conversation", "no conversation", None, "['text']"),
    ({"messages": "hi"}, "messages", "conversation is not a list", None, "'hi'"),
    ({"conversation": {"role": "user"}}, "conversation", "conversation is not a list", None, "role"),
    ({"messages": []}, "messages", "no user turn", None, "[]"),
    ({"conversation": [BOT]}, "conversation", "no user turn", None, "['assistant']"),
    ({"messages": [system_message("p")]}, "messages", "no user turn", None, "['system']"),
    (
        {"messages": [BOT, USER]},
        "messages[0].role",
        "roles do not alternate from user",
        None,
        "'assistant'",
    ),
    (
        {"messages": [system_message("p"), USER, USER]},
        "messages[2].role",
        "roles do not alternate from user",
        None,
        "'user'",
    ),
    (
        {"messages": [USER, {"role": "tool", "content": "x"}]},
        "messages[1].role",
        "roles do not alternate from user",
        None,
        "'tool'",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": " \n"}]},
        "messages[1].content",
        "empty message",
        None,
        "' \\n'",
    ),
    ({"messages": ["hi"]}, "messages[0]", "message without role", None, "'hi'"),
    ({"messages": [{"content": "hi"}]}, "messages[0]", "message without role", None, "'hi'"),
    (
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content",
        "message content is not text",
        None,
        "None",
    ),
    (
        {"messages": [{"role": "user", "content": "hi \ud83d"}]},
        "messages[0].content",
        "half a surrogate pair",
        None,
        "'hi \\ud83d'",
    ),
    ({"messages": [USER], "id": "r1"}, "id", "id occurs twice", None, "'r1'"),
    ({"messages": [USER], "id": 1.5}, "id", "id is not text", None, "1.5"),
    ({"messages": [USER], "user_id": ["u"]}, "user_id", "user_id is not text", None, "['u']"),
    ({"messages": [USER], "profile": {"age": 3}}, "profile", "profile is not text", None, "'age'"),
    ({"messages": [USER], "profile": 3}, "profile", "profile is not text", None, "3"),
    ({"messages": [USER], "truth": "yes"}, "truth", "truth is not an object", None, "'yes'"),
    ({"messages": [USER], "truth": [1]}, "truth", "truth is not an object", None, "[1]"),
]
