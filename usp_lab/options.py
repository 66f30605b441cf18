"""What the command lines of trainings share: where dialogues come from, options from a dataclass, how errors end."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from usp_lab.errors import UspError

SOURCES = "population, a .jsonl/.jsonl.gz/.parquet file, a folder with splits, or hub:NAME"


def add_source(parser: argparse.ArgumentParser, out: str) -> None:
    """Add --data, --n and --on-bad (of `load_dialogues`), and --out, which ``out`` explains."""
    parser.add_argument("--data", default="population", help=SOURCES)
    parser.add_argument("--out", required=True, help=out)
    parser.add_argument("--n", type=int, default=None, help="dialogues at the most")
    parser.add_argument("--on-bad", choices=["raise", "skip"], default="raise", help="bad rows")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with one sentence and code 2 where a `UspError` is raised."""
    try:
        yield
    except UspError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None


def add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add an option for every field of a dataclass of plain defaults, with what its docstring says."""
    said = field_help(kind)
    for f in fields(kind):
        how = {"type": type(f.default)}
        if isinstance(f.default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        text = f"{said.get(f.name, '')} (default: {f.default!r})".replace("%", "%%").strip()
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=f.default, help=text, **how)


def field_help(kind: type) -> dict[str, str]:
    """Return what the section "Attributes" of a docstring says of each name; names before a colon share a text."""
    text = (kind.__doc__ or "").partition("Attributes:")[2]
    entries = re.split(r"\n {8}(?=\S)", text)
    out = {}
    for entry in entries:
        for part in re.split(r"(?<=[.;]) +(?=[a-z_0-9]+: )", " ".join(entry.split())):
            names, colon, what = part.partition(": ")
            if colon and re.fullmatch(r"[a-z_0-9]+(, [a-z_0-9]+)*", names):
                out |= dict.fromkeys(names.split(", "), what.replace("``", ""))
    return out
