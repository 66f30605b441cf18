"""Dialogues in and out: the population, hub data sets, files; splits, fingerprints, data cards.

corpus = load_dialogues("population", n=2000)
corpus = load_dialogues("dialogues.jsonl.gz")  # or a folder with splits
corpus = load_dialogues("hub:wangkevin02/LMSYS-USP", on_bad="skip")
write_dataset(corpus, "my_dataset")  # LMSYS-USP form, splits and a data card
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from usp_lab.chat import Message
from usp_lab.errors import UspError
from usp_lab.files import atomic, whole_folder
from usp_lab.hub import hub_rows
from usp_lab.rows import file_rows, split_file, valid_rows
from usp_lab.splits import SHARES, split_groups, without_leaks

SPLITS = ("train", "validation", "test", "test_new_phrasings", "test_new_topics")
POPULATION_SIZE = 10_000
_SHARES = {"validation": 0.04, "test": 0.04, "test_new_phrasings": 0.03, "test_new_topics": 0.03}


class Dialogue(BaseModel):
    """One conversation: user first, roles alternating, no empty message.

    ``truth`` is the population's alone.
    """

    model_config = ConfigDict(frozen=True)
    id: str
    messages: list[Message]
    profile: str | None = None
    user_id: str | None = None
    source: str = ""
    truth: dict = {}

    @property
    def user_turns(self) -> list[str]:
        """The user's texts in order."""
        return [m["content"] for m in self.messages if m["role"] == "user"]

    @property
    def opening(self) -> str:
        """The user's first text."""
        return self.messages[0]["content"]

    @property
    def n_turns(self) -> int:
        """Number of user turns."""
        return len(self.user_turns)


@dataclass(frozen=True)
class Corpus(Sequence):
    """Dialogues in splits that share no user and no near-duplicate opening.

    As a sequence it is all of them; ``skipped`` counts what was left out, by reason.
    """

    source: str
    splits: dict[str, list[Dialogue]]
    skipped: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, i):
        return self.all[i]

    def __len__(self) -> int:
        return len(self.all)

    @cached_property
    def all(self) -> list[Dialogue]:
        """Every dialogue, split by split."""
        return [d for split in self.splits.values() for d in split]

    @property
    def name(self) -> str:
        """The source; of a file or folder its name, not where it lies."""
        given = self.is_population or self.source.startswith("hub:")
        return self.source if given else Path(self.source).resolve().name

    @property
    def is_population(self) -> bool:
        """Whether the truth is known."""
        return self.source == "population"

    @property
    def has_profiles(self) -> bool:
        """Whether every dialogue has a profile."""
        return all(d.profile for d in self.all)

    @property
    def train(self) -> list[Dialogue]:
        """Dialogues to fit on."""
        return self.splits["train"]

    @property
    def validation(self) -> list[Dialogue]:
        """Dialogues to choose on: early stopping, thresholds, calibration."""
        return self.splits["validation"]

    @property
    def test(self) -> list[Dialogue]:
        """Dialogues to report on: new users."""
        return self.splits["test"]

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits over all texts, profiles, users and splits."""
        digest = hashlib.sha256()
        for split, dialogues in self.splits.items():
            for d in dialogues:
                row = [split, d.id, d.user_id, d.profile, [m["content"] for m in d.messages]]
                digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()[:12]


def load_dialogues(
    source: str | Path = "population",
    *,
    n: int | None = None,
    seed: int = 0,
    on_bad: str = "raise",
    topics: int | None = None,
    phrasings: int = 0,
) -> Corpus:
    """Load dialogues and split them.

    Args:
        source: "population"; "hub:NAME", in LMSYS-USP form, with `messages`, hh-rlhf's `chosen` or
            OpenAssistant's message rows; a file .jsonl, .jsonl.gz or .parquet whose rows have
            `conversation` or `messages`; a folder of such files, one a split, as `write_dataset`
            makes. Published splits are kept, less what shares a user or opening with another.
        n: how many dialogues at the most, of each published split; the population has 10,000.
        seed: of the population, and of the split of what comes without one.
        on_bad: "raise" names the first bad row; "skip" leaves bad rows out and counts them by
            reason in ``skipped``.
        topics, phrasings: make the population's world smaller, see `synthetic.users`.

    Raises:
        UspError: unknown source, unreadable file, bad row under "raise", nothing left, no training
            dialogue, too few groups to split.
    """
    if on_bad not in ("raise", "skip"):
        raise UspError(f"on_bad must be 'raise' or 'skip', not {on_bad!r}")
    if n is not None and n < 1:
        raise UspError(f"n must be at least 1, not {n}")
    source = str(source)
    if source == "population":
        return _population(n or POPULATION_SIZE, seed, topics, phrasings)
    skipped: Counter[str] = Counter()
    read = _read(source, n, on_bad, skipped)
    if not any(read.values()):
        why = f"; skipped {dict(skipped)}" if skipped else ""
        raise UspError(f"{source} holds no usable dialogue{why}; give at least three good rows")
    try:
        splits = _split(read, n, seed, skipped)
    except UspError as e:
        raise UspError(f"{source}: {e}") from e
    return Corpus(source, splits, dict(skipped))


def _read(source: str, n: int | None, on_bad: str, skipped: Counter) -> dict[str, list[Dialogue]]:
    """Return the good dialogues of each published split, under "all" where there is none."""
    path = Path(source)
    if source.startswith("hub:"):
        rows = {s: (f"{path.name}/{s}", r) for s, r in hub_rows(source[4:]).items()}
    elif path.is_dir():
        files = {s: f for s in SPLITS if (f := split_file(path, s))}
        if not files:
            raise UspError(
                f"{source} has no train, validation or test file (.jsonl, .jsonl.gz, .parquet); "
                "name a file or a data set folder"
            )
        folder = path.resolve().name
        rows = {s: (f"{folder}/{f.name}", file_rows(f)) for s, f in files.items()}
    else:
        rows = {"all": (path.name, file_rows(path))}
    seen: set[str] = set()
    good = {s: valid_rows(r, name, on_bad, skipped, seen) for s, (name, r) in rows.items()}
    return {s: [Dialogue(**fields) for fields in islice(r, n)] for s, r in good.items()}


def _split(
    read: dict[str, list[Dialogue]], n: int | None, seed: int, skipped: Counter
) -> dict[str, list[Dialogue]]:
    """Keep published splits, less what would leak between them; draw those that are missing."""
    if not read.get("test"):
        return split_groups([d for dialogues in read.values() for d in dialogues][:n], seed)
    splits, lost = without_leaks(read)
    for split, count in lost.items():
        skipped[f"{split} dialogue shares a user or an opening with another split"] = count
    if not splits.get("train"):
        raise UspError(
            f"no training dialogue beside {len(splits['test'])} for testing; "
            "give a train split, or one file to be split"
        )
    if not splits.get("validation"):
        splits |= split_groups(splits["train"], seed, {"validation": SHARES["validation"]})
    return {s: splits.pop(s) for s in SPLITS if s in splits} | splits


# --- the population -------------------------------------------------------------------------------


def _population(n: int, seed: int, topics: int | None, phrasings: int) -> Corpus:
    """Draw the population, or read it from the cache (same n, seed and fingerprint)."""
    from usp_lab import users

    path = (
        _cache_dir()
        / f"population-{users.fingerprint()}-{n}-{topics or 'all'}-{phrasings or 'all'}-{seed}.jsonl"
    )
    if not path.exists():
        splits = _draw_population(n, seed, topics, phrasings)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UspError(
                f"the cache folder {path.parent} cannot be made ({e.strerror}); "
                "set USP_LAB_CACHE to a folder that can be written"
            ) from e
        with atomic(path, durable=False) as part, part.open("w", encoding="utf-8") as f:
            for split, dialogues in splits.items():
                f.writelines(json.dumps([split, d.model_dump()]) + "\n" for d in dialogues)
    splits = {}
    with path.open(encoding="utf-8") as f:
        for line in f:
            split, row = json.loads(line)
            splits.setdefault(split, []).append(Dialogue.model_construct(**row))
    return Corpus("population", splits)


def _draw_population(
    n: int, seed: int, topics: int | None, phrasings: int
) -> dict[str, list[Dialogue]]:
    from usp_lab import synthetic

    sizes = {s: max(2, round(n * share)) for s, share in _SHARES.items()}
    splits = {
        "train": synthetic.draw("train", max(2, n - sum(sizes.values())), seed, topics, phrasings)
    }
    for split, size in sizes.items():
        sealed = {
            "sealed_phrasings": split == "test_new_phrasings",
            "sealed_topics": split == "test_new_topics",
        }
        splits[split] = synthetic.draw(split, size, seed, topics, phrasings, **sealed)
    return without_leaks(splits)[0]


def _cache_dir() -> Path:
    return Path(os.environ.get("USP_LAB_CACHE") or Path.home() / ".cache" / "usp_lab")


# --- out ------------------------------------------------------------------------------------------


def write_dataset(
    corpus: Corpus, folder: str | Path, name: str = "dialogues", licence: str = "other"
) -> Path:
    """Write a data set of LMSYS-USP's form: a .jsonl file a split, and a data card.

    Whole or not at all: it is written beside the folder and renamed.

    Raises:
        UspError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UspError(f"{folder} exists and is not empty; name a new folder or remove it first")
    splits = {s: d for s, d in corpus.splits.items() if d}
    try:
        with whole_folder(folder) as part:
            for split, dialogues in splits.items():
                with (part / f"{split}.jsonl").open("w", encoding="utf-8") as f:
                    f.writelines(json.dumps(_row(d), ensure_ascii=False) + "\n" for d in dialogues)
            card = _card(corpus, splits, name, licence)
            (part / "README.md").write_text(card, encoding="utf-8")
    except OSError as e:
        raise UspError(
            f"{folder} could not be written ({e.strerror or e}); free space or name another folder"
        ) from e
    return folder


def _row(d: Dialogue) -> dict:
    """Return a dialogue in LMSYS-USP's form; the truth, whose shape varies, is JSON text."""
    return {
        "id": d.id,
        "user_id": d.user_id,
        "source": d.source,
        "profile": d.profile,
        "conversation": [{"role": m["role"], "content": m["content"]} for m in d.messages],
        "truth": json.dumps(d.truth, ensure_ascii=False) if d.truth else None,
    }


def _card(corpus: Corpus, splits: dict[str, list[Dialogue]], name: str, licence: str) -> str:
    """Return the data card; its columns are typed, so that a split without profiles loads too."""
    files = "\n".join(f"  - split: {s}\n    path: {s}.jsonl" for s in splits)
    texts = ("id", "user_id", "source", "profile", "truth")
    columns = "\n".join(f"  - name: {c}\n    dtype: string" for c in texts)
    table = "\n".join(
        f"| {s} | {len(d):,} | {sum(x.n_turns for x in d) / len(d):.2f} "
        f"| {sum(bool(x.profile) for x in d) / len(d):.0%} "
        f"| {len({x.user_id for x in d} - {None}):,} |"
        for s, d in splits.items()
    )
    skipped = "".join(f"\n- left out: {n:,} ({why})" for why, n in corpus.skipped.items())
    return f"""---
license: {licence}
language: [en]
task_categories: [text-generation]
configs:
- config_name: default
  data_files:
{files}
dataset_info:
  features:
{columns}
  - name: conversation
    list:
    - name: role
      dtype: string
    - name: content
      dtype: string
---

# {name}

Human-assistant dialogues in the form of LMSYS-USP (arXiv 2502.18968): `profile` (text or null) and
`conversation` (user first, roles alternating).

| split | dialogues | user turns a dialogue | with profile | known users |
|---|---|---|---|---|
{table}

- source: {corpus.name}
- fingerprint: {corpus.fingerprint}
- no user and no group of near-duplicate openings is in two splits{skipped}
"""
