"""The scripted stand-in for LLM role-play: recites its profile, embellishes, praises, never stops.

    RoleplayStandIn().generate([[system_message(profile)]], seeds=[0])

It is a caricature of what prompted language models do as users (paper arXiv 2502.18968, case
studies): a reference arm that needs no endpoint, and that is no language model.
"""

import re
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from random import Random

from usp_lab.chat import Message, Utterance, profile_of, system_message
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.persona import Fact, read_persona

_ECHO, _RECITE, _AGAIN, _EMBELLISH, _SECOND_FACT, _MORE = 0.45, 0.7, 0.4, 0.4, 0.5, 0.6
_FAILURES = {"vague", "refuse", "rude", "wrong"}  # kinds of scripted replies that do not help

# Words that open half a sentence, which nobody would quote.
_HALF = re.compile(
    r"(as|if|when|until|unless|after|before|once|while|for|from|in|on|at|up|with|only|since|because|although|"
    r"and|but|or|then|so|that|which|who)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=1)
def texts() -> dict:
    """Return the tables of what scripted baselines say (``baselines.toml``)."""
    path = resources.files("usp_lab") / "baselines.toml"
    return tomllib.loads(path.read_text("utf-8"))


class RoleplayStandIn:
    """Arm ``roleplay`` without an endpoint: a script, not a language model.

    Opens by reciting its profile, asks for what the profile says it wants, one thing a turn, thanks
    and praises whatever the assistant does, and once its requests are out goes on thanking.
    """

    name = "roleplay (scripted stand-in)"
    given = "the target's profile, which it recites (a scripted stand-in, no language model)"

    def __repr__(self) -> str:
        return f"RoleplayStandIn({texts()['roleplay']})"

    def start(self, target: "Dialogue | str") -> list[Message]:
        """Return the profile's system message.

        Raises:
            UspError: a target without a profile.
        """
        profile = target.profile if isinstance(target, Dialogue) else target
        if profile is None:
            raise UspError(
                f"{target.id} has no profile, which the role-play stand-in recites; give targets "
                "with profiles or leave this arm out"
            )
        return [system_message(profile)]

    def generate(self, batch: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Utterance]:
        """Write the next turn of each dialogue.

        ``meta`` says what was done: ``act`` ("open", "ask", "elaborate", "thank"), and the spans of
        the text that recite the profile or praise the assistant.
        """
        return [
            _Turn(m, Random(f"roleplay/{s}")).write() for m, s in zip(batch, seeds, strict=True)
        ]


class _Turn:
    """One turn in the making."""

    def __init__(self, messages: Sequence[Message], rng: Random) -> None:
        self.persona = read_persona(profile_of(messages) or "")
        self.users = [m["content"] for m in messages if m["role"] == "user"]
        replies = [m for m in messages if m["role"] == "assistant"]
        self.reply = replies[-1] if replies else None
        self.said = " ".join(self.users).lower()
        self.rng, self.parts, self.recites, self.praises = rng, [], [], []
        self.table = texts()["roleplay"]

    def write(self) -> Utterance:
        turn, wants = len(self.users), self.persona.wants
        if not turn:
            act = "open"
            self.parts.append(self._fresh("greeting"))
            self._recite()
            if self.rng.random() < _SECOND_FACT:
                self._recite()
            self._embellish()
            self._ask(wants[0] if wants else None, first=True)
        elif turn < max(len(wants), 2):
            act = "ask"
            self._praise()
            if self.rng.random() < _RECITE:
                self._recite()
                self._embellish()
            self._ask(wants[turn] if turn < len(wants) else None, first=False)
        elif not self._thanking() and self.rng.random() < _MORE:
            act = "elaborate"
            self._praise()
            self._recite(again=True)
            title = self.rng.choice(wants or [self.persona.topic or "all this"])
            self.parts.append(self._fresh("elaborate", title=title))
        else:
            act = "thank"  # from a small table, with no eye to what was said: it goes round in circles
            self.parts = [self.rng.choice(self.table["thank"])]
            self.praises.append(self.parts[0])
            if self.rng.random() < _AGAIN:
                self._recite(again=True)
        return Utterance(
            " ".join(self.parts), {"act": act, "recites": self.recites, "praises": self.praises}
        )

    def _thanking(self) -> bool:
        """Tell whether the last turn was thanks alone, which nothing stops any more."""
        return any(t in self.users[-1] for t in self.table["thank"])

    def _fresh(self, key: str, **slots: str) -> str:
        """Fill a frame that the dialogue has not heard yet, while there is one."""
        frames = [f for f in self.table[key] if slots.get("topic", "") or "{topic}" not in f]
        new = [f for f in frames if max(re.split(r"\{\w+\}", f), key=len).lower() not in self.said]
        text = self.rng.choice(new or frames)
        for name, value in slots.items():
            text = text.replace(f"{{{name}}}", value)
        self.said += " " + text.lower()
        return text[:1].upper() + text[1:]

    def _recite(self, again: bool = False) -> None:
        facts = self.persona.facts
        new = [f for f in facts if not self._told(f)]
        if again and facts:
            old = [f for f in facts if f not in new] or facts
            text = self._fresh("again", clause=self.rng.choice(old).clause)
        elif not new:
            return
        else:
            fact = new[0] if self.rng.random() < 0.6 else self.rng.choice(new)
            forms = [f for f in ("noun", "who") if getattr(fact, f)]
            form = self.rng.choice([*forms, *forms, "clause"])
            text = self._fresh(f"recite_{form}", **{form: getattr(fact, form)})
        self.recites.append(text)
        self.parts.append(text)

    def _told(self, fact: Fact) -> bool:
        forms = (fact.clause, f"who {fact.who}", f"as {fact.noun}", f"being {fact.noun}")
        return any(f.lower() in self.said for f in forms if not f.endswith(" "))

    def _embellish(self) -> None:
        if self.recites and self.rng.random() < _EMBELLISH:
            self.parts.append(self._fresh("embellish"))

    def _praise(self) -> None:
        failed = self.reply is not None and self.reply.get("meta", {}).get("kind") in _FAILURES
        self.parts.append(
            self._fresh("praise_failed" if failed and self.rng.random() < 0.6 else "praise")
        )
        quote = quotable(self.reply["content"]) if self.reply else None
        if quote and self.rng.random() < _ECHO:
            self.parts.append(self._fresh("echo", quote=quote))
        self.praises += self.parts[-2:]

    def _ask(self, title: str | None, first: bool) -> None:
        topic = self.persona.topic
        if title:
            key = "ask_first" if first else "ask_next"
            self.parts.append(self._fresh(key, title=title, topic=topic or ""))
        elif topic:
            self.parts.append(self._fresh("ask_topic", topic=topic))
        else:
            self.parts.append(self._fresh("ask_anything"))


def quotable(reply: str) -> str | None:
    """Return some words of a reply to quote back: its first run of 4 to 12 words, None without.

    >>> quotable("Sure. A full suit is only needed in banking; choose smart trousers.")
    'A full suit is only needed in banking'
    """
    for run in re.split(r"[.,;:!?\n]+\s*", reply):
        if (
            4 <= len(run.split()) <= 12
            and not _HALF.match(run)
            and not re.search(r"[\"#*`|<>$]", run)
        ):
            return run
    return None
