"""Chat models that are told by ``profiling/llm.toml`` what to do with a dialogue or a profile.

What they are told is ours and is data; the paper's prompts were not published.
"""

import hashlib
import json
import re
import tomllib
from functools import lru_cache
from importlib import resources

from usp_lab.at_endpoint import AtEndpoint
from usp_lab.chat import Message
from usp_lab.decoding import Sampling
from usp_lab.endpoint_requests import Endpoint
from usp_lab.structured import StructuredClient


@lru_cache(maxsize=1)
def texts() -> dict:
    """Return what models are told."""
    return tomllib.loads((resources.files("usp_lab") / "profiling" / "llm.toml").read_text("utf-8"))


class Told(AtEndpoint):
    """A chat model with instructions."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, seed: int) -> None:
        super().__init__(StructuredClient(endpoint), sampling)
        self.seed = seed

    def _told(self, part: str) -> str:
        digest = hashlib.sha256(json.dumps(texts()[part], sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.endpoint.model!r}, {self.sampling}, seed={self.seed}, told={digest}"


def message(role: str, text: str) -> Message:
    """Return a message without blanks at its ends."""
    return {"role": role, "content": text.strip()}


def filled(text: str, wanted: dict[str, str]) -> str:
    """Fill in names, once: what is filled in is not read again."""
    return re.sub("|".join(map(re.escape, wanted)), lambda m: wanted[m[0]], text)
