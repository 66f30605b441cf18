"""Dialogues as what is trained on: token ids and labels."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from usp_lab.chat import (
    END_TOKEN,
    Message,
    chat_template,
    cut_to_turns,
    token_ids,
    with_profile,
    without_special_tokens,
)
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.sft_settings import GENERATOR

if TYPE_CHECKING:
    from datasets import Dataset

    from usp_lab.sft_settings import SftSettings


def to_messages(dialogue: Dialogue, s: "SftSettings") -> list[Message]:
    """Return what a dialogue is trained as: with or without its profile and end token, or as what a
    profile generator reads and writes."""
    if s.speaker == GENERATOR:
        from usp_lab.profile_generator import lesson

        return lesson(dialogue)
    messages = with_profile(dialogue.messages, dialogue.profile if s.reads_profile else None)
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    if s.end_token and messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": END_TOKEN})
    return messages


def drawn(dialogues: Sequence[Dialogue], n: int, seed: int) -> Sequence[Dialogue]:
    """Return the ``n`` dialogues that a training of less than one pass meets, or all of them.

    What is never trained on need not be encoded. A longer training draws the same ones first.
    """
    if n >= len(dialogues):
        return dialogues
    return [dialogues[i] for i in np.random.default_rng(seed).permutation(len(dialogues))[:n]]


def withhold_profiles(dialogues: Sequence[Dialogue], s: "SftSettings") -> Sequence[Dialogue]:
    """Take the profile from a share ``profile_dropout`` of dialogues, the same in every process."""
    if not (s.profile_dropout and s.reads_profile):
        return dialogues
    return [
        d.model_copy(update={"profile": None})
        if Random(f"{s.seed}/{d.id}").random() < s.profile_dropout
        else d
        for d in dialogues
    ]


def encode(
    dialogues: Sequence[Dialogue], tokenizer, s: "SftSettings", counts: Counter, name: str
) -> "Dataset":
    """Return rows of token ids and labels, -100 where no loss is taken.

    Long dialogues are cut at whole turns and counted; validation rows are sorted by length.
    """
    from datasets import Dataset

    template, rows = chat_template(s.template, training=True), []
    for start in range(0, len(dialogues), 256):
        batch = [
            without_special_tokens(tokenizer, to_messages(d, s))
            for d in dialogues[start : start + 256]
        ]
        out = tokenizer.apply_chat_template(
            batch,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        for messages, ids, mask in zip(
            batch, out["input_ids"], out["assistant_masks"], strict=True
        ):
            if len(ids) > s.max_length:
                kept, _ = cut_to_turns(tokenizer, messages, s.max_length)
                short = len(token_ids(tokenizer, kept))
                ids, mask = ids[:short], mask[:short]
                counts[f"{name}: cut at a whole turn"] += 1
            if not any(mask):
                counts[f"{name}: dropped, no {s.learned} fits"] += 1
                continue
            ids = np.array(ids, dtype=np.int32)
            rows.append((ids, np.where(mask, ids, -100)))
    if not rows:
        raise UspError(
            f"no {name} dialogue fits {s.max_length} tokens with a {s.learned}; raise "
            "max_length or shorten profiles"
        )
    counts[f"{name}: dialogues"] = len(rows)
    counts[f"{name}: tokens"] = sum(len(ids) for ids, _ in rows)
    counts[f"{name}: trained tokens"] = int(sum((labels != -100).sum() for _, labels in rows))
    if name == "validation":
        rows.sort(key=lambda row: -len(row[0]))
    ids, labels = zip(*rows, strict=True)
    return Dataset.from_dict({"input_ids": ids, "labels": labels})
