"""Execute a plan: one run at a time, Snakemake for the order, and a clean end however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO

import psutil

from usp_lab import warm
from usp_lab.display import Display
from usp_lab.errors import UspError
from usp_lab.files import HUB, write_json
from usp_lab.plan import PLAN, Plan
from usp_lab.processes import (
    SOCKET_PATH,
    end_tree,
    end_with_parents,
    identity,
    join_chain,
    one_at_a_time,
)
from usp_lab.run import EVENTS, KEPT_THREADS, NO_SPACE, SOCKETS, THREADS, no_space


class Stopped(BaseException):
    """A signal asked us to end."""


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_plan(plan: Plan, cores: int) -> int:
    """Execute what is not up to date, and say what was done.

    Args:
        plan: checked and resolved.
        cores: notebooks at a time.

    Returns:
        0 done, 1 a notebook failed, 2 bad input, 128 + n stopped by signal n.

    Raises:
        UspError: another run is under way, or the disk is full.
    """
    began, runs = time.monotonic(), plan.root / "runs"
    runs.mkdir(exist_ok=True)
    shown = plan.folder.relative_to(plan.root)
    with one_at_a_time(runs):
        join_chain(runs)
        end_with_parents()
        clean_up(runs)
        stale = plan.stale()
        for name in plan.entries.keys() - set(stale):
            restore(plan, name)
        if not stale:
            print(f"{counted(len(plan.entries))} up to date: {shown}")
            return 0
        if first := [name for name in stale if name not in plan.targets]:
            print(f"needed by {', '.join(plan.targets)}, so first: {', '.join(first)}", flush=True)
        code = execute(plan, stale, cores)
    if code == 0:
        kept = len(plan.entries) - len(stale)
        already = f", {kept} up to date" if kept else ""
        seconds = time.monotonic() - began
        print(f"{counted(len(stale))} done{already}, {seconds:.0f} s: {shown}")
    return code


def counted(n: int) -> str:
    """`1 notebook`, `2 notebooks`."""
    return f"{n} notebook{'s' * (n != 1)}"


def restore(plan: Plan, notebook: str) -> None:
    """Put back the manifest of a finished notebook that was killed before Snakemake knew of it."""
    outer = plan.entries[notebook].folder / "manifest.json"
    if not outer.exists():
        write_json(outer, plan.finished(notebook))


def clean_up(runs: Path) -> None:
    """End what killed runs left behind, and remove their sockets."""
    end_tree(runs)
    for folder in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        pid = folder.name.removeprefix(SOCKETS).split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            rmtree(folder, ignore_errors=True)


def execute(plan: Plan, stale: list[str], cores: int) -> int:
    """Let Snakemake execute the stale notebooks and show how they go on; return the exit code."""
    saved = plan.save()
    events, log = plan.folder / ".events.jsonl", plan.folder / "snakemake.log"
    events.write_bytes(b"")
    display = Display(events)
    command = snakemake_command(plan, stale, cores)
    environ = environment(plan, saved, events, cores)
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and & have us ignore some
            before[number] = signal.signal(number, _stop)
    try:
        with open(log, "wb") as output, warm_process(environ, len(stale), output):
            # a session of its own: Ctrl-C reaches us alone, and we end the others
            snakemake = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=plan.root, env=environ, start_new_session=True,
            )  # fmt: skip
            while snakemake.poll() is None:
                display.update()
                time.sleep(0.1)
        display.update()
    except Stopped as signalled:
        for number in before:  # a second Ctrl-C must not cut the clean end short
            signal.signal(number, signal.SIG_IGN)
        display.clear()
        end_tree(plan.root / "runs", below=identity(os.getpid()))
        print(
            "usp-lab: stopped; what is finished is kept, the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + signalled.args[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    end_tree(plan.root / "runs", below=identity(os.getpid()))
    display.clear()
    return outcome(plan, stale, display, snakemake.returncode, log)


@contextmanager
def warm_process(environ: dict[str, str], notebooks: int, output: BinaryIO) -> Iterator[None]:
    """Have a process load the libraries that kernels need, and name its socket in ``environ``."""
    if notebooks < warm.WORTH or not warm.possible():
        yield
        return
    with tempfile.TemporaryDirectory(prefix=f"{SOCKETS}{os.getpid()}-", ignore_cleanup_errors=True) as folder:  # fmt: skip
        path = str(Path(folder) / "warm")
        if len(os.fsencode(f"{path}.part")) > SOCKET_PATH:
            yield
            return
        # `run` gives kernels as many threads
        threads = {f"{library}_NUM_THREADS": environ[KEPT_THREADS] for library in THREADS}
        process = subprocess.Popen(
            [sys.executable, "-m", "usp_lab.warm", path], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd=environ["USP_LAB_ROOT"], env=environ | threads, start_new_session=True,
        )  # fmt: skip
        environ[warm.SOCKET] = path
        try:
            yield
        finally:
            process.kill()
            process.wait()


def snakemake_command(plan: Plan, stale: list[str], cores: int) -> list[str]:
    """Return the command that executes the stale notebooks in order."""
    paths = {
        n: str((e.folder / "manifest.json").relative_to(plan.root)) for n, e in plan.entries.items()
    }
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(plan.root / "Snakefile")]
    command += ["--directory", str(plan.root), "--cores", str(cores), "--scheduler", "greedy"]
    command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "params", "--nocolor"]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += ["--quiet", "rules", "progress", "reason", "host"]
    command += ["--forcerun", *[paths[n] for n in stale]]
    return [*command, "--", *[paths[n] for n in plan.targets]]


def _stop(number: int, _frame: object) -> None:
    raise Stopped(number)


def environment(plan: Plan, saved: Path, events: Path, cores: int) -> dict[str, str]:
    """Return the notebooks' environment: threads, no network unless asked for, where we listen.

    What the user has set stays.
    """
    threads = str(max(1, cpu_count() // cores))
    wanted = {f"{library}_NUM_THREADS": threads for library in THREADS}
    wanted["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads slow a busy machine down several times
    wanted |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    if plan.request.preset != "paper" and not plan.data.startswith(HUB):
        wanted["HF_HUB_OFFLINE"] = "1"
    ours = {EVENTS: str(events), PLAN: str(saved), "USP_LAB_ROOT": str(plan.root)}
    # Snakemake sets the libraries' variables to its own idea of threads; `run` sets them back.
    ours[KEPT_THREADS] = os.environ.get("OMP_NUM_THREADS", threads)
    return {**wanted, **os.environ, **ours}


def outcome(plan: Plan, stale: list[str], display: Display, returncode: int, log: Path) -> int:
    """Print what failed and return the exit code."""
    failures = display.failures.values()
    for failure in failures:
        text = failure["report"]
        print(f"usp-lab: {text}" if failure["code"] == 2 else text, file=sys.stderr)
    missing = [name for name in stale if name not in display.done | display.failures.keys()]
    if failures:
        if missing:
            print(f"not executed: {', '.join(missing)}", file=sys.stderr)
        return min(failure["code"] for failure in failures)
    if returncode == 0 and not missing:
        return 0
    text = log.read_text(encoding="utf-8", errors="replace")
    if NO_SPACE.search(text):
        raise UspError(no_space(plan.folder.relative_to(plan.root)))
    killed = f"{', '.join(display.active)} ended without a word (killed, or out of memory)"
    tail = "\n".join(f"  {line[:200]}" for line in text.splitlines()[-12:])
    what = killed if display.active else "Snakemake failed"
    print(f"{what}; last lines of {log.relative_to(plan.root)}:\n{tail}", file=sys.stderr)
    return 1
