"""The models that come with the package: small, made from this population, and of no test user."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from usp_lab import embedded, models, synthetic
from usp_lab.assistants import scripted
from usp_lab.detector import AIDetector
from usp_lab.embedded import RECIPES, Stage, deepen, make, provenance
from usp_lab.errors import UspError
from usp_lab.finished import FINAL
from usp_lab.look_alikes import look_alike
from usp_lab.models import EMBEDDED, load_causal_lm, load_tokenizer
from usp_lab.profile_generator import ProfileGenerator
from usp_lab.sft import SftSettings
from usp_lab.simulate import UserSimulator, simulate

NAMES = sorted(RECIPES)


def test_weights_stay_under_fifteen_megabytes():
    assert sum(p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file()) <= 15e6


@pytest.mark.parametrize("name", NAMES)
def test_made_from_this_population_by_this_recipe(name):
    origin = provenance(name)
    assert origin["population"] == synthetic.fingerprint() and not origin["stale"]
    made = json.loads((EMBEDDED / name / FINAL).read_text())
    kind = type(RECIPES[name][-1].settings)
    stages = [(n, seed, kind(**settings)) for n, seed, settings in made["stages"]]
    assert stages == [(s.dialogues, s.seed, s.settings) for s in RECIPES[name]]
    asked = RECIPES[name][-1].settings
    # bf16 is used where the machine computes in it
    assert replace(kind(**made["settings"]), base="", bf16=asked.bf16) == asked
    assert "/" not in made["settings"]["base"]  # no path of the machine it was made on
    assert origin["dialogues"] == sum(s.dialogues for s in RECIPES[name])
    card = (EMBEDDED / name / "README.md").read_text()
    assert synthetic.fingerprint() in card and "usp_lab.embedded" in card


@pytest.mark.parametrize(
    "kind, name", [(UserSimulator, "usp-tiny"), (ProfileGenerator, "generator-tiny")]
)
def test_embedded_is_the_one_of_its_kind(kind, name):
    loaded, named = kind.from_pretrained("embedded"), kind.from_pretrained(name)
    assert loaded.identity == named.identity and loaded.name == named.name
    detector = AIDetector.from_pretrained("embedded")
    assert repr(detector) == repr(AIDetector.from_pretrained("detector-tiny"))


def test_generators_read_profiles_back():
    from usp_lab.reward import half_cosines
    from usp_lab.tidy import one_each

    some = one_each(synthetic.draw("test", 60, 2), 12)
    profiles = [d.profile for d in some]
    for name in ("generator-tiny", "generator-second"):
        generator = ProfileGenerator.from_pretrained(name, truncate=True, max_new_tokens=200)
        back = [w.text for w in generator.write(some)]
        own, others = (half_cosines(p, back).mean() for p in (profiles, [*profiles[1:], profiles[0]]))  # fmt: skip
        assert own > others + 0.2


def test_says_when_the_population_has_changed(monkeypatch):
    monkeypatch.setattr(synthetic, "fingerprint", lambda: "0" * 12)
    assert provenance(NAMES[0])["stale"]
    assert provenance("") == {} == provenance("no/such")


def test_shares_no_user_with_any_test():
    seeds = {stage.seed for stages in RECIPES.values() for stage in stages}
    assert not seeds & {0, 1, 2, 3}  # those that notebooks and tests use
    ids = {d.user_id for s in seeds for d in synthetic.draw("train", 50, s)}
    assert not ids & {d.user_id for d in synthetic.draw("test", 50, min(seeds))}


def test_stages_go_on_from_one_another_and_from_where_they_were(tmp_path, monkeypatch):
    trained = []

    def train_sft(train, validation, out, settings, fingerprint):
        trained.append((len(train), len(validation), settings.base))
        shutil.copytree(EMBEDDED / "usp-tiny", out, copy_function=shutil.copyfile)

    monkeypatch.setattr(embedded, "train_sft", train_sft)
    monkeypatch.setattr(models, "EMBEDDED", tmp_path / "package")
    short = SftSettings()
    monkeypatch.setitem(RECIPES, "x", (Stage(20, 5, short), Stage(10, 6, short)))
    target = make("x", tmp_path / "work")
    assert trained == [(20, 300, ""), (10, 300, str(tmp_path / "work" / "x-1"))]
    assert load_causal_lm(target, device=None).num_parameters() > 1e6
    card = (target / "README.md").read_text()
    assert "20 (seed 5), then from 10 (seed 6)" in card and str(tmp_path) not in card
    make("x", tmp_path / "work")
    assert len(trained) == 2  # what is finished is not trained again


def test_speaks_by_name_as_the_profile_says():
    targets = synthetic.draw("test", 12, 7)
    sim = UserSimulator.from_pretrained("usp-tiny", temperature=0, max_new_tokens=48)
    spoken = simulate(sim, scripted("good"), targets, max_turns=3, progress=False)
    lower = [
        [t[:1].islower() for t in d.user_turns]
        for d, target in zip(spoken, targets, strict=True)
        if target.truth["user"]["casing"] == "lower"
    ]
    assert all(d.n_turns >= 2 for d in spoken)
    assert sum(map(sum, lower)) > 0.8 * sum(map(len, lower)) > 0


def test_unknown_recipe(tmp_path):
    with pytest.raises(UspError, match="no recipe 'x'; there are: usp-tiny"):
        make("x", tmp_path)


def test_a_deeper_model_computes_what_it_did(tmp_path):
    base, grown = look_alike(tmp_path / "base"), tmp_path / "grown"
    assert deepen(base, 5, grown) == grown
    old, new = (load_causal_lm(p).float() for p in (base, grown))
    assert (old.config.num_hidden_layers, new.config.num_hidden_layers) == (2, 5)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(old(ids).logits, new(ids).logits)
    fresh = new.model.layers[1]
    assert fresh.self_attn.q_proj.weight.any() and not fresh.mlp.down_proj.weight.any()
    assert load_tokenizer(grown).chat_template == load_tokenizer(base).chat_template


def test_detector_tells_users_of_the_population_from_assistants():
    from usp_lab.detector import AIDetector
    from usp_lab.detector_training import utterances

    detector, some = AIDetector.from_pretrained("detector-tiny"), synthetic.draw("test", 30, 7)
    held = utterances(some)
    p = detector.probabilities(held.texts)
    assert p[held.human].min() > p[~held.human].max() - 0.5 and p[held.human].mean() > 0.95
    assert p[~held.human].mean() < 0.05
    assert (EMBEDDED / "detector-tiny" / "model.safetensors").stat().st_size <= 1_000_000
