"""Who speaks: language models as users or as assistants, and the population's own user.

    sim = UserSimulator.from_pretrained("wangkevin02/USP")              # or a folder
    sim.generate([[system], [system, user, assistant]], seeds=[1, 2])   # -> an opening, a turn

A simulator has ``start(target) -> messages`` and ``generate(batch, seeds) -> turns``; an assistant
has ``reply(batch, seeds) -> replies``. One's own simulator is therefore one small class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from usp_lab.chat import END_TOKEN, Message, Utterance, system_message, token_ids, with_profile
from usp_lab.data import Dialogue
from usp_lab.engines import LocalEngine, Sampling
from usp_lab.errors import UspError
from usp_lab.models import Device, load_causal_lm, load_tokenizer, weights_fingerprint

_SAMPLING = tuple(f.name for f in fields(Sampling))


class ChatModel:
    """A causal language model that writes one side of a dialogue."""

    speaker: str
    options: tuple[str, ...] = ()
    embedded = ""  # the model of this kind that comes along

    def __init__(self, model, tokenizer, sampling: Sampling, name: str) -> None:
        self.model, self.tokenizer, self.sampling, self.name = model, tokenizer, sampling, name
        vocabulary = tokenizer.get_vocab()
        self.end_id: int | None = vocabulary.get(END_TOKEN)  # None: it knows no end of dialogue
        ends = model.generation_config.eos_token_id
        stops = {tokenizer.eos_token_id, vocabulary.get("<|eot_id|>")}
        stops.update(ends if isinstance(ends, list) else [ends])
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.engine = LocalEngine(model, pad, sorted(stops - {None}))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        weights: str | None = None,
        device: Device | None = None,
        name: str | None = None,
        **options,
    ):
        """Load from a folder or the hub.

        Args:
            path: folder or hub id with config, tokenizer, chat template and safetensors; the name of a model that comes
                along, or "embedded" for the one of this kind.
            weights: consent to a pickle file, by its name (see `models.load_causal_lm`).
            device: where to compute; picked when None.
            name: how results call it; the folder's name when None.
            options: the class's own (``with_profile``) or `Sampling` fields to override
                (``temperature=0`` is greedy).

        Raises:
            UspError: nothing there, pickles only, no chat template or one for the other role, an
                unknown option.
        """
        known = (*cls.options, *_SAMPLING)
        if unknown := sorted(options.keys() - set(known)):
            raise UspError(
                f"{cls.__name__} has no option {unknown[0]!r}; known: {', '.join(known)}"
            )
        path = cls.embedded if cls.embedded and str(path) == "embedded" else path
        tokenizer = load_tokenizer(path, cls.speaker)
        model = load_causal_lm(path, weights, device)
        own = {k: options.pop(k) for k in cls.options if k in options}
        penalty = model.generation_config.repetition_penalty or 1.0
        sampling = replace(Sampling(repetition_penalty=penalty), **options)
        return cls(model, tokenizer, sampling, name or Path(path).name, **own)

    @property
    def identity(self) -> str:
        """What decides its turns: weights, template, sampling."""
        template = self.tokenizer.chat_template
        return f"{weights_fingerprint(self.model)} {template} {self.sampling}"

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of messages with this speaker's header opened."""
        return token_ids(self.tokenizer, messages, generate=True)

    def room(self, messages: Sequence[Message]) -> int:
        """Return how many tokens are left in the context after the longest possible turn."""
        return self.engine.room(self.prompt(messages), self.sampling)

    def generate(
        self, batch: Sequence[Sequence[Message]], seeds: Sequence[int] | None = None
    ) -> list[str]:
        """Write the next turn of each dialogue; a system message alone is opened.

        Args:
            batch: dialogues as lists of messages.
            seeds: one number a dialogue. With them a turn depends on its dialogue and seed alone,
                whatever else is in the batch, greedy or sampled (in fp32; see `LocalEngine`).
                Without, draws come from torch's global generator: repeatable only for the same
                batch after the same `torch.manual_seed`.

        Raises:
            UspError: not a list of dialogues, not this speaker's turn, no room in the context.
        """
        if seeds is not None and len(seeds) != len(batch):
            raise UspError(
                f"{len(batch)} dialogues but {len(seeds)} seeds; give one seed per dialogue or none"
            )
        for i, messages in enumerate(batch):
            if isinstance(messages, dict | str) or not all(
                isinstance(m, dict) and m.keys() >= {"role", "content"} for m in messages
            ):
                raise UspError(
                    f"dialogue {i} is {str(messages)[:60]!r}; give a list of dialogues, each a "
                    "list of messages with role and content"
                )
            if messages and messages[-1]["role"] == self.speaker:
                raise UspError(
                    f"dialogue {i} already ends with a {self.speaker} turn; the {self.speaker} can "
                    "only answer the other side"
                )
        prompts = [self.prompt(m) for m in batch]
        return [self.text(ids) for ids in self.engine.generate(prompts, seeds, self.sampling)]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a turn's token ids, `chat.END_TOKEN` where it ends the dialogue."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return END_TOKEN if self.end_id in ids and not text else text


class UserSimulator(ChatModel):
    """A language model that speaks as the user: USP's checkpoints, or ours."""

    speaker = "user"
    options = ("with_profile",)
    embedded = "usp-tiny"

    def __init__(
        self, model, tokenizer, sampling: Sampling, name: str, with_profile: bool = True
    ) -> None:
        super().__init__(model, tokenizer, sampling, name)
        self.with_profile = with_profile
        self.given = "the target's profile" if with_profile else "the target's true first turn"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the messages a dialogue starts from: the profile's system message, or (without
        profiles) the target's true first turn."""
        if isinstance(target, str):
            target = Dialogue(id="profile", messages=[], profile=target)
        if self.with_profile:
            if target.profile is None:
                raise UspError(
                    f"{target.id} has no profile; give one, or use a simulator trained without "
                    "(with_profile=False)"
                )
            return [system_message(target.profile)]
        if not target.messages:
            raise UspError(
                "a simulator without profiles starts from a true first turn; give dialogues, not "
                "profiles, as targets"
            )
        return [{"role": "user", "content": target.opening}]


class ModelAssistant(ChatModel):
    """A language model that speaks as the assistant; ``reply`` is its side of the loop."""

    speaker = "assistant"

    def reply(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Answer the last user turn of each dialogue. The user's profile is not shown to it."""
        return self.generate([with_profile(m, None) for m in batch], seeds)


class EachItsOwn:
    """Another assistant for each target, in one run: no batch falls apart by who answers.

    Args:
        assistants: target's id -> who answers it; of those that compute in this process and are no language model.
    """

    by_target = True

    def __init__(self, assistants: Mapping[str, object]) -> None:
        self.assistants = dict(assistants)

    def __repr__(self) -> str:
        return f"EachItsOwn({sorted((i, identity(a)) for i, a in self.assistants.items())})"

    def reply(
        self, batch: Sequence[Sequence[Message]], seeds: Sequence[int], targets: Sequence[Dialogue]
    ) -> list[str]:
        """Answer the last user turn of each dialogue, by its target's own assistant."""
        groups: dict[object, list[int]] = {}
        for i, target in enumerate(targets):
            groups.setdefault(self.assistants[target.id], []).append(i)
        turns = [""] * len(targets)
        for who, own in groups.items():
            said = who.reply([batch[i] for i in own], [seeds[i] for i in own])
            for i, text in zip(own, said, strict=True):
                turns[i] = text
        return turns


class TwinSimulator:
    """The population's own user, told the target's z and goals.

    Against the same assistant it is the arm ``twin``.
    """

    name = "twin"
    given = "who the target's user is and wants, from the population's truth"

    def start(self, target: Dialogue) -> list[Message]:
        """Return an opening that carries the target's hidden task."""
        from usp_lab.synthetic import task_of

        return [{"role": "system", "content": "", "meta": {"task": task_of(target)}}]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Speak as the user of each dialogue's task; an empty text is leaving without a word."""
        from usp_lab.speaker import PopulationUser

        turns = [
            PopulationUser(m[0]["meta"]["task"]).next(m[1:], f"twin/{s}")
            for m, s in zip(batch, seeds, strict=True)
        ]
        return [Utterance("", {"left": True}) if t is None else t for t in turns]


def identity(speaker) -> str:
    """Return what decides a speaker's turns, the same in every process."""
    if isinstance(speaker, ChatModel):
        return f"{type(speaker).__name__} {speaker.identity}"
    kind = type(speaker)
    has_repr = kind.__repr__ is not object.__repr__  # the default one is an address
    return repr(speaker) if has_repr else f"{kind.__module__}.{kind.__qualname__}"
