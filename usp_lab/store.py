"""Simulated dialogues on disk: lines are added as dialogues end, so that nothing is lost or done twice.

A line is on the disk before the next dialogue is begun in its place. A run goes on from the lines
that are there; a last line that a crash cut short is taken off, and dialogues that failed are tried
again. A finished run leaves a parquet file of the same dialogues beside the lines.
"""

import errno
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.files import atomic, whole_lines

try:
    import fcntl
except ImportError:  # Windows: two runs must not be given one file
    fcntl = None

FAILED = "failed"  # the stop reason of a dialogue that an endpoint kept from going on
_SUFFIX = ".jsonl"


class Simulated(Dialogue):
    """A simulated dialogue; ``id`` is its target's.

    ``stop`` says why it ended (``error`` more, where it failed), ``run`` identifies the settings and
    ``target`` the profile or true dialogue it was made with.
    """

    stop: str
    run: str
    target: str
    replicate: int = 0
    error: str = ""


Key = tuple[int, str]  # replicate, id of the target


class Store:
    """The dialogues of one .jsonl file, which no other run writes to meanwhile.

    Args:
        out: the file; made with its folder when the first dialogue ends. None keeps nothing.
        run_of: gives the fingerprint of the settings with a replicate.
        replicates: those asked for. A file may hold later ones, and other targets, beside them.
        targets: the fingerprint of what each target tells a simulator, by the target's id.

    Raises:
        UspError: another suffix, no simulated dialogues, other settings, weights or targets,
            written to by another run.
    """

    def __init__(
        self,
        out: str | Path | None,
        run_of: Callable[[int], str],
        replicates: range,
        targets: Mapping[str, str],
    ) -> None:
        self.out = None if out is None else Path(out)
        self.dialogues: dict[Key, Simulated] = {}
        self._run_of, self._replicates, self._targets = run_of, replicates, targets
        self._file, self._size, self._whole = None, 0, 0  # bytes read, and those of whole lines
        if self.out is not None and self.out.suffix != _SUFFIX:
            raise UspError(f"out={self.out} is no {_SUFFIX} file; name one that ends in {_SUFFIX}")
        if self.out is not None and self.out.exists():
            self._read()

    @property
    def done(self) -> dict[Key, Simulated]:
        """What need not be simulated again."""
        return {k: d for k, d in self.dialogues.items() if d.stop != FAILED}

    def __enter__(self) -> "Store":
        """Begin to write: take off what a crash cut short, and failed dialogues to be tried again."""
        if self.out is None or not self.out.exists():
            return self
        self._open(begun=True)
        if self.out.stat().st_size != self._size:  # added to before the lock was ours
            self._read()
        self._file.truncate(self._whole)
        again = [k for k, d in self.dialogues.items() if d.stop == FAILED and self._asked(k)]
        if again:
            for key in again:
                del self.dialogues[key]
            with atomic(self.out) as temporary:
                temporary.write_bytes(_lines(self.dialogues.values()))
            self._open(begun=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _asked(self, key: Key) -> bool:
        return key[0] in self._replicates and key[1] in self._targets

    def _open(self, begun: bool) -> None:
        self.__exit__()
        self._file = open_alone(self.out, "file", new=not begun)

    def _read(self) -> None:
        lines, cut = whole_lines(self.out)
        if not cut.startswith(b'{"id":'[: len(cut)]):
            raise UspError(
                f"{self.out} holds no simulated dialogues; name another file or delete it"
            )
        self._whole, self.dialogues = sum(len(line) + 1 for line in lines), {}
        self._size = self._whole + len(cut)
        for number, line in enumerate(lines, 1):
            d = self._parse(number, line)
            self.dialogues[d.replicate, d.id] = d

    def _parse(self, number: int, line: bytes) -> Simulated:
        where = f"{self.out} line {number}"
        try:
            d = Simulated.model_validate_json(line)
        except ValidationError as e:
            raise UspError(
                f"{where} is no simulated dialogue ({line[:40]!r}); name another file or delete it"
            ) from e
        same_target = self._targets.get(d.id, d.target) == d.target
        earlier = d.replicate < self._replicates.start
        if d.run != self._run_of(d.replicate) or not same_target or earlier:
            raise UspError(
                f"{where} was made with other settings, weights or targets (run {d.run}, now "
                f"{self._run_of(self._replicates.start)}); name another file or delete it"
            )
        return d

    def add(self, dialogues: Sequence[Simulated]) -> None:
        """Add dialogues that have ended; they are on the disk when this returns.

        Raises:
            UspError: the disk is full, another run has begun the file meanwhile.
        """
        self.dialogues.update(((d.replicate, d.id), d) for d in dialogues)
        if self.out is None or not dialogues:
            return
        try:
            if self._file is None:
                self._open(begun=False)
            self._file.write(_lines(dialogues))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UspError(
                    f"no disk space left for {self.out}; free some and run again, it goes on from "
                    "there"
                ) from e
            raise

    @property
    def table(self) -> Path | None:
        """The parquet file."""
        return None if self.out is None else self.out.with_suffix(".parquet")

    def write_table(self, first: Sequence[Key]) -> None:
        """Write all dialogues as parquet beside the lines, those of ``first`` in front in its order.

        Nested values whose shape varies (``truth``, ``meta``) are JSON text. Without pyarrow, which
        simulating does not need, there is none.
        """
        if self.out is None or importlib.util.find_spec("pyarrow") is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        keys = [*first, *sorted(self.dialogues.keys() - set(first))]
        rows = [_row(self.dialogues[k]) for k in keys]
        with atomic(self.table) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, _schema(pa)), temporary)


def _lines(dialogues: Iterable[Simulated]) -> bytes:
    lines = (json.dumps(d.model_dump(), ensure_ascii=False) + "\n" for d in dialogues)
    return "".join(lines).encode()


def _row(d: Simulated) -> dict:
    row = d.model_dump()
    row["truth"] = _json(d.truth)
    row["messages"] = [{**m, "meta": _json(m.get("meta"))} for m in d.messages]
    return row


def _json(value: dict | None) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def _schema(pa):
    text = pa.string()
    columns = dict.fromkeys(Simulated.model_fields, text)
    message = pa.struct([("role", text), ("content", text), ("meta", text)])
    columns |= {"messages": pa.list_(message), "replicate": pa.int64()}
    return pa.schema(list(columns.items()))


def open_alone(path: Path, other: str, new: bool = False):
    """Open a file to write at its end, under a lock that ends with this process.

    Args:
        path: made, with its folder, where it is absent.
        other: what may be named in its place, for the error.
        new: nobody may have written to it.

    Raises:
        UspError: another run writes to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")  # once the lock is ours it must still be the file of that name
    alone = _lock(file) and os.path.samestat(os.fstat(file.fileno()), path.stat())
    if not alone or (new and file.tell() > 0):
        file.close()
        raise UspError(
            f"another run is writing to {path}; wait until it ends, or name another {other}"
        )
    _sync_folder(path.parent)
    return file


def _lock(file) -> bool:
    """Take a file for this process; False where another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk, too."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
