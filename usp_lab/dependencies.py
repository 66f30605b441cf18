"""Which files of the package a notebook's results depend on, found in the source alone.

A change of one module re-executes just the notebooks that use it, so what counts must be exact:
neither less nor more.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from usp_lab.errors import UspError
from usp_lab.notebooks import Notebook

# What a method of `Run` uses beyond record.py's imports; it is looked up at run time.
USED_BY_METHOD = {"figure": "plots"}


def package_folder(root: Path) -> Path:
    """Return the package that the notebooks of a checkout import."""
    own = root / "usp_lab"
    return own if (own / "__init__.py").is_file() else Path(__file__).parent


def module_files(notebook: Notebook, package: Path) -> list[Path]:
    """Return the package's files that a notebook's results depend on.

    These are the modules that its code names, those that these name, and so on, wherever in the
    source the import stands; and the files and folders of data that one of them reads by `... / "name"`.
    Public names count for the module that defines them; `__init__.py` holds nothing else and does
    not count.
    """
    todo, seen = set(), set()
    for tree in notebook.trees:
        todo |= _named(tree, package)
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        methods = {f.attr for f in calls if isinstance(f, ast.Attribute)}
        todo |= {module for method, module in USED_BY_METHOD.items() if method in methods}
    folders: set[str] = set()
    while todo:
        module = todo.pop()
        path = package / f"{module}.py"
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        named, read = _module(path, path.stat().st_mtime_ns)
        todo |= named
        folders |= read
    data = [p for f in folders for p in (package / f, *(package / f).rglob("*")) if p.is_file()]
    data = [p for p in data if "__pycache__" not in p.parts]
    return sorted({package / f"{module}.py" for module in seen} | set(data))


@cache
def _module(path: Path, _modified: int) -> tuple[frozenset[str], frozenset[str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UspError(
            f"usp_lab/{path.name}, line {error.lineno}: {error.msg}; correct it"
        ) from None
    joined = [
        n.right for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)
    ]
    names = {
        n.value.split("/")[0]
        for n in joined
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    return frozenset(_named(tree, path.parent)), frozenset(
        n for n in names if n and (path.parent / n).exists()
    )


def _named(tree: ast.AST, package: Path) -> set[str]:
    """Modules that a piece of source names: imports, `usp_lab.x`, and the string "usp_lab.x"."""
    public = _public(package / "__init__.py", (package / "__init__.py").stat().st_mtime_ns)
    found: set[str] = set()
    for node in _walk(tree):
        dotted = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            base = f"usp_lab.{base}".rstrip(".") if node.level else base
            dotted = [f"{base}.{a.name}" for a in node.names] if base == "usp_lab" else [base]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = [f"{node.value.id}.{node.attr}"]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            dotted = [node.value] if re.fullmatch(r"usp_lab\.\w+", node.value) else []
        for name in dotted:
            head, _, rest = name.partition(".")
            if head == "usp_lab" and rest:
                first = rest.split(".")[0]
                found.add(public.get(first, first))
    return found


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk through a tree, past what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            yield from _walk(node)


@cache
def _public(init: Path, _modified: int) -> dict[str, str]:
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            return ast.literal_eval(node.value)
    return {}
