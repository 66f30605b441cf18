"""Results of finished runs, read back: `load_runs()` gives one tidy table over all of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from usp_lab.files import find_root, read_json

if TYPE_CHECKING:
    import pandas as pd

METRIC_COLUMNS = ["metric", "arm", "value", "low", "high", "n", "unit"]


def metric_rows(metrics: dict) -> list[dict]:
    """Return the entries of a metrics.json as rows."""
    return [
        {"metric": metric, "arm": arm, **entry}
        for metric, arms in metrics.items()
        for arm, entry in arms.items()
    ]


def load_runs(root: str | Path = "runs") -> "pd.DataFrame":
    """Read the metrics of all finished runs.

    Args:
        root: folder of runs; a relative one is looked up in the checkout.

    Returns:
        One row per run, metric and arm: preset, name, notebook, metric, arm, value, low, high, n,
        unit, commit, key, seed. A value that could not be computed is NaN.
    """
    import pandas as pd

    folder = find_root() / root
    rows = []
    for path in sorted(folder.glob("*/*/manifest.json")):
        manifest, metrics = read_json(path), read_json(path.with_name("metrics.json"))
        if manifest is None or metrics is None or manifest.get("status") != "done":
            continue
        if path.parent.name.startswith("."):
            continue  # on its way out
        about = {
            "preset": manifest["preset"],
            "name": manifest["name"],
            "notebook": manifest["notebook"],
        }
        made = {
            "commit": manifest["git"]["commit"],
            "key": manifest["key"],
            "seed": manifest["seed"],
        }
        rows += [{**about, **row, **made} for row in metric_rows(metrics)]
    table = pd.DataFrame(
        rows, columns=["preset", "name", "notebook", *METRIC_COLUMNS, "commit", "key", "seed"]
    )
    numbers = ["value", "low", "high"]
    return table.astype({column: float for column in numbers})
