"""The loop in which a simulated user and an assistant talk.

    sim = UserSimulator.from_pretrained("runs/usp")
    dialogues = simulate(sim, scripted("good"), targets, max_turns=10, seed=0, out="d.jsonl")

It goes on from what is in ``out``. `simulators` says what a simulator and an assistant must have.
"""

import errno
import hashlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from tqdm.auto import tqdm

from usp_lab.chat import END_TOKEN, Message, Utterance, is_closing, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.simulators import ModelAssistant, TwinSimulator, UserSimulator, identity

__all__ = ["ModelAssistant", "Simulated", "TwinSimulator", "UserSimulator", "simulate", "turn_seed"]


class Simulated(Dialogue):
    """A simulated dialogue; ``id`` is its target's.

    ``stop`` says why it ended, ``run`` identifies the settings and ``target`` the profile or true
    dialogue it was made with.
    """

    stop: str
    run: str
    target: str
    replicate: int = 0


def turn_seed(seed: int, replicate: int, target_id: str, turn: int) -> int:
    """Return the seed of one turn, different for every run seed, replicate, target and turn."""
    text = f"{seed}/{replicate}/{target_id}/{turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def simulate(
    simulator,
    assistant,
    targets: Sequence[Dialogue | str],
    *,
    max_turns: int = 10,
    seed: int = 0,
    replicate: int = 0,
    out: str | Path | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Simulated]:
    """Let a simulator talk to an assistant once for each target.

    Args:
        simulator: `UserSimulator`, `TwinSimulator`, or anything with their ``start`` and
            ``generate``.
        assistant: `assistants.scripted(...)`, `ModelAssistant`, or anything with ``reply``.
        targets: profiles, or dialogues to reconstruct (their profile, and for a profile-free
            simulator their first turn, is used).
        max_turns: user turns at the most.
        seed, replicate: two runs that differ in either give different dialogues; the same give the
            same, whatever the batch size.
        out: a .jsonl file; dialogues are appended as they end, and a run that was cut off goes on
            from what is there.
        batch_size: dialogues under way at once; a finished one is replaced by a waiting one.
        progress: show a bar.

    Returns:
        Dialogues in the order of targets. ``stop`` is one of "end token", "closing", "left",
        "max turns", "empty turn", "empty reply", "context full".

    Raises:
        UspError: no target, two of one id, a target without profile, a profile longer than the
            context, an ``out`` file of other settings, weights or targets.
    """
    for name, value in (("max_turns", max_turns), ("batch_size", batch_size)):
        if value < 1:
            raise UspError(f"{name} must be at least 1, not {value}")
    targets = [
        t if isinstance(t, Dialogue) else Dialogue(id=f"profile-{i}", messages=[], profile=t)
        for i, t in enumerate(targets)
    ]
    _check_targets(targets)
    parts = [identity(simulator), identity(assistant), max_turns, seed, replicate]
    run = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    done = _read(Path(out), run, targets) if out else {}
    waiting = deque(t for t in targets if t.id not in done)
    _check_room(simulator, waiting)
    active: list[tuple[Dialogue, list[Message]]] = []
    with tqdm(
        total=len(targets),
        initial=len(targets) - len(waiting),
        unit="dialogue",
        disable=not progress,
        mininterval=1 if sys.stderr.isatty() else 5,
        leave=False,
    ) as bar:
        while active or waiting:
            while waiting and len(active) < batch_size:
                target = waiting.popleft()
                active.append((target, list(simulator.start(target))))
            ended = _advance(simulator, assistant, active, max_turns, seed, replicate)
            finished = [
                Simulated(
                    id=t.id,
                    messages=with_profile(m, None),
                    profile=t.profile,
                    user_id=t.user_id,
                    source="simulated",
                    stop=ended[t.id],
                    run=run,
                    target=_fingerprint(t),
                    replicate=replicate,
                )
                for t, m in active
                if t.id in ended
            ]
            active = [(t, m) for t, m in active if t.id not in ended]
            done.update((d.id, d) for d in finished)
            if out and finished:
                _append(Path(out), finished)
            bar.update(len(finished))
    return [done[t.id] for t in targets]


def _advance(
    simulator, assistant, active, max_turns: int, seed: int, replicate: int
) -> dict[str, str]:
    """Play one turn of each active dialogue, in place; return why those that ended did, by id."""
    ended: dict[str, str] = {}

    def seeds(rows, side: str) -> list[int]:
        return [turn_seed(seed, replicate, f"{t.id}/{side}", len(m)) for t, m in rows]

    to_speak = []
    for t, m in active:
        if m and m[-1]["role"] == "user":
            continue  # begins with a true first turn
        if isinstance(simulator, UserSimulator) and simulator.room(m) < 0:
            ended[t.id] = "context full"
        else:
            to_speak.append((t, m))
    turns = []
    if to_speak:
        turns = simulator.generate([m for _, m in to_speak], seeds(to_speak, "user"))
    for (t, m), text in zip(to_speak, turns, strict=True):
        meta = text.meta if isinstance(text, Utterance) else {}
        if text == END_TOKEN:
            ended[t.id] = "end token"
        elif not text.strip():
            ended[t.id] = "left" if meta.get("left") else "empty turn"
        else:
            m.append(_message("user", text, meta))

    to_answer = []
    for t, m in active:
        if t.id in ended:
            continue
        if isinstance(assistant, ModelAssistant) and assistant.room(with_profile(m, None)) < 0:
            ended[t.id] = "context full"
        else:
            to_answer.append((t, m))
    replies = []
    if to_answer:
        replies = assistant.reply([m for _, m in to_answer], seeds(to_answer, "assistant"))
    for (t, m), text in zip(to_answer, replies, strict=True):
        if not text.strip():
            ended[t.id] = "empty reply"
            continue
        meta = text.meta if isinstance(text, Utterance) else {}
        turn = sum(x["role"] == "user" for x in m)
        goodbye = turn > 1 and is_closing(m[-1]["content"])
        m.append(_message("assistant", text, meta))
        if goodbye and meta.get("kind", "welcome") == "welcome":
            ended[t.id] = "closing"
        elif turn >= max_turns:
            ended[t.id] = "max turns"
    return ended


def _message(role: str, text: str, meta: dict) -> Message:
    return {"role": role, "content": str(text)} | ({"meta": meta} if meta else {})


def _fingerprint(target: Dialogue) -> str:
    """Return 8 hex digits over what a simulator can know of a target."""
    known = [target.profile, [m["content"] for m in target.messages], target.truth]
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_targets(targets: Sequence[Dialogue]) -> None:
    if not targets:
        raise UspError("no target to simulate; give at least one profile or dialogue")
    target_id, count = Counter(t.id for t in targets).most_common(1)[0]
    if count > 1:
        raise UspError(
            f"{count} targets have the id {target_id!r}; give each its own, or run once a replicate"
        )


def _check_room(simulator, targets: Sequence[Dialogue]) -> None:
    if not isinstance(simulator, UserSimulator):
        return
    for t in targets:
        start = simulator.start(t)
        short = -simulator.room(start)
        if short > 0:
            what = "profile" if simulator.with_profile else "first turn"
            words = len((t.profile if simulator.with_profile else t.opening).split())
            raise UspError(
                f"{t.id}: its {what} of {words} words leaves no room for a turn of "
                f"{simulator.sampling.max_new_tokens} tokens in a context of "
                f"{simulator.engine.context} ({short} too many); shorten the {what} or lower "
                "max_new_tokens"
            )


def _read(out: Path, run: str, targets: Sequence[Dialogue]) -> dict[str, Simulated]:
    """Read finished dialogues back; a last line that a crash cut short is taken off the file."""
    if not out.exists():
        return {}
    raw, done = out.read_bytes(), {}
    whole = raw[: raw.rfind(b"\n") + 1]
    cut = raw[len(whole) :]
    if not cut.startswith(b'{"id":'[: len(cut)]):
        raise UspError(f"{out} holds no simulated dialogues; name another file or delete it")
    wanted = {t.id: _fingerprint(t) for t in targets}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            d = Simulated.model_validate_json(line)
        except ValidationError as e:
            raise UspError(
                f"{out} line {number} is no simulated dialogue ({line[:40]!r}); name another file "
                "or delete it"
            ) from e
        if d.run != run or wanted.get(d.id, d.target) != d.target:
            raise UspError(
                f"{out} line {number} was made with other settings, weights or targets (run "
                f"{d.run}, now {run}); name another file or delete it"
            )
        done[d.id] = d
    if cut:
        with out.open("r+b") as f:
            f.truncate(len(whole))
    return done


def _append(out: Path, dialogues: Sequence[Simulated]) -> None:
    lines = (json.dumps(d.model_dump(), ensure_ascii=False) + "\n" for d in dialogues)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as f:
            f.write("".join(lines).encode())
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UspError(
                f"no disk space left for {out}; free some and run again, it goes on from there"
            ) from e
        raise
