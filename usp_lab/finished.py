"""The record of a finished training: written last, it is what marks a folder as whole."""

import json
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


def prepare_folder(folder: Path, key: str) -> None:
    """Make a folder of checkpoints hold nothing but whole ones of the run ``key``."""
    mark = folder / "key"
    if not mark.exists() or mark.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)
    for checkpoint in folder.glob("checkpoint-*"):
        state = _state(checkpoint)
        if state is None:  # killed while it was written
            shutil.rmtree(checkpoint)
        elif state["best_model_checkpoint"]:  # the folder may have moved
            best = folder / Path(state["best_model_checkpoint"]).name
            part = checkpoint / "trainer_state.json.part"
            part.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}))
            part.replace(checkpoint / "trainer_state.json")


def last_checkpoint(folder: Path) -> tuple[Path | None, dict]:
    """Return the latest checkpoint and the trainer's state in it; (None, {}) without one."""
    found = {int(p.name.rsplit("-", 1)[1]): p for p in folder.glob("checkpoint-*")}
    if not found:
        return None, {}
    latest = found[max(found)]
    return latest, _state(latest)


def _state(checkpoint: Path) -> dict | None:
    """Read what is written last into a checkpoint; None when it is not whole."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return None
