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
    path = write(
        tmp_path / "chats.jsonl", ["\ufeff".encode() + encode(content[0]), b" ", *content[1:]]
    )
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


def said(*messages: dict | str) -> dict:
    return {"messages": list(messages)}


def user(content: object) -> dict:
    return {"role": "user", "content": content}


ALTERNATE = "roles do not alternate from user"
BAD_ROWS = [  # (row, field, what is wrong, what was there)
    (b'{"messages": [}', "", "not JSON (Expecting value at character 14)", "[}"),
    (b"9" * 5000, "", "not JSON (Exceeds the limit", "b'9999"),
    (b"[" * 100_000, "", "not JSON (maximum recursion depth", "b'[[["),
    (b'{"id": "caf\xe9"}', "", "not UTF-8", r"caf\xe9"),
    ([USER, BOT], "", "row is not an object", "hi there"),
    ({"text": "hi"}, "conversation", "no conversation", "['text']"),
    ({"messages": "hi"}, "messages", "conversation is not a list", "'hi'"),
    ({"conversation": USER}, "conversation", "conversation is not a list", "'role'"),
    (said(), "messages", "no user turn", "[]"),
    ({"conversation": [BOT]}, "conversation", "no user turn", "['assistant']"),
    (said(system_message("p")), "messages", "no user turn", "['system']"),
    (said(BOT, USER), "messages[0].role", ALTERNATE, "'assistant'"),
    (said(system_message("p"), USER, USER), "messages[2].role", ALTERNATE, "'user'"),
    (said(USER, {**BOT, "role": "tool"}), "messages[1].role", ALTERNATE, "'tool'"),
    (said(USER, BOT, user(" \n")), "messages[2].content", "empty message", r"' \n'"),
    (said("hi"), "messages[0]", "message without role", "'hi'"),
    (said({"content": "hi"}), "messages[0]", "message without role", "'hi'"),
    (said(user(None)), "messages[0].content", "message content is not text", "None"),
    (said(user(["hi"])), "messages[0].content", "message content is not text", "['hi']"),
    (said(user("hi \ud83d")), "messages[0].content", "half a surrogate pair", r"'hi \ud83d'"),
    ({**said(USER), "id": "r1"}, "id", "id occurs twice", "'r1'"),
    ({**said(USER), "id": 1.5}, "id", "id is not text", "1.5"),
    ({**said(USER), "user_id": ["u"]}, "user_id", "user_id is not text", "['u']"),
    ({**said(USER), "profile": 3}, "profile", "profile is not text", "3"),
    ({**said(USER), "profile": {"age": 3}}, "profile", "profile is not text", "{'age': 3}"),
    ({**said(USER), "truth": "yes"}, "truth", "truth is not an object", "'yes'"),
    ({**said(USER), "truth": [1]}, "truth", "truth is not an object", "[1]"),
]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(("row", "field", "reason", "seen"), BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, suffix, row, field, reason, seen):
    content = rows()
    content[2:2] = [b"", row]  # blank lines count as lines
    path = write(tmp_path / f"chats.{suffix}", content)
    text = error(path)
    field = f", field {field}" if field else ""
    assert text.startswith(f"chats.{suffix}, line 4{field}: {reason}")
    assert seen in text.split(", saw ")[1]
    assert text.endswith("; mend the row or skip bad rows (--on-bad skip)") and len(text) < 320
    corpus = load_dialogues(path, on_bad="skip")
    assert len(corpus) == 10 and corpus.skipped == {reason.split(" (")[0]: 1}


def test_bad_rows_are_counted_by_reason(tmp_path):
    content = [*rows(), said(BOT), said(), b"{", b"nor this", said(USER, USER)]
    corpus = load_dialogues(write(tmp_path / "chats.jsonl", content), on_bad="skip")
    assert corpus.skipped == {"no user turn": 2, "not JSON": 2, ALTERNATE: 1}


def test_bad_rows_of_parquet_are_named(tmp_path):
    content = rows()
    content[3]["messages"] = [BOT]
    path = write(tmp_path / "chats.parquet", content)
    assert "chats.parquet, row 4, field messages: no user turn, saw ['assistant']" in error(path)
    assert load_dialogues(path, on_bad="skip").skipped == {"no user turn": 1}


# --- bad files ------------------------------------------------------------------------------------


def test_sources_that_do_not_exist(tmp_path):
    assert "nowhere.jsonl does not exist; give a .jsonl" in error(tmp_path / "nowhere.jsonl")
    assert "populatoin does not exist" in error("populatoin")


@pytest.mark.parametrize("name", ["chats.csv", "chats", "chats.json.gz"])
def test_unknown_file_types(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    assert f"{name}: unknown file type {path.suffix!r}; give .jsonl" in error(path)


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_damaged_gzip(tmp_path, on_bad):
    path = write(tmp_path / "chats.jsonl.gz", rows())
    whole = path.read_bytes()
    flipped = bytes(b ^ 0xFF if i in (30, 31) else b for i, b in enumerate(whole))
    for content in (
        whole[:-9],
        whole[: len(whole) // 2],
        flipped,
        whole[:-2],
        b"not gzip",
        b"\x1f",
    ):
        path.write_bytes(content)
        text = error(path, on_bad=on_bad)
        assert "chats.jsonl.gz is a damaged or truncated gzip file after line " in text
        assert text.endswith("; fetch or write it again")


def test_gzip_in_disguise_is_not_utf_8(tmp_path):
    path = write(tmp_path / "chats.jsonl.gz", rows()).rename(tmp_path / "chats.jsonl")
    assert "chats.jsonl, line 1: not UTF-8, saw b" in error(path)


def test_damaged_parquet(tmp_path):
    path = write(tmp_path / "chats.parquet", rows())
    whole = path.read_bytes()
    for content in (whole[:-20], whole[4:], b"", b"not parquet"):
        path.write_bytes(content)
        assert "chats.parquet is not a readable parquet file (" in error(path)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_empty_data_sets(tmp_path, suffix):
    path = write(tmp_path / f"chats.{suffix}", [])
    assert f"chats.{suffix} holds no usable dialogue; give" in error(path)


def test_nothing_but_bad_rows(tmp_path):
    path = write(tmp_path / "chats.jsonl", [b"{", said()])
    text = error(path, on_bad="skip")
    assert "no usable dialogue; skipped {'not JSON': 1, 'no user turn': 1}; give" in text


def test_too_few_to_split(tmp_path):
    path = write(tmp_path / "chats.jsonl", rows()[:2])
    assert "chats.jsonl: 2 dialogues form 2 group(s) of users" in error(path)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"on_bad": "ignore"}, "on_bad must be 'raise' or 'skip', not 'ignore'"),
        ({"n": 0}, "n must be at least 1, not 0"),
    ],
)
def test_options_are_checked(option, text):
    with pytest.raises(UspError, match=text):
        load_dialogues("population", **option)


# --- folders of splits ----------------------------------------------------------------------------


def test_a_folder_may_mix_file_types_and_lack_validation(tmp_path):
    write(tmp_path / "train.jsonl.gz", rows()[:7])
    write(tmp_path / "test.parquet", rows("conversation")[7:])
    corpus = load_dialogues(tmp_path)
    assert [(s, len(d)) for s, d in corpus.splits.items()] == [
        ("train", 6),
        ("validation", 1),
        ("test", 3),
    ]


def test_folders_that_cannot_be_used(tmp_path):
    assert "has no train, validation or test file" in error(tmp_path)
    write(tmp_path / "test.jsonl", rows())
    assert "no training dialogue beside 10 for testing" in error(tmp_path)
    write(tmp_path / "train.jsonl", rows()[:3])
    text = error(tmp_path)
    assert f"{tmp_path.name}/test.jsonl, line 1, field id: id occurs twice, saw 'r0'" in text
    write(tmp_path / "train.jsonl", [{"messages": turns(i)} for i in range(3)])
    assert "no training dialogue beside 10" in error(tmp_path), "every opening is in both"


# --- the population -------------------------------------------------------------------------------


@pytest.fixture
def population(tmp_path, monkeypatch) -> Corpus:
    monkeypatch.setenv("USP_LAB_CACHE", str(tmp_path / "cache"))
    return load_dialogues("population", n=60)


def test_population_has_sealed_splits_that_share_no_user(population):
    assert tuple(population.splits) == ("train", "validation", "test", *SPLITS[3:])
    assert population.is_population and population.has_profiles and population.skipped == {}
    assert 50 <= len(population) <= 60 and len({d.id for d in population}) == len(population)
    side = [s for s, dialogues in population.splits.items() for _ in dialogues]
    assert len(set(zip(groups(population), side, strict=True))) == len(set(groups(population)))
    assert all(d.truth["sealed"] for d in population.splits["test_new_phrasings"])
    assert not any(d.truth["sealed"] for d in population.train)
    topics = {d.truth["topic"] for d in population.train}
    assert topics.isdisjoint(d.truth["topic"] for d in population.splits["test_new_topics"])


def test_population_is_drawn_once_and_the_same(population, tmp_path, monkeypatch):
    cached = list((tmp_path / "cache").iterdir())
    assert len(cached) == 1
    before = cached[0].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw", None)  # from now on only the cache can answer
        assert load_dialogues("population", n=60) == population
    cached[0].unlink()
    assert load_dialogues(n=60) == population and cached[0].read_bytes() == before
    assert load_dialogues(n=60, seed=1).fingerprint != population.fingerprint


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("USP_LAB_CACHE", str(tmp_path / "file" / "cache"))
    assert "set USP_LAB_CACHE to a folder that can be written" in error("population", n=60)


# --- out ------------------------------------------------------------------------------------------


def columns(corpus: Corpus) -> dict[str, list[dict]]:
    names = ("id", "user_id", "source", "profile")
    return {
        s: [{**{c: getattr(d, c) for c in names}, "conversation": d.messages} for d in dialogues]
        for s, dialogues in corpus.splits.items()
    }


def load_offline(folder: Path, monkeypatch) -> dict[str, list[dict]]:
    def no_network(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "hub"))
    return {s: list(part) for s, part in loaded.items()}


def test_a_written_population_is_read_back_and_loads_without_a_hub(
    population, tmp_path, monkeypatch
):
    folder = write_dataset(population, tmp_path / "out" / "mine", name="Mine", licence="mit")
    assert [p.name for p in folder.parent.iterdir()] == ["mine"], "something was left beside it"
    again = load_dialogues(folder)
    assert again.splits == population.splits and again.skipped == {}
    assert again.fingerprint == population.fingerprint and not again.is_population
    loaded = load_offline(folder, monkeypatch)
    truths = {s: [json.loads(r.pop("truth")) for r in part] for s, part in loaded.items()}
    assert loaded == columns(population)
    assert truths == {s: [d.truth for d in part] for s, part in population.splits.items()}


def test_splits_with_and_without_profiles_load_together(tmp_path, monkeypatch):
    content = rows()
    for i, row in enumerate(content):
        row |= {"profile": f"p{i}", "user_id": f"u{i}"} if i > 7 else {}
    write(tmp_path / "train.jsonl", content[:6])
    write(tmp_path / "validation.jsonl", content[6:8])
    write(tmp_path / "test.jsonl", content[8:])
    corpus = load_dialogues(tmp_path)
    loaded = load_offline(write_dataset(corpus, tmp_path / "mine"), monkeypatch)
    assert {
        s: [{**r, "truth": None} for r in part] for s, part in columns(corpus).items()
    } == loaded
    assert [r["profile"] for r in loaded["train"] + loaded["test"]] == [None] * 6 + ["p8", "p9"]


def test_the_data_card_counts(tmp_path):
    content = rows()
    for i, row in enumerate(content[:3]):
        row |= {"profile": f"p{i}", "user_id": f"u{i // 2}"}
    content[1]["messages"] = [USER, BOT, user("bye")]
    source = tmp_path / "chats"
    source.mkdir()
    write(source / "train.jsonl", [*content[:4], said()])
    write(source / "validation.jsonl", content[4:6])
    write(source / "test.jsonl", content[6:])
    corpus = load_dialogues(source, on_bad="skip")
    folder = write_dataset(corpus, tmp_path / "mine", "My chats", "cc0-1.0")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n") and "\n# My chats\n" in card
    assert "| train | 4 | 1.25 | 75% | 2 |\n| validation | 2 | 1.00 | 0% | 0 |\n" in card
    assert "- source: chats\n" in card and str(tmp_path) not in card
    assert f"- fingerprint: {corpus.fingerprint}\n" in card
    assert "- left out: 1 (no user turn)\n" in card


def test_a_data_set_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    corpus = load_dialogues(write(tmp_path / "chats.jsonl", rows()))
    with pytest.raises(UspError, match="chats.jsonl exists and is not empty; name a new folder"):
        write_dataset(corpus, tmp_path / "chats.jsonl")
    with pytest.raises(UspError, match="exists and is not empty"):
        write_dataset(corpus, tmp_path)
    (tmp_path / "empty").mkdir()
    assert write_dataset(corpus, tmp_path / "empty") == tmp_path / "empty"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_card", full)
    with pytest.raises(UspError, match=r"mine could not be written \(No space left on device\)"):
        write_dataset(corpus, tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chats.jsonl", "empty"]


# --- real conversations ---------------------------------------------------------------------------


@pytest.mark.skipif(not FILES, reason="no ../shared/data: real conversations do not come along")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name.split(".")[0])
def test_real_conversations_load_and_split(path):
    corpus = load_dialogues(path)
    with gzip.open(path, "rt", encoding="utf-8") as f:
        given = {r["id"]: (r["profile"], r["messages"]) for r in map(json.loads, f)}
    assert {d.id: (d.profile, d.messages) for d in corpus} == given
    assert corpus.skipped == {} and len(corpus) == len(given)
    n = {s: len(d) / len(given) for s, d in corpus.splits.items()}
    assert list(n) == ["train", "validation", "test"]
    assert 0.7 <= n["train"] <= 0.85 and 0.09 <= min(n.values()) and n["test"] <= 0.15
    side = [s for s, dialogues in corpus.splits.items() for _ in dialogues]
    label = groups(corpus)
    assert len(set(zip(label, side, strict=True))) == len(set(label)), "a group is on two sides"


@pytest.mark.skipif(not FILES, reason="no ../shared/data: real conversations do not come along")
def test_annotations_are_no_conversations():
    text = error(SHARED / "annotations_dev.jsonl.gz")
    assert text.startswith("annotations_dev.jsonl.gz, line 1, field conversation: no conversation")
