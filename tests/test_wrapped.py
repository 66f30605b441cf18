"""Assistants made slow, rude, evasive or wrong: the rates, what is said of it, and who notices."""

import threading
import time

import pytest

from usp_lab.assistants import FAILURES, scripted
from usp_lab.chat import Utterance, system_message
from usp_lab.data import load_dialogues
from usp_lab.errors import UspError
from usp_lab.roleplay import texts
from usp_lab.simulate import simulate
from usp_lab.simulators import TwinSimulator, identity
from usp_lab.wrapped import KINDS, Wrapped

RATES = {"slow": 0.3, "rude": 0.2, "evasive": 0.15, "wrong": 0.1}
ASK = [{"role": "user", "content": "which area is good"}]


class Echo:
    """Answers with what it is told; counts calls that are under way."""

    name = "echo"

    def __init__(self, meta=None):
        self.meta, self.seen, self.inside, self.most = meta, [], 0, 0

    def reply(self, batch, seeds):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.seen += batch
        time.sleep(0.002)
        self.inside -= 1
        texts = [f"You said {m[-1]['content']}" for m in batch]
        return [Utterance(t, self.meta) for t in texts] if self.meta is not None else texts

    def __repr__(self):
        return "Echo()"


def test_rates_are_kept():
    n = 6000
    replies = Wrapped(Echo(), **RATES, delay=0).reply([ASK] * n, range(n))
    done = [r.meta.get("done") for r in replies]
    assert {d for d in done if d} == {"rude", "evasive", "wrong", "late"}
    late = sum("delay" in r.meta for r in replies)
    counts = {k: done.count(k) for k in KINDS} | {"slow": late}
    for kind, rate in RATES.items():
        tolerance = 4 * (rate * (1 - rate) / n) ** 0.5
        assert abs(counts[kind] / n - rate) < tolerance, kind
    for r in replies:
        if r.meta.get("done") in KINDS:
            assert (
                r in texts()["wrapped"][r.meta["done"]] and r.meta["kind"] == KINDS[r.meta["done"]]
            )
        else:
            assert r == "You said which area is good" and "kind" not in r.meta


def test_slow_and_the_rest_are_independent():
    n = 6000
    replies = Wrapped(Echo(), slow=0.5, rude=0.5, delay=0).reply([ASK] * n, range(n))
    both = sum(r.meta.get("done") == "rude" and "delay" in r.meta for r in replies)
    assert abs(both / n - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_certain_and_never(kind):
    always = Wrapped(Echo(), **{kind: 1.0}).reply([ASK] * 50, range(50))
    assert {r.meta["done"] for r in always} == {kind} and len(set(always)) > 5
    never = Wrapped(Echo({"met": ["a"]})).reply([ASK] * 50, range(50))
    assert {r.meta.get("done") for r in never} == {None} and never[0].meta["met"] == ["a"]


def test_seed_decides_alone():
    def spoilt(seeds, **options):
        return [
            r.meta.get("done")
            for r in Wrapped(Echo(), rude=0.5, **options).reply([ASK] * len(seeds), seeds)
        ]

    whole = spoilt(range(40))
    assert whole == spoilt(range(40)) == [spoilt([s])[0] for s in range(40)]
    assert whole != spoilt(range(40), seed=1) and whole != spoilt(range(40, 80))


def test_population_user_notices():
    targets = load_dialogues("population", n=200).test

    def replies(assistant):
        dialogues = simulate(TwinSimulator(), assistant, targets, progress=False)
        return dialogues, [m for d in dialogues for m in d.messages if m["role"] == "assistant"]

    good, _ = replies(scripted("good"))
    spoilt, said = replies(Wrapped(scripted("good"), rude=0.4, evasive=0.3, wrong=0.2))
    failed = [m["meta"] for m in said if m["meta"].get("done")]
    assert {m["kind"] for m in failed} <= {*FAILURES, "welcome"}
    assert all(m["met"] == [] and "slots" not in m for m in failed)

    def met(dialogues):
        return sum(len(m.get("meta", {}).get("met", [])) for d in dialogues for m in d.messages)

    assert met(spoilt) < 0.6 * met(good)


def test_rude_goodbye_still_ends():
    bye = [
        *ASK,
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "thanks, bye"},
    ]
    for inner in (Echo(), Echo({"kind": "welcome"})):
        (reply,) = Wrapped(inner, rude=1).reply([bye], [0])
        assert reply.meta["done"] == "rude" and reply.meta["kind"] == "welcome"


def test_assistant_sees_no_profile():
    inner = Echo()
    Wrapped(inner).reply([[system_message("You live alone."), *ASK]], [0])
    assert inner.seen == [ASK]


def test_slow_waits_and_holds_up_nobody_else(monkeypatch):
    slept = []
    monkeypatch.setattr("usp_lab.wrapped.time.sleep", slept.append)
    slow = Wrapped(Echo(), slow=1.0, delay=3.0)
    assert slow.remote and slow.concurrency > 1
    (reply,) = slow.reply([ASK], [0])
    assert slept == [0.002, 3.0] and reply.meta == {"delay": 3.0, "done": "late"}
    assert not Wrapped(Echo(), rude=1.0).remote and not Wrapped(Echo(), slow=1.0, delay=0).remote


def test_what_computes_in_process_is_asked_one_by_one():
    inner = Echo()
    slow = Wrapped(inner, slow=0.5, delay=0.001)
    threads = [threading.Thread(target=slow.reply, args=([ASK], [s])) for s in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(inner.seen) == 12 and inner.most == 1


def test_slow_in_the_loop_changes_no_text():
    targets = load_dialogues("population", n=200).test[:6]

    def texts_of(assistant):
        dialogues = simulate(TwinSimulator(), assistant, targets, progress=False, max_turns=3)
        return [[m["content"] for m in d.messages] for d in dialogues]

    slow = Wrapped(scripted("fair"), slow=0.5, delay=0.001)
    assert texts_of(slow) == texts_of(scripted("fair"))


def test_identity_and_name():
    made = [
        Wrapped(scripted("good"), rude=0.2),
        Wrapped(scripted("fair"), rude=0.2),
        Wrapped(scripted("good"), rude=0.3),
        Wrapped(scripted("good"), evasive=0.2),
        Wrapped(scripted("good"), rude=0.2, seed=1),
    ]
    assert len({identity(w) for w in made}) == 5
    assert identity(made[0]) == identity(Wrapped(scripted("good"), rude=0.2))
    assert made[0].name == "good (rude 0.2)" and Wrapped(Echo()).name == "echo (as it is)"


def test_passes_on_what_the_assistant_has():
    class Remote(Echo):
        remote, concurrency, usage = True, 5, "usage"

        def check(self):
            raise UspError("down")

        def room(self, messages):
            return 7 - len(messages)

    wrapped = Wrapped(Remote(), rude=0.5)
    assert (wrapped.remote, wrapped.concurrency, wrapped.usage) == (True, 5, "usage")
    assert wrapped.room([system_message("x"), *ASK]) == 6 and Wrapped(Echo()).room(ASK) > 1e9
    with pytest.raises(UspError, match="down"):
        wrapped.check()
    assert Wrapped(Echo()).check() is None


@pytest.mark.parametrize(
    "rates, message",
    [
        ({"rude": 1.2}, "rude must be a rate between 0 and 1, not 1.2"),
        ({"slow": -0.1}, "slow must be a rate between 0 and 1, not -0.1"),
        ({"rude": 0.6, "wrong": 0.6}, "must be at most 1, not 1.2"),
        ({"delay": -1}, "delay must be 0 seconds or more, not -1"),
    ],
)
def test_rates_that_cannot_be(rates, message):
    with pytest.raises(UspError, match=message):
        Wrapped(Echo(), **rates)


def test_no_empty_reply_is_exchanged():
    class Silent(Echo):
        def reply(self, batch, seeds):
            return [" "] * len(batch)

    assert Wrapped(Silent(), rude=1).reply([ASK], [0]) == [" "]
