"""Files: the checkout's root, atomic writes, hashes, and the folder that a run goes to."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from usp_lab.errors import UspError

POPULATION = "population"  # the `data` parameter's default
HUB = "hub:"
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def find_root() -> Path:
    """Return the checkout that we are in.

    It is $USP_LAB_ROOT, else the nearest folder upwards with notebooks/presets.yml, else the folder
    that this package lies in.

    Raises:
        UspError: none of these.
    """
    if given := os.environ.get("USP_LAB_ROOT"):
        return Path(given).resolve()
    for folder in [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]]:
        if (folder / "notebooks" / "presets.yml").is_file():
            return folder
    raise UspError(
        f"no notebooks/presets.yml at or above {Path.cwd()}; change into a checkout of usp-lab"
    )


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well.

    Args:
        path: the file to write, in an existing folder.
        durable: wait until the data are on the disk before the rename.

    Raises:
        UspError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp{os.getpid()}-{path.name}")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UspError(
                f"no disk space left for {path}; free some and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; give it that name if the block ends well, else remove it."""
    part = folder.with_name(f".tmp{os.getpid()}-{folder.name}")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write JSON atomically: NaN and infinities as null, numpy's as numbers, paths as text."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path, durable=durable) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict | None:
    """Return a JSON object, or None where there is none or it is not readable."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Return a file's whole lines without their ends, and what a crash cut short after the last."""
    *lines, cut = path.read_bytes().split(b"\n")
    return lines, cut


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files in a folder with their names."""
    path = Path(path)
    if path.is_dir():
        lines = [
            f"{p.relative_to(path)} {sha256_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_label(
    preset: str,
    data: str | None = None,
    name: str | None = None,
    passed: Mapping[str, object] | None = None,
) -> str:
    """Return the folder under runs/: the preset, and for a variant a name, given or derived.

    >>> run_label("tiny"), run_label("tiny", "chats/arena dev.jsonl.gz")
    ('tiny', 'tiny+arena-dev')
    >>> run_label("tiny", name="again"), run_label("tiny", passed={"seed": "1"})
    ('tiny+again', 'tiny+adf590')
    """
    parts = []
    if data:
        stem = Path(data.removeprefix(HUB)).name
        for suffix in DATA_SUFFIXES:
            stem = stem.removesuffix(suffix)
        parts.append(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-."))
    if passed:
        parts.append(hashlib.sha256(json.dumps(passed, sort_keys=True).encode()).hexdigest()[:6])
    name = name or "-".join(filter(None, parts))
    return f"{preset}+{name}" if name else preset


def parameter_cell(notebook: Mapping) -> tuple[int, str] | None:
    """Return index and source of the cell tagged `parameters`."""
    for i, cell in enumerate(notebook.get("cells", [])):
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return i, "".join(cell["source"])
    return None


@contextmanager
def room_on_disk(out: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full while training; libraries wrap that in errors of their own."""
    try:
        yield
    except Exception as e:
        full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(e) or "inline_container" in str(e):  # torch's writer
            raise UspError(
                f"no disk space left while training into {out}; free some and start again, the "
                "last checkpoint is kept"
            ) from e
        raise
