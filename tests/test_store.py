"""Dialogues on disk: killed, failed, interrupted and resumed, none is lost and none is there twice."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tqdm.auto import tqdm

from usp_lab.chat import Utterance, system_message
from usp_lab.data import load_dialogues
from usp_lab.endpoints import RequestFailed
from usp_lab.errors import UspError
from usp_lab.simulate import Simulated, already_done, simulate
from usp_lab.store import Store

FORK = multiprocessing.get_context("fork")  # a child begins at once, with everything imported


@dataclass
class User:
    """Says a number drawn from its seed and leaves by chance; ``pause`` in seconds a call."""

    pause: float = field(default=0.0, repr=False)
    remote: bool = False
    name: str = "user"
    concurrency: int = 4
    spoke: list = field(default_factory=list, repr=False)
    first: Callable = field(default=lambda: None, repr=False)  # what it does before it speaks

    def start(self, target):
        return [system_message(target.profile)]

    def generate(self, batch, seeds):
        time.sleep(self.pause)
        self.first()
        self.spoke += [m[0]["content"] for m in batch]
        return [
            Utterance("", {"left": True}) if s % 7 == 0 and len(m) > 1 else f"it is {s} ☕"
            for m, s in zip(batch, seeds, strict=True)
        ]


@dataclass
class Assistant:
    """Says what it heard."""

    def reply(self, batch, seeds):
        return [Utterance(f"{m[-1]['content']} {s}", {"kind": "answer"}) for m, s in zip(batch, seeds, strict=True)]  # fmt: skip


def play(out: Path | None, n: int = 12, user=None, assistant=None, **options) -> list[Simulated]:
    options = {"progress": False, "max_turns": 3} | options
    profiles = [f"Profile {i}." for i in range(n)]
    return simulate(user or User(), assistant or Assistant(), profiles, out=out, **options)


def play_in_child(*args, **options) -> None:
    tqdm.set_lock(
        threading.RLock()
    )  # its own, shared by forks, would stay taken when one is killed
    play(*args, **options)


def lines(out: Path) -> list[bytes]:
    return sorted(out.read_bytes().splitlines())


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
def test_killed_at_20_moments_nothing_is_lost_or_done_twice(tmp_path, remote):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "d.jsonl"
    expected = play(whole, 200, User(remote=remote))
    size, rng, killed = whole.stat().st_size, random.Random(0), 0
    for share in sorted(rng.uniform(0, 0.8) for _ in range(20)):
        child = FORK.Process(
            target=play_in_child, args=(out, 200, User(0.004, remote)), kwargs={"batch_size": 4}
        )
        child.start()
        while child.is_alive() and not (out.exists() and out.stat().st_size > share * size):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed == 20
    before = len(out.read_bytes().splitlines())
    user = User(remote=remote)
    again = play(out, 200, user, batch_size=4)
    assert again == expected and lines(out) == lines(whole)
    assert before < 200 and len(set(user.spoke)) <= 200 - before + 1  # one line may be torn
    assert max(Counter(json.loads(x)["id"] for x in lines(out)).values()) == 1
    tables = [pq.read_table(p.with_suffix(".parquet")) for p in (whole, out)]
    assert tables[0].equals(tables[1])


def test_interrupted_it_keeps_what_has_ended_and_says_how_to_go_on(tmp_path):
    def stopping() -> User:
        def stop():
            if len(user.spoke) > 20:
                raise KeyboardInterrupt

        user = User(first=stop)
        return user

    out = tmp_path / "d.jsonl"
    with pytest.raises(KeyboardInterrupt, match=r"stopped; (\d+) of 12 dialogues are in .*d.jsonl; run") as stop:  # fmt: skip
        play(out, user=stopping(), batch_size=3)
    kept = len(out.read_text().splitlines())
    assert 0 < kept < 12 and f"{kept} of 12" in str(stop.value)
    with pytest.raises(KeyboardInterrupt, match="lost, for want of out="):
        play(None, user=stopping(), batch_size=3)
    assert play(out) == play(None)


def test_interrupted_it_waits_for_no_answer(tmp_path):
    def hang(ready):
        user = User(remote=True, first=lambda: ready.set() or time.sleep(600))
        try:
            play_in_child(tmp_path / "d.jsonl", user=user)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    ready = FORK.Event()
    child = FORK.Process(target=hang, args=(ready,))
    child.start()
    assert ready.wait(60)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)  # of the 600 s that the call takes
    alive = child.is_alive()
    child.kill()
    assert not alive and child.exitcode == 130


# --- failed ---------------------------------------------------------------------------------------


@dataclass
class Flaky(Assistant):
    """Fails for good in some dialogues while it is ``down``."""

    down: bool = field(default=True, repr=False)
    remote = True
    concurrency = 3

    def reply(self, batch, seeds):
        assert len(batch) == 1
        if self.down and seeds[0] % 4 == 0:
            raise RequestFailed("the endpoint answered 500 six times")
        return super().reply(batch, seeds)


def test_failed_dialogues_are_told_from_others_and_tried_again(tmp_path):
    out, assistant = tmp_path / "d.jsonl", Flaky()
    first = play(out, 40, assistant=assistant)
    failed = [d for d in first if d.stop == "failed"]
    assert 5 < len(failed) < 35 and len(lines(out)) == 40
    assert {d.error for d in failed} == {"the endpoint answered 500 six times"}
    assert all(d.messages[-1]["role"] == "user" for d in failed)  # what was said before is kept
    assert {d.error for d in first if d.stop != "failed"} == {""}
    profiles = [f"Profile {i}." for i in range(40)]
    done = already_done(User(), assistant, profiles, max_turns=3, out=out)
    assert [d.id for d in done] == [d.id for d in first if d.stop != "failed"]
    user, assistant.down = User(), False
    again = play(out, 40, user, assistant)
    assert {d.profile for d in failed} == {text.split("\n")[1][:-1] for text in user.spoke}
    assert [a for a, b in zip(again, first, strict=True) if b.stop != "failed"] == done
    assert again == play(None, 40, assistant=assistant) and len(lines(out)) == 40
    assert {d.stop for d in again} == {"left", "max turns"}
    assert pq.read_table(out.with_suffix(".parquet")).num_rows == 40


def test_failed_dialogues_of_other_targets_stay(tmp_path):
    out = tmp_path / "d.jsonl"
    failed = {d.id for d in play(out, 40, assistant=Flaky()) if d.stop == "failed"}
    play(out, 10, assistant=Flaky(down=False))
    kept = {json.loads(x)["id"] for x in lines(out) if json.loads(x)["stop"] == "failed"}
    assert kept == failed - {f"profile-{i}" for i in range(10)} and len(lines(out)) == 40


def test_another_error_ends_the_run_and_keeps_what_has_ended(tmp_path):
    out, user = tmp_path / "d.jsonl", User(remote=True)

    def break_down():
        if len(user.spoke) > 60:
            raise UspError("the endpoint refuses the key; set OPENAI_API_KEY")

    user.first = break_down
    with pytest.raises(UspError, match="refuses the key"):
        play(out, 40, user, Flaky(down=False), batch_size=4)
    assert 0 < len(lines(out)) < 40
    count = threading.active_count()
    play(out, 40, User(remote=True), Flaky(down=False))
    deadline = time.monotonic() + 60
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)  # until the threads have taken note
    assert threading.active_count() <= count


# --- replicates, tables, other runs ---------------------------------------------------------------


def test_replicates_differ_and_share_a_file(tmp_path):
    out = tmp_path / "d.jsonl"
    three = play(out, replicates=3)
    assert [d.replicate for d in three] == [0] * 12 + [1] * 12 + [2] * 12
    texts = [[m["content"] for m in d.messages] for d in three]
    assert all(texts[i] != texts[i + 12] != texts[i + 24] != texts[i] for i in range(12))
    assert three[12:24] == play(None, replicate=1) and three == play(None, replicates=3)
    user = User()
    assert play(out, user=user) == three[:12] and not user.spoke  # later ones may be there
    assert play(out, user=user, replicates=4)[:36] == three and len(lines(out)) == 48
    with pytest.raises(UspError, match="line 1 was made with other settings"):
        play(out, replicate=1)
    with pytest.raises(UspError, match="replicates must be at least 1, not 0"):
        play(out, replicates=0)


def test_two_seeds_differ_and_one_repeats():
    assert play(None, seed=1) == play(None, seed=1) != play(None, seed=2)


def test_parquet_holds_the_same_dialogues(tmp_path):
    out = tmp_path / "d.jsonl"
    dialogues = play(out, 12)
    rows = pq.read_table(out.with_suffix(".parquet")).to_pylist()
    assert [r["id"] for r in rows] == [d.id for d in dialogues]
    for row, d in zip(rows, dialogues, strict=True):
        messages = [
            {k: v for k, v in m.items() if v is not None} | ({"meta": json.loads(m["meta"])} if m["meta"] else {})
            for m in row["messages"]
        ]  # fmt: skip
        fields = row | {"messages": messages, "truth": json.loads(row["truth"] or "{}")}
        assert Simulated(**fields) == d
    table = out.with_suffix(".parquet")
    written = table.stat().st_mtime_ns
    play(out, 12)
    assert table.stat().st_mtime_ns == written  # nothing is new
    table.unlink()
    play(out, 12)
    assert table.exists()
    assert len(load_dialogues(table)) == 12 == len(load_dialogues(out))  # both are data


def test_one_file_takes_one_run_at_a_time(tmp_path):
    out, refused = tmp_path / "d.jsonl", []

    def second_run():
        if out.exists() and not refused:
            with pytest.raises(UspError, match="another run is writing to .*d.jsonl; wait"):
                play(out)
            refused.append(True)

    assert play(out, user=User(first=second_run), batch_size=3) == play(None) and refused
    assert len(lines(out)) == 12
    out.unlink()
    with pytest.raises(UspError, match="another run is writing to"):
        play(out, user=User(first=lambda: out.exists() or play(out)))
    assert len(lines(out)) == 12


def test_out_must_be_lines(tmp_path):
    for name in ("d.parquet", "d"):
        with pytest.raises(UspError, match="is no .jsonl file; name one that ends in .jsonl"):
            play(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_torn_failed_line_costs_nothing_else(tmp_path):
    out = tmp_path / "d.jsonl"
    first = play(out, 40, assistant=Flaky())
    raw = out.read_bytes()
    out.write_bytes(raw[:-30])
    again = play(out, 40, assistant=Flaky(down=False))
    assert [d for d in again if d in first] == [d for d in first if d.stop != "failed"]
    assert again == play(None, 40, assistant=Flaky(down=False)) and len(lines(out)) == 40
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["d.jsonl", "d.parquet"]


def test_nothing_is_kept_without_a_file():
    with Store(None, lambda r: "x", range(1), {}) as store:
        d = Simulated(id="a", messages=[], stop="left", run="x", target="t")
        store.add([d])
        assert store.done == {(0, "a"): d} and store.table is None
        store.write_table([(0, "a")])
