"""The record of a finished training: written last, it is what marks a folder as whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from usp_lab.files import read_json, write_json

FINAL = "training.json"


def finished(out: Path, key: str) -> dict | None:
    """Return the record of a training that ended in ``out`` under this key, None when there is none."""
    record = read_json(out / FINAL)
    if record is None or record.get("key") != key:
        return None
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # killed just before this
    return record


def finish(out: Path, record: Mapping[str, object]) -> None:
    """Mark a training as finished and remove its checkpoints.

    Args:
        out: folder of the model.
        record: what `finished` returns later; its ``key`` stands for everything that decided the weights.
    """
    write_json(out / FINAL, record)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
