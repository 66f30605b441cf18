"""Reinforcement by one process and by two, side by side in one run.

    python benchmarks/rlcc.py                     # a quarter of an hour on two cores
    python benchmarks/rlcc.py --profiles 16       # steps of 64 dialogues, of which half is little for a process

Prints rollout throughput (dialogues a second, reward included) of one process with one thread, of one with two, and of
two processes with one thread each, over the faster of the first two; and the reward of test users after each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from usp_lab import UserSimulator, simulate, stats, train_rlcc
from usp_lab.assistants import scripted
from usp_lab.data import load_dialogues
from usp_lab.reward import CycleReward
from usp_lab.rlcc_settings import RlccSettings
from usp_lab.tidy import one_each

RUNS = {"1 x 1": (1, 1), "1 x 2": (1, 2), "2 x 1": (2, 1)}  # processes x threads


def worker(a: argparse.Namespace) -> None:
    """Reinforce, and write down how long each step's rollouts and rewards took."""
    from usp_lab.rlcc_trainer import CycleTrainer

    torch.set_num_threads(a.threads)
    plain, seconds = CycleTrainer._roll_out, []

    def timed(self, prompts):
        self.accelerator.wait_for_everyone()
        began = time.perf_counter()
        out = plain(self, prompts)  # ends with a gathering: the slowest process counts
        seconds.append(time.perf_counter() - began)
        return out

    CycleTrainer._roll_out = timed
    corpus = load_dialogues("population", n=2000, seed=a.seed)
    s = RlccSettings(
        steps=a.steps, profiles=a.profiles, evals=1, lam=1.0, stop_rule=False, seed=a.seed
    )
    reward = CycleReward.from_pretrained(a.generator)
    watched = one_each(corpus.validation, 4)
    train_rlcc(corpus.train, watched, scripted("good"), reward, a.out, s)
    if int(os.environ.get("RANK", 0)) == 0:
        (a.out / "seconds.json").write_text(json.dumps([s.batch, seconds]))


def run(name: str, a: argparse.Namespace, folder: Path) -> float:
    """Return the rollout throughput of one arrangement, dialogues a second, without its first step."""
    processes, threads = RUNS[name]
    out = folder / name.replace(" ", "")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker", "--out", str(out)]  # fmt: skip
    command += ["--threads", str(threads), "--generator", a.generator]
    command += [f"--{name}={getattr(a, name)}" for name in ("steps", "profiles", "seed")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    batch, seconds = json.loads((out / "seconds.json").read_text())
    return batch * len(seconds[1:]) / sum(seconds[1:])


def test_rewards(a: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    """Return r_cc of the same test users, with the same draws, by what each arrangement trained."""
    targets = one_each(load_dialogues("population", n=2000, seed=a.seed).test, a.n_test)
    reward, out = CycleReward.from_pretrained(a.generator), {}
    for name in RUNS:
        path = folder / name.replace(" ", "")
        speaker = UserSimulator.from_pretrained(path, name="usp_rlcc", max_new_tokens=64)
        said = simulate(
            speaker, scripted("good"), targets, max_turns=8, seed=a.seed, progress=False
        )
        out[name] = np.array([t.r_cc for t in reward.score([t.profile for t in targets], said)])
    return out


def main() -> None:
    """Print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps, the first not timed")
    parser.add_argument(
        "--profiles", type=int, default=64, help="profiles a step, four dialogues each"
    )
    parser.add_argument("--n-test", type=int, default=48, help="test users")
    parser.add_argument("--generator", default="generator-tiny", help="profile generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        worker(a)
        return
    with tempfile.TemporaryDirectory() as folder:
        speed = {name: run(name, a, Path(folder)) for name in RUNS}
        for name, value in speed.items():
            print(f"rollouts {name} processes x threads: {value:.2f} dialogues/s")
        faster = max(speed["1 x 1"], speed["1 x 2"])
        print(f"two processes over the faster of one: ratio {speed['2 x 1'] / faster:.2f}")
        earned = test_rewards(a, Path(folder))
        for name, values in earned.items():
            e = stats.mean(values)
            print(f"test r_cc {name}: {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] n {e.n}")
        e = stats.paired(earned["2 x 1"], earned["1 x 1"])
        print(f"test r_cc 2 x 1 minus 1 x 1: {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}] n {e.n}")


if __name__ == "__main__":
    main()
