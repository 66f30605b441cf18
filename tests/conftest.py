"""Two workers, each on a thread of its own; the longest files first, so that both end together."""

import os

# Before torch is imported. Two workers with two threads each take turns waiting for one another, and
# numba gives its number of threads to torch as soon as it runs something in parallel.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

_FIRST = ("test_notebooks", "test_paper_preset", "test_sft", "test_runner", "test_endpoints")


def pytest_collection_modifyitems(items) -> None:
    """Put long files in front; within a file the order stays."""
    rank = {name: i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
