"""The reward of reinforcement with cycle consistency: does what a user says lead back to who he was told to be?

    reward = CycleReward(ProfileGenerator.from_pretrained("generator-tiny"), detector)
    reward.score(profiles, dialogues)        # one `Terms` a dialogue

r = lam * r_cc + (1 - lam) * r_ai (arXiv 2502.18968, section 4): r_cc compares the target profile with the one
that a profile generator reads back from the user's turns alone, r_ai is how human a turn sounds to a detector.
In the release r_cc = cos(objective halves) + cos(subjective halves) and r_ai is doubled, so that both reach 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from usp_lab.errors import UspError
from usp_lab.metrics import mean_known
from usp_lab.models import sentence_encoder
from usp_lab.profiles import split_profile
from usp_lab.scorers import cosine, meaning

HALVES = ("objective", "subjective")


@dataclass(frozen=True)
class Terms:
    """What one dialogue earned.

    Attributes:
        objective, subjective: cosine of the halves of target and reflected profile, -1 to 1; 0 for a half that
            was not reflected, NaN for one that the target has not.
        human: of each user turn the detector's P(human), 0 to 1; NaN where it abstained.
        reflected: the profile read back.
        error: why there is none (then the cosines are NaN and the dialogue has no reward).
    """

    objective: float
    subjective: float
    human: tuple[float, ...] = ()
    reflected: str = ""
    error: str = ""

    @property
    def r_cc(self) -> float:
        """Cycle consistency, -2 to 2; a target of one half counts it twice."""
        return 2 * mean_known((self.objective, self.subjective))

    @property
    def r_ai(self) -> float:
        """How human the turns sound, mean over those that can be told, 0 to 2; NaN where none can."""
        return 2 * mean_known(self.human)

    def total(self, lam: float, usual: float = math.nan) -> float:
        """The dialogue's reward; NaN where nothing was reflected.

        Args:
            lam: weight of r_cc.
            usual: r_ai of a dialogue of which no turn can be told, so that being told is no gain in itself; r_cc
                counts alone where it is NaN.
        """
        r_ai = usual if math.isnan(self.r_ai) else self.r_ai
        return self.r_cc if math.isnan(r_ai) else lam * self.r_cc + (1 - lam) * r_ai

    def per_turn(self, lam: float, usual: float = math.nan) -> np.ndarray:
        """The reward of each turn, shape (turns,): its own r_ai, or the dialogue's where it cannot be told."""
        human = 2 * np.array(self.human, float)
        own = lam * self.r_cc + (1 - lam) * human
        return np.where(np.isnan(human), self.total(lam, usual), own)


@dataclass
class CycleReward:
    """Scores dialogues by a profile generator, a sentence encoder and a detector.

    Attributes:
        generator: anything with ``write(dialogues)`` as `ProfileGenerator`'s.
        detector: `AIDetector`, or None: r_ai is never told and r = r_cc.
        encoder: name of a `encoders.SentenceEncoder`; whole halves are compared.
    """

    generator: object
    detector: object = None
    encoder: str = "minilm"

    @classmethod
    def from_pretrained(
        cls, generator: str, detector: str = "", encoder: str = "minilm", max_new_tokens: int = 256
    ) -> "CycleReward":
        """Load generator and detector ("" for none), each a folder, an embedded name or a hub id.

        A dialogue too long for the generator loses its last turns.
        """
        from usp_lab.profile_generator import ProfileGenerator

        reads = ProfileGenerator.from_pretrained(generator, truncate=True, max_new_tokens=max_new_tokens)  # fmt: skip
        if not detector:
            return cls(reads, None, encoder)
        from usp_lab.detector import AIDetector

        return cls(reads, AIDetector.from_pretrained(detector), encoder)

    @property
    def identity(self) -> str:
        """What decides a score, the same in every process."""
        from usp_lab.simulators import identity

        detector = identity(self.detector) if self.detector is not None else "no detector"
        return f"{identity(self.generator)} {detector} {self.encoder}"

    def score(self, profiles: Sequence[str], dialogues: Sequence) -> list[Terms]:
        """Return the terms of each dialogue; one in which the user said nothing has an error.

        Args:
            profiles: the targets.
            dialogues: what was said, with ``user_turns``; nothing else of them is read.

        Raises:
            UspError: as many profiles as dialogues are needed.
        """
        if len(profiles) != len(dialogues):
            raise UspError(
                f"{len(profiles)} profiles for {len(dialogues)} dialogues; give one each"
            )
        spoken = [i for i, d in enumerate(dialogues) if any(t.strip() for t in d.user_turns)]
        texts, errors = [""] * len(dialogues), ["the user said nothing"] * len(dialogues)
        same: dict[tuple[str, ...], list[int]] = {}  # the same turns are read once
        for i in spoken:
            same.setdefault(tuple(dialogues[i].user_turns), []).append(i)
        written = self.generator.write([dialogues[own[0]] for own in same.values()])
        for own, one in zip(same.values(), written, strict=True):
            for i in own:
                texts[i], errors[i] = one.text, one.error
        closeness = half_cosines(profiles, texts, self.encoder)
        human = self._human([d.user_turns for d in dialogues])
        out = []
        for cosines, said, text, error in zip(closeness, human, texts, errors, strict=True):
            cosines = (math.nan, math.nan) if error else cosines
            out.append(Terms(*map(float, cosines), tuple(said), text, error))
        return out

    def _human(self, turns: Sequence[Sequence[str]]) -> list[list[float]]:
        if self.detector is None:
            return [[math.nan] * len(t) for t in turns]
        flat = iter(self.detector.probabilities([t for each in turns for t in each]).tolist())
        return [[next(flat) for _ in each] for each in turns]


def half_cosines(
    targets: Sequence[str], others: Sequence[str], encoder: str = "minilm"
) -> np.ndarray:
    """Cosines of the objective and of the subjective halves of two profiles each, shape (n, 2), -1 to 1.

    NaN for a half that the target lacks; 0 for one that only the other lacks, which says nothing of it.
    """
    halves = [[split_profile(p) for p in side] for side in (targets, others)]
    vectors = [
        [meaning(sentence_encoder(encoder), [[h[k]] for h in side]) for k in (0, 1)]
        for side in halves
    ]
    out = np.stack([cosine(a, b) for a, b in zip(*vectors, strict=True)], axis=1)
    missing = np.array([[not part for part in h] for h in halves[0]])
    return np.where(missing.reshape(-1, 2), np.nan, np.nan_to_num(out, nan=0.0))
