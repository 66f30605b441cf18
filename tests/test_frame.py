"""The repository itself: dependencies agree, notebooks are clean, files small, style kept."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import usp_lab
from usp_lab.notebooks import read_notebook, read_notebooks
from usp_lab.presets import read_presets

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LONGEST_CELL = 12
LARGEST_FILE = 1_000_000
WEIGHTS = {".safetensors"}


def names(requirements: list[str]) -> set[str]:
    found = {canonicalize_name(Requirement(r).name) for r in requirements}
    return found - {canonicalize_name(PROJECT["name"])}


def everything() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    return names(PROJECT["dependencies"]).union(*map(names, extras))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), lines
    return {canonicalize_name(k): v for k, v in (line.split("==") for line in lines)}


def test_environment_and_project_list_the_same_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    options = [line for line in pip["pip"] if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    assert names([line for line in pip["pip"] if not line.startswith("-")]) == everything()


def test_every_dependency_is_pinned_to_what_is_installed():
    pinned = constraints()
    assert everything() <= pinned.keys()
    assert pinned["torch"] == "2.13.0"
    assert 'TORCH = "torch==2.13.0"' in (ROOT / ".ci" / "install.py").read_text()
    for name in everything():
        assert importlib.metadata.version(name).partition("+")[0] == pinned[name], name


def test_inference_suffices_to_simulate():
    """Import in an interpreter that has nothing but the extra and what it brings along."""
    if importlib.util.find_spec("usp_lab.simulate") is None:
        pytest.skip("usp_lab.simulate does not exist yet")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["inference"]]
    allowed, todo = set(), {canonicalize_name(Requirement(w).name) for w in wanted}
    while todo:
        allowed.add(name := todo.pop())
        needs = [Requirement(r) for r in importlib.metadata.requires(name) or []]
        kept = [r for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
        todo |= {canonicalize_name(r.name) for r in kept} - allowed
    owners = importlib.metadata.packages_distributions()
    forbidden = [
        module
        for module, packages in owners.items()
        if not {canonicalize_name(p) for p in packages} & allowed and module != "usp_lab"
    ]
    program = (
        "import sys\n"
        f"for name in {forbidden!r}:\n"
        "    sys.modules.setdefault(name, None)\n"
        "from usp_lab import UserSimulator, simulate\n"
        "assert callable(simulate)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names_exist():
    for name, module in usp_lab._PUBLIC.items():
        tree = ast.parse((ROOT / "usp_lab" / f"{module}.py").read_text())
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        imported = [a for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
        assert name == module or name in defined | {a.asname or a.name for a in imported}, name
    assert set(usp_lab.__all__) == set(usp_lab._PUBLIC) <= set(dir(usp_lab))
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = usp_lab.nothing


def test_importing_the_package_costs_nothing():
    program = (
        "import sys, usp_lab.cli, usp_lab.record\n"
        "heavy = {'torch', 'transformers', 'pandas', 'papermill', 'snakemake', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_presets_fit_the_notebooks():
    if not NOTEBOOKS:
        pytest.skip("no notebooks yet")
    assert {"smoke", "tiny", "gpu", "paper"} == set(read_presets(ROOT, read_notebooks(ROOT)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path: Path):
    assert not problems(json.loads(path.read_text()), path.stem)
    assert read_notebook(path).defaults["preset"] == "tiny"


FORBIDDEN = {
    r"^\s*[%!]\s*(pip|conda)\b": "installs packages",
    r"\bos\.chdir\b|^\s*%cd\b": "changes the working directory",
    r"\bsavefig\b": "saves a figure by itself; use run.figure",
    r"\bwarnings\.(filterwarnings|simplefilter|catch_warnings)\b": "silences warnings",
    r"[\"'(\s](/(home|Users|root|work|tmp|mnt|opt|var|usr|data)/|[A-Z]:\\|~/)": "an absolute path",
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9]{20,}": "a secret",
}


def problems(notebook: dict, name: str) -> list[str]:
    """Return what is wrong with a notebook's form."""
    found = []
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"kernel {kernel}")
    if extra := set(notebook["metadata"]) - {"kernelspec", "language_info"}:
        found.append(f"metadata {sorted(extra)}")
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells tagged parameters")
    starts = [c for c in notebook["cells"] if f'start("{name}", globals())' in "".join(c["source"])]
    if len(starts) != 1:
        found.append(f'not one start("{name}", globals())')
    for i, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if "id" not in cell:
            found.append(f"cell {i}: no id")
        if cell["metadata"].keys() - {"tags"}:
            found.append(f"cell {i}: metadata {sorted(cell['metadata'])}")
        if cell["cell_type"] != "code":
            continue
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"cell {i}: outputs")
        lines = [line for line in source.splitlines() if line.strip() and line.strip()[0] != "#"]
        if len(lines) > LONGEST_CELL and cell not in tagged:
            found.append(f"cell {i}: {len(lines)} lines of code")
        for pattern, what in FORBIDDEN.items():
            if re.search(pattern, source, flags=re.MULTILINE):
                found.append(f"cell {i}: {what}")
    return found


def test_the_lint_sees_what_it_should():
    def code(source: str, **changes: object) -> dict:
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": source}
        return {**cell, "outputs": [], "execution_count": None, **changes}

    def notebook(*cells: dict) -> dict:
        first = code("n = 1", metadata={"tags": ["parameters"]})
        begin = code('run = start("01_x", globals())')
        return {"cells": [first, begin, *cells], "metadata": {"kernelspec": {"name": "python3"}}}

    assert problems(notebook(code("# " * 9 + "\nx = 1 / 2  # a/tmp/b\n")), "01_x") == []
    for source in (
        "%pip install x",
        "!pip install x",
        "os.chdir('a')",
        "plt.savefig('a')",
        "warnings.filterwarnings('ignore')",
        "open('/home/me/x')",
        "x\n" * 13,
    ):
        assert len(problems(notebook(code(source)), "01_x")) == 1, source
    assert problems(notebook(code("x", execution_count=1)), "01_x") == ["cell 2: outputs"]
    assert len(problems(notebook(code("x", metadata={"papermill": {}})), "01_x")) == 1
    assert problems(notebook(), "02_y") == ['not one start("02_y", globals())']


def test_tracked_files_are_small():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    sizes = {p: p.stat().st_size for p in paths if p.is_file() and p.suffix not in WEIGHTS}
    assert not {str(p): size for p, size in sizes.items() if size > LARGEST_FILE}


def test_style():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == usp_lab.__version__ and citation["license"] == PROJECT["license"]
    assert "2502.18968" in str(citation["preferred-citation"]["identifiers"])
