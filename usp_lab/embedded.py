"""The models that come with the package, so that minutes on a laptop start where hours ended.

    python -m usp_lab.embedded usp-tiny --work FOLDER     # how it was made; two hours on 2 cores

They have learned training users of the population, drawn with seeds of their own, and no sealed
phrasing or topic: a simulator, an AI detector, a profile generator, and a second one of other architecture,
tokenizer and users, which judges what the first one rewards. They record the population's fingerprint:
`provenance` tells when the population has changed since.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from usp_lab.detector_settings import DetectorSettings
from usp_lab.detector_training import train_detector
from usp_lab.errors import UspError
from usp_lab.finished import FINAL
from usp_lab.sft import SftSettings, train_sft

_CARD = """
## How it was made

    python -m usp_lab.embedded {name} --work FOLDER

Each stage goes on from the one before, from dialogues of the known-truth population's training users:
{stages}. No user, sealed phrasing or sealed topic of any test split is among them. What is said in open
phrasings is, in other users' dialogues: a sentence of a test user may well be known. Weights are in
16 bit.
"""


@dataclass(frozen=True)
class Stage:
    """One training: dialogues of the population's training users under a seed, and settings.

    ``layers``: how many the model is grown to before it (`deepen`); 0: as it is.
    """

    dialogues: int
    seed: int
    settings: SftSettings | DetectorSettings
    layers: int = 0


_TINY = SftSettings(
    size="2m",
    optimizer="muon",
    lr=4e-3,
    batch=16,
    max_length=512,
    profile_dropout=0.1,
    evals=9,
    patience=9,
)
_GENERATOR = replace(_TINY, speaker="generator", profile_dropout=0.0, max_length=768)
# name -> stages; each goes on from the one before. The weights that come along were begun before
# scripted assistants took up what they were asked: their first two stages read the population
# d48b274ccd89, the third reads today's.
RECIPES = {
    "usp-tiny": (
        Stage(72_000, 1000, _TINY),
        Stage(54_400, 1001, replace(_TINY, lr=3e-3)),
        Stage(64_000, 1002, replace(_TINY, lr=3e-3, max_length=1024), layers=5),
    ),
    # Its first stage was ended after 13,280 of the 24,000 dialogues that its learning rate was laid out for.
    "generator-tiny": (
        Stage(24_000, 1100, replace(_GENERATOR, base="usp-tiny", lr=3e-3)),
        Stage(9_600, 1101, replace(_GENERATOR, lr=3e-3, reword=0.5)),
        Stage(36_000, 1102, replace(_GENERATOR, lr=3e-3, reword=0.5)),
    ),
    "generator-second": (
        Stage(
            48_000,
            1200,
            replace(_GENERATOR, architecture="gpt_neox", size="1m", vocab_size=2048, seed=1),
        ),
        Stage(20_000, 1201, replace(_GENERATOR, lr=4e-3, reword=0.6, seed=1)),
    ),
    "detector-tiny": (Stage(8_000, 1300, DetectorSettings()),),
}


def make(name: str, work: str | Path) -> Path:
    """Train an embedded model and put it into the package in half precision; resumes from ``work``.

    Raises:
        UspError: no such recipe.
    """
    from usp_lab import synthetic

    if name not in RECIPES:
        raise UspError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    base = out = Path()
    for i, stage in enumerate(RECIPES[name], 1):
        base, out = out, Path(work) / f"{name}-{i}"
        if (out / FINAL).is_file():
            continue
        parts = [
            [d.model_copy(update={"truth": None}) for d in synthetic.draw(split, n, stage.seed)]
            for split, n in (("train", stage.dialogues), ("validation", 300))
        ]
        if stage.layers:
            base = deepen(base, stage.layers, Path(work) / f"{name}-{i}-start")
        settings = replace(stage.settings, base=str(base)) if i > 1 else stage.settings
        train = train_detector if isinstance(settings, DetectorSettings) else train_sft
        train(*parts, out, settings, synthetic.fingerprint())
    return _put(name, out)


def deepen(base: Path, layers: int, out: Path) -> Path:
    """Write a model with new layers among the old ones that computes just what it did before.

    What a new layer adds to the stream starts at zero (as in Net2Net, Chen et al., ICLR 2016), so
    that training goes on from where it was. Keeping count of what has been asked takes more steps
    of attention, one after the other, than three layers have.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from usp_lab.models import load_causal_lm, load_tokenizer

    old = load_causal_lm(base)
    config = type(old.config).from_dict(old.config.to_dict() | {"num_hidden_layers": layers})
    config.layer_types = None  # one entry a layer; made anew
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = AutoModelForCausalLM.from_config(config)
    n = len(old.model.layers)
    places = [round(i * (layers - 1) / (n - 1)) for i in range(n)]
    state = {k: v for k, v in old.state_dict().items() if ".layers." not in k}
    new.load_state_dict(state, strict=False)
    for i, layer in enumerate(new.model.layers):
        if i in places:
            layer.load_state_dict(old.model.layers[places.index(i)].state_dict())
        else:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    new.generation_config = old.generation_config
    new.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    return out


def _put(name: str, trained: Path) -> Path:
    """Copy a trained model into the package, its weights in 16 bit."""
    import torch

    from usp_lab.models import EMBEDDED, load_causal_lm

    target = EMBEDDED / name
    shutil.copytree(trained, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    if isinstance(RECIPES[name][-1].settings, DetectorSettings):
        from usp_lab.detector import AIDetector

        AIDetector.from_pretrained(trained).save(target, torch.float16)
    else:
        load_causal_lm(trained).to(torch.bfloat16).save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    words = target / "tokenizer.json"  # indented it is more than twice as long
    compact = json.dumps(
        json.loads(words.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")
    )
    words.write_text(compact, encoding="utf-8")
    record = json.loads((target / FINAL).read_text(encoding="utf-8"))
    record["settings"]["base"] = Path(record["settings"]["base"]).name
    record["stages"] = [[s.dialogues, s.seed, asdict(s.settings)] for s in RECIPES[name]]
    (target / FINAL).write_text(json.dumps(record, indent=1), encoding="utf-8")
    stages = ", then from ".join(f"{s.dialogues:,} (seed {s.seed})" for s in RECIPES[name])
    card = (trained / "README.md").read_text(encoding="utf-8")
    card += _CARD.format(name=name, stages=stages)
    (target / "README.md").write_text(card, encoding="utf-8")
    return target


def provenance(name: str) -> dict[str, object]:
    """Return what an embedded model was made from; {} for a name that is not embedded's.

    Returns:
        ``name``, ``population`` (fingerprint), ``dialogues`` it was trained on, and ``stale``:
        whether the population has changed since, so that figures with it mean little.
    """
    from usp_lab import synthetic
    from usp_lab.models import EMBEDDED

    record = EMBEDDED / name / FINAL if name in RECIPES else Path()
    if not record.is_file():
        return {}
    made = json.loads(record.read_text(encoding="utf-8"))
    return {
        "name": name,
        "population": made["data"],
        "dialogues": sum(n for n, *_ in made["stages"]),
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
