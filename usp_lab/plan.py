"""What a run will execute: parameters, order, and the key that says whether a result still holds.

A notebook's key hashes everything that can change its results: its code cells, its resolved
parameters, the modules and tables it uses, the data file, and the keys of the notebooks it needs.
Markdown, paths and times do not count.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from usp_lab.dependencies import module_files, package_folder
from usp_lab.errors import UspError
from usp_lab.files import (
    DATA_SUFFIXES,
    HUB,
    POPULATION,
    find_root,
    read_json,
    run_label,
    sha256_of,
    write_json,
)
from usp_lab.notebooks import Notebook, read_notebooks, unknown
from usp_lab.presets import check_passed, passed_to, read_presets, resolve
from usp_lab.record import FINISHED

PLAN = "USP_LAB_PLAN"  # environment: the file with the request that Snakemake is to order


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        notebooks: full names; empty for all.
        data: "population", "hub:NAME", or the absolute path of a file; None for the preset's own.
        passed: parameter -> the text given with -p.
        force: execute `notebooks` even where they are up to date.
    """

    notebooks: tuple[str, ...] = ()
    preset: str = "tiny"
    data: str | None = None
    name: str | None = None
    on_bad: str | None = None
    passed: dict[str, str] = field(default_factory=dict)
    force: bool = False


@dataclass(frozen=True)
class Entry:
    """One notebook of a plan.

    Attributes:
        passed: parameters given with -p that this notebook has.
        upstream: the notebooks whose results it reads.
        code: hash of its code cells and of the package's files that it uses, which `modules` lists.
        key: hash of all that can change its results.
        forced: execute it although it may be up to date.
    """

    notebook: str
    title: str
    path: Path
    folder: Path
    parameters: dict[str, object]
    passed: dict[str, object]
    parameters_hash: str
    upstream: tuple[str, ...]
    modules: tuple[str, ...]
    code: str
    key: str
    forced: bool


@dataclass(frozen=True)
class Plan:
    """All notebooks of a request and those they need, upstream first."""

    root: Path
    request: Request
    label: str
    data: str
    data_sha256: str | None
    entries: dict[str, Entry]

    @property
    def folder(self) -> Path:
        """Where the runs go."""
        return self.root / "runs" / self.label

    @cached_property
    def targets(self) -> list[str]:
        """Notebooks that were asked for by name."""
        return [
            n for n in self.entries if n in self.request.notebooks or not self.request.notebooks
        ]

    def finished(self, notebook: str) -> dict | None:
        """Return the manifest of a result that holds: same key, made from the results upstream."""
        entry = self.entries[notebook]
        manifest = read_json(entry.folder / FINISHED) or {}
        if manifest.get("status") != "done" or manifest.get("key") != entry.key:
            return None
        return manifest if manifest.get("upstream") == self.upstream_now(notebook) else None

    def upstream_now(self, notebook: str) -> dict[str, dict]:
        """Return key and execution of the present results that a notebook would read."""
        found = {}
        for name in self.entries[notebook].upstream:
            manifest = read_json(self.entries[name].folder / FINISHED) or {}
            found[name] = {"key": manifest.get("key"), "execution": manifest.get("execution")}
        return found

    def stale(self) -> list[str]:
        """Notebooks to execute, in order: forced, not finished, or below one of these."""
        stale: list[str] = []
        for name, entry in self.entries.items():
            if entry.forced or set(entry.upstream) & set(stale) or self.finished(name) is None:
                stale.append(name)
        return stale

    def save(self) -> Path:
        """Write the request for Snakemake and the notebooks' processes; return its path."""
        path = self.folder / ".plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self.request))
        return path


def load_plan(
    path: str | Path | None, config: Mapping[str, object] | None = None, *, executing: bool = False
) -> Plan:
    """Return the plan of a saved request, else of all notebooks with a config's preset and data."""
    if path:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return make_plan(
            Request(**{**saved, "notebooks": tuple(saved["notebooks"])}), executing=executing
        )
    known = {k: str(config[k]) for k in ("preset", "data", "name", "on_bad") if k in (config or {})}
    plan = make_plan(Request(**known))
    plan.save()
    return plan


def make_plan(request: Request, *, root: Path | None = None, executing: bool = False) -> Plan:
    """Check a request against the notebooks and presets, and resolve it.

    Args:
        request: what to run.
        root: the checkout; found from the working directory by default.
        executing: notebooks upstream have just run: take their results as they are, even where
            someone has edited a module since.

    Raises:
        UspError: unknown notebook, preset or parameter, wrong type, bad data file.
    """
    root = root or find_root()
    notebooks = read_notebooks(root)
    if not notebooks:
        raise UspError("no notebooks NN_name.ipynb under notebooks/; restore them")
    presets = read_presets(root, notebooks)
    if request.preset not in presets:
        raise UspError(unknown("preset", request.preset, presets))
    for name in request.notebooks:
        if name not in notebooks:
            raise UspError(unknown("notebook", name, notebooks))
    order = _in_order(notebooks, request.notebooks or tuple(notebooks))
    targets = [notebooks[n] for n in order if n in request.notebooks or not request.notebooks]
    check_passed(request.passed, targets, [notebooks[n] for n in order])

    own_data = presets[request.preset].get("all", {}).get("data", POPULATION)
    data = request.data or own_data
    data_sha256 = check_data(data)
    variant = None if data == own_data else data
    label = run_label(request.preset, variant, request.name, request.passed)

    package = package_folder(root)
    entries: dict[str, Entry] = {}
    keys: dict[str, str] = {}
    for name in order:
        nb = notebooks[name]
        # -p goes to the notebooks upstream too, where they have it: one variant, one setting
        passed = passed_to(request.passed, nb)
        parameters = {**resolve(nb, request, presets[request.preset], data), **passed}
        counted = {**parameters, "data": [Path(data).name, data_sha256] if data_sha256 else data}
        parameters_hash = _hash(counted)
        modules = {str(p.relative_to(package)): sha256_of(p) for p in module_files(nb, package)}
        code = _hash({"cells": [c.rstrip() for c in nb.cells], "modules": modules})
        upstream = nb.needs(notebooks)
        key = _hash(
            {"code": code, "parameters": parameters_hash, "upstream": [keys[u] for u in upstream]}
        )
        forced = request.force and (name in request.notebooks or not request.notebooks)
        folder = root / "runs" / label / name
        own = root / "runs" / request.preset / name
        if request.passed and not forced and (read_json(own / FINISHED) or {}).get("key") == key:
            folder = own  # nothing that was passed concerns this notebook
        recorded = read_json(folder / FINISHED) if executing else None
        keys[name] = recorded["key"] if recorded else key
        entries[name] = Entry(
            notebook=name,
            title=nb.title,
            path=nb.path,
            folder=folder,
            parameters=parameters,
            passed=passed,
            parameters_hash=parameters_hash[:12],
            upstream=upstream,
            modules=tuple(modules),
            code=code[:12],
            key=key,
            forced=forced,
        )
    return Plan(root, request, label, data, data_sha256, entries)


def check_data(data: str) -> str | None:
    """Check a data source as far as its name goes, and return the hash of a file or folder.

    Raises:
        UspError: no such file, not readable, empty, or of an unknown type.
    """
    if data == POPULATION or (data.startswith(HUB) and len(data) > len(HUB)):
        return None
    path = Path(data)
    suffixes = ", ".join(DATA_SUFFIXES)
    if not path.exists():
        raise UspError(
            f'--data {data} does not exist; give a file ({suffixes}), "{POPULATION}" or "{HUB}NAME"'
        )
    if path.is_dir() and any(p.name.endswith(DATA_SUFFIXES) for p in path.iterdir()):
        return sha256_of(path)
    if not path.is_file() or not path.name.endswith(DATA_SUFFIXES):
        raise UspError(f"--data {data} is of an unknown type; give a file that ends in {suffixes}")
    if path.stat().st_size == 0:
        raise UspError(f"--data {data} is empty; give a file with dialogues")
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                file.read(1)
        return sha256_of(path)
    except (gzip.BadGzipFile, zlib.error):
        raise UspError(
            f"--data {data} is not a gzip file; compress it, or drop the .gz from its name"
        ) from None
    except (OSError, EOFError) as error:
        raise UspError(f"--data {data} cannot be read ({error}); check the file") from None


def _in_order(notebooks: Mapping[str, Notebook], wanted: tuple[str, ...]) -> list[str]:
    """Return the wanted notebooks and all they need, needs first, else by name."""
    order: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in order:
            return
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise UspError(f"notebooks need each other in a circle, {circle}; remove one run.needs")
        for upstream in notebooks[name].needs(notebooks):
            add(upstream, (*path, name))
        order.append(name)

    for name in sorted(wanted):
        add(name, ())
    return order


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
