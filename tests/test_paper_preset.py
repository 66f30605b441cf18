"""The whole preset `paper` executed on look-alikes: every notebook, every parameter, with the ids of the hub replaced.

What is on the hub are the weights and the data; the code that loads them, formats, lengths, pooling and order is all
run here. Nothing but ids, and numbers of things that the small data set has fewer of, is changed.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from one_kernel import run_plans
from test_notebooks import check_form
from test_notebooks import checkout as checkout  # a copy of what the runner needs

from usp_lab import load_dialogues
from usp_lab.data import Corpus, write_dataset
from usp_lab.files import read_json
from usp_lab.look_alikes import LOOK_ALIKES, make_all
from usp_lab.notebooks import read_notebooks
from usp_lab.plan import Request, make_plan
from usp_lab.presets import read_presets

ROOT = Path(__file__).resolve().parents[1]
DATA = "hub:wangkevin02/LMSYS-USP"
HUB_ID = re.compile(r"(hub:)?[A-Za-z][\w.-]*/[\w.-]+")
LLAMA, SIMCSE = "meta-llama/Meta-Llama-3-8B", "princeton-nlp/sup-simcse-roberta-large"
# Which notebook needs which checkpoint: a new one in presets.yml is to be named here and looked alike.
NEEDS = {
    "02_profiles": {"wangkevin02/Profile_Generator"},
    "03_conditional_sft": {LLAMA},
    "04_auxiliary_models": {
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "allenai/longformer-base-4096",
        "wangkevin02/AI_Detect_Model",
        SIMCSE,
    },
    "05_profile_sampler": {SIMCSE},
    "06_rlcc": {"wangkevin02/Profile_Generator", "wangkevin02/AI_Detect_Model", SIMCSE},
    "10_authenticity": {SIMCSE, "AnnaWegmann/Style-Embedding"},
    "11_consistency": {"cross-encoder/nli-deberta-v3-base"},
    "12_diversity": {SIMCSE},
    "14_leakage_audit": {LLAMA, SIMCSE},
    "21_case_studies": {SIMCSE},
}
# Counts that do not follow the size of the data by themselves, and no other parameter.
LOWERED = {
    "06_rlcc": {"n_targets": 8, "n_virtual": 200},
    "11_consistency": {"n_calibrate": 8, "n_check": 5},  # dialogues of the population
}
SIZES = {"train": 20, "validation": 5, "test": 6}

NOTEBOOKS = read_notebooks(ROOT)
PAPER = read_presets(ROOT, NOTEBOOKS)["paper"]


def ids(section: str) -> set[str]:
    """The hub ids of models that a section of the preset names."""
    values = PAPER.get(section, {}).values()
    return {v for v in values if isinstance(v, str) and HUB_ID.fullmatch(v)} - {DATA}


def lmsys(folder: Path) -> Path:
    """A small data set in LMSYS-USP's form: profiles and conversations, no users, no truth."""
    drawn = load_dialogues("population", n=1200)
    bare = {"user_id": None, "truth": {}}
    splits = {}
    for split, size in SIZES.items():
        least = 4 if split == "test" else 2  # turns; the leakage audit scores those after the third
        long = [d for d in drawn.splits[split] if d.n_turns >= least]
        short = sorted(long, key=lambda d: sum(len(m["content"]) for m in d.messages))[:size]
        splits[split] = [d.model_copy(update=bare) for d in short]
        assert len(splits[split]) == size
    return write_dataset(Corpus("LMSYS-USP", splits), folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def executed(checkout, folders, tmp_path_factory) -> str:
    """Run the preset in the copy, and 02 once more on conversations that have no profiles."""
    data = lmsys(tmp_path_factory.mktemp("data") / "LMSYS-USP")
    known = {**{i: str(f) for i, f in folders.items()}, DATA: f"hub:{data}"}
    presets = yaml.safe_load((checkout / "notebooks" / "presets.yml").read_text())
    for section, values in presets["paper"].items():
        lowered = LOWERED.get(section, {})
        presets["paper"][section] = {k: known.get(v, v) for k, v in (values | lowered).items()}
    left = [v for s in presets["paper"].values() for v in s.values() if HUB_ID.fullmatch(str(v))]
    assert not left, f"{left} have no look-alike; add them to usp_lab.look_alikes"
    (checkout / "notebooks" / "presets.yml").write_text(yaml.safe_dump(presets))
    bare = tmp_path_factory.mktemp("data") / "bare.jsonl"
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()[:12]]
    kept = [{"id": r["id"], "conversation": r["conversation"]} for r in rows]
    bare.write_text("".join(json.dumps(r) + "\n" for r in kept))
    plans = [
        make_plan(Request(preset="paper"), root=checkout).save(),
        make_plan(Request(("02_profiles",), "paper", data=str(bare)), root=checkout).save(),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    done = run_plans(checkout, *plans, **offline)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_each_id_is_marked_and_has_a_look_alike():
    assert PAPER["all"]["data"] == DATA
    found = {name: ids(name) for name in PAPER if ids(name)}
    assert found == {name: NEEDS[name] for name in NEEDS if name in NOTEBOOKS}
    assert set().union(*NEEDS.values()) <= LOOK_ALIKES.keys()
    for name in LOWERED.keys() & NOTEBOOKS.keys():
        own = NOTEBOOKS[name].defaults | PAPER.get(name, {})
        assert all(k.startswith("n_") and v < own[k] for k, v in LOWERED[name].items()), name


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_notebook_ran_with_the_presets_own_parameters(name, executed, checkout, folders):
    folder = checkout / "runs" / "paper" / name
    check_form(folder)
    passed = read_json(folder / "manifest.json")["parameters"]["resolved"]
    back = {str(f): i for i, f in folders.items()}
    common = {k: v for k, v in PAPER["all"].items() if k in NOTEBOOKS[name].defaults}
    wanted = NOTEBOOKS[name].defaults | common | PAPER.get(name, {}) | {"preset": "paper"}
    for parameter in wanted.keys() - {"data"} - LOWERED.get(name, {}).keys():
        value = passed[parameter]
        value = back.get(value, value) if isinstance(value, str) else value  # a list is no key
        assert value == wanted[parameter], parameter


def test_what_was_trained_is_what_was_asked_for(executed, checkout):
    folder = checkout / "runs" / "paper" / "03_conditional_sft"
    for name in ("usp", "plato", "usp_end", "assistant"):
        config = read_json(folder / name / "config.json")
        assert config["architectures"] == ["LlamaForCausalLM"] and not config["tie_word_embeddings"]
        kept = read_json(folder / name / "generation_config.json").get("repetition_penalty")
        assert kept == (None if name == "assistant" else 1.2)
        settings = read_json(folder / name / "training.json")["settings"]
        assert (settings["batch"], settings["micro_batch"]) == (64, 1)
        assert settings["optimizer"] == "adamw" and settings["max_length"] == 4096
    metrics = read_json(folder / "metrics.json")
    assert metrics["ppl"]["usp"]["n"] == SIZES["test"]


def test_the_generator_writes_profiles_where_there_are_none(executed, checkout):
    [folder] = (checkout / "runs").glob("paper+*bare*")
    notes = read_json(folder / "02_profiles" / "manifest.json")
    assert "ProfileGenerator" in notes["profiles_by"]
    written = load_dialogues(folder / "02_profiles" / "profiled")
    assert len(written) + notes["profiles_failed"] == 12 and len(written) > 0
