"""docs/paper-trace.md against presets.yml and the code, both ways: nothing untraced, no trace untrue."""

import ast
import importlib
import inspect
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from usp_lab.notebooks import read_notebooks
from usp_lab.presets import read_presets
from usp_lab.sft_settings import SftSettings

ROOT = Path(__file__).resolve().parents[1]
TRACE = ROOT / "docs" / "paper-trace.md"
HEADER = ["what", "value", "stated", "where we use it", "why"]
HUB_ID = re.compile(r"(hub:)?[A-Za-z][\w.-]*/[\w.-]+")
NOTEBOOK = re.compile(r"(all|\d\d_\w+)\.(\w+)")


@dataclass(frozen=True)
class Row:
    what: str
    value: str
    stated: str
    places: tuple[str, ...]
    why: str


def read_rows(text: str) -> list[Row]:
    """Return the rows of all tables with `HEADER`; a row of another width fails."""
    rows, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [c.strip().replace(r"\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells == HEADER:
            inside = True
        elif inside and set(line) - set("|-"):
            what, value, stated, places, why = cells
            [value] = re.findall(r"`(.*)`", value)
            rows.append(Row(what, value, stated, tuple(re.findall(r"`(.*?)`", places)), why))
    return rows


ROWS = read_rows(TRACE.read_text(encoding="utf-8"))
PLACES = [(row, place) for row in ROWS for place in row.places]
NOTEBOOKS = read_notebooks(ROOT)
PAPER = read_presets(ROOT, NOTEBOOKS)["paper"]


def resolved(name: str) -> dict[str, object]:
    """Return a notebook's parameters at preset paper, without those that are the runner's own."""
    nb = NOTEBOOKS[name]
    common = {k: v for k, v in PAPER.get("all", {}).items() if k in nb.defaults}
    return {k: v for k, v in (nb.defaults | common | PAPER.get(name, {})).items() if k != "preset"}


def agrees(text: str, value: object) -> bool:
    r"""Tell whether a cell of the table says this value; in texts, "\n" may stand for a line break."""
    if isinstance(value, str):
        return value in (text, text.replace("\\n", "\n"))
    try:
        said = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return isinstance(said, bool) == isinstance(value, bool) and said == value


@cache
def training_arguments(folder: Path):
    from usp_lab.trainer import arguments

    return arguments(SftSettings(), folder, 1000)


def in_code(place: str, folder: Path) -> object:
    """Return the value that a place in the code holds."""
    if place == "SFTConfig.warmup_share":
        return training_arguments(folder).warmup_steps / 1000
    if place.startswith("SFTConfig."):
        found = getattr(training_arguments(folder), place.partition(".")[2])
        return getattr(found, "value", found)  # of an enumeration
    path, call, argument = re.fullmatch(r"([\w.]+?)(\((\w*)\))?", place).groups()
    parts = path.split(".")
    value = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        value = getattr(value, part)
    if argument:
        return inspect.signature(value).parameters[argument].default
    return value() if call else value


def test_each_row_says_where_its_value_is_stated_and_ours_say_why():
    assert len(ROWS) > 80
    for row in ROWS:
        assert row.stated in ("[r]", "[s]", "ours"), row
        assert row.why or (row.stated != "ours" and row.places), f"{row.what}: say why"
    assert len(PLACES) == len({(r.value, p) for r, p in PLACES})


@pytest.mark.parametrize("name", sorted({m[1] for _, p in PLACES if (m := NOTEBOOK.fullmatch(p))}))
def test_notebooks_hold_the_values_that_are_traced(name):
    rows = [(r, m[2]) for r, p in PLACES if (m := NOTEBOOK.fullmatch(p)) and m[1] == name]
    if name != "all" and name not in NOTEBOOKS:
        pytest.skip(f"notebook {name} is not there yet: {len(rows)} rows of the trace wait for it")
    for row, parameter in rows:
        readers = [name]
        if name == "all":
            having = [n for n in NOTEBOOKS if parameter in resolved(n)]
            readers = [n for n in having if f"{n}.{parameter}" not in {p for _, p in PLACES}]
        assert readers, parameter
        for reader in readers:
            values = resolved(reader)
            assert parameter in values, f"{reader} has no {parameter}"
            assert agrees(row.value, values[parameter]), (reader, row, values[parameter])


def test_code_holds_the_values_that_are_traced(tmp_path):
    places = [(row, p) for row, p in PLACES if not NOTEBOOK.fullmatch(p)]
    assert len(places) > 10
    for row, place in places:
        assert agrees(row.value, in_code(place, tmp_path)), (row, in_code(place, tmp_path))


def untraced(rows: list[Row]) -> list[str]:
    """Return what preset paper sets and these rows do not name."""
    traced, missing = {p for row in rows for p in row.places}, []
    for name, nb in NOTEBOOKS.items():
        for parameter, value in resolved(name).items():
            places = {f"{name}.{parameter}", f"all.{parameter}"}
            if value != nb.defaults[parameter] and not places & traced:
                missing.append(f"{name}.{parameter}")
    return missing


def test_each_parameter_that_the_preset_changes_is_traced():
    assert not untraced(ROWS)


def test_each_hub_id_is_traced():
    everywhere = (v for s in PAPER.values() for v in s.values() if isinstance(v, str))
    ids = {v for v in everywhere if HUB_ID.fullmatch(v)}
    assert len(ids) > 3 and ids <= {row.value for row in ROWS}


def test_a_wrong_or_missing_row_is_seen(tmp_path):
    [row] = [r for r in ROWS if "03_conditional_sft.batch" in r.places]
    assert untraced([r for r in ROWS if r != row]) == ["03_conditional_sft.batch"]
    assert agrees(row.value, 64) and not agrees(replace(row, value="32").value, 64)
    assert not agrees("1", True) and not agrees("x", 1) and agrees("5e-5", 0.00005)
    assert agrees(r"a\nb", "a\nb") and not agrees(r"a\nb", "ab")
    with pytest.raises(AttributeError):
        in_code("usp_lab.chat.NOTHING", tmp_path)
    with pytest.raises(ValueError, match="unpack"):
        read_rows("| what | value | stated | where we use it | why |\n|---|\n| a | `1` |\n")
