"""The loop in which a simulated user and an assistant talk.

    sim = UserSimulator.from_pretrained("runs/usp")
    dialogues = simulate(sim, scripted("good"), targets, max_turns=10, seed=0, out="d.jsonl")

It goes on from what is in ``out``. `simulators` says what a simulator and an assistant must have. A
side may have more:

- ``remote = True`` and ``concurrency``: its calls wait for something else than this process, so it
  is called from that many threads with one dialogue each, and nobody waits for the slowest; when it
  raises `endpoints.RequestFailed`, that dialogue alone has failed;
- ``endpoint``: its `endpoints.Endpoint`, for the time that one dialogue may take and for prices;
- ``check()``, called before anything is spent, raises `UspError` when the side cannot work;
- ``room(messages)``: tokens left in its context after the longest possible turn;
- ``by_target = True``: a side in this process that is also given the targets, one a dialogue (`simulators.EachItsOwn`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.loop import Loop, fingerprint
from usp_lab.sides import Settings, turn_seed
from usp_lab.simulators import ModelAssistant, TwinSimulator, UserSimulator, identity
from usp_lab.store import Simulated, Store

__all__ = [
    "ModelAssistant",
    "Simulated",
    "TwinSimulator",
    "UserSimulator",
    "already_done",
    "as_targets",
    "simulate",
    "turn_seed",
]


def simulate(
    simulator,
    assistant,
    targets: Sequence[Dialogue | str],
    *,
    max_turns: int = 10,
    seed: int = 0,
    replicate: int = 0,
    replicates: int = 1,
    out: str | Path | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Simulated]:
    """Let a simulator talk to an assistant once for each target and replicate.

    Args:
        simulator: `UserSimulator`, `TwinSimulator`, or anything with their ``start`` and
            ``generate``.
        assistant: `assistants.scripted(...)`, `ModelAssistant`, or anything with ``reply``.
        targets: profiles, or dialogues to reconstruct (their profile, and for a profile-free
            simulator their first turn, is used).
        max_turns: user turns at the most.
        seed, replicate: two runs that differ in either give different dialogues; the same give the
            same, whatever the batch size.
        replicates: how many dialogues a target, numbered from ``replicate``.
        out: a .jsonl file; dialogues are appended as they end, and a run that was cut off goes on
            from what is there. What failed is tried again. At the end a .parquet file is written
            beside it (where pyarrow is installed).
        batch_size: dialogues under way at once; a finished one is replaced by a waiting one. Not
            more than a model in this process keeps (`LocalEngine`, 64).
        progress: show a bar.

    Returns:
        Dialogues in the order of targets, replicate by replicate. ``stop`` is one of "end token",
        "closing", "left", "max turns", "empty turn", "empty reply", "context full", "failed".

    Raises:
        UspError: no target, two of one id, a target without profile, a profile longer than the
            context, an ``out`` file of other settings, weights or targets, or that another run
            writes to, a side whose ``check`` finds that it cannot work.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.
    """
    for name, value in (("batch_size", batch_size), ("replicates", replicates)):
        if value < 1:
            raise UspError(f"{name} must be at least 1, not {value}")
    targets, numbers = as_targets(targets), range(replicate, replicate + replicates)
    keys = [(r, t) for r in numbers for t in targets]
    settings = Settings(identity(simulator), identity(assistant), max_turns, seed)
    store = _store(settings, targets, numbers, out)

    def waiting() -> list[tuple[int, Dialogue]]:
        done = store.done
        return [(r, t) for r, t in keys if (r, t.id) not in done]

    if todo := waiting():
        check_room(simulator, {t.id: t for _, t in todo}.values())
        for side in (simulator, assistant):
            if check := getattr(side, "check", None):
                check()
        with store:
            loop = Loop(simulator, assistant, settings, store, batch_size)
            loop.run(waiting(), len(keys), progress)
    in_order = [(r, t.id) for r, t in keys]
    if store.table and (todo or not store.table.exists()):
        store.write_table(in_order)
    return [store.dialogues[k] for k in in_order]


def already_done(
    simulator,
    assistant,
    targets: Sequence[Dialogue | str],
    *,
    max_turns: int = 10,
    seed: int = 0,
    replicate: int = 0,
    replicates: int = 1,
    out: str | Path,
) -> list[Simulated]:
    """Return the dialogues that `simulate`, called alike, would not make again.

    Raises:
        UspError: as `simulate`, but for what costs something to find out.
    """
    targets, numbers = as_targets(targets), range(replicate, replicate + replicates)
    settings = Settings(identity(simulator), identity(assistant), max_turns, seed)
    done = _store(settings, targets, numbers, out).done
    return [done[r, t.id] for r in numbers for t in targets if (r, t.id) in done]


def as_targets(targets: Sequence[Dialogue | str]) -> list[Dialogue]:
    """Return profiles as dialogues without a turn, and dialogues as they are.

    Raises:
        UspError: none, or two of one id.
    """
    dialogues = [
        t if isinstance(t, Dialogue) else Dialogue(id=f"profile-{i}", messages=[], profile=t)
        for i, t in enumerate(targets)
    ]
    if not dialogues:
        raise UspError("no target to simulate; give at least one profile or dialogue")
    target_id, count = Counter(t.id for t in dialogues).most_common(1)[0]
    if count > 1:
        raise UspError(
            f"{count} targets have the id {target_id!r}; give each its own, or run once a replicate"
        )
    return dialogues


def _store(
    settings: Settings, targets: Sequence[Dialogue], replicates: range, out: str | Path | None
) -> Store:
    return Store(out, settings.run, replicates, {t.id: fingerprint(t) for t in targets})


def check_room(simulator, targets: Iterable[Dialogue]) -> None:
    """Find out whether what a simulator is told of each target leaves room for a turn.

    Raises:
        UspError: it does not, of a target.
    """
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
