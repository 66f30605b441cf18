"""Tiny checkpoints shaped like those of the paper preset, with random weights, for tests.

    folders = make_all("look-alikes")            # {hub id: folder}
    usp = look_alike("look-alikes/USP")          # one of them

Classes, configuration keys, special tokens, chat templates and file layout are those of the checkpoints on the
hub (model cards; https://huggingface.co/wangkevin02), sizes are not. Seconds to make, no network.
"""

import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from usp_lab.chat import chat_template, with_profile
from usp_lab.from_scratch import new_tokenizer
from usp_lab.models import quiet_bars

_TEXTS = (
    "I can't decide which part of town to stay in; my daughter is four. What would you pick?",
    "You are planning a weekend in Lisbon with two small children. You write short messages.",
    "The assistant suggests the night bus, and asks whether the user contradicts or entails that.",
)
_SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 2}
_WIDE = {"initializer_range": 0.2}  # else random encoders hold all texts alike
_PAD_31 = (
    "<|finetune_right_pad_id|>"  # Llama-3.1's; in Llama-3 that token is one of those in reserve
)
_RESERVED = "<|reserved_special_token_0|>"


def look_alike(folder: str | Path, seed: int = 0, context: int = 512) -> Path:
    """Write a checkpoint like wangkevin02/USP: Llama-3, and a template that opens a user header."""
    tokenizer = _llama_tokenizer("<|end_of_text|>", chat_template("user"))
    model = _llama(tokenizer, context, seed)
    model.generation_config.repetition_penalty = 1.2  # as the release generates
    return _save(folder, model, tokenizer)


def llama_base(folder: str | Path, seed: int = 0, context: int = 8192) -> Path:
    """Write one like meta-llama/Meta-Llama-3-8B: in bf16, without a chat template or a padding token.

    Turns of what is trained from it end by chance (`_ending`).
    """
    tokenizer = _llama_tokenizer("<|end_of_text|>", None, pad=None)
    model = _ending(_llama(tokenizer, context, seed), tokenizer).to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # <|eot_id|> ends nothing yet
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    return _save(folder, model, tokenizer)


def llama_instruct(folder: str | Path, seed: int = 0, context: int = 8192) -> Path:
    """Write one like meta-llama/Meta-Llama-3-8B-Instruct, whose template opens an assistant header."""
    tokenizer = _llama_tokenizer("<|eot_id|>", chat_template("assistant"), pad=None)
    model = _llama(tokenizer, context, seed).to(torch.bfloat16)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    return _save(folder, model, tokenizer)


def profile_generator(folder: str | Path, seed: int = 0) -> Path:
    """Write one like wangkevin02/Profile_Generator: Llama-3-Instruct, fine-tuned."""
    return llama_instruct(folder, seed)


def longformer_base(folder: str | Path, seed: int = 0) -> Path:
    """Write one like allenai/longformer-base-4096, a base without a classifier."""
    tokenizer = _roberta_tokenizer(4096)
    return _save(
        folder, _made(LongformerForMaskedLM, _longformer(tokenizer), seed), tokenizer, bpe=True
    )


def ai_detector(folder: str | Path, seed: int = 0) -> Path:
    """Write one like wangkevin02/AI_Detect_Model: a Longformer with two labels, the user's first."""
    tokenizer = _roberta_tokenizer(4096)
    config = _longformer(tokenizer, num_labels=2, problem_type="single_label_classification")
    model = _made(LongformerForSequenceClassification, config, seed)
    return _save(folder, model, tokenizer, bpe=True)


def simcse(folder: str | Path, seed: int = 0) -> Path:
    """Write one like princeton-nlp/sup-simcse-roberta-large: a plain RoBERTa with its pooler."""
    tokenizer = _roberta_tokenizer(512)
    return _save(folder, _made(RobertaModel, _roberta(tokenizer), seed), tokenizer, bpe=True)


def style_encoder(folder: str | Path, seed: int = 0) -> Path:
    """Write one like AnnaWegmann/Style-Embedding: sentence-transformers' layout on RoBERTa, mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = simcse(folder, seed)
    with quiet_bars():
        read = Transformer(str(folder), max_seq_length=512)
        whole = SentenceTransformer(modules=[read, Pooling(_SIZE["hidden_size"], "mean")])
        for file in folder.iterdir():
            file.unlink()
        whole.save(str(folder), create_model_card=False)
    return folder


def nli(folder: str | Path, seed: int = 0) -> Path:
    """Write one like cross-encoder/nli-deberta-v3-base: contradiction, entailment, neutral."""
    tokenizer = _deberta_tokenizer()
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        **_SIZE,
        **_HEADS,
        **_WIDE,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        type_vocab_size=0,
        pooler_hidden_size=_SIZE["hidden_size"],
        layer_norm_eps=1e-7,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(("contradiction", "entailment", "neutral"))),
    )
    return _save(folder, _made(DebertaV2ForSequenceClassification, config, seed), tokenizer)


# What preset paper names, and what docs/paper-trace.md names beside it.
LOOK_ALIKES: dict[str, Callable[..., Path]] = {
    "wangkevin02/USP": look_alike,
    "wangkevin02/Profile_Generator": profile_generator,
    "wangkevin02/AI_Detect_Model": ai_detector,
    "meta-llama/Meta-Llama-3-8B": llama_base,
    "meta-llama/Meta-Llama-3-8B-Instruct": llama_instruct,
    "allenai/longformer-base-4096": longformer_base,
    "princeton-nlp/sup-simcse-roberta-large": simcse,
    "AnnaWegmann/Style-Embedding": style_encoder,
    "cross-encoder/nli-deberta-v3-base": nli,
}


def make_all(folder: str | Path, seed: int = 0) -> dict[str, Path]:
    """Write all look-alikes under a folder and return them by hub id."""
    return {i: make(Path(folder) / i.replace("/", "--"), seed) for i, make in LOOK_ALIKES.items()}


# --- parts ----------------------------------------------------------------------------------------


def _llama_tokenizer(
    eos: str, template: str | None, pad: str | None = _PAD_31
) -> PreTrainedTokenizerFast:
    """A tokenizer with Llama-3's special tokens; without ``pad`` it has none, as those of Meta."""
    tokenizer = new_tokenizer(_TEXTS[:1] * 3, vocab_size=400)
    if pad is None:
        tokenizer = new_tokenizer(_dialogues(), vocab_size=1200)  # shorter texts, sooner done
        words = tokenizer.backend_tokenizer.to_str().replace(_PAD_31, _RESERVED)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(words), bos_token="<|begin_of_text|>"
        )
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    return tokenizer


@lru_cache(maxsize=1)
def _dialogues() -> list[str]:
    from usp_lab.synthetic import draw

    told = [with_profile(d.messages, d.profile) for d in draw("train", 60, 0)]
    return [m["content"] for messages in told for m in messages]


def _llama(tokenizer: PreTrainedTokenizerFast, context: int, seed: int) -> LlamaForCausalLM:
    """Llama-3 in small: grouped queries, input and output embeddings apart."""
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **_SIZE,
        **_HEADS,
        num_key_value_heads=1,
        max_position_embeddings=context,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _made(LlamaForCausalLM, config, seed)


def _ending(model: LlamaForCausalLM, tokenizer, share: float = 0.25) -> LlamaForCausalLM:
    """Have a model end its turn with a chance of about ``share`` a token, so that simulations end, too.

    One place of every hidden state is made to stand out, and the output row of ``<|eot_id|>`` reads it.
    """
    row, width = tokenizer.convert_tokens_to_ids("<|eot_id|>"), model.config.hidden_size
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 10.0  # its norm, sqrt(width), is all but this
        read = model.get_output_embeddings().weight
        read[:, 0] = 0.0
        read[row, 0] = math.log(share / (1 - share) * len(tokenizer)) / math.sqrt(width)
    return model


def _roberta_tokenizer(longest: int) -> RobertaTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_TEXTS, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) for m in trained["merges"]]
    return RobertaTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=longest)


def _roberta(tokenizer: RobertaTokenizer, **more: object) -> RobertaConfig:
    positions = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaConfig(vocab_size=len(tokenizer), **_SIZE, **_HEADS, **_WIDE, **positions, **more)


def _longformer(tokenizer: RobertaTokenizer, **more: object) -> LongformerConfig:
    return LongformerConfig(
        vocab_size=len(tokenizer),
        **_SIZE,
        **_HEADS,
        **_WIDE,
        attention_window=[32, 32],
        max_position_embeddings=4098,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.sep_token_id,
        **more,
    )


def _deberta_tokenizer() -> DebertaV2Tokenizer:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    unigram.train_from_iterator(_TEXTS * 20, trainer)
    vocab = [tuple(piece) for piece in json.loads(unigram.to_str())["model"]["vocab"]]
    return DebertaV2Tokenizer(vocab=vocab, unk_id=3, model_max_length=512)


def _made(kind: type[PreTrainedModel], config, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def _save(folder: str | Path, model: PreTrainedModel, tokenizer, bpe: bool = False) -> Path:
    """Save; with ``bpe`` the tokenizer as its vocabulary and merges, as of before tokenizer.json."""
    folder = Path(folder)
    with quiet_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if bpe:
        tokenizer.backend_tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
    return folder
