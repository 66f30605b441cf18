"""`usp-lab simulate`: what it prints, writes, refuses, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from usp_lab import cli
from usp_lab.endpoints import EndpointAssistant, EndpointSimulator, RequestFailed
from usp_lab.look_alikes import look_alike
from usp_lab.simulators import TwinSimulator

TWIN = ["simulate", "--simulator", "twin", "--assistant", "scripted:poor"]
POPULATION = [*TWIN, "--targets", "population"]


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, re.sub(r"[^\n]*\r", "", err).strip()  # less the bar


def refused(capsys, *args: object) -> str:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "") and err.startswith("usp-lab: ") and "\n" not in err, err
    return err


def test_dialogues_of_the_population(capsys, tmp_path):
    out = tmp_path / "d.jsonl"
    args = (*POPULATION, "--n", 6, "--replicates", 2, "--max-turns", 3, "--out", out)
    code, printed, _ = run(capsys, *args, "--dry-run")
    assert code == 0 and not list(tmp_path.iterdir())
    assert "12 of 12 dialogues to simulate; nothing was spent yet" in printed
    assert re.search(r"simulator +tokens in +[\d,]+ \(95 %: [\d,]+ to [\d,]+\)", printed)
    assert "from the targets' own turns, n=6 dialogues" in printed
    code, printed, _ = run(capsys, *args)
    assert code == 0 and printed.startswith(f"12 dialogues in {out}: ")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted({r["replicate"] for r in rows}) == [0, 1] and len(rows) == 12
    assert all(sum(m["role"] == "user" for m in r["messages"]) <= 3 for r in rows)
    assert out.with_suffix(".parquet").exists()
    before = out.read_bytes()
    assert run(capsys, *args)[0] == 0 and out.read_bytes() == before
    _, printed, _ = run(capsys, *args[:-1], out, "--dry-run")
    assert "0 of 12 dialogues to simulate" in printed
    more = [a if a != 2 else 4 for a in args]
    _, printed, _ = run(capsys, *more, "--dry-run")
    assert "12 of 24 dialogues" in printed and "from dialogues done, n=12" in printed
    assert out.read_bytes() == before
    assert "made with other settings" in refused(capsys, *args, "--seed", 1)


def test_two_seeds_differ_and_one_repeats(capsys, tmp_path):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.jsonl"
        run(capsys, *POPULATION, "--n", 3, "--seed", seed, "--out", out)
        texts.append([json.loads(x)["messages"] for x in sorted(out.read_text().splitlines())])
    assert texts[0] == texts[1] != texts[2]


def test_models_and_files(capsys, tmp_path):
    model, targets = look_alike(tmp_path / "USP"), tmp_path / "targets.jsonl"
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [
        {"profile": "You like tea.", "user_id": 7},
        {"id": "b", "profile": "You talk.", "messages": said},
    ]
    targets.write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["simulate", "--simulator", model, "--assistant", "scripted:good", "--targets", targets]
    args += ["--max-turns", 2, "--simulator-max-new-tokens", 8, "--out", tmp_path / "d.jsonl"]
    assert run(capsys, *args)[0] == 0
    done = [json.loads(x) for x in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert {(d["id"], d["profile"]) for d in done} == {
        ("targets.jsonl:1", "You like tea."),
        ("b", "You talk."),
    }
    warmer = refused(capsys, *args, "--simulator-temperature", 2)
    assert "made with other settings, weights or targets" in warmer
    targets.write_text('{"profile": "You."}\n{"messages": 3}\n')
    assert "targets.jsonl, line 2, field messages" in refused(capsys, *args)
    args[-1] = tmp_path / "e.jsonl"
    code, _, said = run(capsys, *args, "--on-bad", "skip")
    assert code == 0 and "skipped 1 rows: " in said
    assert len(args[-1].read_text().splitlines()) == 1
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"profile": "You like walking. " * 400}) + "\n")
    args[6] = long
    assert "leaves no room for a turn of 8 tokens in a context of 512" in refused(capsys, *args)


@pytest.mark.parametrize(
    "args, error",
    [
        (POPULATION, "no --out; name the .jsonl file"),
        ([*POPULATION, "--out", "d.parquet"], "is no .jsonl file"),
        ([*POPULATION, "--n", "0", "--out", "d.jsonl"], "--n must be at least 1, not 0"),
        ([*POPULATION, "--max-turns", "0", "--out", "d.jsonl"], "max_turns must be at least 1"),
        ([*POPULATION, "--replicates", "0", "--out", "d.jsonl"], "replicates must be at least 1"),
        ([*POPULATION, "--replicates", "0", "--dry-run"], "replicates must be at least 1"),
        ([*TWIN, "--targets", "none.jsonl", "--dry-run"], "none.jsonl does not exist"),
        ([*POPULATION, "--simulator-model", "m", "--dry-run"], "--simulator-model has no use"),
        ([*POPULATION, "--assistant-temperature", "1", "--dry-run"], "has no use with --assistant"),
        ([*POPULATION, "--retries", "1", "--dry-run"], "--retries has no use without an endpoint"),
        ([*TWIN[:-1], "http://h/v1", "--targets", "population", "--dry-run"], "--assistant-model"),
        ([*TWIN[:-1], "scripted:best", "--targets", "population", "--dry-run"], "best"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, monkeypatch, args, error):
    monkeypatch.chdir(tmp_path)
    assert error in refused(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_twin_speaks_for_the_population_alone(capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"profile": "You."}\n')
    error = refused(capsys, *TWIN, "--targets", tmp_path / "p.jsonl", "--dry-run")
    assert "twin speaks for the population alone" in error


def endpoint_args(tmp_path: Path) -> list[object]:
    pytest.importorskip("openai", reason="the extra endpoints is not installed")
    args = ["simulate", "--simulator", "http://localhost:1/v1", "--simulator-model", "USP"]
    args += ["--assistant", "http://localhost:2/v1", "--assistant-model", "big"]
    args += ["--assistant-price", 2.5, 10, "--assistant-key-variable", "BIG_KEY"]
    args += ["--simulator-temperature", 0.7, "--assistant-system", "Be brief.", "--retries", 2]
    return [*args, "--targets", "population", "--n", 4, "--out", tmp_path / "d.jsonl"]


def test_endpoints_get_what_was_typed(tmp_path):
    from usp_lab.simulate_cli import make_assistant, make_simulator

    args = cli.make_parser().parse_args([str(a) for a in endpoint_args(tmp_path)])
    user, assistant = make_simulator(args, []), make_assistant(args)
    assert isinstance(user, EndpointSimulator) and isinstance(assistant, EndpointAssistant)
    assert (user.endpoint.url, user.endpoint.model) == ("http://localhost:1/v1", "USP")
    assert user.sampling.temperature == 0.7 and user.endpoint.key_variable == "OPENAI_API_KEY"
    e = assistant.endpoint
    assert (e.price_in, e.price_out, e.key_variable, e.retries) == (2.5, 10, "BIG_KEY", 2)
    assert assistant.system == "Be brief." and assistant.sampling.max_new_tokens == 512


def test_failed_dialogues_are_counted_and_cost_is_printed(capsys, tmp_path, monkeypatch):
    down = [True]

    def reply(self, batch, seeds):
        self.usage.add(requests=1, prompt_tokens=1000, completion_tokens=100)
        if down and seeds[0] % 2:
            self.usage.add(failures=1)
            raise RequestFailed("localhost answered 500 three times")
        return ["Sure."]

    monkeypatch.setattr(EndpointSimulator, "generate", lambda self, batch, seeds: ["where"])
    monkeypatch.setattr(EndpointAssistant, "reply", reply)
    for side in (EndpointSimulator, EndpointAssistant):
        monkeypatch.setattr(side, "check", lambda self: None)
    args = endpoint_args(tmp_path)
    assert re.search(r"both +dollars +\$0\.\d\d \(95", run(capsys, *args, "--dry-run")[1])
    code, printed, _ = run(capsys, *args)
    assert code == 1 and "failed, first: localhost answered 500 three times; run" in printed
    assert re.search(r"assistant: \d+ requests .*tokens in, .* out, \$0\.\d\d", printed)
    down.clear()
    code, printed, _ = run(capsys, *args)
    assert code == 0 and "failed, first" not in printed
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 4


def test_stopped_it_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def stop(self, batch, seeds):
        raise KeyboardInterrupt

    out = tmp_path / "d.jsonl"
    monkeypatch.setattr(TwinSimulator, "generate", stop)
    code, printed, err = run(capsys, *POPULATION, "--n", 5, "--out", out)
    assert (code, printed) == (130, "")
    assert err == f"usp-lab: stopped; 0 of 5 dialogues are in {out}; run the same again to go on"


def test_ctrl_c_in_earnest(tmp_path):
    out = tmp_path / "d.jsonl"
    command = [sys.executable, "-m", "usp_lab.cli", *POPULATION, "--n", "400", "--batch-size", "2"]
    p = subprocess.Popen(
        [*command, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(p.pid, signal.SIGINT)
    printed, err = p.communicate(timeout=120)
    kept = len(out.read_text().splitlines())
    assert p.returncode == 130 and printed == "" and 0 < kept < 400
    assert f"usp-lab: stopped; {kept} of 400 dialogues are in {out}; run the same again" in err
    assert "Traceback" not in err
