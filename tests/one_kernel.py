"""All notebooks of some plans in one IPython shell: `python tests/one_kernel.py PLAN ...`, or `run_plans`.

The runner's own `execute`, with the notebook's kernel exchanged for a shell of this process: same plan, same
parameters, same folders and manifests, without a dozen times of importing everything.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

sys.modules.setdefault("rfc3987_syntax", None)  # a grammar of seconds for addresses; see `run`
from usp_lab import kernel, run  # noqa: E402
from usp_lab.plan import load_plan  # noqa: E402


def run_notebook(path, parameters, cwd, sockets, save, progress):
    """Execute a notebook's cells in a fresh namespace; what failed, or None (as `kernel.run_notebook`)."""
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    cells, printed = json.loads(path.read_text(encoding="utf-8"))["cells"], []
    for i, cell in enumerate(cells, 1):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            done = shell.run_cell(source, store_history=False)
        printed.append({"outputs": [{"text": out.getvalue()}]})
        if error := done.error_before_exec or done.error_in_exec:
            kind = type(error).__name__
            return kernel.CellError(i, len(cells), None, source, None, kind, str(error))
        if "parameters" in cell["metadata"].get("tags", []):
            shell.user_ns.update(parameters)
    save(json.dumps({"cells": printed}))
    return None


def run_plans(root: Path, *plans: Path, **env: str) -> subprocess.CompletedProcess:
    """Run plans of the checkout ``root`` in a process of their own, with its modules."""
    command = [sys.executable, __file__, *map(str, plans)]
    # numba hands its number of threads to torch
    one = {f"{library}_NUM_THREADS": "1" for library in run.THREADS}
    env = os.environ | one | {"USP_LAB_ROOT": str(root), "PYTHONPATH": str(root)} | env
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=1500)


def main() -> int:
    """Run the plans' notebooks in order and print the seconds of each; 1 as soon as one fails."""
    kernel.run_notebook = run_notebook
    for path in sys.argv[1:]:
        plan = load_plan(path, executing=True)
        for name in plan.entries:
            began, used = time.monotonic(), time.process_time()
            try:
                run.execute(plan, name)
            except Exception as error:
                print(f"{name} failed: {getattr(error, 'report', error)}")
                return 1
            seconds = time.monotonic() - began
            print(f"{name}: {seconds:.1f} s, CPU {time.process_time() - used:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
