"""Processes that end with whoever started them: no orphan writes on, and no lock is left.

Every process of a run carries in its environment the chain of its ancestors (make, usp-lab,
snakemake, the notebook's process) and ends, with all it started, as soon as one of them is gone,
however that one ended. `python -m usp_lab.processes -f FILE` is a kernel that does so.
"""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from usp_lab.errors import UspError

CHAIN = "USP_LAB_CHAIN"  # "pid:create_time pid:create_time", oldest first
RUNS = "USP_LAB_RUNS"  # the folder that this tree of processes writes to
MAKE = "USP_LAB_MAKE_PID"  # set by the Makefile

SOCKET_PATH = 100  # bytes that the system allows a socket's path, less a margin
CLOCK = 5.0  # seconds that the clock may be set while we run: create times are read through it


def identity(pid: int) -> str:
    """Return `pid:create_time`, which no other process will ever have."""
    return f"{pid}:{psutil.Process(pid).create_time():.2f}"


def is_alive(name: str) -> bool:
    """Say whether the process called `name` by `identity` is running still."""
    pid, created = name.split(":")
    try:
        process = psutil.Process(int(pid))
        born = abs(process.create_time() - float(created)) < CLOCK
        return born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def join_chain(runs: Path) -> None:
    """Begin a chain of ancestors at this process, or at the `make` that called it."""
    make = os.environ.get(MAKE, "")
    above = [p.pid for p in psutil.Process().parents()]
    names = [identity(int(make))] if make.isdigit() and int(make) in above else []
    os.environ[CHAIN] = " ".join(names)
    os.environ[RUNS] = str(runs)


def end_with_parents(*, own_parent: bool = False, poll: float = 0.2) -> None:
    """End this process and its children as soon as an ancestor is gone; and append it to the chain.

    Args:
        own_parent: on Linux, also have the system kill us the moment our parent ends, even while
            the interpreter is blocked. For processes that a main thread starts: the signal
            comes when the parent's *thread* ends.
        poll: seconds between two looks at the chain.
    """
    names = os.environ.get(CHAIN, "").split()
    if names:
        if own_parent:
            end_with_parent()

        def watch() -> None:
            while all(map(is_alive, names)):
                time.sleep(poll)
            _end_self()

        if not all(map(is_alive, names)):
            _end_self()
        threading.Thread(target=watch, daemon=True, name="watch-parents").start()
    os.environ[CHAIN] = " ".join([*names, identity(os.getpid())])


def end_with_parent() -> None:
    """On Linux, have the system kill this process the moment its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end_self() -> None:
    for child in psutil.Process().children(recursive=True):
        _kill(child)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        pass  # it ended by itself, which is what we want


def end_tree(runs: Path, *, below: str = "") -> int:
    """Kill what earlier runs in `runs` left behind, or all that is below one process of this run.

    A process belongs to the folder when its environment says so, wherever new sessions and lost
    parents have moved it.

    Args:
        runs: the folder that the processes write to.
        below: identity of a process; empty for the processes of which an ancestor is gone.

    Returns:
        how many processes were killed; all of them have ended.
    """
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue  # another user's, or just ended
        if environment.get(RUNS) != str(runs) or process.pid == os.getpid():
            continue
        names = environment.get(CHAIN, "").split()
        if below in names if below else not all(map(is_alive, names)):
            found.append(process)
    for process in found:
        _kill(process)
    psutil.wait_procs(found, timeout=10)
    return len(found)


@contextmanager
def one_at_a_time(runs: Path, *, patience: float = 2.0) -> Iterator[None]:
    """Hold `runs/.lock`; the system releases it however this process ends.

    Args:
        runs: an existing folder.
        patience: seconds to wait for a holder that is just ending.

    Raises:
        UspError: another process holds it.
    """
    deadline = time.monotonic() + patience
    with open(runs / ".lock", "a+", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    holder = lock.read().strip() or "unknown"
                    raise UspError(
                        f"another run is writing to {runs.name}/ (process {holder}); "
                        "wait until it ends, or stop it"
                    ) from None
                time.sleep(0.1)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def be_kernel() -> None:
    """Be the kernel whose connection file the command line names, until it is told to end."""
    from ipykernel import kernelapp

    if sys.path[0] == os.getcwd():
        del sys.path[0]  # the kernel puts "" there itself, as Jupyter's own launcher expects
    kernelapp.launch_new_instance()


def kernel() -> None:
    """Be a kernel that ends with its parents: one that a warm process forks, where there is one, or this process."""
    from usp_lab.warm import borrow

    end_with_parents(own_parent=True)
    code = borrow()
    if code is None:
        be_kernel()
    sys.exit(code)


if __name__ == "__main__":
    kernel()
