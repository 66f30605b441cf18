"""The simulator that comes with the package, so that minutes on a laptop start where hours ended.

    python -m usp_lab.embedded usp-tiny --work FOLDER     # how it was made; about 50 min on 2 cores

It has learned training users of the population, drawn with a seed of its own, and no sealed
phrasing or topic. It records the population's fingerprint: `provenance` tells when the population
has changed since.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from usp_lab.errors import UspError
from usp_lab.sft import FINAL, SftSettings, train_sft

_CARD = """
## How it was made

    python -m usp_lab.embedded {name} --work FOLDER

From {r.dialogues:,} dialogues of the known-truth population, its training users under seed
{r.seed}: no user, sealed phrasing or sealed topic of any test split is among them. What is said in
open phrasings is, in other users' dialogues: a sentence of a test user may well be known. Weights
are in bf16.
"""


@dataclass(frozen=True)
class Recipe:
    """What an embedded model is made of: training dialogues, the population's seed, settings."""

    dialogues: int
    seed: int
    settings: SftSettings


RECIPES = {
    "usp-tiny": Recipe(
        dialogues=72_000,
        seed=1000,
        settings=SftSettings(
            size="2m",
            optimizer="muon",
            lr=4e-3,
            batch=16,
            max_length=512,
            profile_dropout=0.1,
            evals=9,
            patience=9,
        ),
    )
}


def make(name: str, work: str | Path) -> Path:
    """Train an embedded model and put it into the package in half precision; resumes from ``work``.

    Raises:
        UspError: no such recipe.
    """
    import torch

    from usp_lab import synthetic
    from usp_lab.models import EMBEDDED, load_causal_lm

    if name not in RECIPES:
        raise UspError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    recipe, out = RECIPES[name], Path(work) / name
    parts = {
        split: [d.model_copy(update={"truth": None}) for d in synthetic.draw(split, n, recipe.seed)]
        for split, n in (("train", recipe.dialogues), ("validation", 300))
    }
    train_sft(parts["train"], parts["validation"], out, recipe.settings, synthetic.fingerprint())
    target = EMBEDDED / name
    shutil.copytree(out, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
    load_causal_lm(out).to(torch.bfloat16).save_pretrained(target)
    card = (out / "README.md").read_text(encoding="utf-8")
    (target / "README.md").write_text(card + _CARD.format(name=name, r=recipe), encoding="utf-8")
    return target


def provenance(name: str) -> dict[str, object]:
    """Return what an embedded model was made from; {} for a name that is not embedded's.

    Returns:
        ``name``, ``population`` (fingerprint), ``dialogues`` it was trained on, and ``stale``:
        whether the population has changed since, so that figures with it mean little.
    """
    from usp_lab import synthetic
    from usp_lab.models import EMBEDDED

    record = EMBEDDED / name / FINAL if name else Path()
    if not record.is_file():
        return {}
    made = json.loads(record.read_text(encoding="utf-8"))
    return {
        "name": name,
        "population": made["data"],
        "dialogues": made["counts"]["train: dialogues"],
        "stale": made["data"] != synthetic.fingerprint(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.embedded", description="Make a model that comes with the package."
    )
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--work", required=True, help="folder for checkpoints; resumes from there")
    args = parser.parse_args()
    try:
        print(make(args.name, args.work))
    except UspError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
