"""UMAP whose compiled functions are kept between processes: `python -m usp_lab.compiled` makes them.

numba compiles most of UMAP anew in every process (half a minute) because it declares few functions as
cached; here the others are, too. They lie beside the library, or where ``NUMBA_CACHE_DIR`` says.
"""

import sys
import time
from functools import cache

import numpy as np

_LIBRARIES = ("umap", "pynndescent")


@cache
def umap_class() -> type:
    """Import UMAP and let numba cache what it compiles of it, where there is a folder to write to."""
    from numba.core.dispatcher import Dispatcher
    from umap import UMAP

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in _LIBRARIES:
            for function in list(vars(module).values()):
                if isinstance(function, Dispatcher):
                    try:
                        function.enable_caching()  # as `numba.njit(cache=True)` does
                    except RuntimeError:  # no folder can be written to: compiled each time
                        return UMAP
    return UMAP


def compile_all() -> None:
    """Compile what `sampling.ProfileSampler` uses of UMAP and densMAP."""
    rng = np.random.default_rng(0)
    known, new = (rng.normal(size=(n, 16)).astype(np.float32) for n in (64, 8))
    for densmap in (False, True):
        fitted = umap_class()(15, 2, densmap=densmap, random_state=0, n_jobs=1).fit(known)
        if not densmap:
            fitted.transform(new)


if __name__ == "__main__":
    started = time.time()
    compile_all()
    print(f"UMAP compiled in {time.time() - started:.0f} s")
