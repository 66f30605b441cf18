"""The runner on small checkouts: strict parameters, exact dependencies, failures, kills."""

import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from usp_lab import cli, files, plan, run, warm
from usp_lab.dependencies import module_files
from usp_lab.display import Display
from usp_lab.errors import UspError
from usp_lab.kernel import CellError
from usp_lab.notebooks import parse_value, read_notebook, read_notebooks, read_parameters
from usp_lab.plan import Request, make_plan
from usp_lab.processes import RUNS
from usp_lab.record import INNER, REQUEST, RESERVED, start
from usp_lab.results import load_runs

HERE = Path(__file__).resolve().parents[1]
forks = pytest.mark.skipif(
    not warm.possible(), reason="kernels are forked on Linux without a GPU alone"
)
FRAME = (
    "__init__ cli dependencies device display errors files kernel notebooks plan presets processes record results run warm workflow"
).split()
PARAMETERS = """preset = "tiny"
data = "population"
on_bad = "raise"
seed = 0  # of all draws
n = 5  # how many, "quoted" # and more
rate = 0.1
flags = ["a"]
quick = True
"""
DATA = """from usp_lab import plots, start
from usp_lab.alpha import double
run = start("01_data", globals())"""
SAVE = """import pandas as pd
from usp_lab.stats import Estimate
run.note(data_fingerprint="abc")
run.table("rows", pd.DataFrame({"x": [double(n)]}))
run.metric("ppl", "usp", Estimate(1.5, 1.0, float("nan"), 7, "user"))
run.figure(plots.draw, pd.DataFrame({"x": [1]}), caption="one dot")"""
TRAIN = """from usp_lab import start
from usp_lab.beta import triple
run = start("03_train", globals())
rows = run.needs("01_data", "rows.parquet")"""
WAIT = """import os, pathlib, time
assert run.params["n"] == n and pathlib.Path("notebooks").is_dir()
kept = run.dir / "checkpoints"
kept.mkdir(exist_ok=True)
(kept / str(time.time_ns())).touch()
if (above := pathlib.Path(f"/proc/{os.getppid()}/cmdline")).exists():
    (run.dir / "parent").write_text(above.read_text())
while not pathlib.Path("go").exists():
    with open(run.dir / "beat", "a") as file:
        file.write(".")
    time.sleep(0.05)"""
MODULES = {
    "alpha.py": "from usp_lab import gamma\n\n\ndef double(x):\n    return 2 * x\n",
    "beta.py": "def triple(x):\n    from usp_lab.delta import one\n\n    return 3 * x * one\n",
    "gamma.py": 'from importlib import resources\n\ntables = resources.files("usp_lab") / "tables"\n',
    "delta.py": "from importlib import resources\n\none = 1\n"
    'texts = resources.files("usp_lab") / "texts.toml"\n',
    "stats.py": "from collections import namedtuple\n\n"
    'Estimate = namedtuple("Estimate", "value low high n unit")\n',
    "plots.py": "from matplotlib.figure import Figure\n\n\ndef draw(table):\n    return Figure()\n\n\n"
    "def save_figure(figure, stem, data=None, meta=None):\n"
    '    stem.with_suffix(".svg").write_text(repr(meta))\n',
    "tables/a.toml": "a = 1\n",
    "texts.toml": "a = 1\n",
    "unused.py": "",
}


def notebook(*cells: str, parameters: str = PARAMETERS, kernel: str = "python3") -> dict:
    def cell(i: int, source: str) -> dict:
        tags = {"tags": ["parameters"]} if i == 0 else {}
        fixed = {"cell_type": "code", "execution_count": None, "outputs": []}
        return {**fixed, "id": f"c{i}", "metadata": tags, "source": source}

    prose = "# A title\n\n*Question:* does it work?\n\nCost: 1 s"
    text = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": prose}
    code = [cell(i, source) for i, source in enumerate((parameters, *cells))]
    meta = {"kernelspec": {"name": kernel, "display_name": "Python 3", "language": "python"}}
    return {"cells": [text, *code], "metadata": meta, "nbformat": 4, "nbformat_minor": 5}


class Checkout:
    """A checkout with two notebooks, the second needing the first, and a package of its own."""

    def __init__(self, root: Path):
        self.root = root
        (root / "notebooks").mkdir(parents=True)
        (root / "usp_lab" / "tables").mkdir(parents=True)
        for name in FRAME:
            shutil.copy(HERE / "usp_lab" / f"{name}.py", root / "usp_lab")
        for name in ("Snakefile", "Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(HERE / name, root)
        for name, text in MODULES.items():
            (root / "usp_lab" / name).write_text(text)
        self.presets("smoke:\n  all: {n: 2}\n  03_train: {rate: 1e-3}\n")
        self.write("01_data", DATA, SAVE, "run.finish()")
        self.write("03_train", TRAIN, "triple(n)", WAIT, "run.finish()")

    def write(self, name: str, *cells: str, **settings: str) -> Path:
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.write_text(json.dumps(notebook(*cells, **settings)))
        return path

    def presets(self, text: str) -> None:
        (self.root / "notebooks" / "presets.yml").write_text(text)

    def warm(self) -> None:
        """Have every kernel forked, from a process that loads next to nothing."""
        path = self.root / "usp_lab" / "warm.py"
        text = path.read_text()
        for old, new in (("WORTH = 3", "WORTH = 1"), ("in _LIBRARIES:", 'in ["colorsys"]:')):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    def plan(self, *notebooks: str, **settings: object) -> plan.Plan:
        return make_plan(Request(notebooks, **settings), root=self.root)

    def keys(self, **settings: object) -> dict[str, str]:
        return {name: entry.key for name, entry in self.plan(**settings).entries.items()}

    @property
    def environment(self) -> dict[str, str]:
        ours = ("USP_LAB", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return {**kept, "USP_LAB_ROOT": str(self.root), "PYTHONPATH": str(self.root)}

    def usp_lab(self, *words: str, **settings: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "usp_lab.cli", *words]
        given = {"cwd": self.root, "env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(command, timeout=120, **{**given, **settings})

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUNS) == str(self.root / "runs"):
                    found.append(process)
            except psutil.Error:
                pass
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def manifest(self, name: str, label: str = "tiny") -> dict:
        return json.loads((self.root / "runs" / label / name / "manifest.json").read_text())

    def finish_all(self, label: str = "tiny", **settings: object) -> None:
        """Pretend that everything has run, without running it."""
        plan = self.plan(**settings)
        for name, entry in plan.entries.items():
            entry.folder.mkdir(parents=True, exist_ok=True)
            done = {"status": "done", "key": entry.key, "upstream": plan.upstream_now(name)}
            files.write_json(entry.folder / ".done.json", {**done, "execution": f"{name}-1"})


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a b{c}")  # a path that quoting and formatting could break


def until(condition, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def one_sentence(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("usp-lab: "), done.stderr
    for part in parts:
        assert part in done.stderr


# --- parameters and presets


def test_parameters_are_read_with_their_help():
    values, comments = read_parameters(PARAMETERS, "x")
    assert values["n"] == 5 and values["flags"] == ["a"] and values["quick"] is True
    assert comments["n"] == 'how many, "quoted" # and more' and comments["rate"] == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x = 1 + n", "write a literal"),
        ("x = (1, 2)", "tuple"),
        ("x = {1: 2}", "dict"),
        ("x = 1e999", "float"),
        ("x = y = 1", "not `name = literal`"),
        ("import os", "not `name = literal`"),
        ("n = 6", "second time"),
        ("x = ", "not Python"),
    ],
)
def test_parameters_other_than_json_literals_are_refused(line: str, said: str):
    with pytest.raises(UspError, match=re.escape(said)) as error:
        read_parameters(PARAMETERS + line, "07_x.ipynb")
    assert "07_x.ipynb" in str(error.value)
    assert said == "not Python" or "line 9" in str(error.value)


def test_required_parameters_and_kernel(checkout: Checkout):
    with pytest.raises(UspError, match="no parameter 'seed'"):
        read_parameters(PARAMETERS.replace("seed", "sead"), "x")
    with pytest.raises(UspError, match="kernel 'ir'"):
        read_notebook(checkout.write("02_x", kernel="ir"))
    (checkout.root / "notebooks" / "02_x.ipynb").write_text("{")
    with pytest.raises(UspError, match="02_x.ipynb is not a readable notebook"):
        read_notebooks(checkout.root)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("7", 1, 7),
        ("7", 0.5, 7.0),
        ("false", True, False),
        ("False", True, False),
        ("false", "x", "false"),
        ("[1]", [], [1]),
        ('{"a": null}', {}, {"a": None}),
        ("3", None, 3),
        ("abc", None, "abc"),
        ("None", None, None),
    ],
)
def test_p_is_parsed_by_the_defaults_type(text: str, default: object, value: object):
    parsed = parse_value("p", text, default)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("x", 1),
        ("1.5", 1),
        ("1", True),
        ("nan", 0.1),
        ("x", 0.1),
        ("{}", []),
        ("[1", []),
        ("[]", {}),
    ],
)
def test_p_of_a_wrong_type_is_refused_with_the_value_seen(text: str, default: object):
    with pytest.raises(UspError, match=re.escape("parameter p must be")) as error:
        parse_value("p", text, default)
    assert repr(text) in str(error.value) and repr(default) in str(error.value)


def test_resolved_parameters_come_in_layers(checkout: Checkout):
    entries = checkout.plan(preset="smoke", passed={"rate": "1"}).entries
    assert entries["01_data"].parameters["n"] == 2 and entries["01_data"].parameters["rate"] == 1.0
    assert checkout.plan(preset="smoke").entries["03_train"].parameters["rate"] == 0.001
    assert checkout.plan(on_bad="skip").entries["01_data"].parameters["on_bad"] == "skip"
    assert entries["01_data"].parameters["preset"] == "smoke"
    assert entries["01_data"].passed == {"rate": 1.0}


def test_a_parameter_may_be_for_one_notebook(checkout: Checkout):
    both = {"seed": "3", "03_train.seed": "4", "03_train.rate": "2"}
    variant = checkout.plan(passed=both)
    entries = variant.entries
    assert [e.parameters["seed"] for e in entries.values()] == [3, 4]
    assert entries["01_data"].passed == {"seed": 3}
    assert entries["03_train"].passed == {"seed": 4, "rate": 2.0}
    assert checkout.plan(passed={"03_train.seed": "4"}).entries["01_data"].key == (
        checkout.plan().entries["01_data"].key
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiny: {03_trian: {}}", "did you mean 03_train"),
        ("tiny: {all: {m: 1}}", "unknown parameter 'm'"),
        ("tiny: {01_data: {n: many}}", "of type int, not 'many'"),
        ("tiny: {01_data: {n: true}}", "of type int, not True"),
        ("tiny: {01_data: {data: x}}", "set by the runner"),
        ("tiny: [", "cannot be read"),
        ("tiny: [1]", "is not preset"),
        ("tiny: {all: 1}", "is not preset"),
        ("tiny", "is not preset"),
    ],
)
def test_bad_presets_are_refused(checkout: Checkout, text: str, said: str):
    checkout.presets(text)
    with pytest.raises(UspError, match=re.escape(said)) as error:
        checkout.plan()
    assert "presets.yml" in str(error.value)


def test_unknown_names_and_bad_data_are_one_sentence(checkout: Checkout, capsys, monkeypatch):
    monkeypatch.setenv("USP_LAB_ROOT", str(checkout.root))
    monkeypatch.chdir(checkout.root)
    Path("bad.jsonl.gz").write_text("no gzip")
    Path("empty.jsonl").touch()
    Path("chats.csv").write_text("x")
    for words, said in [
        ("run 03_trian", "did you mean 03_train?"),
        ("run 03 -p nn=3", "unknown parameter 'nn', known are flags, n, quick, rate, seed; did"),
        ("run 03 -p 03.nn=3", "unknown parameter 'nn', known are "),
        ("run 03 -p 07.n=3", "unknown notebook '07'"),
        ("run 01 -p 03.n=3", "-p 03_train.n=3 is for 03_train, which is not run; leave it out"),
        (
            "run 03 -p 03.preset=x",
            "-p 03_train.preset=x is set by an option of its own; use --preset",
        ),
        ("run 03 -p n=x", "must be a whole number, not 'x'"),
        ("run 03 -p n", "not name=value"),
        ("run 03 -p data=x", "use --data x"),
        ("run --preset tinny", "did you mean tiny?"),
        ("run --data none.jsonl", "none.jsonl does not exist"),
        ("run --data chats.csv", "unknown type"),
        ("run --data notebooks", "unknown type"),
        ("run --data bad.jsonl.gz", "not a gzip file"),
        ("run --data empty.jsonl", "is empty"),
        ("run --name ../x", "letters, digits"),
        ("run --cores 0", "--cores 0 must be between 1"),
        ("run --on-bad stop", "invalid choice: 'stop'"),
        ("run --fast", "unrecognized arguments: --fast"),
        ("run elsewhere/03_train.ipynb", "not a notebook of this checkout"),
    ]:
        assert cli.main(words.split()) == 2, words
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and said in printed, (words, printed)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("words", "cores"), [("", 1), ("--preset smoke", 2), ("--preset smoke --cores 1", 1)])  # fmt: skip
def test_short_notebooks_run_two_at_a_time(checkout: Checkout, monkeypatch, words, cores):
    seen = []
    monkeypatch.setenv("USP_LAB_ROOT", str(checkout.root))
    monkeypatch.setattr(cli, "cpu_count", lambda: 4)
    monkeypatch.setattr(cli, "run_plan", lambda plan, cores: seen.append(cores) or 0)
    assert cli.main(f"run {words}".split()) == 0 and seen == [cores]


def test_notebooks_are_found_by_number_name_and_path(checkout: Checkout, monkeypatch):
    monkeypatch.chdir(checkout.root)
    known = read_notebooks(checkout.root)
    for given in ("03", "03_train", "notebooks/03_train.ipynb"):
        assert cli.find_notebook(given, known) == "03_train"


def test_variants_have_folders_of_their_own(checkout: Checkout):
    data = checkout.root / "my chats.jsonl"
    data.write_text("{}\n")
    assert checkout.plan().label == "tiny"
    assert checkout.plan(data=str(data)).label == "tiny+my-chats"
    assert checkout.plan(data=str(data), name="b").label == "tiny+b"
    assert checkout.plan(data="population").label == "tiny"
    assert checkout.plan(data="hub:org/set").label == "tiny+set"
    assert checkout.plan(preset="smoke").label == "smoke"
    passed = checkout.plan(passed={"n": "6"}).label
    assert re.fullmatch(r"tiny\+[0-9a-f]{6}", passed)
    assert checkout.plan(passed={"n": "7"}).label != passed
    checkout.presets("tiny: {all: {data: 'hub:org/set'}}")
    assert checkout.plan().label == "tiny" and checkout.plan().data == "hub:org/set"
    assert checkout.plan(data="population").label == "tiny+population"


# --- keys


def test_a_key_changes_with_what_its_notebook_uses(checkout: Checkout):
    before = checkout.keys()

    def changed() -> set[str]:
        after = checkout.keys()
        return {name for name in after if after[name] != before[name]}

    def touch(name: str, text: str = "\n# more\n") -> None:
        path = checkout.root / name
        path.write_text(path.read_text() + text)
        os.utime(path, ns=(0, hash(name) % 10**9))

    touch("usp_lab/unused.py")
    touch("usp_lab/cli.py")
    touch("usp_lab/__init__.py")
    assert changed() == set()
    touch("usp_lab/delta.py")  # imported inside a function of beta
    assert changed() == {"03_train"}
    before = checkout.keys()
    touch("usp_lab/texts.toml")  # read by delta
    assert changed() == {"03_train"}
    before = checkout.keys()
    touch("usp_lab/tables/a.toml")  # read by gamma, which alpha imports; 03 is downstream of 01
    assert changed() == {"01_data", "03_train"}
    before = checkout.keys()
    touch("usp_lab/plots.py")
    assert changed() == {"01_data", "03_train"}
    before = checkout.keys()

    path = checkout.root / "notebooks" / "03_train.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][0]["source"] += "\nmore prose"
    nb["cells"][1]["source"] += "# more help\n"
    path.write_text(json.dumps(nb))
    assert changed() == set()
    nb["cells"][2]["source"] += "\nx = 1"
    path.write_text(json.dumps(nb))
    assert changed() == {"03_train"}


def test_dependencies_follow_public_names_strings_and_methods(checkout: Checkout):
    def used(source: str) -> set[str]:
        nb = read_notebook(checkout.write("05_x", source))
        return {p.stem for p in module_files(nb, checkout.root / "usp_lab")}

    frame = {"record", "results", "errors", "files", "device"}
    assert used("from usp_lab import start") == frame
    assert used("import usp_lab\nusp_lab.load_runs()") == frame - {"record", "device"}
    assert used("from usp_lab import stats, start") == {"stats", *frame}
    assert used("import usp_lab.beta as b") == {"beta", "delta", "texts"}
    assert used("%timeit 1\n!ls\nrun.figure(f, t)") == {"plots"}
    assert used('subprocess.run(["python", "-m", "usp_lab.delta"])') == {"delta", "texts"}
    assert used("import numpy") == set()
    assert used("x = (3\n     % 2)\nimport usp_lab.delta") == {"delta", "texts"}


def test_a_data_file_counts_by_content_not_by_place(checkout: Checkout):
    here, there = checkout.root / "x.jsonl", checkout.root / "usp_lab" / "x.jsonl"
    here.write_text("{}\n")
    there.write_text("{}\n")
    first = checkout.keys(data=str(here))
    assert first == checkout.keys(data=str(there)) != checkout.keys()
    there.write_text("{ }\n")
    assert first != checkout.keys(data=str(there))
    packed = checkout.root / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}\n"))
    assert checkout.plan(data=str(packed)).data_sha256 == files.sha256_of(packed)


def test_needs_are_found_and_checked(checkout: Checkout):
    assert checkout.plan("03_train").targets == ["03_train"]
    assert list(checkout.plan("03_train").entries) == ["01_data", "03_train"]
    checkout.write("90_all", 'for name in ["01_data", "03_train"]:\n    run.needs(name)')
    assert checkout.plan().entries["90_all"].upstream == ("01_data", "03_train")
    checkout.write("04_x", 'run.needs("01_dta")')
    with pytest.raises(UspError, match="did you mean 01_data"):
        checkout.plan()
    checkout.write("04_x", 'run.needs("05_y")')
    checkout.write("05_y", 'run.needs("04_x")')
    with pytest.raises(UspError, match="in a circle, 04_x -> 05_y -> 04_x"):
        checkout.plan()


def test_what_is_stale(checkout: Checkout):
    assert checkout.plan().stale() == ["01_data", "03_train"]
    checkout.finish_all()
    assert checkout.plan().stale() == []
    assert checkout.plan("01_data", force=True).stale() == ["01_data"]
    # executed again with the same key: what was made from the earlier execution is stale
    done = checkout.root / "runs" / "tiny" / "01_data" / ".done.json"
    done.write_text(done.read_text().replace("01_data-1", "01_data-2"))
    assert checkout.plan().stale() == ["03_train"]
    # a variant uses the preset's own results where nothing that was passed concerns them
    checkout.finish_all()
    path = checkout.root / "notebooks" / "03_train.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][1]["source"] += "own = 1\n"
    path.write_text(json.dumps(nb))
    checkout.finish_all()
    variant = checkout.plan(passed={"own": "2"})
    assert variant.stale() == ["03_train"]
    assert variant.entries["01_data"].folder == checkout.root / "runs" / "tiny" / "01_data"
    assert variant.entries["03_train"].folder.parent == variant.folder


def test_an_interrupted_execution_keeps_its_files_for_the_same_key_alone(checkout: Checkout):
    plan = checkout.plan("01_data")
    entry = plan.entries["01_data"]
    run.begin(plan, entry)
    (entry.folder / "checkpoints").mkdir()
    (entry.folder / "metrics.json").write_text("{}")
    run.begin(plan, entry)
    assert (entry.folder / "checkpoints").exists()
    assert not (entry.folder / "metrics.json").exists()
    plan = checkout.plan("01_data", passed={"n": "6"}, name="x")
    other = checkout.plan("01_data", passed={"n": "7"}, name="x")
    folder = run.begin(plan, plan.entries["01_data"])["dir"]
    (checkout.root / folder / "checkpoints").mkdir()
    run.begin(other, other.entries["01_data"])
    assert not (checkout.root / folder / "checkpoints").exists()


# --- files, records, messages


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": float("nan"), "p": Path("q"), "t": (1, 2)})
    assert json.loads(path.read_text()) == {"x": None, "p": "q", "t": [1, 2]}
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["t"] == [1, 2] and len(list(tmp_path.iterdir())) == 1

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UspError, match="no disk space left for .*a.json; free some"):
        files.write_json(path, {})
    assert len(list(tmp_path.iterdir())) == 1


def test_a_notebook_opened_in_jupyter_has_a_folder_of_its_own(checkout, monkeypatch, capsys):
    monkeypatch.delenv("USP_LAB_ROOT", raising=False)
    monkeypatch.delenv(REQUEST, raising=False)
    monkeypatch.chdir(checkout.root / "notebooks")
    namespace = {**read_parameters(PARAMETERS, "x")[0], "seed": 3, "other": 1}
    record = start("03_train", namespace)
    assert record.dir == checkout.root / "runs" / "interactive" / "03_train" and record.seed == 3
    assert "other" not in record.params and record.params["n"] == 5
    assert capsys.readouterr().out.startswith("03_train: preset tiny, seed 3, ")
    message = (
        "03_train needs rows.parquet from 01_data; none under runs/tiny/01_data. "
        "Run: usp-lab run 01_data"
    )
    with pytest.raises(UspError, match=f"^{re.escape(message)}$"):
        record.needs("01_data", "rows.parquet")
    with pytest.raises(UspError, match="preset=.* would overwrite"):
        record.note(preset=1)
    with pytest.raises(UspError, match="no notebook 04_x"):
        start("04_x", namespace)
    checkout.finish_all()
    assert record.needs("01_data") == checkout.root / "runs" / "tiny" / "01_data"
    assert record.finish().empty and load_runs().empty


def test_a_folder_that_a_parameter_names_is_recorded_with_its_hash(checkout, monkeypatch, tmp_path):
    monkeypatch.delenv("USP_LAB_ROOT", raising=False)
    monkeypatch.delenv(REQUEST, raising=False)
    monkeypatch.chdir(checkout.root / "notebooks")
    base = tmp_path / "model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    asked = read_parameters(PARAMETERS + 'base = ""\n', "x")[0]
    checkout.write("03_train", TRAIN, parameters=PARAMETERS + 'base = ""\n')
    record = start("03_train", asked | {"base": str(base)})
    record.finish()
    [own] = json.loads((record.dir / INNER).read_text())["inputs"]
    assert own == {"path": str(base), "sha256": files.sha256_of(base)}
    record = start("03_train", asked | {"base": "usp-tiny"})  # a name, whatever lies there
    record.finish()
    assert json.loads((record.dir / INNER).read_text())["inputs"] == []


def test_a_report_fits_on_one_screen():
    source = "\n".join(f"line_{i} = {'x' * 200}" for i in range(40))
    error = CellError(3, 9, 2, source, 30, "ValueError", "m\n" * 100, "a.py:1 in f")
    text = error.text()
    assert text.startswith("cell 3 of 9, In [2]:") and ">  30 | line_29" in text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) < 130


def test_a_full_disk_in_a_cell_is_one_sentence(checkout: Checkout, monkeypatch):
    plan = checkout.plan("01_data")
    run.begin(plan, plan.entries["01_data"])
    error = CellError(1, 1, 1, "", None, "OSError", "[Errno 28] No space left on device")
    monkeypatch.setattr("usp_lab.kernel.run_notebook", lambda *_: error)
    monkeypatch.delenv(REQUEST, raising=False)
    with pytest.raises(run.CellFailed) as failed:
        run._run_cells(plan.entries["01_data"], plan)
    assert failed.value.code == 2 and "no disk space left for runs/tiny/01_data" in str(
        failed.value
    )
    monkeypatch.delenv(REQUEST)


def test_the_display_shows_one_line_a_notebook(tmp_path: Path, capsys):
    events = tmp_path / "events"
    events.write_text("")
    display = Display(events)

    def say(notebook: str, event: str, **details: object) -> None:
        line = json.dumps({"notebook": notebook, "event": event, **details}) + "\n"
        with open(events, "a") as file:
            file.write(line[:9])
            file.flush()
            display.update()  # half a line must not be taken for one
            file.write(line[9:])
        display.update()

    say("01_data", "start", cells=9)
    assert capsys.readouterr().out == "01_data  started\n"
    display.live = True
    say("01_data", "cell", cell=4, cells=9)
    assert "\r\x1b[K01_data  cell 4/9  0:00" in capsys.readouterr().out
    say("01_data", "done", seconds=3.2)
    assert capsys.readouterr().out.endswith("01_data  done in 3 s\n")
    assert display.done == {"01_data"} and not display.active


def test_the_list_shows_parameters_presets_and_state(checkout: Checkout, monkeypatch, capsys):
    monkeypatch.setenv("USP_LAB_ROOT", str(checkout.root))
    checkout.finish_all()
    checkout.write("04_x", "1")
    assert cli.main(["list", "--preset", "smoke"]) == 0
    printed = capsys.readouterr().out
    assert "n = 2 (tiny: 5)  # how many" in printed and "presets: tiny, smoke" in printed
    assert "Question: does it work?" in printed and "Cost: 1 s" in printed
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "01_data  A title  [up to date]" in printed and "04_x  A title  [to do]" in printed


def test_a_second_run_waits_its_turn(checkout: Checkout):
    (checkout.root / "runs").mkdir()
    with open(checkout.root / "runs" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4242\n")
        lock.flush()
        one_sentence(checkout.usp_lab("run"), "another run", "4242")


# --- whole runs


def test_run_then_nothing_then_what_changed(checkout: Checkout, tmp_path: Path, monkeypatch):
    (checkout.root / "go").touch()
    # a user's own kernel called python3, and a start-up file, must not get in
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))

    done = checkout.usp_lab("run", "03")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[0] == "needed by 03_train, so first: 01_data"
    assert lines[1] == "01_data  started" and lines[2].startswith("01_data  done in ")
    assert re.fullmatch(r"2 notebooks done, \d+ s: runs/tiny", lines[-1])
    first = checkout.manifest("01_data")
    assert first["status"] == "done" and first["parameters"]["resolved"]["n"] == 5
    assert first["data_fingerprint"] == "abc" and first["device"]["why"]
    assert set(first) - {"data_fingerprint", "device"} == RESERVED
    figure = {"name": "draw", "function": "usp_lab.plots.draw", "table": "draw.parquet"}
    assert first["figures"] == [{**figure, "caption": "one dot"}]
    folder = checkout.root / "runs" / "tiny" / "01_data"
    assert "'data_fingerprint': 'abc'" in (folder / "figures" / "draw.svg").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = {"value": 1.5, "low": 1.0, "high": None, "n": 7, "unit": "user"}
    assert metrics == {"ppl": {"usp": expected}}
    assert "alpha.py" in first["modules"] and "beta.py" not in first["modules"]
    made_from = {"key": first["key"], "execution": first["execution"]}
    assert checkout.manifest("03_train")["upstream"] == {"01_data": made_from}
    executed = json.loads((folder / "executed.ipynb").read_text())
    assert executed["cells"][3]["execution_count"] and "01_data: preset tiny" in str(executed)

    monkeypatch.setenv("USP_LAB_ROOT", str(checkout.root))
    rows = load_runs()
    assert (
        list(rows.columns)
        == ("preset name notebook metric arm value low high n unit commit key seed").split()
    )
    assert rows.loc[0, "value"] == 1.5 and rows.loc[0, "high"] != rows.loc[0, "high"]

    # nothing changed; a manifest that was lost on its way is put back, not made again
    (folder / "manifest.json").unlink()
    shutil.rmtree(checkout.root / ".snakemake")
    began = time.monotonic()
    done = checkout.usp_lab("run", "all")
    assert done.stdout == "2 notebooks up to date: runs/tiny\n" and not done.stderr
    assert time.monotonic() - began < 10 and not (checkout.root / ".snakemake").exists()
    assert checkout.manifest("01_data") == first

    (checkout.root / "usp_lab" / "delta.py").write_text("one = 2\n")
    done = checkout.usp_lab("run", "all")
    assert "1 notebook done, 1 up to date" in done.stdout, done
    assert checkout.manifest("01_data") == first


def test_failures_are_named(checkout: Checkout):
    bad = 'first = 1\nraise ValueError("boom " + "x" * 9999)'
    checkout.write("05_bad", 'from usp_lab import start\nrun = start("05_bad", globals())', bad)
    usp = "from usp_lab.errors import UspError\nraise UspError('n=5 is too few; raise n')"
    checkout.write("06_usp", usp)
    checkout.write("07_after", 'run.needs("06_usp")')
    done = checkout.usp_lab("run", "06", "07")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "usp-lab: 06_usp: n=5 is too few; raise n"
    assert done.stderr.splitlines()[1:] == ["not executed: 07_after"]
    done = checkout.usp_lab("run", "05")
    assert done.returncode == 1
    report = done.stderr
    assert report.startswith("05_bad failed in cell 4 of 4, In [4]:\n") and "boom xxx" in report
    assert '  >   2 | raise ValueError("boom ' in report and len(report.splitlines()) < 24
    assert "executed copy: runs/tiny/05_bad/executed.ipynb" in report
    folder = checkout.root / "runs" / "tiny" / "05_bad"
    assert "boom" in (folder / "executed.ipynb").read_text()
    assert json.loads((folder / "failed.json").read_text())["status"] == "failed"
    assert not (folder / "manifest.json").exists()


@forks
def test_forked_kernels_have_the_libraries_and_draw_apart(checkout: Checkout):
    checkout.warm()
    look = "import sys\nhad = 'colorsys' in sys.modules\nimport numpy as np\n"
    look += "(run.dir / 'seen').write_text(f'{had} {np.random.random()} {sys.argv[0]}')"
    for name in ("01_data", "05_more"):
        start_of = DATA.replace("01_data", name)
        checkout.write(name, start_of, look, SAVE, "run.finish()")
    done = checkout.usp_lab("run", "01", "05")
    assert done.returncode == 0, done
    folders = [checkout.root / "runs" / "tiny" / name for name in ("01_data", "05_more")]
    had, drawn, argv = zip(*((f / "seen").read_text().split(" ", 2) for f in folders), strict=True)
    assert set(had) == {"True"} and len(set(drawn)) == 2
    assert "processes" in argv[0]  # as a kernel of its own sees itself
    assert not checkout.processes()
    log = (checkout.root / "runs" / "tiny" / "snakemake.log").read_text()
    assert "To connect another client" not in log


@pytest.fixture
def served():
    """A function that starts kernels, as the runner does, forked from a process that has loaded next to nothing."""
    folder = Path(tempfile.mkdtemp(prefix="w", dir="/tmp"))  # short, as a socket's path must be
    path = folder / "warm"
    code = "import sys; from pathlib import Path; from usp_lab import warm; warm._LIBRARIES = ['colorsys']; warm.serve(Path(sys.argv[1]))"  # fmt: skip
    server = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=HERE)

    def ask(*words: str, patience: float = 10.0) -> subprocess.Popen:
        until(path.exists)
        own = "from usp_lab import processes, warm; "
        own += f"warm._PATIENCE = {patience}; processes.kernel()"
        environ = os.environ | {warm.SOCKET: str(path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", own, *words], cwd=HERE, env=environ, **pipes)

    yield ask, server
    server.kill()
    server.wait()
    shutil.rmtree(folder)


@forks
def test_a_forked_kernel_that_cannot_begin_says_why(served, tmp_path):
    ask, _ = served
    asked = ask("-f", str(tmp_path / "k.json"), "--transport=ipc", "--ip=/dev/null/x")
    said = asked.communicate(timeout=60)[1]
    assert asked.returncode == 1 and "Traceback" in said


@forks
def test_a_kernel_begins_by_itself_where_nobody_answers(served):
    ask, server = served
    said = ask("--version").communicate(timeout=60)[0]
    server.send_signal(signal.SIGSTOP)
    asked = ask("--version", patience=0.5)
    assert asked.wait(timeout=60) == 0 and asked.stdout.readline() == said != ""


@pytest.mark.parametrize("forked", [False, pytest.param(True, marks=forks)])
def test_killed_anywhere_and_started_again(checkout: Checkout, forked):
    """SIGKILL to make, usp-lab, snakemake, the kernel and what it was forked from, then Ctrl-C, then nothing."""
    if forked:
        checkout.warm()
    tools = checkout.root / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "usp-lab").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m usp_lab.cli "$@"\n')
    (tools / "usp-lab").chmod(0o755)
    (checkout.root / ".venv" / ".installed").touch()
    checkout.finish_all()
    (checkout.root / "runs" / "tiny" / "01_data" / "rows.parquet").touch()
    (checkout.root / "runs" / "tiny" / "03_train" / ".done.json").unlink()
    beat = checkout.root / "runs" / "tiny" / "03_train" / "beat"

    def find(word: str) -> psutil.Process | None:
        found = [p for p in checkout.processes() if word in " ".join(p.cmdline())]
        return found[0] if found else None

    for victim, signalled in [
        ("make", signal.SIGKILL),
        ("usp_lab.cli", signal.SIGKILL),
        ("snakemake", signal.SIGKILL),
        ("usp_lab.processes", signal.SIGKILL),
        *([("usp_lab.warm", signal.SIGKILL)] if forked else []),
        ("usp_lab.cli", signal.SIGINT),
    ]:
        beat.unlink(missing_ok=True)
        make = subprocess.Popen(
            ["make", "run"],
            cwd=checkout.root,
            env=checkout.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        until(lambda: beat.exists() and beat.stat().st_size > 0)
        if victim == "usp_lab.cli":  # its environment began before it knew the folder
            process = psutil.Process(make.pid).children()[0]
        else:
            process = psutil.Process(make.pid) if victim == "make" else find(victim)
        process.send_signal(signalled)
        printed = make.communicate(timeout=60)[0]
        until(lambda: not checkout.processes(), 10)
        written = beat.stat().st_size
        time.sleep(0.3)
        assert beat.stat().st_size == written, f"{victim} left a writer behind"
        assert make.returncode != 0
        assert checkout.manifest("01_data")["execution"] == "01_data-1", "it was repeated"
        if signalled == signal.SIGINT:
            assert "usp-lab: stopped; what is finished is kept" in printed
        elif victim in ("usp_lab.processes", "usp_lab.warm"):
            assert "03_train failed in cell 5 of 6" in printed and "kernel died" in printed
        elif victim == "snakemake":
            assert "03_train ended without a word" in printed
    (checkout.root / "go").touch()
    done = checkout.usp_lab("run")
    assert done.returncode == 0 and "1 notebook done, 1 up to date" in done.stdout, done
    kept = checkout.root / "runs" / "tiny" / "03_train" / "checkpoints"
    assert len(list(kept.iterdir())) == 6 + forked, "files of an interrupted execution were lost"
    if sys.platform == "linux":
        parent = (kept.parent / "parent").read_text()
        assert ("usp_lab.warm" in parent) == forked and ("usp_lab.run" in parent) == (not forked)
