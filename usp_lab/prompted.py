"""Language models behind an endpoint as users: prompted ones, and UserLM (arXiv 2510.06552).

    client = Client(Endpoint("http://localhost:8000/v1", "some-chat-model"))
    PromptedUser(client, "roleplay")
    UserLMSimulator(client)

What they are told is in ``baselines.toml``. None of them has a stand-in here: without an endpoint
they are refused.
"""

import re
from collections.abc import Mapping, Sequence

from usp_lab.at_endpoint import AtEndpoint
from usp_lab.chat import END_TOKEN, Message, profile_of, system_message, with_profile
from usp_lab.data import Dialogue
from usp_lab.decoding import Sampling
from usp_lab.endpoint_client import Client
from usp_lab.errors import UspError
from usp_lab.persona import read_persona
from usp_lab.roleplay import texts

USERLM_END = "<|endconversation|>"
_GIVEN = {
    "roleplay": "the target's profile, in a prompt to role-play it",
    "no_profile": "a prompt to go on as a user, and the target's true first turn; no profile",
    "character": "the target's profile, in a prompt to play it as an actor would",
}


class _OfClient(AtEndpoint):
    """A baseline at an endpoint that is given."""

    def __init__(self, client: Client | None, name: str, sampling: Sampling | None) -> None:
        if client is None:
            raise UspError(
                f"arm {name!r} is a language model at an endpoint and none is given; pass "
                "client=Client(Endpoint(url, model)), or leave this arm out"
            )
        super().__init__(client, sampling or Sampling(max_new_tokens=256))
        self.name = name


class PromptedUser(_OfClient):
    """A chat model that is told to be a user; roles are swapped, since it can only write assistant turns.

    Args:
        client: an `endpoints.Client`.
        kind: "roleplay" (arm ``roleplay``), "no_profile" (starts from the true first turn) or
            "character".
        sampling: of each turn; up to 256 tokens when None.

    Raises:
        UspError: no client, or an unknown kind.
    """

    def __init__(self, client, kind: str = "roleplay", sampling=None) -> None:
        if kind not in _GIVEN:
            raise UspError(f"no prompted user {kind!r}; choose one of {', '.join(_GIVEN)}")
        super().__init__(client, kind, sampling)
        self.kind, self.given = kind, _GIVEN[kind]

    def __repr__(self) -> str:
        told = [texts()["prompted"][k] for k in (self.kind, "kick_off", "ending")]
        return f"PromptedUser({self.client.endpoint.model!r}, {self.sampling}, {told})"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the profile's system message, or (``no_profile``) the target's true first turn.

        Raises:
            UspError: a target that lacks it.
        """
        if self.kind == "no_profile":
            if isinstance(target, str) or not target.messages:
                raise UspError(
                    "the prompted user without profile starts from a true first turn; give "
                    "dialogues, not profiles, as targets"
                )
            return [{"role": "user", "content": target.opening}]
        profile = target.profile if isinstance(target, Dialogue) else target
        if profile is None:
            raise UspError(f"{target.id} has no profile, which arm {self.name!r} is told; give one")
        return [system_message(profile)]

    def prompt(self, messages: Sequence[Message]) -> list[Message]:
        """Return what the chat model reads: its instructions, then the dialogue with roles swapped."""
        told = texts()["prompted"]
        instructions = told[self.kind].strip().replace("{profile}", profile_of(messages) or "")
        swapped = {"user": "assistant", "assistant": "user"}
        return [
            {"role": "system", "content": f"{instructions} {told['ending']}"},
            {"role": "user", "content": told["kick_off"]},
            *(
                {"role": swapped[m["role"]], "content": m["content"]}
                for m in with_profile(messages, None)
            ),
        ]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Write the next turn of each dialogue."""
        return [
            _user_turn(self.client.chat(self.prompt(m), self.sampling, s))
            for m, s in zip(batch, seeds, strict=True)
        ]


class UserLMSimulator(_OfClient):
    """UserLM-8b or a model trained like it: a user model that is given an intent and knows an end token.

    Its prompt is Llama-3's format with the intent as system message and a user header opened, sent
    to ``/v1/completions``. ``<|endconversation|>`` alone, or an empty turn, is the end.

    Args:
        client: an `endpoints.Client`.
        intents: intent by target id; read out of the profile's task sentence when None.
        sampling: of each turn; up to 256 tokens when None.

    Raises:
        UspError: no client.
    """

    completions = True
    given = "the target's intent (what the user wants, not who the user is), and an end token"

    def __init__(self, client, intents: Mapping[str, str] | None = None, sampling=None) -> None:
        super().__init__(client, "userlm", sampling)
        self.intents = intents

    def __repr__(self) -> str:
        intents = sorted(self.intents.items()) if self.intents is not None else "from profiles"
        return f"UserLMSimulator({self.client.endpoint.model!r}, {self.sampling}, {intents})"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the intent as a system message.

        Raises:
            UspError: no intent is given or to be read.
        """
        if self.intents is None:
            return [{"role": "system", "content": intent_of(target)}]
        name = target.id if isinstance(target, Dialogue) else target
        if name not in self.intents:
            raise UspError(f"no intent for target {name[:40]!r}; add it to intents")
        return [{"role": "system", "content": self.intents[name]}]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """Write the next turn of each dialogue, `END_TOKEN` where the model ends it."""
        from usp_lab.endpoints import render

        out = []
        for messages, seed in zip(batch, seeds, strict=True):
            text = self.client.complete(
                render(messages), self.sampling, ["<|eot_id|>"], seed, may_be_empty=True
            )
            # Most servers leave special tokens out: an end token alone comes as an empty text.
            out.append(_user_turn(text) if text.strip() else END_TOKEN)
        return out


def intent_of(target: "Dialogue | str") -> str:
    """Return what a user wants, from the profile's task sentence, in UserLM's form.

    Raises:
        UspError: the profile names no request.
    """
    profile = target.profile if isinstance(target, Dialogue) else target
    persona = read_persona(profile or "")
    if not persona.wants and not persona.topic:
        name = target.id if isinstance(target, Dialogue) else "the profile"
        raise UspError(
            f"{name} says no request that an intent could be made of; give UserLMSimulator intents, "
            "one by target id"
        )
    about = f" about {persona.topic}" if persona.topic else ""
    if not persona.wants:
        return f"You are a user who wants advice{about}."
    return f"You are a user who has questions{about}: {'; '.join(persona.wants)}."


def _user_turn(text: str) -> str:
    """Return a completion's first turn: no speaker's name in front, no quotes around; or the end."""
    text = text.partition("<|eot_id|>")[0]
    text, ended, _ = text.partition(USERLM_END)
    text = re.sub(r"^\s*(?:\[?(?:user|human|me)\]?\s*:)\s*", "", text, flags=re.IGNORECASE).strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        text = text[1:-1].strip()
    return END_TOKEN if ended and not text else text
