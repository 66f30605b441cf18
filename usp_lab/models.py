"""Load models: causal language models, tokenizers; the process's sentence encoders.

Weights load as safetensors, remote code stays off, and a checkpoint that holds pickles alone is
refused unless its file is asked for by name.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import huggingface_hub
import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from usp_lab.chat import check_template
from usp_lab.errors import UspError


@dataclass(frozen=True)
class Device:
    """Where and in what a model computes, and why."""

    name: str
    dtype: torch.dtype
    why: str


def pick_device() -> Device:
    """Return the device for inference: a GPU in bf16, else the CPU in fp32.

    In fp32 a batch never changes a turn; `LocalEngine.generate` says what bf16 does.
    """
    if torch.cuda.is_available():
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return Device("cuda", dtype, f"CUDA device {torch.cuda.get_device_name()}")
    threads = torch.get_num_threads()
    why = f"no CUDA device; {threads} CPU threads, fp32 so that batches change no turn"
    return Device("cpu", torch.float32, why)


def computes_bf16() -> bool:
    """Tell whether this machine gains by bf16: a GPU that multiplies in it, or a CPU with AMX.

    Other CPUs emulate it, tens of times slower than fp32; one with AVX-512 for it (and no AMX) trained 0.65 times
    as fast as in fp32 where that was measured side by side.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)


CPU_ROWS = 8  # sequences whose computation stays in a CPU's caches


def rows_at_once(device: torch.device) -> int:
    """Return how many sequences to compute at once: as many as keep a GPU busy, as few as stay in a CPU's caches."""
    return CPU_ROWS if device.type == "cpu" else 64


def load_tokenizer(
    path: str | Path, speaker: str | None = "user", padding: str = "left"
) -> PreTrainedTokenizerFast:
    """Load a tokenizer.

    Args:
        path: folder, name of an embedded model ("usp-tiny"), or hub id.
        speaker: whose header the chat template's generation prompt must open; None asks for no
            template at all (a base model that is yet to be trained, a classifier).
        padding: "left" for generation; "right" for classifiers, whose positions count from the left.

    Raises:
        UspError: nothing there, unreadable, no chat template or one for the other role.
    """
    source = source_of(path, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as e:  # damaged files raise bare exceptions
        raise UspError(not_loaded(path, "tokenizer", e)) from e
    if speaker is not None:
        try:
            check_template(tokenizer, str(path), speaker)
        except TemplateError as e:
            raise UspError(not_loaded(path, "chat template of", e)) from e
    tokenizer.padding_side = padding
    return tokenizer


def load_causal_lm(
    path: str | Path, weights: str | None = None, device: Device | None = None
) -> PreTrainedModel:
    """Load a causal language model: `load_model` of that kind."""
    return load_model(AutoModelForCausalLM, path, weights, device)


def load_model(
    kind: type,
    path: str | Path,
    weights: str | None = None,
    device: Device | None = None,
    what: str = "model",
    labels: Sequence[str] = (),
) -> PreTrainedModel:
    """Load a model from a folder or the hub.

    Args:
        kind: one of transformers' auto classes: `AutoModelForCausalLM`,
            `AutoModelForSequenceClassification`.
        path: folder, name of an embedded model ("usp-tiny"), or hub id.
        weights: name of a pickle file ("pytorch_model.bin") that may be loaded for want of
            safetensors; the name is the consent.
        device: from `pick_device` when None.
        what: the model is called in errors.
        labels: names of a classifier's outputs, for one that is yet to be trained: its head may be missing
            from the checkpoint. Without, nothing may be.

    Raises:
        UspError: nothing there, pickles only and not asked for by name, damaged or incomplete
            weights, an architecture that is unknown or needs its own code.
    """
    device, source = device or pick_device(), source_of(path, what)
    folder = Path(source)
    _check_pickles(path, folder, weights)
    head = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    try:
        with quiet_bars(_size(folder) < 2**30):
            model, info = kind.from_pretrained(
                source,
                dtype=device.dtype,
                trust_remote_code=False,
                use_safetensors=weights is None,
                output_loading_info=True,
                **(head if labels else {}),
            )
    except (
        Exception
    ) as e:  # safetensors, OS, hub, config and unpickling errors all mean: not loaded
        raise UspError(not_loaded(path, what, e)) from e
    inner = f"{model.base_model_prefix}."
    missing = sorted(
        k
        for k in info["missing_keys"]
        if not labels or (k.startswith(inner) and not k.startswith(f"{inner}pooler"))
    )
    if missing:
        raise UspError(
            f"{what} {path} lacks {len(missing)} of its tensors ({missing[0]}, ...), which would be "
            f"random; give a whole checkpoint of a {_KINDS[kind]}"
        )
    return model.to(device.name).eval()


_KINDS = {
    AutoModelForCausalLM: "causal language model",
    AutoModelForSequenceClassification: "trained sequence classifier",
}


def _check_pickles(path: str | Path, folder: Path, weights: str | None) -> None:
    """Refuse a folder of pickles alone, unless the pickle is asked for by name."""
    pickles = sorted(p.name for kind in ("bin", "pt", "pth") for p in folder.glob(f"*.{kind}"))
    named = [p for p in pickles if p.startswith("pytorch_model")]
    if weights is not None and folder.is_dir() and weights not in named:
        raise UspError(
            f"{path} has no pickled weights {weights!r} (there: {', '.join(named) or 'none'}); name "
            "one of these, or none to load safetensors"
        )
    if weights is None and pickles and not any(folder.glob("*.safetensors")):
        consent = f", or ask for the file if you trust it: weights={named[0]!r}" if named else ""
        raise UspError(
            f"{path} holds pickled weights only ({', '.join(pickles)}), which can run code when "
            f"loaded; convert them to safetensors{consent}"
        )


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return 12 hex digits that tell trainings of a model apart: 64 spread values a tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def weights_digest(base: str | Path) -> bytes:
    """Return a digest of a local or embedded checkpoint's safetensors; empty for others and for ""."""
    folder, digest = local_folder(base) if base else None, hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.digest() if folder else b""


@contextmanager
def quiet_bars(quiet: bool = True) -> Iterator[None]:
    """Hide transformers' bars for loading and saving, which small models do not need."""
    shown = hf_logging.is_progress_bar_enabled()
    if quiet and shown:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            hf_logging.enable_progress_bar()


def _size(folder: Path) -> float:
    """Bytes of a folder's files, infinite for what is not a folder."""
    if not folder.is_dir():
        return float("inf")
    return sum(p.stat().st_size for p in folder.iterdir() if p.is_file())


EMBEDDED = Path(__file__).parent / "weights"  # models that come with the package, by name


def local_folder(path: str | Path) -> Path | None:
    """Return a path that exists, or the folder of an embedded model; None for a hub id."""
    if Path(path).exists():
        return Path(path)
    plain = re.fullmatch(r"\w[\w.-]*", str(path))
    return EMBEDDED / str(path) if plain and (EMBEDDED / str(path)).is_dir() else None


def source_of(path: str | Path, what: str) -> str:
    """Return where to load from: a folder, a hub id, or (hub out of reach) its folder in the cache.

    transformers itself asks an unreachable hub again and again for most of a minute.
    """
    name = str(path)
    if folder := local_folder(path):
        return str(folder)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UspError(f"{what} {path}: no such folder; give one, or a hub id (owner/name)")
    try:
        huggingface_hub.model_info(name, timeout=10)
        return name
    except huggingface_hub.errors.HfHubHTTPError as e:  # it answers: unknown, gated, ...
        raise UspError(not_loaded(path, what, e)) from e
    except Exception as unreachable:  # no connection, or told to stay offline
        try:
            return huggingface_hub.snapshot_download(name, local_files_only=True)
        except Exception:  # not in the cache either
            raise UspError(not_loaded(path, what, unreachable)) from unreachable


def not_loaded(path: str | Path, what: str, error: Exception) -> str:
    """Say in a sentence why ``what`` could not be loaded, and what to give instead."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(" .")
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        reason = "needs code of its own, which is never run here"
    if not Path(path).exists():
        reason = f"no such folder, and as a hub id it could not be fetched ({reason})"
    return (
        f"{what} {path}: {reason}; "
        "give a folder with config, tokenizer and safetensors, or a reachable hub id"
    )


@lru_cache(maxsize=4)
def sentence_encoder(name: str = "minilm"):
    """Return this process's `encoders.SentenceEncoder` of that name."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from usp_lab.encoders import SentenceEncoder

    return SentenceEncoder(name)
