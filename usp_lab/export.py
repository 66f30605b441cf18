"""Training data for those who train with LLaMA-Factory, as USP's authors did their profile generator.

    python -m usp_lab.export --data population --format llamafactory --task generator --out FOLDER
    python -m usp_lab.export --data my.jsonl.gz --task sft --out FOLDER --tokenizer BASE --max-length 4096

A folder of LLaMA-Factory's sharegpt form (https://github.com/hiyouga/LLaMA-Factory, data/README.md): a JSON file a
split and their entry in ``dataset_info.json``, which may hold others. It trains on the same tokens as `sft.train_sft`.

`generator`: read under its template ``llama3``. `sft`: there a dialogue must begin with a prompt and only the
"assistant" is trained. So the roles are exchanged by the entry's tags, and the profile's system message stands where
an observation would; ``usp_template.py`` registers the template that renders this as USP's, and trains:

    python usp_template.py my_training.yaml        # dataset_dir: FOLDER, dataset: usp_sft, template: usp

LLaMA-Factory saves a template of its own beside the weights; put ``chat_template.jinja`` in its place.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from usp_lab.chat import (
    Message,
    broken_up,
    chat_template,
    cut_to_turns,
    with_profile,
    without_special_tokens,
)
from usp_lab.data import Corpus, Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.files import atomic, read_json, write_json
from usp_lab.options import add_source, exit_on_error
from usp_lab.profile_generator import lesson

TASKS = ("sft", "generator")
FORMATS = ("llamafactory",)
INFO = "dataset_info.json"
_SPECIAL = re.compile(
    r"<\|(begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id|step_id|python_tag|image|"
    r"finetune_right_pad_id|reserved_special_token_\d+)\|>"
)
_ROLES = {"role_tag": "role", "content_tag": "content", "function_tag": "no_function"}
TAGS = {
    "generator": _ROLES
    | {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    | {"observation_tag": "no_observation"},
    "sft": _ROLES
    | {"user_tag": "assistant", "assistant_tag": "user", "observation_tag": "system"}
    | {"system_tag": "no_system"},
}
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_TOLD = _HEADER + "{{{{content}}}}<|eot_id|>" + _HEADER.format("user")
SLOTS = {  # what LLaMA-Factory's `sft` roles are rendered as, under USP's template
    "format_observation": _TOLD.format("system"),
    "format_user": _TOLD.format("assistant"),
    "format_assistant": "{{content}}<|eot_id|>",
}
_TEMPLATE = '''"""Registers USP's template with LLaMA-Factory, then trains: python usp_template.py my_training.yaml"""

from llamafactory.data.formatter import EmptyFormatter, StringFormatter
from llamafactory.data.template import register_template
from llamafactory.train.tuner import run_exp

register_template(
    name="usp",
{slots}
    format_prefix=EmptyFormatter(slots=[{{"bos_token"}}]),
    stop_words=["<|eot_id|>"],
)

if __name__ == "__main__":
    run_exp()
'''


@dataclass(frozen=True)
class Exported:
    """What was written: names of the data sets in ``dataset_info.json``, and counts of rows by split."""

    folder: Path
    datasets: tuple[str, ...]
    counts: dict[str, int]


def export(
    corpus: Corpus, folder: str | Path, task: str = "sft", tokenizer=None, max_length: int = 0
) -> Exported:
    """Write a corpus's splits for LLaMA-Factory.

    Args:
        corpus: dialogues with profiles.
        folder: new, or with data sets of other tasks in it.
        task: "sft" (the simulator, told its profile) or "generator" (profiles from user turns).
        tokenizer: of the model to be trained, for ``max_length``.
        max_length: tokens; dialogues are cut at whole turns and counted, where LLaMA-Factory's own
            ``cutoff_len`` would cut anywhere. 0 cuts nothing.

    Raises:
        UspError: an unknown task, a dialogue without a profile, a length without a tokenizer, nothing
            that fits, a folder that cannot be written.
    """
    if task not in TASKS:
        raise UspError(f"no task {task!r}; choose one of {', '.join(TASKS)}")
    if max_length and tokenizer is None:
        raise UspError(f"max_length={max_length} counts tokens; give the tokenizer, too")
    missing = next((d.id for d in corpus.all if not d.profile), None)
    if missing is not None:
        raise UspError(
            f"dialogue {missing} has no profile; build profiles first (usp-lab profiles)"
        )
    folder, counts, entries = Path(folder), Counter(), {}
    splits = {s: d for s, d in corpus.splits.items() if d}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, dialogues in splits.items():
            name = f"usp_{task}" if split == "train" else f"usp_{task}_{split}"
            rows = _rows(dialogues, task, tokenizer, max_length, counts, split)
            _write(folder / f"{name}.json", rows)
            if not counts[split]:
                raise UspError(f"no {split} dialogue fits {max_length} tokens; raise max_length")
            entries[name] = _entry(f"{name}.json", task)
        if task == "sft":
            (folder / "usp_template.py").write_text(template_file(), encoding="utf-8")
            (folder / "chat_template.jinja").write_text(chat_template("user"), encoding="utf-8")
        write_json(folder / INFO, (read_json(folder / INFO) or {}) | entries)
    except OSError as e:
        raise UspError(
            f"{folder} could not be written ({e.strerror or e}); free space or name another folder"
        ) from e
    return Exported(folder, tuple(entries), dict(counts))


def messages_of(dialogue: Dialogue, task: str) -> list[Message]:
    """Return what a dialogue is trained as, the trained turn last.

    What follows a simulator's last turn carries no loss, and LLaMA-Factory must end with a trained one.
    """
    if task == "generator":
        return lesson(dialogue)
    told = with_profile(dialogue.messages, dialogue.profile)
    return told if told[-1]["role"] == "user" else told[:-1]


def template_file() -> str:
    """Return a program that registers USP's template with LLaMA-Factory and trains."""
    slots = "\n".join(
        f"    {k}=StringFormatter(slots=[{json.dumps(v)}])," for k, v in SLOTS.items()
    )
    return _TEMPLATE.format(slots=slots)


def _rows(
    dialogues: Sequence[Dialogue], task: str, tokenizer, most: int, counts: Counter, split: str
) -> Iterator[dict]:
    trained = "user" if task == "sft" else "assistant"
    for d in dialogues:
        messages = messages_of(d, task)
        if tokenizer is not None:
            messages = without_special_tokens(tokenizer, messages)
        if most:
            whole = len(messages)
            messages, _ = cut_to_turns(tokenizer, messages, most)
            while messages and messages[-1]["role"] != trained:
                messages.pop()
            counts[f"{split}: cut at a whole turn"] += 0 < len(messages) < whole
        if not messages:
            counts[f"{split}: dropped, no trained turn fits"] += 1
            continue
        counts[split] += 1
        # the templates trim, and no content may spell a special token
        said = [broken_up(m["content"].strip(), _SPECIAL) for m in messages]
        rows = zip(messages, said, strict=True)
        yield {"messages": [{"role": m["role"], "content": text} for m, text in rows]}


def _write(path: Path, rows: Iterator[dict]) -> None:
    """Write a JSON list, row by row."""
    with atomic(path) as part, part.open("w", encoding="utf-8") as f:
        f.write("[")
        for i, row in enumerate(rows):
            f.write(",\n" if i else "\n")
            f.write(json.dumps(row, ensure_ascii=False))
        f.write("\n]\n")


def _entry(file: str, task: str) -> dict:
    return {
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": TAGS[task],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.export",
        description="Write training data in another trainer's form.",
    )
    add_source(parser, "folder; may hold other data sets")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="whose form")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="what is to be trained")
    parser.add_argument("--seed", type=int, default=0, help="of the population and of splits")
    parser.add_argument("--tokenizer", default="", help="folder or hub id, for --max-length")
    parser.add_argument("--max-length", type=int, default=0, help="tokens a dialogue (0: uncut)")
    args = parser.parse_args()
    with exit_on_error():
        corpus = load_dialogues(args.data, n=args.n, seed=args.seed, on_bad=args.on_bad)
        tokenizer = None
        if args.tokenizer:
            from usp_lab.models import load_tokenizer

            tokenizer = load_tokenizer(args.tokenizer, speaker=None)
            tokenizer.chat_template = chat_template("user")
        done = export(corpus, args.out, args.task, tokenizer, args.max_length)
    counts = ", ".join(f"{k} {v:,}" for k, v in done.counts.items())
    print(f"saved {', '.join(done.datasets)} in {done.folder}; {counts}")


if __name__ == "__main__":
    main()
