"""The model cards of what is trained here."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from usp_lab.chat import END_TOKEN
from usp_lab.sft_settings import GENERATOR

if TYPE_CHECKING:
    from usp_lab.detector_settings import DetectorResult, DetectorSettings
    from usp_lab.rlcc_settings import RlccResult, RlccSettings
    from usp_lab.sft_settings import SftResult, SftSettings
    from usp_lab.stats import Estimate


_FROM_SCRATCH = ("size", "vocab_size", "architecture")
_SIMULATES = """Made for research on simulated users. It repeats what its training dialogues contain and must not
stand in for real people's opinions."""


def _base(s) -> str:
    """Return what a model began with, without the way to a folder."""
    return Path(s.base).name if Path(s.base).is_dir() else s.base


def _tables(s, counts: Mapping[str, int]) -> str:
    """Return counts as a list and settings as a table, without those that a checkpoint to begin with decides."""
    said = "\n".join(f"- {k}: {v:,}" for k, v in counts.items())
    rows = asdict(s) | {"base": _base(s)}
    rows = {k: v for k, v in rows.items() if not (s.base and k in _FROM_SCRATCH)}
    settings = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    return f"{said}\n\n| setting | value |\n|---|---|\n{settings}"


def model_card(s: "SftSettings", result: "SftResult", parameters: int, fingerprint: str) -> str:
    """Return a model card (markdown) written from what a training did."""
    base, tables = _base(s), _tables(s, result.counts)
    start = f"from {base}" if base else "from scratch"
    roles = {
        "user": "A user simulator",
        "assistant": "An assistant",
        "both": "A dialogue model",
        GENERATOR: "A profile generator",
    }
    whose = "all turns" if s.speaker == "both" else f"{s.learned}s"
    given = "conditioned on a profile in the system message"
    if not s.reads_profile:
        given = "from user turns" if s.speaker == GENERATOR else "without profiles"
    end = (
        f"It ends a dialogue with `{END_TOKEN}`."
        if s.end_token
        else "It has no end-of-dialogue token."
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [user-simulation]
---

# {roles[s.speaker]}, {given}

{parameters:,} parameters, {start}, trained by `usp_lab.sft` after USP (arXiv 2502.18968): loss on
{whose} and their `<|eot_id|>` alone. Best validation loss: {result.best_loss:.4f} nats a
trained token, at step {result.kept}{"" if result.kept else ": the weights it began with are kept, training made them no better"}.
Data fingerprint: {fingerprint or "not given"}. {end}

{tables}

{_SIMULATES}
"""


def rlcc_card(s: "RlccSettings", result: "RlccResult", fingerprint: str) -> str:
    """Return a model card (markdown) written from what a reinforcement did."""
    base, tables = _base(s), _tables(s, result.counts)
    ended = f"Stopped early: {result.stopped}. " if result.stopped else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [user-simulation, grpo]
---

# A user simulator, reinforced with cycle consistency

From {base}, by `usp_lab.rlcc` after USP (arXiv 2502.18968): group-relative policy optimisation of whole dialogues, whose
reward compares the target profile with the one read back from the user's turns. {ended}Weights of step
{result.kept}. Data fingerprint: {fingerprint or "not given"}.

{tables}

{_SIMULATES}
"""


def detector_card(
    s: "DetectorSettings",
    result: "DetectorResult",
    parameters: int,
    auc: "Estimate",
    fingerprint: str,
) -> str:
    """Return a model card (markdown) written from what a training of a detector did; ``auc``: on validation."""
    base, tables = _base(s), _tables(s, result.counts)
    start = f"from {base}" if base else "from scratch"
    least = result.least_words
    silent = f"fewer than {least} words" if least > 1 else "nothing but what has no word"
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [user-simulation, ai-detection]
---

# An AI detector: users' turns against assistants' turns

{parameters:,} parameters, {start}, trained by `usp_lab.detector_training` after USP (arXiv 2502.18968): label 0 is a
user's turn, 1 an assistant's, one utterance at a time, without context. Data fingerprint: {fingerprint or "not given"}.

On validation: loss {result.best_loss:.4f} nats an utterance, AUC {auc.value:.4f} ({auc.low:.4f} to {auc.high:.4f}, n {auc.n}). Chosen
there, and kept in `detector.json`: temperature {result.temperature:.3f}, by which log-odds are divided; and what it abstains from as too short to
tell, {silent}.

{tables}

Made for research on simulated users. It tells the two sides of the dialogues it was trained on apart, by length and
style above all; it is no judge of who wrote a text, and must not be used as one.
"""
