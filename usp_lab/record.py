"""What a notebook records: `run = start("03_conditional_sft", globals())` ... `run.finish()`.

In between come metrics, tables and figures. Under `usp-lab run` all goes to
runs/<preset>[+<name>]/<notebook>, in JupyterLab to runs/interactive/<notebook>. `results.load_runs`
reads all finished runs into one table.
"""

import ast
import hashlib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from usp_lab.device import device_and_why
from usp_lab.errors import UspError
from usp_lab.files import (
    POPULATION,
    atomic,
    find_root,
    parameter_cell,
    read_json,
    run_label,
    sha256_of,
    write_json,
)
from usp_lab.results import METRIC_COLUMNS, metric_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from usp_lab.stats import Estimate

REQUEST = "USP_LAB_RUN"  # environment: the file with what the runner asks of this kernel
INNER, FINISHED, ASKED = ".record.json", ".done.json", ".run.json"  # hidden files of a run's folder
# Entries of the manifest that are the runner's own.
RESERVED = set(
    "notebook title preset name status key execution parameters seed source inputs tables figures "
    "code parameters_hash modules upstream git python versions started ended seconds".split()
)


class Run:
    """What one notebook writes, and where; made by `start`.

    Attributes:
        dir: folder of this run; files in it survive an interrupted execution with the same key.
        notebook, preset, seed, params: what is run.
        device: "cpu", "cuda" or "mps"; `device_reason` says why.
    """

    def __init__(self, root: Path, asked: dict):
        self.root, self._asked = root, asked
        self.notebook, self.preset = asked["notebook"], asked["preset"]
        self.params: dict = asked["parameters"]
        self.seed = self.params.get("seed", 0)
        self.dir = root / asked["dir"]
        self.device, self.device_reason = device_and_why()
        self._notes: dict = {"device": {"name": self.device, "why": self.device_reason}}
        self._inputs: dict[str, dict] = {}
        self._metrics: dict[str, dict[str, dict]] = {}
        self._tables: dict[str, dict] = {}
        self._figures: dict[str, dict] = {}

    def needs(self, notebook: str, file: str | None = None) -> Path:
        """Return the folder of another notebook's finished run, or a file in it.

        The runner finds the names in the source to order the notebooks: write them as literals.

        Raises:
            UspError: that notebook has not run, or left no such file.
        """
        upstream = self._asked["upstream"]
        if upstream is not None and notebook not in upstream:
            raise UspError(
                f"{self.notebook} needs {notebook!r}, which its source does not name; "
                f'write run.needs("{notebook}")'
            )
        folder = self.root / (upstream or {}).get(
            notebook, f"runs/{self._asked['label']}/{notebook}"
        )
        done = (read_json(folder / FINISHED) or {}).get("status") == "done"
        if done and (file is None or (folder / file).exists()):
            return folder if file is None else folder / file
        what = file or "the results"
        raise UspError(
            f"{self.notebook} needs {what} from {notebook}; none under "
            f"{folder.relative_to(self.root)}. Run: {run_command(notebook, self._asked)}"
        )

    def input(self, path: str | Path) -> Path:
        """Record a file or folder that the run reads, with its hash, and return its path."""
        path = Path(path)
        if not path.exists():
            raise UspError(f"{self.notebook} reads {path}, which does not exist; check the path")
        absolute = path.resolve()
        shown = (
            str(absolute.relative_to(self.root))
            if absolute.is_relative_to(self.root)
            else str(absolute)
        )
        self._inputs[shown] = {"path": shown, "sha256": sha256_of(absolute)}
        return path

    def note(self, **entries: object) -> None:
        """Add entries to the manifest: data_fingerprint, model ids, another device and why."""
        if taken := sorted(RESERVED & entries.keys()):
            raise UspError(
                f"run.note({taken[0]}=...) would overwrite the manifest's own entry; "
                "choose another name"
            )
        self._notes.update(entries)

    def metric(self, name: str, arm: str, estimate: "Estimate") -> None:
        """Put an estimate into metrics.json; NaN means that it could not be computed."""
        e = estimate
        self._metrics.setdefault(name, {})[arm] = {
            "value": e.value,
            "low": e.low,
            "high": e.high,
            "n": e.n,
            "unit": e.unit,
        }

    def record(self, table: "pd.DataFrame") -> "pd.DataFrame":
        """Put every row of a tidy table (metric, arm, value, low, high, n, unit) into metrics.json; return the table."""
        for row in table.itertuples():
            self.metric(row.metric, row.arm, row)
        return table

    @property
    def metrics(self) -> dict[str, dict[str, dict]]:
        """What `metric` was given so far, in the form of metrics.json."""
        return self._metrics

    def metrics_table(self) -> "pd.DataFrame":
        """Return the metrics so far as a table of metric, arm, value, low, high, n, unit."""
        import pandas as pd

        return pd.DataFrame(metric_rows(self._metrics), columns=METRIC_COLUMNS)

    def table(self, name: str, data: "pd.DataFrame") -> Path:
        """Save a table as <name>.parquet and return its path."""
        path = self.dir / f"{name}.parquet"
        with atomic(path) as temporary:
            data.to_parquet(temporary)
        self._tables[name] = {"name": name, "file": path.name, "rows": len(data)}
        return path

    def figure(
        self,
        plot: "Callable[[pd.DataFrame], Figure]",
        table: "pd.DataFrame",
        name: str | None = None,
        caption: str = "",
    ) -> "Figure":
        """Save a table, draw it, and save the figure: it can be drawn again from the table alone.

        Args:
            plot: a function of `usp_lab.plots` that takes the table and returns a figure.
            table: one tidy table.
            name: of the figure and its table; the function's by default.
            caption: what the reader should see in it.
        """
        # Looked up by name: an import statement would make every notebook depend on plots.py. The
        # runner counts calls of `.figure` instead.
        plots = importlib.import_module(f"{__package__}.plots")
        import matplotlib.pyplot as plt

        if not plot.__module__.startswith("usp_lab."):
            raise UspError(
                f"run.figure calls functions of usp_lab.plots, not {plot.__module__}."
                f"{plot.__name__}; move it there, so that the figure can be drawn again"
            )
        name = name or plot.__name__
        self.table(name, table)
        figure = plot(table)
        (self.dir / "figures").mkdir(exist_ok=True)
        data = (
            self._notes.get("data_fingerprint")
            or self._asked["data_sha256"]
            or self.params.get("data", POPULATION)
        )
        hashes = {
            "parameters_hash": self._asked["parameters_hash"],
            "code": self._asked["code"],
            "data_fingerprint": data,
        }
        plots.save_figure(
            figure,
            self.dir / "figures" / name,
            meta={"notebook": self.notebook, **{k: str(v) for k, v in hashes.items()}},
        )
        plt.close(figure)  # the cell shows the returned figure; an open one would be shown twice
        function = f"{plot.__module__}.{plot.__qualname__}"
        self._figures[name] = {
            "name": name,
            "function": function,
            "table": f"{name}.parquet",
            "caption": caption,
        }
        return figure

    def gallery_folder(self) -> Path:
        """Return where the canonical figures of this run go: figures/ for the plain preset `tiny`, else a folder of the run's own."""
        plain = self.preset == "tiny" and self.dir.parent == self.root / "runs" / "tiny"
        return self.root / "figures" if plain else self.dir / "canonical"

    def finish(self) -> "pd.DataFrame":
        """Write metrics.json and mark the run as complete; return the metrics as a table."""
        write_json(self.dir / "metrics.json", self._metrics)
        lists = {"inputs": self._inputs, "tables": self._tables, "figures": self._figures}
        write_json(
            self.dir / INNER,
            {
                "status": "done",
                "python": sys.executable,
                "notes": self._notes,
                **{k: list(v.values()) for k, v in lists.items()},
            },
        )
        return self.metrics_table()


def start(notebook: str, namespace: Mapping[str, object]) -> Run:
    """Begin the record of a notebook and print one line: preset, seed, device and why, folder.

    Args:
        notebook: its name, e.g. "03_conditional_sft".
        namespace: `globals()`; in JupyterLab the parameters are read from it.
    """
    root = find_root()
    if request := os.environ.get(REQUEST):
        asked = json.loads(Path(request).read_text(encoding="utf-8"))
        if asked["notebook"] != notebook:
            raise UspError(
                f'{asked["notebook"]} calls start("{notebook}"); give it the notebook\'s own name'
            )
    else:
        asked = _asked_in_jupyter(root, notebook, namespace)
        (root / asked["dir"]).mkdir(parents=True, exist_ok=True)
    run = Run(root, asked)
    for name, value in run.params.items():  # checkpoints and encoders in folders, a seed file
        if name != "data" and isinstance(value, str) and os.sep in value and Path(value).exists():
            run.input(value)
    device = f"{run.device} ({run.device_reason})"
    print(f"{notebook}: preset {run.preset}, seed {run.seed}, {device}, {asked['dir']}")
    return run


def _asked_in_jupyter(root: Path, notebook: str, namespace: Mapping[str, object]) -> dict:
    cell = parameter_cell(read_json(root / "notebooks" / f"{notebook}.ipynb") or {})
    if cell is None:
        raise UspError(
            f"no notebook {notebook} with a cell tagged `parameters` under notebooks/; "
            "give start() the notebook's own name"
        )
    targets = [
        t for node in ast.parse(cell[1]).body if isinstance(node, ast.Assign) for t in node.targets
    ]
    parameters = {
        t.id: namespace[t.id] for t in targets if isinstance(t, ast.Name) and t.id in namespace
    }
    preset, data = str(parameters.get("preset", "tiny")), str(parameters.get("data", POPULATION))
    digest = hashlib.sha256(
        json.dumps(parameters, sort_keys=True, default=str).encode()
    ).hexdigest()
    return {
        "notebook": notebook,
        "preset": preset,
        "name": None,
        "passed": {},
        "parameters": parameters,
        "parameters_hash": digest[:12],
        "label": run_label(preset, None if data == POPULATION else data),
        "dir": f"runs/interactive/{notebook}",
        "upstream": None,
        "code": "interactive",
        "data": data,
        "data_sha256": None,
    }


def run_command(notebook: str, asked: Mapping) -> str:
    """Return the command that runs a notebook with the settings of another one's run."""
    words = ["usp-lab run", notebook]
    if asked["preset"] != "tiny":
        words.append(f"--preset {asked['preset']}")
    if asked["data"] != POPULATION:
        words.append(f"--data {shlex.quote(asked['data'])}")
    if asked["name"]:
        words.append(f"--name {asked['name']}")
    words += [f"-p {shlex.quote(f'{name}={text}')}" for name, text in asked["passed"].items()]
    return " ".join(words)
