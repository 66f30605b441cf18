"""The distilled profile generator: a language model that writes a profile from a user's turns.

    generator = ProfileGenerator.from_pretrained("wangkevin02/Profile_Generator")     # or a folder
    generator.extract(dialogues)

The format is the release's, to the letter (arXiv 2502.18968; Hugging Face wangkevin02): it sees user turns only and
writes two paragraphs. At inference the instruction has no full stop; in the training data it has one (`messages`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.extract_rules import Extracted
from usp_lab.models import Device
from usp_lab.profiles import Profile
from usp_lab.simulators import ChatModel

SYSTEM = "You are an expert in creating user profile descriptions based on dialogue analysis."
INSTRUCTION = "Analyze the user utterances marked by [User] to generate a comprehensive and descriptive user profile"  # fmt: skip


def messages(turns: Sequence[str], training: bool = False) -> list[Message]:
    """Return what the generator reads: system message, instruction and the user's turns.

    Args:
        turns: the user's utterances in order.
        training: with the full stop that training data have.
    """
    lines = "".join(f"[User]: {t}\n---\n" for t in turns)
    instruction = f"{INSTRUCTION}{'.' if training else ''}\n{lines}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": instruction}]


def lesson(dialogue: Dialogue) -> list[Message]:
    """Return what a generator learns from a dialogue: what it reads, and the profile that it is to write."""
    read = messages(dialogue.user_turns, training=True)
    return [*read, {"role": "assistant", "content": dialogue.profile}]


@dataclass(frozen=True)
class Written:
    """A profile's text, or why there is none; ``cut``: user turns left out because they did not fit."""

    text: str = ""
    error: str = ""
    cut: int = 0


class ProfileGenerator(ChatModel):
    """A causal language model that was taught to write profiles; an extractor for `build_profiles`.

    Args:
        model, tokenizer, sampling, name: as `ChatModel`.
        truncate: leave out last turns of a dialogue that does not fit; without, it fails.
    """

    speaker = "assistant"
    options = ("truncate",)
    embedded = "generator-tiny"
    batch = 16

    def __init__(self, model, tokenizer, sampling, name: str, truncate: bool = False) -> None:
        super().__init__(model, tokenizer, sampling, name)
        self.truncate = truncate

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        weights: str | None = None,
        device: Device | None = None,
        truncate: bool = False,
        max_new_tokens: int = 512,
    ) -> "ProfileGenerator":
        """Load from a folder or the hub; profiles are written greedily.

        Args:
            path: folder or hub id with config, tokenizer, chat template and safetensors.
            weights: consent to a pickle file, by its name (see `models.load_causal_lm`).
            device: where to compute; picked when None.
            truncate: leave out last turns of a dialogue that does not fit.
            max_new_tokens: of a profile.

        Raises:
            UspError: as `ChatModel.from_pretrained`.
        """
        return super().from_pretrained(
            path,
            weights=weights,
            device=device,
            name="distilled",
            truncate=truncate,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
        )

    def __repr__(self) -> str:
        return f"ProfileGenerator({self.identity}, truncate={self.truncate})"

    def extract(self, dialogues: Sequence[Dialogue]) -> list[Extracted]:
        """Return a profile for each dialogue, its claims read from the text, or why there is none."""
        return [
            Extracted(error=w.error) if w.error else Extracted(Profile.from_text(w.text), cut=w.cut)
            for w in self.write(dialogues)
        ]

    def write(self, dialogues: Sequence[Dialogue]) -> list[Written]:
        """Return the text of a profile for each dialogue, or why there is none."""
        fitting = [self._fitting(d) for d in dialogues]
        prompts = [messages(turns) for turns, _ in fitting if turns]
        written = iter(self.generate(prompts) if prompts else ())
        return [
            Written(next(written), cut=d.n_turns - len(turns)) if turns else Written(error=error)
            for d, (turns, error) in zip(dialogues, fitting, strict=True)
        ]

    def _fitting(self, d: Dialogue) -> tuple[list[str], str]:
        """Return the turns that leave room for a profile, or none and why."""
        turns = d.user_turns
        if not any(t.strip() for t in turns):
            return [], "the user said nothing"
        short = -self.room(messages(turns))
        if short <= 0:
            return turns, ""
        needs = self.engine.context + short
        said = f"longer than the context: {d.id} needs {needs:,} tokens with its profile, the model takes {self.engine.context:,}"  # fmt: skip
        if not self.truncate:
            return [], f"{said}; allow truncation or use a longer context"
        while turns and self.room(messages(turns)) < 0:
            turns = turns[:-1]
        return turns, "" if turns else f"{said}; not even its first turn fits"
