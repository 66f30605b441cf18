"""Command-line options from a dataclass: one a field, its help from the docstring."""

import argparse
import re
from dataclasses import fields


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
