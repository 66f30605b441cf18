"""Seconds that simulating takes: our engine, re-encoding every turn, and the least possible.

    python benchmarks/simulate.py [--size 30m] [--dialogues 32] [--turns 8] [--rounds 2]

A Llama with random weights speaks as the user, greedily, in fp32: profiles of 250 tokens, turns of
1 to 64, replies of 60 to 140 tokens from a table. `re-encode` is the batched loop of the public
release: every turn, `generate` reads all dialogues from their first token, padded on the left;
`one-by-one` is the same with one dialogue at a time. All three must write the same text. `bound` is
each token computed once: what is read at the best prefill rate of several shapes, what is written
at the best decode rate, all dialogues side by side; both are measured in this run with plain
transformers, with as many tokens before as the dialogues' have in the mean. Prints `ratio NAME R`,
the seconds of the loop over ours; for `bound`, ours over it.

The tokenizer is one of whole words, since random weights do not write the tokens that their text
would be split into again, as trained ones nearly always do.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast

from usp_lab import simulate
from usp_lab.chat import SPECIAL_TOKENS, SYSTEM_PROMPT, Message, chat_template, system_message
from usp_lab.decoding import Sampling
from usp_lab.from_scratch import SIZES, new_model
from usp_lab.simulators import UserSimulator

WORDS = [f"w{i}" for i in range(2500)]
TURN = Sampling(temperature=0, repetition_penalty=1.2, max_new_tokens=64)  # the release's penalty
ENDS = 35  # one word in so many ends a turn
PROFILE, REPLY = 250, (60, 140)  # tokens
PREFILL = ((1, 512), (2, 256), (4, 128), (8, 128))  # rows and tokens


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are words."""
    known = [*SPECIAL_TOKENS, "<unk>", "system", "user", "assistant", *SYSTEM_PROMPT.split()]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*known, *WORDS]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
    )
    tokenizer.chat_template = chat_template("user")
    return tokenizer


def new_simulator(size: str, turns: int, seed: int) -> UserSimulator:
    """Return a simulator with random weights that writes varied words and ends turns by chance."""
    tokenizer = word_tokenizer()
    context = 2 * PROFILE + turns * (TURN.max_new_tokens + REPLY[1] + 16)
    model = new_model(tokenizer, size, context, seed).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() == 2 and "embed" not in name:
                weights.mul_(2)  # else each token repeats the last one
        model.get_input_embeddings().weight[tokenizer.all_special_ids] = 0  # are never written
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(WORDS[::ENDS])
    return UserSimulator(model, tokenizer, TURN, "random")


class Replies:
    """An assistant that answers each turn with words of its own."""

    name = "words"

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Draw a reply to each last turn."""
        draws = [Random(m[-1]["content"]) for m in batch]
        return [" ".join(r.choices(WORDS, k=r.randint(*REPLY))) for r in draws]


def re_encode(
    sim: UserSimulator, profiles: Sequence[str], turns: int, batch_size: int
) -> list[list[str]]:
    """Let the simulator talk to `Replies` without keeping anything from turn to turn."""
    texts = []
    for first in range(0, len(profiles), batch_size):
        dialogues = [[system_message(p)] for p in profiles[first : first + batch_size]]
        for _ in range(turns):
            for messages, text in zip(dialogues, _turns(sim, dialogues), strict=True):
                messages.append({"role": "user", "content": text})
            for messages, text in zip(dialogues, Replies().reply(dialogues, []), strict=True):
                messages.append({"role": "assistant", "content": text})
        texts += [[m["content"] for m in messages[1:]] for messages in dialogues]
    return texts


@torch.inference_mode()
def _turns(sim: UserSimulator, dialogues: list[list[Message]]) -> list[str]:
    rendered = [
        sim.tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False)
        for m in dialogues
    ]
    batch = sim.tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    out = sim.model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=False,
        repetition_penalty=TURN.repetition_penalty,
        max_new_tokens=TURN.max_new_tokens,
        pad_token_id=sim.tokenizer.pad_token_id,
    )
    new = out[:, batch["input_ids"].shape[1] :]
    return [t.strip() for t in sim.tokenizer.batch_decode(new, skip_special_tokens=True)]


def work(sim: UserSimulator, texts: list[list[str]], profiles: list[str]) -> dict[str, list[int]]:
    """Return the place in its dialogue of every token that is to be read, and to be written."""
    places = {"read": [], "written": []}
    for profile, said in zip(profiles, texts, strict=True):
        messages, before = [system_message(profile)], 0
        for turn, reply in zip(said[::2], said[1::2], strict=True):
            prompt = len(sim.prompt(messages))
            places["read"] += range(before, prompt)  # what came since the last turn was written
            before = prompt + len(turn.split())
            places["written"] += range(prompt, before)
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}]
    return places


@torch.inference_mode()
def rate(sim: UserSimulator, rows: int, new: int, context: int, repeats: int = 4) -> float:
    """Return tokens a second, the best of some calls: ``new`` ones a row, ``context`` before each."""
    ids, cache = (
        torch.randint(100, 2000, (rows, context + new)),
        DynamicCache(config=sim.model.config),
    )
    before, seconds = max(0, context - new // 2), []
    for start in range(0, before, 64):
        some = ids[:, start : min(start + 64, before)]
        sim.model(some, past_key_values=cache, logits_to_keep=1)
    for _ in range(repeats):
        began = time.perf_counter()
        sim.model(ids[:, -new:], past_key_values=cache, logits_to_keep=1)
        seconds.append(time.perf_counter() - began)
        cache.crop(-new)
    return rows * new / min(seconds)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--dialogues", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="of ours, before and after the rest")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n, turns = options.dialogues, options.turns
    sim, rng = new_simulator(options.size, turns, options.seed), Random(options.seed)
    profiles = [" ".join(rng.choices(WORDS, k=PROFILE)) for _ in range(n)]

    def ours() -> list[list[str]]:
        sim.engine.forget()
        dialogues = simulate(sim, Replies(), profiles, max_turns=turns, progress=False)
        return [[m["content"] for m in d.messages] for d in dialogues]

    loops = {
        "re-encode": lambda: re_encode(sim, profiles, turns, n),
        "one-by-one": lambda: re_encode(sim, profiles, turns, 1),
    }
    seconds, texts, best = {}, ours(), []  # the first one is to warm up
    places = work(sim, texts, profiles)
    read, written = (len(p) for p in places.values())
    above, context = (round(statistics.mean(p)) for p in places.values())
    lengths = [len(t.split()) for said in texts for t in said[::2]]
    print(
        f"{sim.model.num_parameters():,} parameters, {torch.get_num_threads()} threads, {n} "
        f"dialogues of {turns} turns: {read:,} tokens read, {written:,} written in turns of "
        f"{min(lengths)} to {max(lengths)}, after {above} and {context} tokens in the mean",
        flush=True,
    )
    for name, loop in {**{f"ours {i}": ours for i in range(options.rounds)}, **loops}.items():
        prefill = max(rate(sim, *shape, above) for shape in PREFILL)
        best.append((prefill, rate(sim, n, 1, context, 8)))
        began = time.perf_counter()
        said = loop()
        seconds[name] = time.perf_counter() - began
        assert said == texts, f"{name} wrote other text"
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
    prefill, decode = (max(r) for r in zip(*best, strict=True))
    bound = read / prefill + written / decode
    mine = statistics.mean(seconds.pop(f"ours {i}") for i in range(options.rounds))
    print(f"bound: {bound:.1f} s at {prefill:,.0f} tokens/s read and {decode:,.0f} written")
    for name, value in seconds.items():
        print(f"ratio {name} {value / mine:.2f}")
    print(f"ratio bound {mine / bound:.2f}")


if __name__ == "__main__":
    main()
