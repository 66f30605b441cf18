"""One person of the known-truth population, speaking: asks, reacts, lets attributes slip, leaves.

The generative model of a dialogue, given z and a task (topic, ordered goals): turn by turn the user
takes up, doubts or pushes back on the last reply, asks for the next unmet goal in one of many
phrasings, adds asides that show attributes without naming them, and leaves with a hazard that
depends on patience, goals met and annoyance. `surface.render` types it in the user's manner.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from usp_lab.assistants import FAILURES
from usp_lab.chat import Message, Utterance
from usp_lab.goals import fill, goal_of
from usp_lab.surface import render
from usp_lab.users import tables
from usp_lab.wording import Part, Task, add_filler, asides, lower_first

MAX_TURNS = 12
_REGISTERS = ("blunt", "plain", "roundabout")
# By length: how often an opening has 0, 1 or 2 asides, a later turn one; "Another question for you."
# before a request; a word on a helpful reply before going on; courtesies around the first request.
_OPENING_ASIDES = {"terse": (75, 25, 0), "medium": (42, 53, 5), "wordy": (0, 45, 55)}
_LATER_ASIDE = {"terse": 0.08, "medium": 0.24, "wordy": 0.6}
_LEAD_IN = {"terse": 0.05, "medium": 0.2, "wordy": 0.45}
_TAKE_UP = {"terse": 0.35, "medium": 0.8, "wordy": 0.95}
_TONE = {"terse": 0.15, "medium": 0.35, "wordy": 0.6}
_TITLED = 0.7  # how often a request names its goal by title ("Could you tell me how to ...?")
_BASE_HAZARD = {"short": 0.05, "medium": 0.025, "long": 0.01}
_ANNOYED_HAZARD = {"short": 0.35, "medium": 0.18, "long": 0.08}  # per request left unhelped
_SAYS_BYE = {"curt": 0.5, "friendly": 0.85, "formal": 0.95}
_SAYS_THANKS = re.compile(r"thank|cheers", re.IGNORECASE)


@dataclass
class _State:
    """What the user has in mind, read back from the dialogue so far."""

    left: list[str]
    asked: list[str] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)  # attributes: each slips out once a dialogue
    said: set[str] = field(default_factory=set)  # phrasings: nobody likes to repeat himself
    annoyance: int = 0
    reply: dict = field(default_factory=dict)
    turns: int = 0

    @property
    def helped(self) -> bool:
        """Tell whether the last reply was of use."""
        return self.reply["kind"] not in FAILURES


class PopulationUser:
    """The population's own user as a simulator: the arm ``twin`` if given another one's task.

    Speaks with scripted assistants only, whose ``meta`` says whether they helped.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def hazard(self, state: _State) -> float:
        """Return the probability that the user leaves now, in place of another turn."""
        z = self.task.z
        if not state.turns:
            return 0.0
        if state.turns >= MAX_TURNS:
            return 1.0
        if not state.left:
            return 0.9 if state.helped else 0.97
        stay = (1 - _BASE_HAZARD[z["patience"]]) * (
            1 - _ANNOYED_HAZARD[z["patience"]]
        ) ** state.annoyance
        return 1 - stay * (0.9 if state.turns > 6 else 1.0)

    def next(self, messages: Sequence[Message], seed: str) -> Utterance | None:
        """Return the user's next turn, or None when the user leaves without a word."""
        state = self._state(messages)
        rng = Random(f"user/{seed}/{state.turns}")
        hazard = self.hazard(state)
        meta = {"hazard": hazard, "goal": None, "acts": [], "shows": [], "said": []}
        if rng.random() < hazard:
            kind, parts = self._goodbye(state, rng)
            return self._say(parts, meta | {"acts": [kind]}, state, rng) if parts else None
        if not state.turns:
            return self._open(state, meta, rng)
        return self._go_on(state, meta, rng)

    def hazard_now(self, messages: Sequence[Message]) -> float:
        """Return the hazard at this point of a dialogue."""
        return self.hazard(self._state(messages))

    def _state(self, messages: Sequence[Message]) -> _State:
        state = _State(left=list(self.task.goals))
        for m in messages:
            meta = m.get("meta", {})
            if m["role"] == "user":
                state.turns += 1
                state.shown.update(s["attr"] for s in meta["shows"])
                state.said.update(meta["said"])
                state.asked += [meta["goal"]] if meta["goal"] else []
            elif m["role"] == "assistant":
                state.reply = meta
                state.annoyance = (
                    max(0, state.annoyance - 1) if state.helped else state.annoyance + 1
                )
                state.met += meta["met"]
                state.left = [g for g in state.left if g not in meta["met"]]
        return state

    # --- what is said ---------------------------------------------------------------------------

    def _open(self, state: _State, meta: dict, rng: Random) -> Utterance:
        z, tone = self.task.z, tables()["requests"].get(self.task.z["politeness"], {})
        parts = [self._ask(state.left[0], state, rng)]
        announced = z["opening"] == "quick_question"  # what follows these words is the question
        if "start" in tone and not announced and rng.random() < _TONE[z["length"]]:
            parts.insert(0, Part("tone", rng.choice(self.task.phrases(tone["start"], 0.2))))
        n = rng.choices((0, 1, 2), _OPENING_ASIDES[z["length"]])[0]
        shows = self._shows(state, rng, n)
        place = 1 if announced else rng.randrange(2)
        for s in shows:
            parts.insert(0 if place == 0 else len(parts), Part("aside", s["text"]))
            place = 1 if announced else 1 - place
        if "end" in tone and rng.random() < _TONE[z["length"]]:
            parts.append(Part("tone", rng.choice(self.task.phrases(tone["end"], 0.2))))
        elif z["signoff"] != "none" and rng.random() < 0.5:
            parts.append(Part("sign", self._word("signoff", rng)))
        return self._say(
            parts, meta | {"goal": state.left[0], "acts": ["open"], "shows": shows}, state, rng
        )

    def _go_on(self, state: _State, meta: dict, rng: Random) -> Utterance:
        z, reply = self.task.z, state.reply
        if not state.helped:
            parts, acts, goal = self._push_back(state, rng)
        elif self._curious(reply, rng):
            goal, answer = reply["goal"], _answer(reply)
            parts, acts = [Part("ask", fill(answer["follow"]["ask"], reply["slots"]))], ["follow"]
        else:
            parts, acts = (
                self._take_up(reply, state, rng)
                if rng.random() < _TAKE_UP[z["length"]]
                else ([], [])
            )
            goal = self._next_goal(state, rng)
            if rng.random() < _LEAD_IN[z["length"]]:
                parts.append(Part("tone", self._react("next", state, rng)))
            parts.append(self._ask(goal, state, rng, later=True))
            acts.append("ask")
        shows = self._shows(state, rng, int(rng.random() < _LATER_ASIDE[z["length"]]))
        parts += [Part("aside", s["text"]) for s in shows]
        return self._say(parts, meta | {"goal": goal, "acts": acts, "shows": shows}, state, rng)

    def _push_back(self, state: _State, rng: Random) -> tuple[list[Part], list[str], str]:
        """React to a reply that did not help: insist, rephrase, or let a failed follow-up be."""
        goal = state.asked[-1]
        kind = {"wrong": "wrong", "rude": "rude_back"}.get(state.reply["kind"], "push")
        kind = "annoyed" if state.annoyance > 1 and rng.random() < 0.65 else kind
        react = Part("react", self._react(kind, state, rng))
        if goal in state.met:
            goal = self._next_goal(state, rng)
            return [react, self._ask(goal, state, rng, later=True)], [kind, "ask"], goal
        if rng.random() < 0.5:
            insists = self._ask(goal, state, rng, registers=("push",))
            if self.task.z["length"] == "terse" and rng.random() < 0.5:
                return [insists], ["push", "insist"], goal
            return [react, insists], [kind, "insist"], goal
        return (
            [react, self._ask(goal, state, rng, later=rng.random() < 0.3)],
            [kind, "rephrase"],
            goal,
        )

    def _curious(self, reply: dict, rng: Random) -> bool:
        """Tell whether the user asks a follow-up question on this very answer."""
        z = self.task.z
        curious = {"low": 0.15, "mid": 0.25, "high": 0.4}[z["conscientiousness"]] * (
            0.6 if z["length"] == "terse" else 1
        )
        return self._on_goal(reply) and rng.random() < curious

    def _on_goal(self, reply: dict) -> bool:
        slots = self.task.slots
        return (
            reply["kind"] == "answer"
            and reply["topic"] == self.task.topic
            and reply["goal"] in self.task.goals
            and all(reply["slots"].get(k) == v for k, v in slots.items())
        )

    def _take_up(self, reply: dict, state: _State, rng: Random) -> tuple[list[Part], list[str]]:
        if self._on_goal(reply) and rng.random() < 0.7:
            doubt = (
                rng.random() < {"low": 0.15, "mid": 0.2, "high": 0.3}[self.task.z["neuroticism"]]
            )
            text = _answer(reply)["doubts"][0] if doubt else rng.choice(_answer(reply)["picks"])
            return [Part("take", fill(text, reply["slots"]))], ["doubt" if doubt else "pick"]
        return [Part("ack", self._react("ack", state, rng))], ["ack"]

    def _next_goal(self, state: _State, rng: Random) -> str:
        """Return the next goal on the user's mind, or another of the topic once all are met."""
        if state.left:
            return state.left[0]
        others = [
            g["key"]
            for g in tables()["topics"][self.task.topic]["goal"]
            if g["key"] not in state.met
        ]
        return rng.choice(others or list(self.task.goals))

    def _ask(
        self,
        key: str,
        state: _State,
        rng: Random,
        later: bool = False,
        registers: Sequence[str] = (),
    ) -> Part:
        """Word a request: ``registers`` first, then the user's own; what has not been said yet."""
        z, goal = self.task.z, goal_of(self.task.topic, key)
        own = z["directness"] if rng.random() < 0.85 else rng.choice(_REGISTERS)
        if own == "roundabout" and z["length"] == "terse":
            own = "blunt"
        first = ["later"] if later and rng.random() < 0.6 else []
        titled = rng.random() < _TITLED
        if titled and z["length"] != "medium" and rng.random() < 0.7:  # a title has one length
            own = {"terse": "blunt", "wordy": "roundabout"}[z["length"]]
        for register in (*registers, *first, own, "plain", "blunt"):
            texts = self._titled(register, goal) if titled else self.task.phrases(goal[register])
            fresh = [t for t in texts if t not in state.said]
            if fresh:
                break
        text = self._of_length(fresh or self.task.phrases(goal[own]), rng)
        state.said.add(text)
        if z["politeness"] == "curt":
            text = re.sub(r",? please(?=[.?!,])", "", text)
        return Part("ask", fill(text, self.task.slots))

    def _titled(self, register: str, goal: dict) -> list[str]:
        frames = self.task.phrases(tables()["requests"]["ask"][register], 0.2)
        return [f.replace("{title}", goal["title"]) for f in frames]

    def _of_length(self, texts: Sequence[str], rng: Random) -> str:
        """Draw a phrasing: the terse take the shorter of two, the wordy the longer."""
        two = rng.choices(texts, k=2)
        return {"terse": min, "medium": lambda t, key: t[0], "wordy": max}[self.task.z["length"]](
            two, key=len
        )

    def _react(self, kind: str, state: _State, rng: Random) -> str:
        texts = self.task.phrases(
            tables()["reactions"][kind][self.task.z["politeness"]]["text"], 0.2
        )
        text = rng.choice([t for t in texts if t not in state.said] or texts)
        state.said.add(text)
        return text

    def _shows(self, state: _State, rng: Random, n: int) -> list[dict]:
        """Draw up to n asides; each lets one attribute slip, on the topic where the tables can."""
        z, pool = self.task.z, {}
        for attribute, texts, weight in asides(self.task) if n else ():
            if attribute not in state.shown:
                pool.setdefault(attribute, []).append((texts, weight))
        out: list[dict] = []
        while pool and len(out) < n:
            attribute = rng.choices(
                list(pool), [max(w for _, w in options) for options in pool.values()]
            )[0]
            options = pool.pop(attribute)
            texts = rng.choices([t for t, _ in options], [w for _, w in options])[0]
            text = fill(
                rng.choice(self.task.phrases(texts, 0.2)), self.task.slots | {"place": z["place"]}
            )
            out.append({"attr": attribute, "value": z[attribute], "text": text})
        return out

    def _goodbye(self, state: _State, rng: Random) -> tuple[str, list[Part]]:
        z = self.task.z
        kind = "give_up" if not state.helped else "partly" if state.left else "done"
        if rng.random() >= _SAYS_BYE[z["politeness"]] * (1.0 if kind == "done" else 0.65):
            return kind, []
        parts = [Part("bye", self._react(kind, state, rng))]
        if kind != "give_up" and z["signoff"] != "none" and rng.random() < 0.4:
            word = self._word("signoff", rng)
            if not (_SAYS_THANKS.search(word) and _SAYS_THANKS.search(parts[0].text)):
                parts.append(Part("sign", word))
        return kind, parts

    # --- habits of wording ----------------------------------------------------------------------

    def _word(self, habit: str, rng: Random) -> str:
        word = rng.choice(tables()["manner"]["style"][habit][self.task.z[habit]]["words"])
        return word if word[-1] in ".!?,:" else word + "."

    def _say(self, parts: Sequence[Part], meta: dict, state: _State, rng: Random) -> Utterance:
        z, parts = self.task.z, list(parts)
        keep = [v for v in self.task.slots.values() if v[0].isupper()]
        if z["filler"] != "none" and rng.random() < 0.5:
            meta |= {"filler": add_filler(parts, z["filler"], keep, not state.turns, rng)}
        if not state.turns and z["opening"] != "none":
            word, text = self._word("opening", rng), parts[0].text
            parts[0] = Part(
                parts[0].role,
                f"{word} {text if word[-1] in '.!' else lower_first(text, keep)}",
            )
        meta = meta | {"signoff": parts[-1].role == "sign", "said": sorted(state.said)}
        return Utterance(render([p.text for p in parts], z, rng), meta)


def _answer(reply: dict) -> dict:
    return goal_of(reply["topic"], reply["goal"])["answer"][reply["answer"]]
