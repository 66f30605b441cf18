"""The simulators that users would otherwise pick, under one protocol, and `arm`, which makes any by its name.

    arm("retrieval", train=corpus.train)                 # the nearest real turn
    arm("shuffled", model="runs/usp", targets=targets)   # our model, another user's profile
    from_function(lambda profile, messages, rng: None if messages else "hi", "mine", "the profile")

Each has a ``name``, says in ``given`` what it is told, and has ``start`` and ``generate`` (see
`simulators`). Same seed, same turns; another seed, others.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from usp_lab.arms import another_user, profiles_for
from usp_lab.chat import Message, Utterance, profile_of, system_message, with_profile
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.prompted import PromptedUser, UserLMSimulator
from usp_lab.retrieval import RetrievalSimulator
from usp_lab.roleplay import RoleplayStandIn
from usp_lab.simulators import UserSimulator

__all__ = [
    "ARMS",
    "PromptedUser",
    "Replayed",
    "RetrievalSimulator",
    "RoleplayStandIn",
    "ToldSimulator",
    "UserLMSimulator",
    "arm",
    "from_function",
]

_LEFT = {"left": True}
# Arm -> what `arm` needs to make it.
ARMS = {
    "usp": "model",
    "usp_end": "model",
    "plato": "model",
    "shuffled": "model and targets",
    "empty": "model and targets",
    "retrieval": "train",
    "roleplay": "nothing (a scripted stand-in), or client",
    "no_profile": "client",
    "character": "client",
    "userlm": "client",
    "twin": "targets of the population",
    "other": "targets",
}


class Replayed:
    """Speaks the user turns of given dialogues in order, whatever the assistant says: arms ``other``, ``twin``.

    Args:
        dialogues: to speak for their own ids; or by target id one or several, of which the seed of
            the first turn chooses.
        name: the arm's.
        given: what it is told.

    Raises:
        UspError: no dialogue, or one without a user turn.
    """

    def __init__(
        self,
        dialogues: "Sequence[Dialogue] | Mapping[str, Dialogue | Sequence[Dialogue]]",
        name: str = "replayed",
        given: str = "a real dialogue's user turns, in order; it hears nothing",
    ) -> None:
        if not isinstance(dialogues, Mapping):
            dialogues = {d.id: d for d in dialogues}
        self.dialogues = {
            t: [d] if isinstance(d, Dialogue) else list(d) for t, d in dialogues.items()
        }
        if not self.dialogues:
            raise UspError("no dialogue to replay; give at least one")
        for target, choice in self.dialogues.items():
            if not choice or not all(d.user_turns for d in choice):
                raise UspError(f"target {target!r} has no user turn to replay; give it a dialogue")
        self.name, self.given = name, given

    def __repr__(self) -> str:
        turns = sorted((t, [d.user_turns for d in ds]) for t, ds in self.dialogues.items())
        return f"Replayed({self.name}, {hashlib.sha256(repr(turns).encode()).hexdigest()[:12]})"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return a message that carries which target it is.

        Raises:
            UspError: a target that nothing is to be replayed for.
        """
        name = target.id if isinstance(target, Dialogue) else target
        if name not in self.dialogues:
            raise UspError(f"no dialogue to replay for target {name[:40]!r}; give one for its id")
        return [{"role": "system", "content": "", "meta": {"target": name}}]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Return each dialogue's next turn, leaving when there is none.

        The first turn's ``meta`` says which dialogue was chosen.
        """
        return [self._next(m, s) for m, s in zip(batch, seeds, strict=True)]

    def _next(self, messages: Sequence[Message], seed: int) -> Utterance:
        choice = self.dialogues[messages[0]["meta"]["target"]]
        said = [m for m in messages if m["role"] == "user"]
        if said:
            i = said[0]["meta"]["replays"]
        else:
            i = Random(f"replay/{seed}").randrange(len(choice))
        turns = choice[i].user_turns[len(said) :]
        meta = {} if said else {"replays": i}
        return Utterance(turns[0], meta) if turns else Utterance("", _LEFT)


class ToldSimulator(UserSimulator):
    """A user simulator that is told other profiles than its targets': arms ``shuffled``, ``empty``."""

    def __init__(
        self, simulator: UserSimulator, profiles: Mapping[str, str], name: str, given: str
    ) -> None:
        super().__init__(simulator.model, simulator.tokenizer, simulator.sampling, name)
        self.profiles, self.given = dict(profiles), given

    @property
    def identity(self) -> str:
        """What decides its turns: the model's own, and the profiles told."""
        return f"{super().identity} {sorted(self.profiles.items())}"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the system message with the profile that is told in place of the target's.

        Raises:
            UspError: a target that it has no profile for.
        """
        name = target.id if isinstance(target, Dialogue) else target
        if name not in self.profiles:
            raise UspError(
                f"arm {self.name!r} has no profile to tell for target {name[:40]!r}; make it with "
                "the targets of the run"
            )
        return [system_message(self.profiles[name])]


class FunctionSimulator:
    """One's own simulator as one function; see `from_function`."""

    def __init__(self, function: Callable, name: str, given: str) -> None:
        self.function, self.name, self.given = function, name, given

    def __repr__(self) -> str:
        try:
            code = inspect.getsource(self.function)
        except (OSError, TypeError):  # typed at a prompt, or built in
            code = repr(getattr(self.function, "__code__", self.function.__class__.__qualname__))
            code = code.split(" at 0x")[0]
        return f"FunctionSimulator({self.name!r}, {hashlib.sha256(code.encode()).hexdigest()[:12]})"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the profile's system message; an empty one without a profile."""
        profile = target.profile if isinstance(target, Dialogue) else target
        return [{"role": "system", "content": ""} if profile is None else system_message(profile)]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Ask the function for the next turn of each dialogue; its None is leaving.

        Raises:
            UspError: it returned something that is no text.
        """
        out = []
        for messages, seed in zip(batch, seeds, strict=True):
            rng = Random(f"function/{seed}")
            text = self.function(profile_of(messages), with_profile(messages, None), rng)
            if not isinstance(text, str | None):
                raise UspError(
                    f"simulator {self.name!r} returned {text!r:.60}; return the turn as a str, or "
                    "None to leave"
                )
            out.append(Utterance("", _LEFT) if text is None else text)
        return out


def from_function(
    function: Callable[[str | None, list[Message], Random], str | None], name: str, given: str
) -> FunctionSimulator:
    """Make a simulator of one function.

    Args:
        function: ``f(profile, messages, rng)`` -> the next user turn, None to leave, or
            `chat.END_TOKEN`. ``profile`` is the target's or None; ``messages`` are the turns so far,
            none at the opening; draw from ``rng`` alone, a `random.Random` of that turn's own.
        name: the arm's.
        given: one line on what it is told, e.g. "the target's profile".

    What the function reads besides is no part of a run's identity: change ``name`` with it.
    """
    return FunctionSimulator(function, name, given)


def arm(
    name: str,
    *,
    model: "str | Path | UserSimulator | None" = None,
    train: Sequence[Dialogue] | None = None,
    targets: Sequence[Dialogue] | None = None,
    client=None,
    draws: int = 3,
    seed: int = 0,
):
    """Make the simulator of any arm by its fixed name (`ARMS` says what each needs).

    Args:
        name: a key of `ARMS`.
        model: a folder, embedded name or hub id of a user simulator, or one that is loaded; for
            "plato" one that was trained without profiles.
        train: real dialogues to retrieve from.
        targets: of the run.
        client: an `endpoints.Client`.
        draws: "twin", "other": from how many dialogues a target's is chosen.
        seed: "shuffled", "other": which other user.

    Raises:
        UspError: an unknown name, or what the arm needs is missing.
    """
    if name not in ARMS:
        raise UspError(f"no arm {name!r}; known: {', '.join(ARMS)}")
    have = {"model": model, "train": train, "targets": targets}
    for what, value in have.items():
        if value is None and what in ARMS[name].split():
            raise UspError(f"arm {name!r} needs {ARMS[name]}; no {what} given")
    if name in ("no_profile", "character") or (name == "roleplay" and client is not None):
        return PromptedUser(client, name)
    if name == "userlm":
        return UserLMSimulator(client)
    if name == "roleplay":
        return RoleplayStandIn()
    if name == "retrieval":
        return RetrievalSimulator(train)
    if name in ("twin", "other"):
        return _replayed(name, targets, draws, seed)
    if not isinstance(model, UserSimulator):
        model = UserSimulator.from_pretrained(model, name=name, with_profile=name != "plato")
    if name in ("usp", "usp_end", "plato"):
        return model
    told = dict(zip((t.id for t in targets), profiles_for(name, targets, seed), strict=True))
    given = "another user's profile" if name == "shuffled" else "an empty profile"
    return ToldSimulator(model, told, name, given)


def _replayed(name: str, targets: Sequence[Dialogue], draws: int, seed: int) -> Replayed:
    from usp_lab.synthetic import twin

    if draws < 1:
        raise UspError(f"draws must be at least 1, not {draws}")
    if name == "other":
        # A partner may come twice where there are few users; one's own dialogue never does.
        partners = [another_user(targets, seed + k) for k in range(draws)]
        others = {
            t.id: list({p[i]: targets[p[i]] for p in partners}.values())
            for i, t in enumerate(targets)
        }
        return Replayed(others, name, "nothing of the target: real turns of another user, in order")
    for t in targets:
        if not t.truth:
            raise UspError(f"{t.id} is not of the population; only its users can be drawn again")
    twins = {t.id: [twin(t, k + 1) for k in range(draws)] for t in targets}
    given = "turns of another draw of the target's user and goals, in order; it hears nothing"
    return Replayed(twins, name, given)
