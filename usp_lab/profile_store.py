"""Profiles on disk while they are made: one line a dialogue, so that nothing is lost or done twice.

A line is on the disk before its dialogue counts as done. A run goes on from the lines that are there; a
last line that a crash cut short is taken off, and what failed is tried again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from usp_lab.errors import UspError
from usp_lab.files import atomic, whole_lines
from usp_lab.profiles import Profile
from usp_lab.store import open_alone

SUFFIX = ".jsonl"


class Record(BaseModel):
    """What became of one dialogue.

    Attributes:
        id: the dialogue's.
        run: identifies extractor and polisher with their settings.
        source: fingerprint of the dialogue's text.
        profile: what was found, with the profile's text; None where it failed.
        error: why it failed.
        cut: user turns left out because the dialogue did not fit.
    """

    model_config = ConfigDict(frozen=True)
    id: str
    run: str
    source: str
    profile: Profile | None = None
    error: str = ""
    cut: int = 0


class ProfileStore:
    """The records of one file, which no other run writes to meanwhile.

    Args:
        path: a .jsonl file, made with its folder at the first record; None keeps nothing on disk.
        run: fingerprint of extractor and polisher.
        sources: fingerprint of each dialogue, by id.

    Raises:
        UspError: another suffix, other contents, made with other settings or of other dialogues.
    """

    def __init__(self, path: str | Path | None, run: str, sources: Mapping[str, str]) -> None:
        self.path = None if path is None else Path(path)
        self.records: dict[str, Record] = {}
        self._run, self._sources, self._file, self._whole = run, sources, None, 0
        if self.path is not None and self.path.suffix != SUFFIX:
            raise UspError(f"{self.path} is no {SUFFIX} file; name one that ends in {SUFFIX}")
        if self.path is not None and self.path.exists():
            self._read()

    @property
    def done(self) -> dict[str, Record]:
        """What need not be made again."""
        return {k: r for k, r in self.records.items() if r.profile is not None}

    def __enter__(self) -> "ProfileStore":
        """Take the file; take off what a crash cut short, and failures that are to be tried again."""
        if self.path is None:
            return self
        self._open()
        if self.path.stat().st_size:  # it may have grown before the lock was ours
            self._read()
        self._file.truncate(self._whole)
        again = [k for k, r in self.records.items() if r.profile is None and k in self._sources]
        if again:
            for key in again:
                del self.records[key]
            with atomic(self.path) as temporary:
                temporary.write_bytes(_lines(self.records.values()))
            self._open()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, records: Iterable[Record]) -> None:
        """Add records; they are on the disk when this returns."""
        records = list(records)
        if self._file is not None and records:
            self._file.write(_lines(records))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.records.update((r.id, r) for r in records)

    def _open(self) -> None:
        self.__exit__()
        self._file = open_alone(self.path, "place")

    def _read(self) -> None:
        lines, cut = whole_lines(self.path)
        if not cut.startswith(b'{"id":'[: len(cut)]):
            raise UspError(f"{self.path} holds no profiles; name another place or delete it")
        self._whole = sum(len(line) + 1 for line in lines)
        self.records = {r.id: r for n, line in enumerate(lines, 1) if (r := self._parse(n, line))}

    def _parse(self, number: int, line: bytes) -> Record:
        where = f"{self.path} line {number}"
        try:
            r = Record.model_validate_json(line)
        except ValidationError:
            raise UspError(
                f"{where} is no profile's record ({line[:40]!r}); name another place or delete it"
            ) from None
        if r.run != self._run or self._sources.get(r.id, r.source) != r.source:
            what = "another extractor or polisher" if r.run != self._run else "another dialogue"
            raise UspError(
                f"{where} ({r.id}) was made by {what} (run {r.run}, now {self._run}); name another "
                "place or delete it"
            )
        return r


def read_records(path: str | Path) -> dict[str, Record]:
    """Return the records of a file by dialogue, whoever made them.

    Raises:
        UspError: a line that is none.
    """
    records = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            r = Record.model_validate_json(line)
        except ValidationError:
            raise UspError(f"{path} line {number} is no profile's record; build it again") from None
        records[r.id] = r
    return records


def _lines(records: Iterable[Record]) -> bytes:
    lines = (json.dumps(r.model_dump(), ensure_ascii=False) + "\n" for r in records)
    return "".join(lines).encode()
