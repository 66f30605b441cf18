"""Execute one notebook of a plan: `python -m usp_lab.run PLAN NOTEBOOK`, which the Snakefile calls.

A result counts when its manifest, written last, says "done"; the executed copy is there after a
failure too.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

from usp_lab.errors import UspError
from usp_lab.files import atomic, read_json, write_json
from usp_lab.plan import Entry, Plan, load_plan
from usp_lab.processes import end_with_parents
from usp_lab.record import ASKED, FINISHED, INNER, REQUEST

THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")  # each with _NUM_THREADS
KEPT_THREADS = "USP_LAB_THREADS"
EVENTS = "USP_LAB_EVENTS"  # the file through which the command line follows us
EXECUTED = "executed.ipynb"
SOCKETS = "usp-lab-"  # prefix of the folders, in the system's temporary one, of a kernel's sockets
PACKAGES = (
    "usp-lab torch transformers trl peft accelerate datasets numpy pandas scipy scikit-learn "
    "umap-learn KDEpy sentence-transformers pyarrow matplotlib papermill nbclient ipykernel "
    "snakemake"
).split()
NO_SPACE = re.compile(
    r"No space left on device|Errno 28\b|os error 28\b|disk quota exceeded|disk is full",
    re.IGNORECASE,
)


class CellFailed(Exception):
    """A cell raised: `report` says where and what, in one screen."""

    def __init__(self, report: str, code: int):
        super().__init__(report)
        self.report, self.code = report, code


def main(argv: list[str] | None = None) -> int:
    """Execute a notebook; 0 done, 1 a cell failed, 2 bad input."""
    plan_file, notebook = argv or sys.argv[1:]
    end_with_parents()
    try:
        plan = load_plan(plan_file, executing=True)
        return execute(plan, notebook)
    except UspError as error:
        return _failed(notebook, f"{notebook}: {error}", 2)
    except CellFailed as error:
        return _failed(notebook, error.report, error.code)
    except OSError as error:
        if NO_SPACE.search(str(error)):
            return _failed(notebook, f"{notebook}: {no_space(plan_file)}", 2)
        raise


def _failed(notebook: str, report: str, code: int) -> int:
    event(notebook, "failed", report=report, code=code)
    return code


def event(notebook: str, what: str, **details: object) -> None:
    """Tell the command line; without one, print."""
    line = json.dumps({"notebook": notebook, "event": what, **details})
    if path := os.environ.get(EVENTS):
        with open(path, "a", encoding="utf-8") as file:
            # one short write in append mode: lines of parallel notebooks do not mix
            file.write(line + "\n")
    else:
        print(details.get("report") or f"{notebook}: {what}", flush=True)


def execute(plan: Plan, notebook: str) -> int:
    """Run a notebook of the plan, unless its result is there already."""
    entry = plan.entries[notebook]
    manifest = None if entry.forced else plan.finished(notebook)
    if manifest:
        # finished before, and killed before Snakemake knew
        write_json(entry.folder / "manifest.json", manifest)
        event(notebook, "kept")
        return 0
    asked = begin(plan, entry)
    started = time.time()
    event(notebook, "start", cells=len(json.loads(entry.path.read_text(encoding="utf-8"))["cells"]))
    try:
        _run_cells(entry, plan)
    except CellFailed as failure:
        with contextlib.suppress(UspError, OSError):
            write_json(
                entry.folder / "failed.json",
                {**asked, "status": "failed", "report": failure.report},
            )
        raise
    inner = read_json(entry.folder / INNER) or {}
    if inner.get("status") != "done":
        raise UspError(
            "it ended without run.finish(), so its results do not count; call that in its last cell"
        )
    if inner["python"] != sys.executable:
        raise UspError(f"its kernel ran {inner['python']}, not {sys.executable}; report this")
    manifest = make_manifest(plan, entry, asked, inner, started)
    # Snakemake deletes manifest.json when it is interrupted or starts the rule: the copy is ours
    write_json(entry.folder / FINISHED, manifest)
    write_json(entry.folder / "manifest.json", manifest)
    event(notebook, "done", seconds=manifest["seconds"])
    return 0


def begin(plan: Plan, entry: Entry) -> dict:
    """Clear the folder of what another key left, and write down what is asked of the kernel.

    An interrupted execution goes on with its files, if key and results upstream are the same.
    """
    upstream = plan.upstream_now(entry.notebook)
    folder = entry.folder
    before = read_json(folder / ASKED) or {}
    same = before.get("key") == entry.key and before.get("upstream_executions") == upstream
    if folder.exists() and (not same or entry.forced or (folder / FINISHED).exists()):
        away = folder.with_name(f".old-{folder.name}")
        rmtree(away, ignore_errors=True)
        folder.rename(away)
        rmtree(away, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (INNER, "metrics.json", "failed.json", "manifest.json"):
        (folder / stale).unlink(missing_ok=True)
    asked = {
        "notebook": entry.notebook,
        "preset": plan.request.preset,
        "name": plan.request.name,
        "label": plan.label,
        "dir": str(folder.relative_to(plan.root)),
        "parameters": entry.parameters,
        "passed": plan.request.passed,
        "parameters_hash": entry.parameters_hash,
        "data": plan.data,
        "data_sha256": plan.data_sha256,
        "code": entry.code,
        "key": entry.key,
        "upstream": {u: str(plan.entries[u].folder.relative_to(plan.root)) for u in entry.upstream},
        "upstream_executions": upstream,
        "execution": uuid.uuid4().hex[:12],
        "git": git_state(plan.root),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / ASKED, asked)
    return asked


def _run_cells(entry: Entry, plan: Plan) -> None:
    # Loaded by nbformat's validator, it builds a grammar for a second to check addresses that
    # notebooks do not have; without it the validator leaves that check out.
    sys.modules.setdefault("rfc3987_syntax", None)
    from usp_lab.kernel import run_notebook  # here, because a kept result needs no papermill

    os.environ[REQUEST] = str(entry.folder / ASKED)
    if threads := os.environ.get(KEPT_THREADS):
        os.environ.update({f"{library}_NUM_THREADS": threads for library in THREADS})
    copy = entry.folder / EXECUTED
    shown = copy.relative_to(plan.root)

    def save(text: str) -> None:
        with atomic(copy, durable=False) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def progress(cell: int, cells: int) -> None:
        event(entry.notebook, "cell", cell=cell, cells=cells)

    with tempfile.TemporaryDirectory(
        prefix=f"{SOCKETS}{os.getpid()}-", ignore_cleanup_errors=True
    ) as sockets:
        error = run_notebook(entry.path, entry.parameters, plan.root, Path(sockets), save, progress)
    if error is None:
        return
    if NO_SPACE.search(error.message):
        raise CellFailed(f"{entry.notebook}: {no_space(entry.folder.relative_to(plan.root))}", 2)
    if error.kind == "UspError":
        raise CellFailed(f"{entry.notebook}: {error.message}", 2)
    raise CellFailed(f"{entry.notebook} failed in {error.text()}\n  executed copy: {shown}", 1)


def no_space(where: object) -> str:
    """Say that the disk is full."""
    return f"no disk space left for {where}; free some and run the same command again"


def make_manifest(plan: Plan, entry: Entry, asked: dict, inner: dict, started: float) -> dict:
    """Return the record of a finished execution."""
    seconds = time.time() - started
    return {
        **inner["notes"],
        "notebook": entry.notebook,
        "title": entry.title,
        "preset": plan.request.preset,
        "name": entry.folder.parent.name.partition("+")[2] or None,
        "status": "done",
        "key": entry.key,
        "execution": asked["execution"],
        "parameters": {"passed": entry.passed, "resolved": entry.parameters},
        "seed": entry.parameters["seed"],
        "source": {"data": plan.data, "sha256": plan.data_sha256},
        "inputs": inner["inputs"],
        "tables": inner["tables"],
        "figures": inner["figures"],
        "code": entry.code,
        "parameters_hash": entry.parameters_hash,
        "modules": list(entry.modules),
        "upstream": asked["upstream_executions"],
        "git": asked["git"],
        "python": sys.version.split()[0],
        "versions": installed_versions(),
        "started": asked["started"],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def git_state(root: Path) -> dict:
    """Return commit and dirty flag; null outside a git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
