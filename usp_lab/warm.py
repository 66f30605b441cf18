"""Kernels that begin at once: a process that has loaded the libraries, and forks for every notebook.

Each kernel would load torch, transformers and what stands on them for five seconds; in the minutes of preset
`smoke` that is a sixth of the time. `python -m usp_lab.warm SOCKET` loads them once; the process that a notebook
starts as its kernel (`processes`) asks there for a copy, and is a kernel itself where it gets none. A copy ends
with that process, as it ends with its own parents.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from usp_lab.device import may_have_gpu
from usp_lab.processes import CHAIN, be_kernel, end_with_parent, end_with_parents, is_alive

SOCKET = "USP_LAB_WARM"  # where a warm process listens once it has loaded
WORTH = 3  # notebooks to execute, from which on it pays
_PATIENCE = 10.0  # seconds that either side waits for the other to answer
# Libraries alone: each notebook loads our own modules, as they are when it begins.
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
    if not all(map(is_alive, os.environ.get(CHAIN, "").split())):
        return  # it ended before the system was told
    # As kernels have them when they load the libraries: how matplotlib draws, whose end a kernel watches.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
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
            _answer(asking, listener)


def _answer(asking: socket.socket, listener: socket.socket) -> None:
    asking.settimeout(_PATIENCE)
    _, streams, _, _ = socket.recv_fds(asking, 1, 3)
    try:
        asked = json.loads(asking.makefile("rb").readline())
        pid = os.fork()
        if pid == 0:
            listener.close()
            _be(asked, streams, asking)
        asking.sendall(b"%d\n" % pid)
    finally:
        for stream in streams:
            os.close(stream)


def _be(asked: dict, streams: list[int], asking: socket.socket) -> None:
    """Become the kernel that was asked for, once told to; does not return.

    The asker learns of our end by ``asking``, which is closed then.
    """
    import numpy as np

    code = 1
    try:
        if asking.recv(1) != b"!":  # the asker has waited too long, and is a kernel itself
            os._exit(code)
        os.setsid()
        os.register_at_fork(after_in_child=asking.close)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = asked["argv"]
        np.random.seed()  # else all copies would draw alike
        for name in [name for name in sys.modules if name.partition(".")[0] == "usp_lab"]:
            del sys.modules[name]  # it may have changed since
        end_with_parents(own_parent=True)
        be_kernel()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            asking.sendall(bytes([code & 255]))
        os._exit(code)


def borrow() -> int | None:
    """Have a warm process be the kernel that this process was started as, and wait for its end.

    Returns:
        Its exit code, 1 where it was killed; None where there is no warm process, or it has not loaded yet, or does
        not answer.
    """
    path = os.environ.get(SOCKET)
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(_PATIENCE)
        try:
            ours.connect(path)
            socket.send_fds(ours, [b"-"], [0, 1, 2])
            asked = {"argv": sys.argv, "environment": dict(os.environ)}
            ours.sendall(json.dumps(asked).encode() + b"\n")
            kernel = int(ours.makefile().readline())
            ours.sendall(b"!")
        except (OSError, ValueError):
            return None
        signal.signal(signal.SIGINT, lambda *_: os.kill(kernel, signal.SIGINT))
        ours.settimeout(None)
        with contextlib.suppress(OSError):
            return (ours.recv(1) or b"\1")[0]
    return 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
