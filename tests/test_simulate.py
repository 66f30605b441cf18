"""Simulators alone and in the loop: the release's example, stop reasons, resuming, seeds."""

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from usp_lab.assistants import scripted
from usp_lab.chat import (
    END_TOKEN,
    SYSTEM_PROMPT,
    Utterance,
    chat_template,
    system_message,
    with_profile,
)
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.endpoint_requests import _LIMIT
from usp_lab.endpoints import Endpoint, RequestFailed
from usp_lab.engines import Sampling
from usp_lab.errors import UspError
from usp_lab.evaluate import run_free
from usp_lab.look_alikes import look_alike
from usp_lab.models import load_causal_lm, load_tokenizer
from usp_lab.simulate import (
    ModelAssistant,
    Simulated,
    TwinSimulator,
    UserSimulator,
    simulate,
    turn_seed,
)

PROFILE = "You have two daughters.\n\nYou are curt."
SYSTEM = system_message(PROFILE)
ASKED = [{"role": "user", "content": "which area"}, {"role": "assistant", "content": "Baixa."}]


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return look_alike(tmp_path_factory.mktemp("simulate") / "USP")


@pytest.fixture(scope="module")
def sim(release) -> UserSimulator:
    return UserSimulator.from_pretrained(release, max_new_tokens=16)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory) -> ModelAssistant:
    folder = look_alike(tmp_path_factory.mktemp("assistant"), seed=1)
    (folder / "chat_template.jinja").write_text(chat_template("assistant"))
    return ModelAssistant.from_pretrained(folder, max_new_tokens=12)


@pytest.fixture(scope="module")
def ragged(release) -> UserSimulator:
    """A simulator whose turns end by chance: many soon, some at once, few at the limit."""
    simulator = UserSimulator.from_pretrained(release, max_new_tokens=16)
    simulator.engine.stop_ids |= set(range(20, 80))
    return simulator


# --- the simulator --------------------------------------------------------------------------------


def test_example_of_the_release(release):
    simulator = UserSimulator.from_pretrained(release)
    assert simulator.sampling == Sampling(repetition_penalty=1.2)  # from the generation config
    assert simulator.name == "USP"
    opening, turn = simulator.generate([[SYSTEM], [SYSTEM, *ASKED]], seeds=[1, 2])
    assert opening and turn and opening != turn
    assert "<|" not in opening + turn


def test_prompt_is_the_published_one(sim):
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert sim.tokenizer.decode(sim.prompt([SYSTEM, *ASKED])) == (
        "<|begin_of_text|>"
        + header.format("system")
        + SYSTEM_PROMPT.format(profile=PROFILE).strip()
        + "<|eot_id|>"
        + header.format("user")
        + "which area<|eot_id|>"
        + header.format("assistant")
        + "Baixa.<|eot_id|>"
        + header.format("user")
    )


def test_no_double_bos(sim):
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(sim.tokenizer.name_or_path)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # as Llama-3's does
    ids = UserSimulator(sim.model, tokenizer, Sampling(), "x").prompt([SYSTEM])
    assert ids == sim.prompt([SYSTEM]) and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("of_config", [None, 4, [1, 4]])
def test_stops_on_eot_and_on_eos(sim, release, of_config):
    model = load_causal_lm(release)
    model.generation_config.eos_token_id = of_config
    stopping = UserSimulator(model, sim.tokenizer, Sampling(), "x").engine.stop_ids
    assert sim.tokenizer.convert_ids_to_tokens(stopping) == ["<|end_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    "pad", ["<|finetune_right_pad_id|>", "<|eot_id|>", "<|end_of_text|>", None]
)
@pytest.mark.parametrize("greedy", [True, False])
def test_turn_does_not_depend_on_its_batch(release, greedy, pad):
    simulator = UserSimulator.from_pretrained(
        release, temperature=0 if greedy else 1, max_new_tokens=20
    )
    simulator.tokenizer.pad_token = pad
    simulator = UserSimulator(simulator.model, simulator.tokenizer, simulator.sampling, "x")
    assert simulator.sampling.repetition_penalty == 1.2
    batch = [[SYSTEM], [SYSTEM, *ASKED], [SYSTEM, *ASKED, *ASKED], ASKED, [system_message("x")]]
    alone = [simulator.generate([m], [s])[0] for s, m in enumerate(batch)]
    assert simulator.generate(batch, range(5)) == alone
    assert simulator.generate(batch[::-1], range(4, -1, -1)) == alone[::-1]
    other = simulator.generate(batch, range(10, 15))
    assert (other == alone) == greedy


def test_damage_and_wrong_input(sim, release, tmp_path):
    with pytest.raises(UspError, match="2 dialogues but 1 seeds"):
        sim.generate([[SYSTEM], [SYSTEM]], [1])
    with pytest.raises(UspError, match="dialogue 0 already ends with a user turn"):
        sim.generate([[SYSTEM, ASKED[0]]])
    for wrong in ([SYSTEM], ["text"], [[{"role": "user"}]], [["text"]]):
        with pytest.raises(UspError, match="give a list of dialogues"):
            sim.generate(wrong)
    with pytest.raises(
        UspError, match="UserSimulator has no option 'temprature'; known: with_prof"
    ):
        UserSimulator.from_pretrained(release, temprature=1)
    with pytest.raises(UspError, match="ModelAssistant has no option 'with_profile'"):
        ModelAssistant.from_pretrained(release, with_profile=True)
    with pytest.raises(UspError, match="does not speak as the assistant"):
        ModelAssistant.from_pretrained(release)
    bare = Path(shutil.copytree(release, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UspError, match="no chat template"):
        UserSimulator.from_pretrained(bare)
    assert sim.generate([]) == []


def test_profile_longer_than_the_context(sim):
    long = "You like walking. " * 400
    with pytest.raises(UspError, match="in a context of 512 .* too many.; shorten the profile"):
        simulate(sim, Assistant(), ["short", long], progress=False)
    with pytest.raises(UspError, match="shorten the profile or dialogue"):
        sim.generate([[system_message(long)]])


def test_end_of_dialogue_token_is_one_text(sim):
    tokenizer = load_tokenizer(sim.tokenizer.name_or_path)
    assert sim.end_id is None
    tokenizer.add_tokens([END_TOKEN], special_tokens=True)
    ending = UserSimulator(sim.model, tokenizer, Sampling(), "x")
    end, eot = ending.end_id, 4
    some = tokenizer("hi", add_special_tokens=False)["input_ids"]
    assert ending.text([end, eot]) == END_TOKEN
    assert ending.text([*some, eot]) == "hi" == ending.text([*some, end, eot])
    assert ending.text([eot]) == "" == sim.text([eot])


# --- the loop -------------------------------------------------------------------------------------


@dataclass
class User:
    """Says what the profile lists, one line a turn, then "next <number of messages> <seed>"."""

    name: str = "user"

    def __post_init__(self):
        self.calls: list[int] = []

    def start(self, target: Dialogue):
        return [system_message(target.profile)]

    def generate(self, batch: Sequence, seeds: Sequence[int]):
        self.calls.append(len(batch))
        out = []
        for messages, seed in zip(batch, seeds, strict=True):
            lines = messages[0]["content"].split("\n")[1][:-1].split("/")
            turn = sum(m["role"] == "user" for m in messages)
            line = lines[turn] if turn < len(lines) else f"next {len(messages)} {seed}"
            out.append(Utterance("", {"left": True}) if line == "LEAVE" else line)
        return out


@dataclass
class Plain:
    """Asks a simulator for whole batches, as any object with ``generate`` is asked."""

    side: UserSimulator

    def start(self, target: Dialogue):
        return self.side.start(target)

    def generate(self, batch: Sequence, seeds: Sequence[int]):
        return self.side.generate(batch, seeds)


@dataclass
class Assistant:
    reply_with: str = "Sure, {}."

    def reply(self, batch, seeds):
        assert all(m[-1]["role"] == "user" for m in batch)
        return [
            Utterance(self.reply_with.format(m[-1]["content"]), {"kind": "welcome"}) for m in batch
        ]


def play(profiles, user=None, assistant=None, **options) -> list[Simulated]:
    options = {"progress": False, "max_turns": 3} | options
    return simulate(user or User(), assistant or Assistant(), profiles, **options)


@pytest.mark.parametrize(
    "profile, stop, turns",
    [
        ("where/when", "max turns", 3),
        (f"where/{END_TOKEN}", "end token", 1),
        ("where/thanks, bye", "closing", 2),
        ("thanks, where is it?/bye", "closing", 2),  # no closing in the first turn
        ("where/ ", "empty turn", 1),
        ("", "empty turn", 0),
        ("where/when/LEAVE", "left", 2),
    ],
)
def test_stop_reasons(profile, stop, turns):
    (d,) = play([profile])
    assert (d.stop, d.n_turns) == (stop, turns)
    assert [m["role"] for m in d.messages] == ["user", "assistant"] * turns
    assert d.profile == profile and d.source == "simulated" and d.id == "profile-0"
    assert d.messages[-1:] == [] or d.messages[-1]["meta"] == {"kind": "welcome"}


def test_empty_reply_ends():
    (d,) = play(["where"], assistant=Assistant(" "))
    assert d.stop == "empty reply" and [m["role"] for m in d.messages] == ["user"]


@dataclass
class Helpful:
    """Goes on answering after a goodbye that still asked for something."""

    def reply(self, batch, seeds):
        return [Utterance("It is at 5.", {"kind": "answer"})] * len(batch)


def test_goodbye_that_is_answered_is_no_closing():
    (d,) = play(["where/thanks, and the time"], assistant=Helpful())
    assert d.stop == "max turns"


def test_full_context_ends(sim, assistant):
    (d,) = play(["short"], sim, Assistant("well " * 120), max_turns=9)
    assert d.stop == "context full" and d.messages[-1]["role"] == "assistant" and d.n_turns < 9
    talkative = User()
    (d,) = play(["well " * 190 + "/more"], talkative, assistant, max_turns=9)
    assert d.stop == "context full" and d.messages[-1]["role"] == "user"


def test_finished_dialogues_are_replaced_and_order_is_kept(tmp_path):
    profiles = ["a/b/c", f"a/{END_TOKEN}", "a/b/c", f"a/b/{END_TOKEN}", "a"]
    user = User()
    dialogues = play(profiles, user, batch_size=2, out=tmp_path / "o.jsonl")
    assert [d.profile for d in dialogues] == profiles
    assert max(user.calls) == 2 and user.calls.count(2) > user.calls.count(1)
    written = [json.loads(line)["id"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert sorted(written) == sorted(d.id for d in dialogues) and written[0] == "profile-1"


def test_without_profiles_it_begins_with_the_true_first_turn(sim):
    plato = UserSimulator(sim.model, sim.tokenizer, sim.sampling, "plato", with_profile=False)
    target = Dialogue(id="d", messages=ASKED, profile=None)
    (d,) = play([target], plato)
    assert d.opening == "which area" and d.messages[1]["content"] == "Sure, which area."
    with pytest.raises(UspError, match="starts from a true first turn"):
        play(["a profile"], plato)
    with pytest.raises(UspError, match="d has no profile"):
        play([target], sim)


def test_seeds_replicates_and_batches(sim, assistant):
    profiles = [f"You like {x}." for x in ("tea", "walking in the hills", "chess", "a", "bc")]

    def texts(**options):
        dialogues = play(profiles, sim, assistant, **options)
        return [[m["content"] for m in d.messages] for d in dialogues]

    first = texts(seed=0)
    assert sum(map(len, first)) > 20
    assert first == texts(seed=0) == texts(seed=0, batch_size=2) == texts(seed=0, batch_size=1)
    assert first != texts(seed=1) != texts(seed=0, replicate=1) != first
    few = play([Dialogue(id="profile-3", messages=[], profile="You like a.")], sim, assistant)
    assert [m["content"] for m in few[0].messages] == first[3]


def count_forward(monkeypatch, engine) -> list[tuple[int, int]]:
    """Return a list that will have each forward pass: tokens but for padding, and columns."""
    passes, forward = [], engine.forward

    def counting(rows, ids, places):
        passes.append((int((places >= 0).sum()), places.shape[1]))
        return forward(rows, ids, places)

    monkeypatch.setattr(engine, "forward", counting)
    return passes


MANY = [f"You like {x} {i}." for i, x in enumerate(["tea", "walking in the hills", "chess"] * 6)]


def said(dialogues: Sequence[Simulated]) -> list[list[str]]:
    return [[m["content"] for m in d.messages] for d in dialogues]


def test_dialogues_go_on_while_others_are_written(ragged, assistant, monkeypatch):
    passes = count_forward(monkeypatch, ragged.engine)
    ragged.engine.forget()
    lockstep = play(MANY, Plain(ragged), assistant)
    before = [rows for rows, columns in passes if columns == 1]
    del passes[:]
    ragged.engine.forget()
    assert said(play(MANY, ragged, assistant)) == said(lockstep)
    after = [rows for rows, columns in passes if columns == 1]
    assert sum(after) == sum(before) and len(after) < 0.9 * len(before)


def test_every_token_is_computed_once(ragged, assistant, monkeypatch):
    """Whoever's place a dialogue takes, with fewer rows than dialogues, and turns cut short."""
    sides = [(ragged, count_forward(monkeypatch, ragged.engine), None)]
    sides += [(assistant, count_forward(monkeypatch, assistant.engine), "")]
    monkeypatch.setattr(ragged.engine, "batch_size", 3)
    for side, _, _ in sides:
        side.engine.forget()
    dialogues = play(MANY, ragged, assistant)
    for side, passes, profile in sides:
        texts = [with_profile(d.messages, None if profile == "" else d.profile) for d in dialogues]
        least = sum(len(side.prompt(m)) for m in texts if m)
        assert sum(n for n, _ in passes) < 1.1 * least


def test_a_subclass_that_speaks_in_its_own_way_is_asked(sim):
    class Loud(UserSimulator):
        def generate(self, batch, seeds=None):
            return [text.upper() for text in super().generate(batch, seeds)]

    loud = Loud(sim.model, sim.tokenizer, sim.sampling, "loud")
    (d,) = play(["You like tea."], loud, max_turns=1)
    (plain,) = play(["You like tea."], sim, max_turns=1)
    assert d.opening == plain.opening.upper() != plain.opening


def test_ctrl_c_while_turns_are_written(ragged, assistant, tmp_path, monkeypatch):
    whole, out = play(MANY, ragged, assistant, batch_size=4), tmp_path / "o.jsonl"
    forward, calls = ragged.engine.forward, iter(range(10**6))

    def interrupted(*args):
        if next(calls) == 60:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(ragged.engine, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt, match="of 18 dialogues are in .*o.jsonl; run the same"):
        play(MANY, ragged, assistant, batch_size=4, out=out)
    kept = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert 0 < len(kept) < 18
    assert said(play(MANY, ragged, assistant, batch_size=4, out=out)) == said(whole)


def test_every_turn_has_its_own_seed():
    seeds = {
        turn_seed(s, r, t, n)
        for s in range(4)
        for r in range(4)
        for t in ("a", "b", "1/a", "a/user")
        for n in range(4)
    }
    assert len(seeds) == 256


def test_resumes_after_a_cut_off_line(tmp_path):
    profiles, out, user = [f"a/{i}" for i in range(7)], tmp_path / "deep" / "o.jsonl", User()
    whole = play(profiles, out=out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    again = play(profiles, user, out=out)
    assert again == whole and user.calls == [4, 4, 4]
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(lines)
    play(profiles, user, out=out)
    assert user.calls == [4, 4, 4]
    assert len(play([*profiles, "new"], user, out=out)) == 8  # more targets: the old ones are kept


def test_out_of_other_settings_is_refused(tmp_path, sim, assistant):
    out = tmp_path / "o.jsonl"
    play(["a/b"], out=out)
    before = out.read_bytes()
    for change in (
        {"seed": 1},
        {"replicate": 1},
        {"max_turns": 4},
        {"assistant": Helpful()},
        {"assistant": Assistant("Yes {}")},
        {"user": User("another")},
        {"profiles": ["other"]},
    ):
        with pytest.raises(UspError, match="o.jsonl line 1 was made with other settings") as error:
            play(**{"profiles": ["a/b"], "out": out} | change)
        assert "\n" not in str(error.value)
    assert out.read_bytes() == before
    out.write_text("no json\n")
    with pytest.raises(UspError, match="line 1 is no simulated dialogue"):
        play(["a/b"], out=out)
    out.write_text("another file's only line")
    with pytest.raises(UspError, match="holds no simulated dialogues"):
        play(["a/b"], out=out)
    assert out.read_text() == "another file's only line"


def test_out_of_another_training_is_refused(tmp_path, release, sim, assistant):
    out = tmp_path / "o.jsonl"
    play(["a profile"], sim, assistant, out=out)
    play(
        ["a profile"], UserSimulator.from_pretrained(release, max_new_tokens=16), assistant, out=out
    )
    same_name = UserSimulator.from_pretrained(
        look_alike(tmp_path / "USP", seed=5), max_new_tokens=16
    )
    hotter = UserSimulator(sim.model, sim.tokenizer, Sampling(temperature=2), "USP")
    trained = ModelAssistant(same_name.model, assistant.tokenizer, assistant.sampling, "a")
    for user, partner in ((same_name, assistant), (hotter, assistant), (sim, trained)):
        with pytest.raises(UspError, match="other settings, weights or targets"):
            play(["a profile"], user, partner, out=out)


def test_wrong_targets():
    with pytest.raises(UspError, match="no target to simulate"):
        play([])
    twice = [Dialogue(id="d", messages=ASKED, profile=p) for p in "ab"]
    with pytest.raises(UspError, match="2 targets have the id 'd'"):
        play(twice)
    for option in ("max_turns", "batch_size"):
        with pytest.raises(UspError, match=f"{option} must be at least 1, not 0"):
            play(["a"], **{option: 0})


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UspError, match="no disk space left for"):
        play(["a"], out=tmp_path / "o.jsonl")


def test_bar_on_request_alone(capsys, monkeypatch):
    play(["a"])
    assert capsys.readouterr() == ("", "")
    play(["a"], progress=True)
    assert capsys.readouterr() == ("", "")  # it was over in no time
    monkeypatch.setattr("usp_lab.loop._DELAY", 0)
    play(["a"], progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "0/1" in shown.err and "dialogues/s" in shown.err


def test_twin_with_a_scripted_assistant():
    targets = load_dialogues("population", n=30).all[:12]
    runs = [
        simulate(TwinSimulator(), scripted("bad"), targets, seed=s, batch_size=b, progress=False)
        for s, b in ((0, 64), (0, 5), (1, 64))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert {d.stop for d in runs[0]} <= {"left", "closing", "max turns"}
    assert [d.user_id for d in runs[0]] == [t.user_id for t in targets]
    assert all(Simulated.model_validate_json(d.model_dump_json()) == d for d in runs[0])


def test_each_target_with_its_own_assistant_in_one_run_is_as_in_many(tmp_path):
    targets = load_dialogues("population", n=30).all[:6]
    assistants = {t.id: scripted(("good", "bad", "fair")[i % 3]) for i, t in enumerate(targets)}
    together = run_free(TwinSimulator(), "twin", targets, assistants, tmp_path, 6, seed=2)
    apart = [
        simulate(TwinSimulator(), assistants[t.id], [t], max_turns=6, seed=2, progress=False)[0]
        for t in targets
    ]
    assert [d.messages for d in together] == [d.messages for d in apart]
    assert run_free(TwinSimulator(), "twin", targets, assistants, tmp_path, 6, seed=2) == together
    swapped = dict(zip(assistants, [*assistants.values()][1:] + [scripted("good")], strict=True))
    with pytest.raises(UspError, match="other"):
        run_free(TwinSimulator(), "twin", targets, swapped, tmp_path, 6, seed=2)


# --- remote sides ---------------------------------------------------------------------------------


class Remote:
    """Makes a side remote: called from threads with one dialogue each; notes how many at once."""

    remote = True

    def __init__(self, side, concurrency: int = 3, slow=None) -> None:
        self.side, self.concurrency, self.slow = side, concurrency, slow
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.start = getattr(side, "start", None)

    def __repr__(self) -> str:
        return repr(self.side)

    def _call(self, speak, batch, seeds):
        assert len(batch) == 1
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        if self.slow:
            self.slow(batch[0])
        time.sleep(0.002)
        with self.lock:
            self.now -= 1
        return speak(batch, seeds)

    def generate(self, batch, seeds):
        return self._call(self.side.generate, batch, seeds)

    def reply(self, batch, seeds):
        return self._call(self.side.reply, batch, seeds)


def test_remote_sides_say_the_same(sim, assistant):
    profiles = ["where/when", f"where/{END_TOKEN}", "where/thanks, bye", "where/ ", "", "a/LEAVE"]
    assert play(profiles) == play(profiles, Remote(User()), Remote(Assistant()), batch_size=4)
    here = play(profiles, sim, assistant)
    for user, partner in ((sim, Remote(assistant)), (Remote(sim, 1), assistant)):
        there = play(profiles, user, partner)
        assert [d.messages for d in there] == [d.messages for d in here]


@pytest.mark.parametrize("batch_size, most", [(64, 3), (2, 2)])
def test_concurrency_is_bounded(batch_size, most):
    user = Remote(User())
    play([f"a/{i}" for i in range(12)], user, Remote(Assistant(), 5), batch_size=batch_size)
    assert user.most == most


def test_a_dialogue_that_waits_holds_up_no_other(tmp_path):
    out, others = tmp_path / "o.jsonl", [f"a/{i}" for i in range(6)]

    def slow(messages):
        deadline = time.monotonic() + 60
        while messages[-1]["content"] == "slow" and time.monotonic() < deadline:
            if out.exists() and len(out.read_bytes().splitlines()) == len(others):
                break  # all others have ended meanwhile
            time.sleep(0.005)

    dialogues = play(["slow", *others], assistant=Remote(Assistant(), slow=slow), out=out)
    assert [d.stop for d in dialogues] == ["max turns"] * 7
    assert json.loads(out.read_bytes().splitlines()[-1])["profile"] == "slow"


@pytest.mark.parametrize("batch_size", [64, 3])
def test_a_model_goes_on_while_a_remote_side_waits(ragged, tmp_path, batch_size):
    out, others = tmp_path / "o.jsonl", MANY[1:8]

    def slow(messages):
        deadline = time.monotonic() + 60
        while messages[1]["content"] == opening and time.monotonic() < deadline:
            if out.exists() and len(out.read_bytes().splitlines()) == len(others):
                break  # all others have ended meanwhile
            time.sleep(0.005)

    here = play([MANY[0], *others], ragged, Assistant())
    opening = here[0].opening
    remote = Remote(Assistant(), slow=slow)
    there = play([MANY[0], *others], ragged, remote, out=out, batch_size=batch_size)
    assert said(there) == said(here)
    assert json.loads(out.read_bytes().splitlines()[-1])["profile"] == MANY[0]


def test_a_remote_side_that_fails_ends_its_dialogue_alone(ragged):
    class Failing(Remote):
        def reply(self, batch, seeds):
            if batch[0][1]["content"] == broken and len(batch[0]) == 4:
                raise RequestFailed("no answer")
            return super().reply(batch, seeds)

    here = play(MANY[:6], ragged, Assistant())
    broken = here[2].opening
    there = play(MANY[:6], ragged, Failing(Assistant()))
    assert [d.stop for d in there].count("failed") == 1 and there[2].error == "no answer"
    assert said(there[:2] + there[3:]) == said(here[:2] + here[3:])
    assert there[2].messages == here[2].messages[:3]


def test_endpoint_s_time_for_a_dialogue_is_kept():
    class Timed(Remote):
        endpoint = Endpoint("http://localhost/v1", "m", dialogue_timeout=100)

        def _call(self, speak, batch, seeds):
            limits.append(_LIMIT.get())
            return super()._call(speak, batch, seeds)

    limits: list[float] = []
    play(["a"], Timed(User()), Timed(Assistant()))
    assert len(limits) == 6  # three turns of each side
    for own in (limits[::2], limits[1::2]):  # what is left of 100 s to each
        assert 100 == own[0] > own[1] > own[2] > 90


def test_sides_are_checked_before_anything_is_spent(tmp_path):
    class Checked(User):
        def check(self):
            checks.append(True)
            if self.calls is None:
                raise UspError("the endpoint serves another model")

    checks, user = [], Checked()
    play(["a"], user, out=tmp_path / "o.jsonl")
    assert len(checks) == 1 and user.calls
    play(["a"], user, out=tmp_path / "o.jsonl")
    assert len(checks) == 1  # nothing to do
    user.calls = None
    with pytest.raises(UspError, match="serves another model"):
        play(["a", "b"], user, out=tmp_path / "o.jsonl")
