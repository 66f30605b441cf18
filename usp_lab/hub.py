"""Data sets of the hub as rows of dialogues.

Known forms: LMSYS-USP, `messages`, hh-rlhf's text, OpenAssistant's message rows.
"""

import re
from collections.abc import Iterable, Iterator

from usp_lab.errors import UspError

_HH = re.compile(r"\n\n(Human|Assistant): ")
_SPLITS = {"valid": "validation", "dev": "validation"}


def hub_rows(name: str) -> dict[str, Iterator[tuple[str, object]]]:
    """Return {split: rows} of a hub data set; `datasets` runs none of its code.

    Raises:
        UspError: the hub is out of reach, the data set is gated or unknown, or its columns are
            none of the known forms.
    """
    from datasets import load_dataset

    try:
        data = load_dataset(name)
    except Exception as e:  # the hub's client raises a dozen kinds; each means the same here
        reason = (str(e).strip() or "no reason given").splitlines()[0][:160]
        raise UspError(
            f"hub:{name} could not be loaded ({type(e).__name__}: {reason}); "
            "check the name, access and network, or give a local file"
        ) from e
    return {_SPLITS.get(s, s): convert(rows, rows.column_names, name) for s, rows in data.items()}


def convert(
    rows: Iterable[dict], columns: Iterable[str], name: str
) -> Iterator[tuple[str, object]]:
    """Return (place, row in the LMSYS-USP form), whichever of the known forms they come in.

    Raises:
        UspError: columns of no known form.
    """
    columns = set(columns)
    if columns & {"conversation", "messages"}:
        known = iter(rows)
    elif "chosen" in columns:
        known = ({"conversation": read_hh(r["chosen"])} for r in rows)
    elif {"message_id", "parent_id", "text", "role"} <= columns:
        known = oasst_paths(rows)
    else:
        raise UspError(
            f"hub:{name} has columns {sorted(columns)}; known forms have conversation, messages, "
            "chosen (hh-rlhf), or OpenAssistant's message rows"
        )
    return ((f"row {i}", row) for i, row in enumerate(known, 1))


def read_hh(chosen: str | list) -> object:
    """Return the messages of an hh-rlhf text, "\\n\\nHuman: ...\\n\\nAssistant: ...".

    What is not text is returned as it is: later preference data hold lists of messages.
    Source: https://github.com/anthropics/hh-rlhf.
    """
    if not isinstance(chosen, str):
        return chosen
    parts = _HH.split(chosen)[1:]
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def oasst_paths(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield one dialogue a tree of English OpenAssistant messages: the path with most turns.

    Of paths as long, the one with the best-ranked reply (rank 0, as oasst1's data card has it).
    """
    children: dict[str | None, list[dict]] = {}
    for row in rows:
        if not row.get("deleted") and row.get("lang", "en") == "en":
            children.setdefault(row["parent_id"], []).append(row)

    def rank(row: dict) -> float:
        return row["rank"] if row.get("rank") is not None else float("inf")

    def longest(row: dict) -> list[dict]:
        replies = sorted(children.get(row["message_id"], []), key=rank)
        return [row, *max(map(longest, replies), key=len, default=[])]

    for root in children.get(None, []):
        turns = [
            {"role": "user" if r["role"] == "prompter" else "assistant", "content": r["text"]}
            for r in longest(root)
        ]
        yield {"id": root["message_id"], "user_id": root.get("user_id"), "conversation": turns}
