"""Make the virtual environment: `python .ci/install.py .venv .venv/.installed`, see the Makefile.

Standard library alone. An installation that was killed is repeated from an empty environment; one
whose make was killed ends; two at a time wait for each other.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TORCH = "torch==2.13.0"
EXTRAS = ".[workbench,test]"


def watch(make: int, children: list[subprocess.Popen]) -> None:
    """End with the make that called us, also when it is killed."""
    parent = os.getppid()
    while os.getppid() == parent and alive(make):
        time.sleep(0.3)
    for child in children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def main(venv: Path, stamp: Path) -> int:
    children: list[subprocess.Popen] = []
    make = os.environ.get("USP_LAB_MAKE_PID", "")
    if make.isdigit():
        threading.Thread(target=watch, args=(int(make), children), daemon=True).start()

    def call(*words: str) -> None:
        # the lock is inherited: who holds it is installing, whatever became of us
        children.append(subprocess.Popen(words, pass_fds=(lock.fileno(),)))
        if code := children[-1].wait():
            sys.exit(
                f"make: {' '.join(words[1:6])} ... failed ({code}); see above, then make again"
            )

    # Both the lock and, while it has content, the sign of an installation that was not finished.
    with open(f"{venv}.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another installation into {venv} to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        started, python = time.time(), venv / "bin" / "python"
        lock.seek(0)
        unfinished = bool(lock.read())
        lock.write("installing\n")
        lock.flush()
        if unfinished or not python.exists():
            print(f"making {venv} with Python {sys.version.split()[0]}", flush=True)
            call(sys.executable, "-m", "venv", *["--clear"] * unfinished, str(venv))
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        index = os.environ.get("TORCH_INDEX")
        where = ["--index-url", index] if index else []
        print(f"installing {TORCH}{f' from {index}' if index else ''}, then the rest", flush=True)
        call(*pip, "--no-deps", *where, TORCH)
        call(*pip, "-c", "constraints.txt", "-e", EXTRAS)
        call(str(python), "-m", "usp_lab.compiled")  # or every process that draws a map would
        stamp.touch()
        lock.truncate(0)
        print(f"installed in {time.time() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit("make: installation stopped; make goes on with it next time")
