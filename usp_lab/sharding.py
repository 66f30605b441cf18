"""Speaking with a model whose weights lie in shards on several processes (FSDP 2)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.fsdp import FSDPModule
from torch.nn import Module


@contextmanager
def whole_weights(model: Module) -> Iterator[None]:
    """Keep the weights whole on every process meanwhile; a model that is not in shards is left alone.

    Each forward pass of a sharded model waits for all processes, but dialogues have turns of their own number and
    length: without this the process with fewer would leave the others waiting for ever. All processes must enter and
    leave together.
    """
    parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
