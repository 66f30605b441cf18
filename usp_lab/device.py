"""What a notebook computes on, told without loading torch where that can be."""

import importlib.util
from pathlib import Path


def may_have_gpu() -> bool:
    """Tell whether the system has a file of a GPU, without asking it."""
    devices = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    return any(Path(p).exists() for p in devices)


def device_and_why() -> tuple[str, str]:
    """Return the device to compute on and why; import torch just where there may be a GPU."""
    if importlib.util.find_spec("torch") is None:
        return "cpu", "torch is not installed"
    if not may_have_gpu():
        return "cpu", "no GPU found"
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name(0)
    return "cpu", f"torch {torch.__version__} sees no usable GPU"
