"""Every notebook through the same runner as real runs, at preset smoke, on the population and on real files."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from one_kernel import run_plans

from usp_lab.files import read_json
from usp_lab.plan import Request, make_plan
from usp_lab.results import load_runs

HERE = Path(__file__).resolve().parents[1]
REAL = HERE.parent / "shared" / "data"
NOTEBOOKS = sorted(p.stem for p in (HERE / "notebooks").glob("[0-9]*.ipynb"))
ARM = {"value", "low", "high", "n", "unit"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what the runner needs, so that a test run never touches the user's results."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "usp_lab"):
        shutil.copytree(HERE / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml", "Makefile"):
        shutil.copy(HERE / name, root / name)
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess:
    env = os.environ | {"USP_LAB_ROOT": str(root), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "usp_lab.cli", "run", *words]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=900)


def check_form(folder: Path) -> None:
    assert read_json(folder / "manifest.json")["status"] == "done"
    for metric, arms in read_json(folder / "metrics.json").items():
        for arm, entry in arms.items():
            assert set(entry) == ARM, (metric, arm)
            assert isinstance(entry["n"], int) and entry["unit"], (metric, arm)


def test_smoke_on_the_population_is_whole(checkout):
    """In one kernel, but for one notebook: half of a short one is imports."""
    done = run_plans(checkout, make_plan(Request(preset="smoke"), root=checkout).save())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in NOTEBOOKS:
        check_form(checkout / "runs" / "smoke" / name)
    arms = read_json(checkout / "runs" / "smoke" / "03_conditional_sft" / "metrics.json")
    assert {"usp", "shuffled", "empty", "plato"} <= set(arms["ppl"])
    assert {"usp", "usp_end", "plato", "twin"} <= set(arms["goal_recall"])
    six = [
        f"{m}_{level}"
        for m in ("sem_sim", "style_sim", "ava")
        for level in ("utterance", "dialogue")
    ]
    scores = read_json(checkout / "runs" / "smoke" / "10_authenticity" / "metrics.json")
    assert all(
        {"usp", "plato", "empty", "shuffled", "twin", "other", "usp_minus_shuffled"}
        <= set(scores[m])
        for m in six
    )
    table = load_runs(checkout / "runs")
    assert set(NOTEBOOKS) <= {*table["notebook"], "90_figures"}
    index = (checkout / "runs" / "smoke" / "90_figures" / "canonical" / "INDEX.md").read_text()
    assert "perplexity" in index and "authenticity" in index

    again = run(checkout, "all", "--preset", "smoke")
    assert again.returncode == 0 and "executed" not in again.stdout.replace("not executed", ""), (
        again.stdout
    )
    in_its_kernel = run(checkout, "00", "--preset", "smoke", "--force")
    assert in_its_kernel.returncode == 0, in_its_kernel.stdout[-3000:] + in_its_kernel.stderr[-3000:]  # fmt: skip
    executed = read_json(checkout / "runs" / "smoke" / "00_start_here" / "executed.ipynb")
    assert any(o for c in executed["cells"] for o in c.get("outputs", []))


def hand_made(path: Path, profile: bool) -> Path:
    """A file of the shared form: users with manners of their own, on unlike matters."""
    things = "kettle bicycle novel garden violin passport kitchen laptop marathon sofa pension puppy".split()
    with gzip.open(path, "wt", encoding="utf-8") as f:
        for i in range(60):
            a, b = things[i % 12], things[(5 * i + 3) % 12]
            turns = [
                f"what should i know about a {a} number {i}, and why",
                f"It depends on the {a}; most people start with {i + 2} of them.",
                f"ok and what of the {b} then?",
                f"Take the {b} that costs {i + 10}.",
            ]
            messages = [
                {"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(turns)
            ]
            row = {
                "id": f"made-{i}",
                "profile": f"You think about a {a}.\n\nYou write in lower case, number {i}."
                if profile
                else None,
                "messages": messages,
            }
            f.write(json.dumps(row) + "\n")
    return path


def whole_on(checkout: Path, file: Path, *names: str) -> str:
    """Run notebooks on a file (all), in one kernel, check every arm, and return what 02_profiles printed."""
    request = Request(tuple(names), "smoke", data=str(file.resolve()))
    done = run_plans(checkout, make_plan(request, root=checkout).save())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = next((checkout / "runs").glob(f"smoke+*{file.name.split('.')[0]}*"))
    for name in names or NOTEBOOKS:
        check_form(folder / name)
    arms = {"usp", "shuffled", "empty", "plato"}
    arms |= {f"{a}_minus_usp" for a in arms - {"usp"}}
    assert set(read_json(folder / "03_conditional_sft" / "metrics.json")["ppl"]) == arms
    cells = read_json(folder / "02_profiles" / "executed.ipynb")["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    return "".join("".join(o.get("text", "")) for o in outputs)  # what it printed, not its source


def test_smoke_on_a_file_with_profiles_is_whole(checkout, tmp_path):
    file = hand_made(tmp_path / "made.jsonl.gz", profile=True)
    names = ("02_profiles", "03_conditional_sft")  # the rest does not ask where profiles came from
    assert "Every dialogue has a profile: nothing is built" in whole_on(checkout, file, *names)


def test_smoke_on_a_file_without_profiles_builds_them_and_says_so(checkout, tmp_path):
    real = REAL / "oasst_dev.jsonl.gz"  # the smallest real file; a made one where it is absent
    file = real if real.exists() else hand_made(tmp_path / "bare.jsonl.gz", profile=False)
    assert "profiles built by rules; 0 failed" in whole_on(checkout, file)
