"""Rows of dialogue files: read line by line, checked, with the place and value of what is wrong."""

import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from usp_lab.chat import Message, read_profile
from usp_lab.errors import UspError


class _BadRow(Exception):
    """What is wrong with a row: reason, field (None for the whole row), what was there."""

    def __init__(self, reason: str, where: str | None, seen: object) -> None:
        super().__init__(reason)
        self.reason, self.where, self.seen = reason, where, seen


def split_file(folder: Path, split: str) -> Path | None:
    """Return the folder's file of a split, whichever type it has."""
    paths = (folder / f"{split}{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".parquet"))
    return next((p for p in paths if p.exists()), None)


def file_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, row), row by row; one that cannot be read is a `_BadRow`.

    Raises:
        UspError: a file that is not there, of another type, or damaged.
    """
    if not path.exists():
        raise UspError(
            f"{path} does not exist; give a .jsonl, .jsonl.gz or .parquet file, "
            "a folder with splits, 'population' or 'hub:NAME'"
        )
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_rows(path)
    else:
        raise UspError(
            f"{path}: unknown file type {path.suffix!r}; give .jsonl, .jsonl.gz or .parquet"
        )


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError) as e:
        reason = str(e).partition("\n")[0].rstrip(".")
        raise UspError(
            f"{path} is not a readable parquet file ({reason}); fetch or write it again"
        ) from e


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    line = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as f:
            for line, raw in enumerate(f, 1):
                if raw.strip():
                    yield f"line {line}", _json_row(raw.removeprefix(BOM_UTF8))
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UspError(
            f"{path} is a damaged or truncated gzip file after line {line} ({e}); "
            "fetch or write it again"
        ) from e
    except OSError as e:
        raise UspError(
            f"{path} cannot be read ({e.strerror or e}); check the path and its permissions"
        ) from e


def _json_row(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as e:
        return _BadRow("not UTF-8", None, raw[max(e.start - 10, 0) : e.start + 10])
    except json.JSONDecodeError as e:
        seen = e.doc[max(e.pos - 20, 0) : e.pos + 20]
        return _BadRow(f"not JSON ({e.msg} at character {e.pos})", None, seen)
    except (ValueError, RecursionError) as e:  # a number of 5,000 digits; 10,000 brackets
        return _BadRow(f"not JSON ({e})", None, raw[:40])


def valid_rows(
    rows: Iterable[tuple[str, object]],
    name: str,
    on_bad: str,
    skipped: Counter,
    seen: set[str],
    profile_alone: bool = False,
) -> Iterator[dict]:
    """Yield the fields of each good row.

    Args:
        rows: (place, row), as from `file_rows` and `hub_rows`.
        name: of the file, for messages and for the ids of rows that have none.
        on_bad: "raise" a bad row, or "skip" it.
        skipped: counts bad rows by reason.
        seen: the ids so far, over all files of a data set; added to.
        profile_alone: a row with a profile and no conversation is good, too.

    Raises:
        UspError: a bad row under "raise".
    """
    for place, row in rows:
        try:
            if isinstance(row, _BadRow):
                raise row
            fields = _to_fields(row, f"{name}:{place.split()[-1]}", profile_alone)
            if fields["id"] in seen:
                raise _BadRow("id occurs twice", "id", fields["id"])
        except _BadRow as bad:
            if on_bad == "raise":
                field = f", field {bad.where}" if bad.where else ""
                raise UspError(
                    f"{name}, {place}{field}: {bad.reason}, saw {repr(bad.seen)[:120]}; "
                    "mend the row or skip bad rows (--on-bad skip)"
                ) from bad
            skipped[bad.reason.split(" (")[0]] += 1
            continue
        seen.add(fields["id"])
        yield fields


def _to_fields(row: object, default_id: str, profile_alone: bool) -> dict:
    """Validate one row of the LMSYS-USP form or of the `messages` form."""
    if not isinstance(row, Mapping):
        raise _BadRow("row is not an object", None, row)
    name = next((f for f in ("conversation", "messages") if row.get(f) is not None), None)
    profile = _text(row, "profile", str)
    if name is None and not (profile and profile_alone):
        raise _BadRow("no conversation", "conversation", sorted(row))
    messages = _to_messages(row[name], name) if name else []
    first = 0
    if messages and messages[0]["role"] == "system":
        first, profile = 1, profile or read_profile(messages[0]["content"]) or None
    if name:
        _check_turns(messages, name, first)
    return {
        "id": _text(row, "id", str | int) or default_id,
        "messages": messages[first:],
        "profile": profile,
        "user_id": _text(row, "user_id", str | int),
        "source": _text(row, "source", object) or "",
        "truth": _truth(row),
    }


def _text(row: Mapping, field: str, kind) -> str | None:
    """Return a field as text, None where it is missing or blank."""
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, kind):
        raise _BadRow(f"{field} is not text", field, value)
    text = _encodable(str(value), field)
    return text if text.strip() else None


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can spell half a character: "\ud83d"
        seen = text[max(e.start - 10, 0) : e.start + 10]
        raise _BadRow("half a surrogate pair", where, seen) from e
    return text


def _truth(row: Mapping) -> dict:
    truth = row.get("truth") or {}
    try:
        truth = json.loads(truth) if isinstance(truth, str) else truth
    except json.JSONDecodeError as e:
        raise _BadRow("truth is not an object", "truth", truth) from e
    if not isinstance(truth, dict):
        raise _BadRow("truth is not an object", "truth", truth)
    return truth


def _to_messages(turns: object, name: str) -> list[Message]:
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise _BadRow("conversation is not a list", name, turns)
    messages = []
    for i, m in enumerate(turns):
        where = f"{name}[{i}]"
        if not isinstance(m, Mapping) or not isinstance(m.get("role"), str):
            raise _BadRow("message without role", where, m)
        if not isinstance(m.get("content"), str):
            raise _BadRow("message content is not text", f"{where}.content", m.get("content"))
        content = _encodable(m["content"], f"{where}.content")
        messages.append({"role": m["role"], "content": content})
    return messages


def _check_turns(messages: Sequence[Message], name: str, first: int) -> None:
    """Raise unless, from index ``first``, the user begins, roles alternate, nothing is empty."""
    if not any(m["role"] == "user" for m in messages):
        raise _BadRow("no user turn", name, [m["role"] for m in messages])
    for i, m in enumerate(messages[first:]):
        where = f"{name}[{first + i}]"
        if m["role"] != ("user", "assistant")[i % 2]:
            raise _BadRow("roles do not alternate from user", f"{where}.role", m["role"])
        if not m["content"].strip():
            raise _BadRow("empty message", f"{where}.content", m["content"])
