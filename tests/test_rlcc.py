"""Reinforcement: what earns what, which tokens learn, and that interruptions and processes change nothing."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from usp_lab import rlcc_looks, rlcc_trainer
from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.errors import UspError
from usp_lab.guards import broken, summary
from usp_lab.look_alikes import look_alike
from usp_lab.models import load_causal_lm, load_tokenizer
from usp_lab.profile_generator import Written
from usp_lab.reward import CycleReward, Terms, half_cosines
from usp_lab.rlcc import train_rlcc
from usp_lab.rlcc_settings import RlccSettings
from usp_lab.rlcc_targets import dealt, order
from usp_lab.rollouts import Policy, roll_out
from usp_lab.simulate import UserSimulator
from usp_lab.store import FAILED

ROOT = Path(__file__).resolve().parents[1]
TINY = RlccSettings(
    steps=4, profiles=2, generations=4, evals=2, lr=3e-3, beta=0.01, max_turns=3, max_new_tokens=8, max_length=400, bf16=False
)  # fmt: skip
LONG = "You are going to Porto.\n\nYou write long messages."
SHORT = "You are going to Porto.\n\nYou write short messages."


def dialogues(n: int, name: str = "t") -> list[Dialogue]:
    messages = [
        {"role": "user", "content": "where to?"},
        {"role": "assistant", "content": "Porto."},
    ]
    return [Dialogue(id=f"{name}{i}", messages=messages, profile=(LONG, SHORT)[i % 2], user_id=f"{name}{i}") for i in range(n)]  # fmt: skip


TARGETS, VALIDATION = dialogues(6), dialogues(4, "v")


class Echo:
    """An assistant that says as many words as it has heard."""

    def reply(self, batch, seeds):
        return [f"You said {len(m[-1]['content'].split())} words." for m in batch]


class Reader:
    """A profile generator that reads length alone: a user of long turns is a talkative one."""

    def write(self, dialogues):
        return [Written(LONG if np.mean([len(t) for t in d.user_turns]) > 12 else SHORT) for d in dialogues]  # fmt: skip

    def __repr__(self):
        return "Reader()"


class Detector:
    """Calls every turn with an "e" human, and cannot tell of turns below three characters."""

    def probabilities(self, turns):
        return np.array([math.nan if len(t) < 3 else 0.9 if "e" in t else 0.2 for t in turns])

    def __repr__(self):
        return "Detector()"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return look_alike(tmp_path_factory.mktemp("base"))


def reward() -> CycleReward:
    return CycleReward(Reader(), Detector())


def run(base: Path, out: Path, **changes):
    return train_rlcc(TARGETS, VALIDATION, Echo(), reward(), out, replace(TINY, base=str(base), **changes), "f00d")  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_causal_lm(path).state_dict()


def same(a: Path, b: Path) -> bool:
    a, b = weights(a), weights(b)
    return all(torch.equal(a[k], b[k]) for k in a)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("rlcc") / "whole", stop_rule=False)


# --- the reward ----------------------------------------------------------------------------------


def test_reward_of_what_leads_back_and_of_what_does_not():
    cosines = half_cosines([LONG, LONG, LONG, "You are in Rome."], [LONG, SHORT, "Porto.", LONG])
    assert cosines[0] == pytest.approx(1) and cosines[1, 0] == pytest.approx(1)
    assert cosines[1, 1] < 0.99 and cosines[2, 1] == 0  # a half that was not reflected
    assert np.isnan(cosines[3, 1])  # one that the target has not is no fault
    assert Terms(0.5, 1.0).r_cc == 1.5 and Terms(0.5, math.nan).r_cc == 1.0


def test_long_halves_are_compared_to_their_end():
    start = "You are going to Porto and like quiet streets. " * 40
    ends = [start + "You keep forty bees.", start + "You fear cold water and deep lakes."]
    same_end, other_end = half_cosines([ends[0]] * 2, ends)[:, 0]
    assert same_end == pytest.approx(1) and other_end < 0.9999


def test_weights_and_turns_of_a_reward():
    one = Terms(1.0, 0.5, (0.9, math.nan, 0.1))
    assert one.r_cc == 1.5 and one.r_ai == pytest.approx(1.0)
    assert one.total(0.8) == pytest.approx(0.8 * 1.5 + 0.2)
    assert one.per_turn(0.8) == pytest.approx([1.2 + 0.36, 1.4, 1.2 + 0.04])
    assert one.total(1.0) == 1.5 and Terms(1.0, 0.5, (math.nan,)).total(0.3) == 1.5
    assert math.isnan(Terms(math.nan, math.nan, (0.9,), error="none").total(0.8))


def test_the_same_turns_are_read_once():
    read = []

    class Counting(Reader):
        def write(self, dialogues):
            read.extend(dialogues)
            return super().write(dialogues)

    a, b = dialogues(2)
    b = b.model_copy(update={"messages": [{"role": "user", "content": "no"}]})
    terms = CycleReward(Counting()).score([LONG, LONG, SHORT, SHORT], [a, b, a, b])
    assert read == [a, b]
    alone = [CycleReward(Reader()).score([p], [d])[0] for p, d in ((LONG, a), (LONG, b), (SHORT, a), (SHORT, b))]  # fmt: skip
    assert [t.reflected for t in terms] == [t.reflected for t in alone]
    assert [t.r_cc for t in terms] == pytest.approx([t.r_cc for t in alone])


def test_scores_of_what_could_not_be_told():
    some = reward()
    said = dialogues(1)[0].model_copy(update={"messages": [{"role": "user", "content": "ok"}]})
    silent = said.model_copy(update={"messages": []})
    told, nothing = some.score([SHORT, SHORT], [said, silent])
    assert told.r_cc == pytest.approx(2) and told.reflected == SHORT and math.isnan(told.r_ai)
    assert nothing.error == "the user said nothing" and math.isnan(nothing.total(0.8))
    assert told.total(0.8) == told.r_cc and told.total(0.8, 1.0) == pytest.approx(0.8 * 2 + 0.2)
    assert some.score([], []) == []
    with pytest.raises(UspError, match="1 profiles for 2 dialogues"):
        some.score([SHORT], [said, silent])


# --- rollouts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(base) -> Policy:
    return Policy(load_causal_lm(base), load_tokenizer(base), Sampling(max_new_tokens=8), "policy")


def test_rollouts_are_what_a_simulator_says_and_only_drawn_tokens_learn(policy):
    rollouts = roll_out(policy, Echo(), TARGETS[:3] + TARGETS[:1], range(4), 3, 400, 0)
    assert not any(r.error or r.tried_again or r.cut for r in rollouts)
    assert rollouts[0].dialogue.user_turns != rollouts[3].dialogue.user_turns  # another draw
    eot = policy.tokenizer.get_vocab()["<|eot_id|>"]
    for r, t in zip(rollouts, TARGETS[:3], strict=False):
        assert r.prompt == policy.prompt(policy.start(t))
        assert len(r.ids) == len(r.mask) == len(r.turn)
        for k, m in enumerate(m for m in r.dialogue.messages if m["role"] == "user"):
            own = [i for i, turn in zip(r.ids, r.turn, strict=True) if turn == k]
            learned = [
                i for i, on, turn in zip(r.ids, r.mask, r.turn, strict=True) if on and turn == k
            ]
            assert learned == m["meta"]["ids"] and own in (learned, [*learned, eot])
        others = [i for i, turn in zip(r.ids, r.turn, strict=True) if turn < 0]
        heard = "".join(m["content"] for m in r.dialogue.messages[:-1] if m["role"] == "assistant")
        told = policy.tokenizer.decode(others, skip_special_tokens=True)
        assert heard.replace(" ", "") == re.sub(r"assistant|user|\s", "", told)
        assert not any(on for on, turn in zip(r.mask, r.turn, strict=True) if turn < 0)
    assert all(0 <= r.retokenised <= r.dialogue.n_turns for r in rollouts)


def test_long_rollouts_are_cut_at_a_whole_turn(policy):
    (whole,) = roll_out(policy, Echo(), TARGETS[:1], [7], 3, 10**6, 0)
    limit = len(whole.prompt) + len(whole.ids) - 1
    (cut,) = roll_out(policy, Echo(), TARGETS[:1], [7], 3, limit, 0)
    assert (
        cut.cut
        and not whole.cut
        and cut.ids == whole.ids[: len(cut.ids)]
        and len(cut.ids) < len(whole.ids)
    )
    assert cut.turn[-1] == max(cut.turn)  # ends with a turn's end


def test_failed_dialogues_are_tried_again_and_counted(policy, monkeypatch):
    from usp_lab import rollouts as module

    plain, calls = module.simulate, []

    def flaky(simulator, assistant, targets, replicate, **kwargs):
        calls.append([t.id for t in targets])
        out = plain(simulator, assistant, targets, replicate=replicate, **kwargs)
        broken = {0: ("t0/0", "t1/1"), 1: ("t1/1",), 2: ("t1/1",)}[replicate]
        return [d.model_copy(update={"stop": FAILED, "error": "no answer"}) if d.id in broken else d for d in out]  # fmt: skip

    monkeypatch.setattr(module, "simulate", flaky)
    first, second, third = roll_out(policy, Echo(), TARGETS[:3], range(3), 2, 400, 0)
    assert calls == [["t0/0", "t1/1", "t2/2"], ["t0/0", "t1/1"], ["t1/1"]]
    assert [r.tried_again for r in (first, second, third)] == [1, 2, 0]
    assert first.dialogue and third.dialogue and second.dialogue is None
    assert second.error == "no answer" and not any(second.mask) and second.ids


# --- guards --------------------------------------------------------------------------------------


def test_guards_see_reciting_sameness_and_forgetting():
    start = {"reward": 1.4, "profile_copy": 0.1, "first_turn_diversity": 0.9, "words_per_turn": 8.0, "ppl": 2.5, "turns": 4.0}  # fmt: skip
    assert broken(start, start) == []
    worse = {"reward": 1.25, "profile_copy": 0.13, "first_turn_diversity": 0.8, "words_per_turn": 12.0, "ppl": 2.7, "turns": 9.0}  # fmt: skip
    for name, value in worse.items():
        assert [b.split()[0] for b in broken(start | {name: value}, start)] == [name]
    assert broken(start | {"human": math.nan}, start | {"human": 0.9}) == []
    assert broken(start | {"reward": math.nan}, start) == ["reward: none, of all dialogues"]
    row = {"failed": False, "reward": 1.0, "r_cc": 1.0, "r_ai": math.nan, "profile_copy": 0.1, "human": math.nan}  # fmt: skip
    rows = [row | {"words": 6, "turns": 3, "nll": 2.0, "tokens": 2, "opening": o} for o in ("a b", "c d")]  # fmt: skip
    assert summary(rows)["words_per_turn"] == 2 and summary(rows)["ppl"] == pytest.approx(math.e)
    assert summary(rows)["first_turn_diversity"] == 1 and math.isnan(summary(rows)["human"])
    none = row | {"failed": True, "reward": math.nan, "words": 0, "turns": 0, "nll": 2.0, "tokens": 2, "opening": ""}  # fmt: skip
    with_failed, without = summary([*rows, none, none]), summary(rows)
    assert with_failed["failed"] == 2 and without["failed"] == 0
    same = ("reward", "turns", "words_per_turn", "first_turn_diversity", "ppl")
    assert [with_failed[k] for k in same] == pytest.approx([without[k] for k in same])


def test_which_weights_are_kept_and_when_it_ends():
    looks = [{"step": s, "reward": r, "broken": b} for s, r, b in ((0, 1.0, []), (4, 0.99, []), (8, 1.5, ["ppl"]), (12, 1.4, ["ppl"]))]  # fmt: skip
    assert rlcc_looks.kept(looks) == 4 and rlcc_looks.kept(looks[:1]) == 0
    assert rlcc_looks.stopped(looks[:3]) == "" and rlcc_looks.stopped(looks) == "ppl"


# --- training ------------------------------------------------------------------------------------


def test_every_dialogue_and_look_is_on_record(whole):
    rows, looks = lines(whole.path / "rollouts.jsonl"), lines(whole.path / "guards.jsonl")
    assert [r["step"] for r in rows] == [s for s in range(4) for _ in range(8)]
    assert len({r["number"] for r in rows}) == 32 and whole.counts["rollouts"] == 32
    groups = [rows[i : i + 4] for i in range(0, 32, 4)]
    assert all(len({r["target"] for r in g}) == 1 for g in groups)  # compared with its own
    assert all(r["turns"] or r["error"] for r in rows)
    usual = {s: np.nanmean([r["r_ai"] for r in rows if r["step"] == s]) for s in range(4)}
    for r in (r for r in rows if not r["error"]):
        human = [p for p in r["human"] if not math.isnan(p)]
        r_ai = 2 * np.mean(human) if human else usual[r["step"]]  # to be told of is no gain
        assert r["r_cc"] == pytest.approx(r["objective"] + r["subjective"])
        assert r["reward"] == pytest.approx(0.8 * r["r_cc"] + 0.2 * r_ai)
    assert [h["step"] for h in looks] == [0, 2, 4] and looks[0]["n"] == len(VALIDATION)
    assert looks[0]["ppl"] > 1 and whole.kept == 4
    card = (whole.path / "README.md").read_text()
    assert "f00d" in card and "| lam | 0.8 |" in card and "rollouts: 32" in card
    assert UserSimulator.from_pretrained(whole.path, max_new_tokens=4).generate([TARGETS[0].messages], [0])  # fmt: skip
    assert not (whole.path / "checkpoints").exists()


def test_another_setting_in_the_same_folder_begins_anew(base, tmp_path):
    run(base, tmp_path, steps=1, evals=1)
    log = tmp_path / "guards.jsonl"
    log.write_text(json.dumps(lines(log)[0] | {"ppl": 1e-9}) + "\n")  # nothing would be in bounds
    result = run(base, tmp_path, steps=2, evals=1)
    looks = lines(log)
    assert [h["step"] for h in looks] == [0, 2] and looks[0]["ppl"] > 1
    assert result.counts["rollouts"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"max_length": 10**6}, "max_length=1000000"), ({"max_new_tokens": 10**6}, "t0: its profile of")],
)  # fmt: skip
def test_what_is_refused_leaves_a_finished_run_as_it_was(base, whole, changes, message):
    before = {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()}
    with pytest.raises(UspError, match=message):
        run(base, whole.path, **changes)
    assert {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()} == before


class Deaf(Reader):
    """Reads nothing while it is called for the so-manieth time."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def write(self, dialogues):
        self.calls += 1
        if self.calls in self.at:
            return [Written(error="no answer") for _ in dialogues]
        return super().write(dialogues)


def test_a_step_without_any_reward_is_counted_and_passed_over(base, tmp_path):
    s = replace(TINY, base=str(base), steps=3, evals=1, stop_rule=False)
    # looks are calls 1 and 5, the steps between them 2, 3, 4
    result = train_rlcc(TARGETS, VALIDATION, Echo(), CycleReward(Deaf({3})), tmp_path / "m", s)
    rows = lines(result.path / "rollouts.jsonl")
    assert {r["step"] for r in rows if math.isnan(r["reward"])} == {1}
    assert result.counts["without reward"] == 8 and "without reward: 8" in (result.path / "README.md").read_text()  # fmt: skip


def test_three_steps_without_any_reward_end_it_with_the_reason(base, tmp_path):
    s = replace(TINY, base=str(base), steps=4, evals=1, stop_rule=False)
    with pytest.raises(UspError, match="last 3 steps earned a reward .the first: no answer"):
        train_rlcc(TARGETS, VALIDATION, Echo(), CycleReward(Deaf(range(2, 9))), tmp_path / "m", s)
    assert not (tmp_path / "m" / "training.json").exists()


def test_what_the_guards_ended_stays_ended_when_killed_before_it_is_saved(
    base, tmp_path, monkeypatch
):
    from usp_lab import rlcc, rlcc_looks

    monkeypatch.setattr(rlcc_looks, "broken", lambda now, start: ["ppl"] if now["step"] else [])
    plain = rlcc._save

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rlcc, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "m", steps=6, evals=6)
    monkeypatch.setattr(rlcc, "_save", plain)
    result = run(base, tmp_path / "m", steps=6, evals=6)
    assert result.stopped == "ppl" and result.kept == 0 and result.resumed_from == 2
    assert result.counts["rollouts"] == 16  # of two steps, none more


def test_checkpoints_never_part_steps_on_the_same_dialogues(base, tmp_path, monkeypatch):
    from usp_lab import rlcc

    asked = []
    plain = rlcc.arguments
    monkeypatch.setattr(rlcc, "arguments", lambda s, f, every: asked.append(every) or plain(s, f, every))  # fmt: skip
    run(base, tmp_path / "m", steps=6, iterations=2, evals=2, stop_rule=False)
    assert asked == [4]


def test_more_processes_than_validation_users_have_nothing_to_look_at(policy):
    from usp_lab.guards import Guards

    guards = Guards(VALIDATION[:1], Echo(), reward(), 0.8, 2, 0)
    assert guards.look(policy, slice(1, None, 2)) == [] and len(guards.look(policy, slice(0, None, 2))) == 1  # fmt: skip


def test_it_learns_what_is_rewarded(base, tmp_path):
    everyone_long = [t.model_copy(update={"profile": LONG}) for t in TARGETS]
    s = replace(
        TINY, base=str(base), steps=30, profiles=4, evals=1, lam=1.0, lr=1e-2, stop_rule=False
    )
    result = train_rlcc(everyone_long, VALIDATION, Echo(), CycleReward(Shouts()), tmp_path / "m", s)
    rows = lines(result.path / "rollouts.jsonl")
    first, last = (np.nanmean([r["r_cc"] for r in rows if a <= r["step"] < b]) for a, b in ((0, 4), (26, 30)))  # fmt: skip
    assert last > first + 0.1


class Shouts(Reader):
    """Reads a talkative user where most turns hold an "a"."""

    def write(self, dialogues):
        return [Written(LONG if np.mean(["a" in t.lower() for t in d.user_turns]) > 0.5 else "Rain.\n\nSnow.") for d in dialogues]  # fmt: skip


def test_a_reward_without_differences_changes_nothing_but_by_the_kl_term(base, tmp_path):
    flat = CycleReward(SimpleNamespace(write=lambda ds: [Written(LONG) for _ in ds]))
    s = replace(TINY, base=str(base), steps=2, evals=1, beta=0.0, lam=1.0, stop_rule=False)
    result = train_rlcc(TARGETS[::2], VALIDATION, Echo(), flat, tmp_path / "m", s)
    assert same(result.path, base)


@pytest.mark.parametrize("scale", ["batch", "group", "none"])
def test_advantages_are_per_turn_or_per_dialogue(base, tmp_path, monkeypatch, scale):
    seen = {}
    plain = rlcc_trainer.CycleTrainer._generate_and_score_completions

    def spy(self, inputs):
        out = plain(self, inputs)
        seen.setdefault(self.rlcc.per_turn, (out, self._turns, self._usual))
        return out

    monkeypatch.setattr(rlcc_trainer.CycleTrainer, "_generate_and_score_completions", spy)
    for per_turn in (True, False):
        run(base, tmp_path / str(per_turn), steps=1, evals=1, per_turn=per_turn, scale_rewards=scale)  # fmt: skip
    (each, (rollouts, terms), usual), (whole, *_) = seen[True], seen[False]
    assert (
        whole["advantages"].shape == (8,)
        and each["advantages"].shape == each["completion_ids"].shape
    )
    total = np.array([t.total(0.8, usual) for t in terms]).reshape(2, 4)
    assert not np.isnan(total).all() and np.nanstd(total) > 0
    spread = {
        "batch": np.full((2, 1), np.nanstd(total, ddof=1)) + 1e-4,
        "group": np.nanstd(total, axis=1, ddof=1, keepdims=True) + 1e-4,
        "none": np.ones((2, 1)),
    }[scale]
    expected = np.nan_to_num((total - np.nanmean(total, axis=1, keepdims=True)) / spread).ravel()
    assert whole["advantages"].tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    for i, (r, t) in enumerate(zip(rollouts, terms, strict=True)):
        own = np.nan_to_num((t.per_turn(0.8, usual) - t.total(0.8, usual)) / spread[i // 4])
        for token, turn in enumerate(r.turn):
            more = own[turn] if turn >= 0 else 0.0
            assert each["advantages"][i, token].item() == pytest.approx(
                expected[i] + more, abs=1e-3
            )


def test_killed_and_started_again_ends_as_if_nothing_had_happened(base, whole, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import os, signal
from pathlib import Path
import torch; torch.set_num_threads(1)
import test_rlcc as t
from usp_lab import rlcc_trainer
plain = rlcc_trainer.CycleTrainer._roll_out
def roll_out(self, prompts):
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, prompts)
rlcc_trainer.CycleTrainer._roll_out = roll_out
t.run(Path({str(base)!r}), Path({str(tmp_path / "m")!r}), stop_rule=False)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    assert not (tmp_path / "m" / "training.json").exists()
    result = run(base, tmp_path / "m", stop_rule=False)
    assert result.resumed_from == 2 and same(result.path, whole.path)
    assert result.counts == whole.counts  # of the steps before the kill, too
    for name in ("rollouts.jsonl", "guards.jsonl"):
        for a, b in zip(*(lines(p / name) for p in (result.path, whole.path)), strict=True):
            assert a == {k: pytest.approx(v, abs=1e-9, nan_ok=True) if isinstance(v, float) else v for k, v in b.items()} or "human" in a  # fmt: skip
            assert a["reward"] == pytest.approx(b["reward"], abs=1e-9, nan_ok=True)
    began = time.monotonic()
    assert run(base, tmp_path / "m", stop_rule=False) == result  # a finished run is returned
    assert time.monotonic() - began < 60


SHARDED = """
import sys; sys.path.insert(0, sys.argv[1])
import json
from pathlib import Path
import torch; torch.set_num_threads(1)
import torch.distributed as dist
import test_rlcc as t
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as group
from usp_lab.sharding import whole_weights
dist.init_process_group("gloo")
rank, base, out = dist.get_rank(), *map(Path, sys.argv[2:])
plain, model = t.load_causal_lm(base), t.load_causal_lm(base)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
sharded = lambda: [hasattr(p, "full_tensor") for p in model.parameters()]
assert all(sharded())
share = t.TARGETS[:1] if rank else t.TARGETS[1:]  # one dialogue here, five there
said, gathered, gather = [], [], group.foreach_all_gather
with whole_weights(model), torch.no_grad():
    assert not any(sharded())
    group.foreach_all_gather = lambda *a, **k: gathered.append(1) or gather(*a, **k)
    for m in (plain, model):
        policy = t.Policy(m, t.load_tokenizer(base), t.Sampling(max_new_tokens=8), "policy")
        said.append([r.ids for r in t.roll_out(policy, t.Echo(), share, range(len(share)), 3, 400, 0)])
    group.foreach_all_gather = gather
assert not gathered and said[0] == said[1] and all(sharded())
ids = torch.tensor([[1, 2, 3, 4]])
loss = model(input_ids=ids, labels=ids).loss
loss.backward()
assert torch.allclose(loss, plain(input_ids=ids, labels=ids).loss)
(out / f"{rank}.json").write_text(json.dumps(len(share)))
dist.destroy_process_group()
"""


def test_a_model_in_shards_speaks_as_a_whole_one_and_waits_for_nobody(base, tmp_path):
    (tmp_path / "two.py").write_text(SHARDED)
    words = [str(tmp_path / "two.py"), str(ROOT / "tests"), str(base), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]  # fmt: skip
    child = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert child.returncode == 0, child.stderr.decode()[-3000:]
    assert [json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1)] == [5, 1]


def test_two_processes_share_the_work_and_ragged_dialogues_neither_hang_nor_drop(base, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
import torch; torch.set_num_threads(1)
import test_rlcc as t
t.rlcc_trainer.CPU_ROWS = 2  # several forward passes to one backward
t.run(Path({str(base)!r}), Path({str(tmp_path)!r}) / "m", stop_rule=False)
"""
    (tmp_path / "two.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "two.py")]  # fmt: skip
    child = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert child.returncode == 0, child.stderr.decode()[-3000:]
    rows = lines(tmp_path / "m" / "rollouts.jsonl")
    assert len(rows) == 32 and len({r["number"] for r in rows}) == 32
    assert len({r["turns"] for r in rows}) > 1  # ragged
    counts = json.loads((tmp_path / "m" / "training.json").read_text())["counts"]
    assert counts["rollouts"] == 32 and counts["turns"] == sum(r["turns"] for r in rows)
    assert [h["n"] for h in lines(tmp_path / "m" / "guards.jsonl")] == [len(VALIDATION)] * 3


def test_log_probabilities_do_not_depend_on_padding_or_company(base):
    model, keep = load_causal_lm(base), 30
    g = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(10, 90, (21, 50), generator=g), torch.zeros(21, 50, dtype=torch.long)
    for row in mask:
        start, end = torch.randint(0, 20, (2,), generator=g).tolist()
        row[start : 21 + end] = 1
    own = SimpleNamespace(temperature=0.7, accelerator=SimpleNamespace(autocast=nullcontext))
    found, spread, _ = rlcc_trainer.CycleTrainer._get_per_token_logps_and_entropies(own, model, ids, mask, keep, compute_entropy=True)  # fmt: skip
    for i, (row, used) in enumerate(zip(ids, mask.bool(), strict=True)):
        logits = model(input_ids=row[None, used]).logits[0, :-1] / 0.7
        alone = logits.log_softmax(-1).gather(-1, row[used][1:, None])[:, 0]
        drawn = used[-keep:]
        assert torch.allclose(found[i][drawn], alone[-int(drawn.sum()) :], atol=1e-4)
    assert found.requires_grad and torch.equal(spread, -found.detach())


def test_order_plays_every_target_equally_often():
    assert Counter(order(5, 20, 0)) == {i: 4 for i in range(5)} and order(5, 20, 0) != order(
        5, 20, 1
    )


def test_processes_get_as_much_to_do():
    sizes = np.random.default_rng(0).integers(200, 900, 64)

    def uneven(step: list[int], world: int) -> int:
        return np.ptp(sizes[np.array(step).reshape(world, -1)].sum(1))

    for n, world in ((16, 2), (16, 4), (12, 2), (8, 2)):
        steps = [order(64, n, seed) for seed in range(20)]
        shared = [dealt(step, sizes.tolist()) for step in steps]
        assert list(map(sorted, shared)) == list(map(sorted, steps))
        fair, plain = (sum(uneven(step, world) for step in some) for some in (shared, steps))
        assert fair < 0.4 * plain
    assert dealt([4, 2, 3], sizes.tolist()) == [4, 2, 3]  # halves would share a group


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lam": 1.2}, "lam=1.2; give a weight of 0 to 1"),
        ({"generations": 1}, "generations=1; .* give at least 2"),
        ({"lr": 0.0}, "lr=0.0; give more than 0"),
        ({"beta": -1.0}, "beta=-1.0; give 0 or more"),
        ({"steps": 0}, "steps=0; give at least 1"),
        ({"scale_rewards": "all"}, "scale_rewards='all'; give batch, group or none"),
        ({"micro_batch": 3}, "= 8 dialogues cannot be shared by 1 process.* multiple of 3"),
        ({"max_length": 4096}, "max_length=4096 but .* has a context of 512; lower it"),
    ],
)
def test_bad_settings(base, tmp_path, change, message):
    with pytest.raises(UspError, match=message):
        run(base, tmp_path / "m", **change)
    assert not (tmp_path / "m" / "training.json").exists()


def test_bad_input(base, tmp_path):
    s, bare = replace(TINY, base=str(base)), [t.model_copy(update={"profile": None}) for t in TARGETS]  # fmt: skip
    with pytest.raises(UspError, match="no target; give at least one"):
        train_rlcc([], VALIDATION, Echo(), reward(), tmp_path / "m", s)
    with pytest.raises(UspError, match="target t0 has no profile; build profiles first"):
        train_rlcc(bare, VALIDATION, Echo(), reward(), tmp_path / "m", s)
    with pytest.raises(UspError, match="base and out are both"):
        train_rlcc(TARGETS, VALIDATION, Echo(), reward(), base, s)
    assert not (tmp_path / "m").exists()


def test_command_line_says_what_it_takes_and_what_is_wrong(tmp_path):
    def call(*args):
        command = [sys.executable, "-m", "usp_lab.rlcc", *args]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip

    shown = call("--help").stdout
    assert "--lam" in shown and "default: 0.8" in shown and "--generator" in shown
    wrong = call("--out", str(tmp_path / "m"), "--lam", "2")
    assert wrong.returncode == 2 and wrong.stderr.strip().splitlines()[-1] == "error: lam=2.0; give a weight of 0 to 1"  # fmt: skip
