"""What loads and what does not: safetensors only, no code, no template, no folder, no whole file."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from usp_lab import from_scratch, look_alikes, models
from usp_lab.chat import chat_template
from usp_lab.errors import UspError
from usp_lab.models import load_causal_lm, load_tokenizer, weights_fingerprint


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return look_alikes.look_alike(tmp_path_factory.mktemp("models") / "usp")


@pytest.fixture
def copy(release, tmp_path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500, text
    return text


def test_look_alike_has_the_release_s_form(release):
    tokenizer, model = load_tokenizer(release), load_causal_lm(release)
    assert {p.name for p in release.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert tokenizer.chat_template == chat_template("user")
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token == "<|end_of_text|>" != tokenizer.pad_token
    assert model.config.model_type == "llama" and not model.training
    assert model.generation_config.repetition_penalty == 1.2


def test_seed_decides_the_weights(release):
    tokenizer = load_tokenizer(release)
    again, same, other = (
        from_scratch.new_model(tokenizer, "0.3m", 512, seed) for seed in (0, 0, 1)
    )
    assert weights_fingerprint(again) == weights_fingerprint(same) != weights_fingerprint(other)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    from_scratch.new_model(tokenizer, "0.3m")
    assert torch.equal(before, torch.random.get_rng_state())


def test_fingerprint_sees_a_small_change_in_any_tensor(release):
    model = load_causal_lm(release)
    seen = {weights_fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.mul_(1.001)
        seen.add(weights_fingerprint(model))
    assert len(seen) == len(list(model.parameters())) + 1


def as_pickle(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_causal_lm(folder).state_dict(), folder / name)
    (folder / "model.safetensors").unlink()


def test_pickle_is_refused_unless_named(release, copy):
    as_pickle(copy)
    with pytest.raises(UspError, match="pickled weights only") as error:
        load_causal_lm(copy)
    assert "weights='pytorch_model.bin'" in one_sentence(error)
    with pytest.raises(UspError, match="no pickled weights 'other.bin'"):
        load_causal_lm(copy, weights="other.bin")
    loaded = load_causal_lm(copy, weights="pytorch_model.bin")
    assert weights_fingerprint(loaded) == weights_fingerprint(load_causal_lm(release))


def test_pickle_of_another_name_is_refused(copy):
    as_pickle(copy, "consolidated.pth")
    with pytest.raises(UspError, match="convert them to safetensors$"):
        load_causal_lm(copy)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_named_pickle_runs_no_code_either(copy):
    as_pickle(copy)
    torch.save({"x": Harmful(copy / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(UspError) as error:
        load_causal_lm(copy, weights="pytorch_model.bin")
    one_sentence(error)
    assert not (copy / "ran").exists()


def test_remote_code_never_runs(copy):
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "own.C",
            "AutoTokenizer": ["own.T", None],
            "AutoModelForCausalLM": "own.M",
        },
    }
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(UspError) as error:
        load_causal_lm(copy)
    assert "code of its own, which is never run" in one_sentence(error)
    load_tokenizer(copy)
    assert not (copy / "ran").exists()


def test_folder_without_template(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UspError, match="no chat template; add chat_template.jinja") as error:
        load_tokenizer(copy)
    one_sentence(error)
    assert load_tokenizer(copy, speaker=None).chat_template is None


def test_template_of_an_assistant(copy):
    (copy / "chat_template.jinja").write_text(chat_template("assistant"))
    with pytest.raises(UspError, match="does not speak as the user") as error:
        load_tokenizer(copy)
    one_sentence(error)
    assert load_tokenizer(copy, "assistant").chat_template == chat_template("assistant")


def test_broken_template(copy):
    (copy / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(UspError, match="chat template of"):
        load_tokenizer(copy)


@pytest.mark.parametrize("path", ["runs/tiny/none", "/no/where", "./none"])
def test_missing_folder_is_told_at_once(path, monkeypatch):
    monkeypatch.setattr(models.huggingface_hub, "model_info", lambda *a, **k: pytest.fail("asked"))
    for load in (load_tokenizer, load_causal_lm):
        with pytest.raises(UspError, match="no such folder") as error:
            load(path)
        one_sentence(error)


def test_unreachable_hub_is_asked_once(monkeypatch):
    asked = []

    def model_info(name, timeout):
        asked.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.huggingface_hub, "model_info", model_info)
    since = time.monotonic()
    with pytest.raises(UspError, match="as a hub id it could not be fetched") as error:
        load_causal_lm("nobody/nothing")
    one_sentence(error)
    assert asked == ["nobody/nothing"] and time.monotonic() - since < 5


@pytest.mark.parametrize("keep", [0, 5, 5000])
def test_damaged_safetensors(copy, keep):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(UspError) as error:
        load_causal_lm(copy)
    assert str(copy) in one_sentence(error)


def test_incomplete_safetensors_are_not_filled_up_with_noise(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UspError, match="lacks 1 of its tensors .model.layers.1.mlp.up_proj"):
        load_causal_lm(copy)


def test_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(UspError, match="tokenizer") as error:
        load_tokenizer(copy)
    one_sentence(error)


def test_unknown_size(release):
    with pytest.raises(UspError, match="no model size '3b'; choose one of 0.3m"):
        from_scratch.new_model(load_tokenizer(release), "3b")
