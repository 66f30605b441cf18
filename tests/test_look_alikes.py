"""Look-alikes have the form of what the paper preset names, and load as that does."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from usp_lab.chat import chat_template
from usp_lab.look_alikes import LOOK_ALIKES, make_all
from usp_lab.models import load_causal_lm, load_tokenizer
from usp_lab.nli import NLI
from usp_lab.profile_generator import ProfileGenerator
from usp_lab.simulators import ModelAssistant, UserSimulator

CLASSES = {
    "wangkevin02/USP": "LlamaForCausalLM",
    "wangkevin02/Profile_Generator": "LlamaForCausalLM",
    "wangkevin02/AI_Detect_Model": "LongformerForSequenceClassification",
    "meta-llama/Meta-Llama-3-8B": "LlamaForCausalLM",
    "meta-llama/Meta-Llama-3-8B-Instruct": "LlamaForCausalLM",
    "allenai/longformer-base-4096": "LongformerForMaskedLM",
    "princeton-nlp/sup-simcse-roberta-large": "RobertaModel",
    "AnnaWegmann/Style-Embedding": "RobertaModel",
    "cross-encoder/nli-deberta-v3-base": "DebertaV2ForSequenceClassification",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("look-alikes"))


def test_all_are_small_and_of_the_right_class(made):
    assert made.keys() == CLASSES.keys() == LOOK_ALIKES.keys()
    for name, folder in made.items():
        assert AutoConfig.from_pretrained(folder).architectures == [CLASSES[name]], name
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in files) < 2_000_000, name
        assert "model.safetensors" in {p.name for p in files}, name


def test_seed_decides_the_weights(made, tmp_path):
    for name in ("meta-llama/Meta-Llama-3-8B", "cross-encoder/nli-deberta-v3-base"):
        first = (made[name] / "model.safetensors").read_bytes()
        again, other = (LOOK_ALIKES[name](tmp_path / str(s) / name, s) for s in (0, 1))
        assert (again / "model.safetensors").read_bytes() == first, name
        assert (other / "model.safetensors").read_bytes() != first, name


def test_llamas_differ_as_base_instruct_and_usp_do(made):
    base, instruct = made["meta-llama/Meta-Llama-3-8B"], made["wangkevin02/Profile_Generator"]
    tokenizer = load_tokenizer(base, None)
    assert tokenizer.chat_template is None and tokenizer.pad_token is None
    assert tokenizer.eos_token == "<|end_of_text|>"
    assert {"<|eot_id|>", "<|start_header_id|>"} <= tokenizer.get_vocab().keys()
    assert "<|finetune_right_pad_id|>" not in tokenizer.get_vocab()  # that is Llama-3.1's
    assert json.loads((base / "config.json").read_text())["dtype"] == "bfloat16"
    model = load_causal_lm(base)
    assert not model.config.tie_word_embeddings and model.config.max_position_embeddings == 8192
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.generation_config.do_sample and model.generation_config.eos_token_id == 1

    names = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|start_header_id|>", "Ġ"])
    chance = model(torch.tensor([names])).logits.softmax(-1)[0, :, 4]
    assert (
        (0.02 < chance) & (chance < 0.1)
    ).all()  # of ending the turn: simulations come to an end

    assert load_tokenizer(instruct, "assistant").chat_template == chat_template("assistant")
    written = ProfileGenerator.from_pretrained(instruct, max_new_tokens=4)
    assert written.sampling.temperature == 0  # though the checkpoint says to draw
    assert len(written.engine.stop_ids) == 2
    talks = ModelAssistant.from_pretrained(made["meta-llama/Meta-Llama-3-8B-Instruct"])
    assert talks.sampling.repetition_penalty == 1

    usp = UserSimulator.from_pretrained(made["wangkevin02/USP"], max_new_tokens=4)
    assert usp.sampling.repetition_penalty == 1.2
    system = {"role": "system", "content": "You are planning a weekend in Lisbon."}
    assert len(usp.generate([[system]], [1])) == 1


def test_detector_has_two_labels_and_its_base_none(made):
    logits = {}
    for name in ("wangkevin02/AI_Detect_Model", "allenai/longformer-base-4096"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            made[name], output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(made[name])
        assert tokenizer.model_max_length == 4096 and tokenizer("a")["input_ids"][0] == 0
        inputs = tokenizer(["hello there", "ok " * 60], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits[name] = model.eval()(**inputs).logits
        assert bool(info["missing_keys"]) == ("base" in name), name
    assert all(x.shape == (2, 2) and x.isfinite().all() for x in logits.values())


def test_nli_tells_three_things_apart(made):
    model = NLI(made["cross-encoder/nli-deberta-v3-base"])
    assert list(model.model.config.id2label.values()) == ["contradiction", "entailment", "neutral"]
    assert model.label == 1 and model.limit == 512
    score, none = model.score([("my girls are four", "The user has two girls"), ("a " * 600, "b")])
    assert 0 < score < 1 and none != none
