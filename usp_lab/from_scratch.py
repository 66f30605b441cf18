"""Models and tokenizers from scratch: USP's format and Llama's (or another) architecture, by size."""

from collections.abc import Iterable, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from usp_lab.chat import SPECIAL_TOKENS, chat_template
from usp_lab.errors import UspError

# From-scratch sizes: (hidden size, layers, heads, feed-forward size). Their names count parameters
# with a vocabulary of about 4,000.
SIZES = {
    "0.3m": (64, 2, 2, 192),
    "1m": (128, 3, 2, 384),
    "2m": (192, 3, 3, 512),
    "3m": (192, 5, 3, 512),
    "6m": (256, 6, 4, 704),
    "30m": (512, 8, 8, 1408),
    "125m": (768, 14, 12, 2048),
}

# transformers' model types that can be trained from scratch, and what their configurations need.
ARCHITECTURES = {
    "llama": {"rope_theta": 500_000.0},  # Llama-3's: a profile is read from hundreds of tokens away
    "gpt_neox": {"rotary_pct": 1.0, "hidden_dropout": 0.0},
}

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def new_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    speaker: str = "user",
    extra_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Llama-3's special tokens and USP's chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    # Llama-3's own split: with GPT-2's, "\n\n" at the end of a generation prompt is one token, and two before a word.
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *extra_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        padding_side="left",
    )
    tokenizer.chat_template = chat_template(speaker)
    return tokenizer


def new_model(
    tokenizer: PreTrainedTokenizerFast,
    size: str = "2m",
    context: int = 2048,
    seed: int = 0,
    architecture: str = "llama",
) -> PreTrainedModel:
    """Return a randomly initialised model of a named size (`SIZES`), the same for the same seed.

    ``architecture``: a name in `ARCHITECTURES`; others than Llama are for judges that are to share
    nothing with what they judge.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UspError(f"no architecture {architecture!r} to train from scratch; choose {known}")
    if size not in SIZES:
        raise UspError(
            f"no model size {size!r}; choose one of {', '.join(SIZES)}, or train from a checkpoint "
            "(base=PATH)"
        )
    hidden, layers, heads, inner = SIZES[size]
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ARCHITECTURES[architecture],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)
