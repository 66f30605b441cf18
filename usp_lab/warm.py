"""Kernels that begin at once: a process that has loaded the libraries, and forks for every notebook.

Each kernel would load torch, transformers and what stands on them for five seconds; in the minutes of preset
`smoke` that is a sixth of the time. `python -m usp_lab.warm SOCKET` loads them once; the process that a notebook
starts as its kernel (`processes`) asks there for a copy, and is a kernel itself where it gets none. A copy ends
with that process, as it ends with its own parents.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from usp_lab.processes import be_kernel, end_with_parent, end_with_parents
from usp_lab.record import may_have_gpu

SOCKET = "USP_LAB_WARM"  # where a warm process listens once it has loaded
WORTH = 3  # notebooks to execute, from which on it pays
# Libraries alone: our own modules are loaded by each notebook, as they are when it begins.
_LIBRARIES = (
    "ipykernel.kernelapp ipykernel.ipkernel pandas pyarrow.parquet scipy.stats scipy.optimize matplotlib.figure "
    "matplotlib.backends.backend_agg matplotlib.backends.backend_svg sklearn.linear_model sklearn.pipeline "
    "sklearn.feature_extraction.text sklearn.model_selection torch transformers.modeling_utils "
    "transformers.models.llama.modeling_llama transformers.models.auto.modeling_auto sentence_transformers "
    "datasets trl.trainer.sft_trainer umap KDEpy"
).split()


def possible() -> bool:
    """Tell whether kernels may be forked here: on Linux, and where no GPU may have been touched before."""
    return sys.platform == "linux" and not may_have_gpu()


def serve(path: Path) -> None:
    """Load the libraries, then make a kernel of a fork for everyone who asks at the socket ``path``."""
    end_with_parent()
    # As a kernel sets it before matplotlib is loaded.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who ended
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.part")
    listener.listen(64)
    os.rename(f"{path}.part", path)
    while True:
        asking, _ = listener.accept()
        with asking, contextlib.suppress(OSError, ValueError):
            _, streams, _, _ = socket.recv_fds(asking, 1, 3)
            asked = json.loads(asking.makefile("rb").read())
            pid = os.fork()
            if pid == 0:
                listener.close()
                _be(asked, streams)  # holds `asking` open for as long as it lives
            asking.sendall(b"%d\n" % pid)
            for stream in streams:
                os.close(stream)


def _be(asked: dict, streams: list[int]) -> None:
    """Become the kernel that was asked for; does not return."""
    import numpy as np

    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        # The kernel's own watch takes this for its parent's number, which it is not.
        os.environ.pop("JPY_PARENT_PID", None)
        sys.argv = asked["argv"]
        np.random.seed()  # else all copies would draw alike
        end_with_parents(own_parent=True)
        be_kernel()
        code = 0
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def borrow() -> bool:
    """Have a warm process be the kernel that this process was started as, and wait for its end.

    Returns:
        False where there is no warm process, or it has not loaded yet.
    """
    path = os.environ.get(SOCKET)
    if not path:
        return False
    with socket.socket(socket.AF_UNIX) as ours:
        try:
            ours.connect(path)
            socket.send_fds(ours, [b"-"], [0, 1, 2])
            asked = {"argv": sys.argv, "environment": dict(os.environ)}
            ours.sendall(json.dumps(asked).encode())
            ours.shutdown(socket.SHUT_WR)
            kernel = int(ours.makefile().readline())
        except (OSError, ValueError):
            return False
        signal.signal(signal.SIGINT, lambda *_: os.kill(kernel, signal.SIGINT))
        while ours.recv(1 << 10):
            pass
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
