"""Hub data sets on hand-made rows: every known form, and one sentence for what goes wrong."""

import datasets
import pytest

from usp_lab.data import load_dialogues
from usp_lab.errors import UspError
from usp_lab.hub import convert, hub_rows, oasst_paths, read_hh

TOPICS = "tulips granite jazz yoghurt lighthouses chess velvet rockets bamboo opera".split()
TURNS = [
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "Hello!"},
]


def talk(i: int) -> list[dict]:
    return [{"role": "user", "content": f"{TOPICS[i]} please"}, TURNS[1]]


@pytest.fixture
def hub(monkeypatch):
    """Let the hub hold one data set, given as {split: rows}, or raise what is given instead."""

    def put(content):
        def load_dataset(name):
            assert name == "someone/chats"
            if isinstance(content, Exception):
                raise content
            splits = {s: datasets.Dataset.from_list(rows) for s, rows in content.items()}
            return datasets.DatasetDict(splits)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return "hub:someone/chats"

    return put


# --- forms ----------------------------------------------------------------------------------------


def test_hh_rlhf_text():
    text = "\n\nHuman: How do I boil an egg?\n\nIn a pan.\n\nAssistant: Ten minutes. \n\nHuman: ok"
    assert read_hh(text) == [
        {"role": "user", "content": "How do I boil an egg?\n\nIn a pan."},
        {"role": "assistant", "content": "Ten minutes."},
        {"role": "user", "content": "ok"},
    ]
    assert read_hh("no speaker") == []
    assert read_hh(TURNS) is TURNS  # of preference data that hold messages


def oasst(name: str, parent: str | None, text: str, **more) -> dict:
    """A message of a tree; the role follows from how deep its name says that it is."""
    role = "prompter" if len(name) % 2 else "assistant"
    row = {"message_id": name, "parent_id": parent, "role": role, "text": text, "lang": "en"}
    return {**row, "user_id": f"author of {name}", "rank": None, "deleted": False, **more}


def test_oasst_takes_the_path_with_most_turns_then_the_best_ranked_reply():
    tree = [
        oasst("a", None, "question"),
        oasst("ab", "a", "best, but nobody went on", rank=0),
        oasst("ac", "a", "second", rank=2),
        oasst("ad", "a", "third", rank=1),
        oasst("acx", "ac", "go on"),
        oasst("ady", "ad", "do go on"),
        oasst("adyz", "ady", "deleted", deleted=True),
        oasst("b", None, "alone", rank=None),
        oasst("c", None, "hola", lang="es"),
    ]
    long, alone = oasst_paths(tree)
    assert long == {
        "id": "a",
        "user_id": "author of a",
        "conversation": [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "third"},
            {"role": "user", "content": "do go on"},
        ],
    }
    assert [m["content"] for m in alone["conversation"]] == ["alone"]


def test_known_columns_are_converted_and_others_named():
    turns = {"conversation": TURNS}
    assert list(convert([turns], ["conversation", "model"], "x")) == [("row 1", turns)]
    assert list(convert([{"messages": TURNS}], ["messages"], "x"))[0][1] == {"messages": TURNS}
    chosen = "\n\nHuman: hi there\n\nAssistant: Hello!"
    assert list(convert([{"chosen": chosen}], ["chosen", "rejected"], "x")) == [("row 1", turns)]
    tree = [oasst("a", None, "hi there"), oasst("ab", "a", "Hello!")]
    [(place, row)] = convert(tree, tree[0], "x")
    assert (place, row["conversation"]) == ("row 1", TURNS)
    with pytest.raises(UspError, match=r"hub:x has columns \['prompt', 'text'\]; known forms"):
        convert([], ["text", "prompt"], "x")


# --- whole data sets ------------------------------------------------------------------------------


def test_published_splits_are_kept_without_what_leaks(hub):
    source = hub(
        {
            "train": [{"profile": f"p{i}", "conversation": talk(i)} for i in range(6)],
            "valid": [{"profile": "p6", "conversation": talk(6)}],
            "test": [
                {"profile": "p7", "conversation": talk(7)},
                {"profile": "p0", "conversation": talk(8)},  # the first training user
                {"profile": "p9", "conversation": talk(1)},  # the second training opening
            ],
        }
    )
    corpus = load_dialogues(source)
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert [d.profile for d in corpus.train] == ["p2", "p3", "p4", "p5"]
    assert [d.id for d in corpus.test] == ["chats/test:1", "chats/test:2", "chats/test:3"]
    assert corpus.skipped == {"train dialogue shares a user or an opening with another split": 2}
    assert corpus.name == corpus.source == source and corpus.has_profiles
    assert [len(s) for s in load_dialogues(source, n=1).splits.values()] == [1, 1, 1]


def test_hh_rlhf_has_no_validation_split_so_one_is_drawn(hub):
    texts = [f"\n\nHuman: {topic} please\n\nAssistant: Hello!" for topic in TOPICS]
    rows = [{"chosen": t, "rejected": t} for t in texts]
    corpus = load_dialogues(hub({"train": rows[:8], "test": rows[8:]}))
    assert [len(corpus.splits[s]) for s in ("train", "validation", "test")] == [7, 1, 2]
    assert [d.opening for d in corpus.test] == ["bamboo please", "opera please"]
    assert len({d.id for d in corpus}) == 10


def test_without_a_test_split_all_is_split_anew(hub):
    rows = [{"messages": talk(i)} for i in range(10)]
    corpus = load_dialogues(hub({"train": rows[:8], "validation": rows[8:]}))
    assert [len(s) for s in corpus.splits.values()] == [8, 1, 1]
    assert len({d.id for d in corpus}) == 10, "rows of two splits have the same number"


def test_bad_rows_are_named_or_counted(hub):
    rows = [{"conversation": talk(i)} for i in range(6)]
    rows.insert(2, {"conversation": [TURNS[1]]})  # as in LMSYS-USP, which has rows without a user
    source = hub({"train": rows, "test": [{"conversation": talk(7)}]})
    with pytest.raises(UspError, match=r"chats/train, row 3, field conversation: no user turn"):
        load_dialogues(source)
    assert load_dialogues(source, on_bad="skip").skipped == {"no user turn": 1}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach the hub\nlong trace"), "ConnectionError: Couldn't reach"),
        (ValueError(), "ValueError: no reason given"),
        (FileNotFoundError("no such data set"), "no such data set"),
    ],
)
def test_a_hub_that_fails_is_one_sentence(hub, error, words):
    with pytest.raises(UspError) as caught:
        hub_rows(hub(error).removeprefix("hub:"))
    text = str(caught.value)
    assert text.startswith("hub:someone/chats could not be loaded") and "\n" not in text
    assert words in text and text.endswith("or give a local file")


def test_a_test_split_alone_cannot_be_trained_on(hub):
    with pytest.raises(UspError, match="hub:someone/chats: no training dialogue beside 1"):
        load_dialogues(hub({"test": [{"messages": talk(0)}]}))
