"""Notebooks read without running them: their parameters, their prose, and what they need.

Everything here works on the source alone, by `ast`, so that the command line imports neither torch
nor the notebooks' modules.
"""

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from usp_lab.errors import UspError
from usp_lab.files import parameter_cell

NAME = re.compile(r"\d\d_[A-Za-z0-9_]+")
SET_BY_RUNNER = ("preset", "data", "on_bad")
REQUIRED = {"preset": "tiny", "data": "population", "on_bad": "raise", "seed": 0}


@dataclass(frozen=True)
class Notebook:
    """A notebook's source: what the runner needs to know of it.

    Attributes:
        cells: sources of the code cells, without the parameters cell.
        defaults: parameter -> default, the preset `tiny`.
        help: parameter -> its trailing comment.
        prose: sources of the markdown cells.
    """

    name: str
    path: Path
    cells: tuple[str, ...]
    defaults: dict[str, object]
    help: dict[str, str]
    prose: tuple[str, ...]

    @cached_property
    def trees(self) -> list[ast.Module]:
        """Parsed code cells."""
        trees = []
        for i, source in enumerate(self.cells):
            try:
                trees.append(ast.parse(blank_magics(source)))
            except SyntaxError as error:
                raise UspError(
                    f"{self.path.name}: line {error.lineno} of code cell {i + 1} after the "
                    f"parameters is not Python ({error.msg}); correct it"
                ) from None
        return trees

    @property
    def title(self) -> str:
        """First heading."""
        lines = [line for text in self.prose for line in text.splitlines()]
        return next((line.lstrip("# ") for line in lines if line.startswith("# ")), self.name)

    @property
    def question(self) -> str:
        """The line of prose that begins with "Question", else the first one below the title."""
        lines = [line.strip() for text in self.prose for line in text.splitlines()]
        below = [line for line in lines if line and not line.startswith("#")]
        return self.line("Question") or (below[0] if below else "")

    def line(self, word: str) -> str:
        """Return the first line of prose that begins with a word, as "Cost", without markup."""
        for text in self.prose:
            for line in text.splitlines():
                plain = re.sub(r"[*_`]", "", line).lstrip("-> ").strip()
                if plain.lower().startswith(word.lower()):
                    return plain
        return ""

    def needs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the notebooks whose results this one asks for.

        Literal arguments of `.needs(...)` count; where one is computed, so does every literal that
        is a notebook's name.

        Raises:
            UspError: a literal argument is no notebook.
        """
        names, found, computed = set(names), [], False
        nodes = [node for tree in self.trees for node in ast.walk(tree)]
        for node in nodes:
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "needs" or not node.args:
                continue
            if isinstance(node.args[0], ast.Constant):
                found.append(node.args[0].value)
            else:
                computed = True
        if computed:
            texts = [n.value for n in nodes if isinstance(n, ast.Constant)]
            found += [t for t in texts if isinstance(t, str) and t in names and t != self.name]
        for name in found:
            if name not in names or name == self.name:
                raise UspError(f"{self.path.name} needs {unknown('notebook', name, names)}")
        return tuple(dict.fromkeys(found))


def unknown(kind: str, value: object, known: Iterable[str]) -> str:
    """Say that a value is unknown, what is known, and what was probably meant."""
    known = sorted(known)
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown {kind} {value!r}, known are {', '.join(known) or 'none'}{hint}"


def read_notebooks(root: Path) -> dict[str, Notebook]:
    """Read all notebooks NN_name.ipynb of a checkout, in order."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return {path.stem: read_notebook(path) for path in paths if NAME.fullmatch(path.stem)}


def read_notebook(path: Path) -> Notebook:
    """Read one notebook and check its kernel and parameters.

    Raises:
        UspError: not a notebook, no or bad parameters cell, or another kernel than python3.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        cells = [(c["cell_type"], "".join(c["source"])) for c in raw["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UspError(f"{path.name} is not a readable notebook ({error}); restore it") from None
    kernel = raw.get("metadata", {}).get("kernelspec", {}).get("name")
    if kernel != "python3":
        raise UspError(f"{path.name} asks for kernel {kernel!r}; set its kernelspec to python3")
    parameters = parameter_cell(raw)
    if parameters is None:
        raise UspError(f"{path.name} has no cell tagged `parameters`; tag the cell that sets them")
    defaults, comments = read_parameters(parameters[1], path.name)
    code = [s for i, (kind, s) in enumerate(cells) if kind == "code" and i != parameters[0]]
    prose = [source for kind, source in cells if kind == "markdown"]
    return Notebook(path.stem, path, tuple(code), defaults, comments, tuple(prose))


def blank_magics(source: str) -> str:
    """Replace IPython's % and ! lines, where there are any, keeping the number of lines."""
    try:
        ast.parse(source)
        return source
    except SyntaxError:
        pass
    if source.lstrip().startswith("%%"):
        return "\n".join("#" for _ in source.splitlines())
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def read_parameters(source: str, where: str) -> tuple[dict[str, object], dict[str, str]]:
    """Read a parameters cell: names with literal JSON values, a trailing comment as help.

    Args:
        source: of the cell.
        where: the notebook's name, for messages.

    Raises:
        UspError: anything else, with its line.
    """
    try:
        body = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise UspError(
            f"{where}: the parameters cell is not Python ({error}); correct it"
        ) from None
    comments = {
        t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT
    }
    values: dict[str, object] = {}
    for node in body:
        at = f"{where}, line {node.lineno} of the parameters cell"
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or len(node.targets) != 1:
            raise UspError(
                f"{at}: {ast.unparse(node)[:60]!r} is not `name = literal`; move it out of the cell"
            )
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            raise UspError(
                f"{at}: {target.id} is {ast.unparse(node.value)[:60]!r}; write a literal value"
            ) from None
        if not is_json(value):
            kind = type(value).__name__
            raise UspError(
                f"{at}: {target.id} is {value!r}, a {kind} that JSON cannot hold; use {JSON_TYPES}"
            )
        if target.id in values:
            raise UspError(f"{at}: {target.id} is set a second time; remove one of the lines")
        values[target.id] = value
    for name, example in REQUIRED.items():
        if name not in values:
            raise UspError(
                f"{where}: no parameter {name!r}; add `{name} = {example!r}` to the parameters cell"
            )
    return values, {n.targets[0].id: comments.get(n.end_lineno, "") for n in body}


JSON_TYPES = "a string, number, bool, None, list or dict with string keys"


def is_json(value: object) -> bool:
    """Say whether JSON gives the value back as it is."""
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_json(v) for k, v in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool | int)


def parse_value(name: str, text: str, default: object) -> object:
    """Read what followed `-p name=` by the type of the parameter's default.

    >>> parse_value("n", "5", 1), parse_value("f", "5", 0.1), parse_value("b", "false", True)
    (5, 5.0, False)
    """
    kind = type(default).__name__
    wanted = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "list": "a JSON list",
        "dict": "a JSON object",
    }
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return check_value(name, float(text), default)
        if isinstance(default, list | dict):
            return check_value(name, json.loads(text), default)
    except (ValueError, KeyError, UspError):
        raise UspError(
            f"parameter {name} must be {wanted[kind]}, not {text!r} (its default is {default!r})"
        ) from None
    if default is None:
        try:
            return json.loads(text)
        except ValueError:
            return None if text == "None" else text
    return text


def check_value(name: str, value: object, default: object) -> object:
    """Return a preset's value for a parameter in the type of its default.

    Raises:
        UspError: another type.
    """
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1 as int and 1e-4 as a string
        except (TypeError, ValueError):
            pass
    if (default is not None and type(value) is not type(default)) or not is_json(value):
        kind = type(default).__name__
        raise UspError(
            f"parameter {name} must be of type {kind}, not {value!r} (its default is {default!r})"
        )
    return value
