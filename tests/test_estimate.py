"""What is expected beforehand: by hand, against what a run then takes, and with nothing to go by."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from usp_lab.chat import Utterance, system_message
from usp_lab.data import Dialogue
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.estimate import _taken, _total, estimate
from usp_lab.look_alikes import look_alike
from usp_lab.simulate import UserSimulator, simulate

PRICE = SimpleNamespace(price_in=1.0, price_out=10.0)


@dataclass
class User:
    """Speaks turns of a drawn length and leaves by chance; counts what it is asked."""

    endpoint = PRICE
    sampling = Sampling(max_new_tokens=100)

    def __post_init__(self):
        self.calls = self.sent = self.written = 0

    def start(self, target):
        return [system_message(target.profile)]

    def generate(self, batch, seeds):
        out = []
        for messages, seed in zip(batch, seeds, strict=True):
            rng = np.random.default_rng(seed)
            leaves = len(messages) > 1 and rng.random() < 0.3
            text = Utterance("", {"left": True}) if leaves else "word " * int(rng.integers(1, 60))
            out.append(text)
            self.count(messages, text)
        return out

    def count(self, messages, text):
        self.calls += 1
        self.sent += 5 + sum(math.ceil(len(m["content"]) / 4) + 5 for m in messages)
        self.written += 1 + math.ceil(len(text) / 4)


class Assistant(User):
    endpoint = None
    sampling = Sampling(max_new_tokens=300)

    def reply(self, batch, seeds):
        out = []
        for messages, seed in zip(batch, seeds, strict=True):
            turns = [m for m in messages if m["role"] != "system"]
            text = "reply " * int(np.random.default_rng(seed).integers(5, 150))
            out.append(text)
            self.count(turns, text)
        return out


def run(n: int, seed: int = 0, **options):
    user, assistant = User(), Assistant()
    profiles = [f"Profile {i}." * (1 + i % 3) for i in range(n)]
    dialogues = simulate(user, assistant, profiles, max_turns=6, seed=seed, progress=False)
    return user, assistant, profiles, dialogues


def values(table, column: str = "value") -> dict:
    return {(r["side"], r["quantity"]): r[column] for r in table.to_dict("records")}


def taken(user, assistant) -> dict:
    found = {}
    for name, side in (("simulator", user), ("assistant", assistant)):
        found[name, "calls"], found[name, "tokens_in"] = side.calls, side.sent
        found[name, "tokens_out"] = side.written
    found["both", "dollars"] = (user.sent + 10 * user.written) / 1e6
    return found


def test_what_a_dialogue_takes_by_hand():
    turns = [("user", "a" * 8), ("assistant", "b" * 40), ("user", "c" * 4), ("assistant", "d" * 12)]
    messages = [{"role": r, "content": c} for r, c in turns]
    d = Dialogue(id="d", messages=messages, profile="p")
    sides = {"simulator": User(), "assistant": Assistant()}
    out = _taken(sides, d, d)
    head = 5 + math.ceil(len(system_message("p")["content"]) / 4) + 5
    assert out["simulator", "calls"] == out["assistant", "calls"] == 2
    assert out["simulator", "tokens_in"] == head + (head + 2 + 5 + 10 + 5)
    assert out["simulator", "tokens_out"] == (2 + 1) + (1 + 1)
    assert out["assistant", "tokens_in"] == (5 + 7) + (5 + 7 + 15 + 6)
    assert out["assistant", "tokens_out"] == (10 + 1) + (3 + 1)
    dollars = (out["simulator", "tokens_in"] + 10 * out["simulator", "tokens_out"]) / 1e6
    assert out["both", "dollars"] == out["simulator", "dollars"] == pytest.approx(dollars)
    assert out["assistant", "dollars"] == 0


def test_what_dialogues_took_is_what_was_asked():
    user, assistant, _, dialogues = run(30)
    sides, sums = {"simulator": User(), "assistant": Assistant()}, {}
    for d in dialogues:
        for k, v in _taken(sides, d, d).items():
            sums[k] = sums.get(k, 0) + v
    for key, n in taken(user, assistant).items():
        assert sums[key] == pytest.approx(n, rel=1e-9), key
    assert {d.stop for d in dialogues} == {"left", "max turns"}


def test_interval_from_dialogues_done_holds_what_the_rest_takes():
    user, assistant, profiles, dialogues = run(120)
    inside = []
    for seed in range(6):
        first = run(120, seed)[3][:40]
        table = estimate(User(), Assistant(), profiles, 6, first)
        assert set(table["basis"]) == {"dialogues done"} and set(table["n"]) == {40}
        low, high = values(table, "low"), values(table, "high")
        whole, before = taken(*run(120, seed)[:2]), taken(*run(40, seed)[:2])
        rest = {k: whole[k] - before[k] for k in whole}
        inside += [low[k] <= v <= high[k] for k, v in rest.items()]
    assert np.mean(inside) > 0.8  # 95 % of independent ones; these share dialogues


def test_interval_covers_sums_yet_to_come():
    rng, hits = np.random.default_rng(0), []
    for i in range(300):
        low, high = _total(rng.gamma(2, size=30), 50, i)[1:]
        hits.append(low <= rng.gamma(2, size=50).sum() <= high)
    assert 0.9 < np.mean(hits) <= 0.99


def test_the_targets_own_turns_serve_before_any_is_done():
    _, _, _, real = run(40)
    table = estimate(User(), Assistant(), real, 6, replicates=3)
    assert set(table["basis"]) == {"the targets' own turns"} and set(table["n"]) == {40}
    turns = sum(d.n_turns for d in real)
    value, low, high = (values(table, c) for c in ("value", "low", "high"))
    assert value["assistant", "calls"] == pytest.approx(3 * turns)
    assert all(low[k] < value[k] < high[k] for k in value if value[k])
    shorter = values(estimate(User(), Assistant(), real, 2, replicates=3))
    cut = sum(min(d.n_turns, 2) for d in real)
    assert shorter["assistant", "calls"] == pytest.approx(3 * cut)
    few = estimate(User(), Assistant(), real, 6, real[:5])  # fewer than ten done: as before
    assert set(few["basis"]) == {"the targets' own turns"}
    assert values(few)["assistant", "calls"] == pytest.approx(turns * 35 / 40)


def test_bounds_where_nothing_is_known():
    user, assistant, profiles, dialogues = run(50)
    table = estimate(User(), Assistant(), profiles, 6)
    assert table["value"].isna().all() and set(table["basis"].str[:21]) == {"bounds: at most 6 tur"}
    low, high = values(table, "low"), values(table, "high")
    assert low["simulator", "calls"] == 50 and high["assistant", "calls"] == 300
    assert high["simulator", "tokens_out"] == 300 * 100
    for key, n in taken(user, assistant).items():
        assert low[key] <= n <= high[key]
    done = values(estimate(User(), Assistant(), profiles, 6, dialogues))
    assert set(done.values()) == {0.0}  # all is done


def test_a_side_s_own_tokenizer_counts(tmp_path):
    sim = UserSimulator.from_pretrained(look_alike(tmp_path / "USP"))
    _, assistant, profiles, dialogues = run(20)
    target = dialogues[0]
    out = _taken({"simulator": sim, "assistant": assistant}, target, target)
    prompts = [
        len(sim.prompt([system_message(target.profile), *target.messages[:k]]))
        for k, m in enumerate(target.messages)
        if m["role"] == "user"
    ]
    extra = len(sim.prompt([system_message(target.profile), *target.messages]))
    prompts += [extra] if target.stop == "left" else []
    assert out["simulator", "calls"] == len(prompts)
    assert out["simulator", "tokens_in"] == pytest.approx(sum(prompts), rel=0.02)


def test_no_target():
    with pytest.raises(UspError, match="no target to simulate"):
        estimate(User(), Assistant(), [], 6)
