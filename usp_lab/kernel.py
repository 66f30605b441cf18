"""papermill with our kernel: this interpreter, reached over IPC, ending with us.

papermill and nbclient choose the kernel by its installed name, and a user's own `python3` may be
anything; so the kernel's command is given here. Parameters are checked before (`notebooks.py`):
papermill only warns.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node

from usp_lab.errors import UspError
from usp_lab.processes import SOCKET_PATH

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
SHOWN_SOURCE, SHOWN_MESSAGE = 7, 12  # lines of a report: a failure fits on one screen


@dataclass(frozen=True)
class CellError:
    """What went wrong in which cell."""

    cell: int  # 1 is the notebook's first cell of any kind; 0: no cell was running
    cells: int
    execution_count: int | None
    source: str
    line: int | None  # of the cell
    kind: str
    message: str
    inside: str = ""  # the last frame in a file

    def text(self) -> str:
        """Return the report of one screen."""
        count = f", In [{self.execution_count}]" if self.execution_count else ""
        lines = self.source.rstrip().splitlines()
        first = max(0, min((self.line or 1) - 1 - SHOWN_SOURCE // 2, len(lines) - SHOWN_SOURCE))
        shown = list(enumerate(lines, 1))[first : first + SHOWN_SOURCE]
        code = [f"  {'>' if i == self.line else ' '} {i:3} | {text[:110]}" for i, text in shown]
        message = self.message.splitlines() or [""]
        if len(message) > SHOWN_MESSAGE:
            message = [*message[: SHOWN_MESSAGE - 1], "..."]
        message = [text[:300] for text in message]
        where = [f"  raised in {self.inside}"] if self.inside else []
        head = f"cell {self.cell} of {self.cells}{count}" if self.cell else "its start"
        return "\n".join(
            [
                f"{head}:",
                *code,
                f"  {self.kind}: {message[0]}",
                *(f"  {m}" for m in message[1:]),
                *where,
            ]
        )


class OwnKernelManager(AsyncKernelManager):
    """Starts the interpreter that we run in, whatever kernelspecs are installed."""

    folder = (
        Path()
    )  # for the connection file and the sockets; short, because a socket's path is limited

    def __init__(self, **settings: object):
        super().__init__(**settings)
        self.connection_file = str(self.folder / "k.json")
        if zmq.has("ipc") and len(os.fsencode(self.folder / "k-ipc-5")) < SOCKET_PATH:
            self.transport = "ipc"

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel's command."""
        argv = [sys.executable, "-m", "usp_lab.processes", "-f", "{connection_file}"]
        return KernelSpec(
            argv=argv, display_name="Python 3 (ipykernel)", language="python", name="python3"
        )


class _Manager(NotebookExecutionManager):
    """Saves through a callback and says which cell is running."""

    def __init__(self, nb: nbformat.NotebookNode, save: Callable, progress: Callable):
        super().__init__(nb, progress_bar=False)
        self.write, self.progress = save, progress
        self.running: int | None = None

    def save(self, **_: object) -> None:
        self.write(nbformat.writes(self.nb))
        self.last_save_time = self.now()

    def cell_start(self, cell: nbformat.NotebookNode, cell_index: int = 0, **_: object) -> None:
        self.running = cell_index
        self.progress(*_place(self.nb, cell_index))
        super().cell_start(cell, cell_index=cell_index)


def run_notebook(
    path: Path,
    parameters: dict[str, object],
    cwd: Path,
    sockets: Path,
    save: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> CellError | None:
    """Execute a notebook and return what failed, or None.

    Args:
        path: the notebook, left as it is.
        parameters: checked and complete.
        cwd: working directory of the kernel.
        sockets: an empty folder with a short path.
        save: takes the executed copy, as often as it changes and at last.
        progress: takes cell number (from 1) and number of cells, when a cell begins.

    Raises:
        OSError, UspError: what `save` raises.
    """
    managers: list[_Manager] = []

    class Engine(NBClientEngine):
        @classmethod
        def execute_notebook(cls, nb, kernel_name, output_path, progress_bar, **settings):
            nb.metadata.papermill["input_path"] = path.name  # else the whole notebook
            managers.append(_Manager(nb, save, progress))
            managers[0].notebook_start()
            try:
                cls.execute_managed_notebook(managers[0], kernel_name, **settings)
            finally:
                managers[0].notebook_complete()
            return nb

    class Kernel(OwnKernelManager):
        folder = sockets

    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill_engines.register("usp-lab", Engine)
    os.environ["IPYTHONDIR"] = str(sockets / "ipython")  # the user's start-up files stay out of it
    try:
        papermill.execute_notebook(
            load_notebook_node(str(path)),
            None,  # papermill would write the copy in place: we save by ourselves
            parameters,
            engine_name="usp-lab",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(cwd),
            kernel_manager_class=Kernel,
        )
    except PapermillExecutionError as error:
        return _cell_error(managers[0].nb, error)
    except (OSError, UspError):
        raise
    except Exception as error:  # the kernel died, or never came up
        return _kernel_error(managers[0] if managers else None, error)
    return None


def _place(nb: nbformat.NotebookNode, index: int) -> tuple[int, int]:
    """Cell number and number of cells, without the cell that papermill put in."""
    ours = ["injected-parameters" not in cell.metadata.get("tags", []) for cell in nb.cells]
    return max(1, sum(ours[: index + 1])), sum(ours)


def _cell_error(nb: nbformat.NotebookNode, error: PapermillExecutionError) -> CellError:
    trace = ANSI.sub("", "\n".join(error.traceback))
    line = re.search(rf"Cell In\s?\[{error.exec_count}\], line (\d+)", trace)
    frames = re.findall(r"^File (.+?:\d+), in (\w+)", trace, flags=re.MULTILINE)
    marked = [c for c in nb.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    cell, cells = _place(nbformat.NotebookNode(cells=marked), error.cell_index)
    return CellError(
        cell=cell,
        cells=cells,
        execution_count=error.exec_count,
        source=error.source,
        line=int(line[1]) if line else None,
        kind=error.ename,
        message=ANSI.sub("", error.evalue),
        inside=" in ".join(frames[-1]) if frames else "",
    )


def _kernel_error(manager: _Manager | None, error: Exception) -> CellError:
    dead = isinstance(error, DeadKernelError)
    kind = "the kernel died" if dead else type(error).__name__
    message = "it was killed or ran out of memory" if dead else str(error)
    if manager is None or manager.running is None:
        traceback.print_exception(error)  # to the log
        return CellError(0, 0, None, "", None, kind, message)
    cell, cells = _place(manager.nb, manager.running)
    source = manager.nb.cells[manager.running].source
    return CellError(cell, cells, None, source, None, kind, message)
