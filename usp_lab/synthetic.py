"""The known-truth population: dialogues of drawn users with scripted assistants, three profiles each.

    z ~ p(z) (users.py) -> topic, ordered goals, slots
      -> dialogue (speaker.py, assistants.py, typed by surface.py) -> profiles (here)

Every dialogue has the LMSYS-USP form plus ``truth``: z, task, what each turn did, evidence per
attribute, hazards, stop. Same seed, same bytes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from random import Random

from usp_lab.assistants import FAILURES, HELPFULNESS, ScriptedAssistant
from usp_lab.chat import Message
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.goals import Intent, fill, goal_of
from usp_lab.speaker import PopulationUser, Task
from usp_lab.surface import shows
from usp_lab.users import FACTS, STYLE, TRAITS, draw_task, draw_user, tables

_PLAIN = {"casing": "normal", "punctuation": "normal", "typos": "careful", "abbreviations": "none", "opening": "none", "filler": "none", "signoff": "none"}  # fmt: skip
_MENTIONED_PLAIN = ("casing", "punctuation", "typos")
_MENTION_PLAIN = 0.25  # how often a profile mentions these where unremarkable: careful spelling
_DIALOGUES = {1: 0.15, 2: 0.25, 3: 0.3, 4: 0.2, 5: 0.1}  # dialogues per user


def talk(task: Task, assistant: ScriptedAssistant, seed: str) -> tuple[list[Message], dict]:
    """Let the population's own user talk to a scripted assistant.

    Returns:
        (messages, truth of the course: hazard per decision, goals, evidence, how it ended).
    """
    user, messages, hazards, before = PopulationUser(task), [], [], {}
    while True:
        said = user.next(messages, seed)
        hazards.append(user.hazard_now(messages) if said is None else said.meta["hazard"])
        if said is None:
            stop = "left"
            break
        messages.append({"role": "user", "content": str(said), "meta": said.meta})
        rng = Random(f"reply/{seed}/{len(messages)}")
        goal, acts = said.meta["goal"], said.meta["acts"]
        if goal is None:
            reply, stop = assistant.welcome(before, rng), "said goodbye"
        else:
            intent = Intent(task.topic, goal, before["answer"] if "follow" in acts else None)
            reply = assistant.respond(intent, task.slots, before, rng)
        before = reply.meta
        messages.append({"role": "assistant", "content": str(reply), "meta": before})
        if goal is None:
            break
    return messages, _course(messages, hazards, stop)


def _course(messages: Sequence[Message], hazards: list[float], stop: str) -> dict:
    users = [m for m in messages if m["role"] == "user"]
    met = [g for m in messages if m["role"] == "assistant" for g in m["meta"]["met"]]
    evidence = [{**s, "turn": i} for i, m in enumerate(users) for s in m["meta"]["shows"]]
    return {
        "asked": list(dict.fromkeys(m["meta"]["goal"] for m in users if m["meta"]["goal"])),
        "met": list(dict.fromkeys(met)),
        "turns": [{"goal": m["meta"]["goal"], "acts": m["meta"]["acts"]} for m in users],
        "replies": [m["meta"]["kind"] for m in messages if m["role"] == "assistant"],
        "evidence": evidence,
        "filler": any(m["meta"].get("filler") for m in users),
        "signoff": any(m["meta"]["signoff"] for m in users),
        "hazard": [round(h, 4) for h in hazards],
        "stop": stop,
    }


# --- profiles -----------------------------------------------------------------------------------


def _clauses(attributes: Sequence[str], z: dict[str, str], rng: Random) -> str:
    t, out = tables(), []
    for a in attributes:
        facts = t["attributes"]["place"]["fact"] if a == "place" else _table(a)[z[a]]["fact"]
        clause = rng.choice(facts).replace("{place}", z["place"]).rstrip(".")
        if out and rng.random() < 0.3 and out[-1].count(", and") == 0:
            out[-1] += f", and {clause[0].lower()}{clause[1:]}"
        else:
            out.append(clause)
    return " ".join(c + "." for c in out)


def _table(attribute: str) -> dict:
    t = tables()
    if attribute in TRAITS:
        return t["manner"]["trait"][attribute]
    group = t["manner"]["style"] if attribute in (*STYLE, "patience") else t["attributes"]
    return group[attribute]


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def describe(
    task: Task, attributes: Sequence[str], goals: Sequence[str], rng: Random, topic: bool = True
) -> str:
    """Write a two-paragraph profile: objective facts and task; subjective traits (paper, section 3)."""
    facts = _clauses([f for f in FACTS if f in attributes], task.z, rng)
    if topic:
        frames = tables()["requests"]["task"]["frame" if goals else "bare"]
        titles = _join([fill_title(task, g) for g in goals]) if goals else ""
        sentence = rng.choice(frames).format(
            name=tables()["topics"][task.topic]["name"], titles=titles
        )
        facts = f"{facts} {sentence[0].upper()}{sentence[1:]}".strip()
    manner = [a for a in (*TRAITS, *STYLE, "patience") if a in attributes]
    return f"{facts}\n\n{_clauses(manner, task.z, rng)}"


def fill_title(task: Task, goal: str) -> str:
    """Return a goal's title with the task's slots, as profiles name it."""
    text = goal_of(task.topic, goal)["title"]
    return fill("x" + text, task.slots)[1:]


def said_by_chance(z: Mapping[str, str]) -> set[str]:
    """Return the habits of a user that are unremarkable, and that a profile mentions one time in four: no turn tells when."""
    return {h for h in _MENTIONED_PLAIN if z[h] == _PLAIN[h]}


def _expressed(task: Task, turns: Sequence[str], course: dict, rng: Random) -> list[str]:
    """Return the attributes that this dialogue shows: slipped out in words, or seen in its turns."""
    z, shown = task.z, {e["attr"] for e in course["evidence"]}
    tested = any(k in FAILURES for k in course["replies"])  # patience shows when it is needed
    sometimes = {"filler": course["filler"], "signoff": course["signoff"], "patience": tested}
    seen = []
    for h in (*STYLE, "patience"):
        plain = z[h] == _PLAIN.get(h)
        mentioned = not plain or (h in _MENTIONED_PLAIN and rng.random() < _MENTION_PLAIN)
        if mentioned and sometimes.get(h, True) and shows(turns, h, z[h]):
            seen.append(h)
    return [*sorted(shown), *seen]


def _dialogue(
    task: Task, user_id: str, name: str, helpfulness: float, seed: str, draw: int = 0
) -> Dialogue:
    messages, course = talk(task, ScriptedAssistant(helpfulness), f"{seed}/{draw}")
    rng = Random(f"profile/{seed}")  # a twin's profiles are worded alike where they say the same
    turns = [m["content"] for m in messages if m["role"] == "user"]
    expressed = _expressed(task, turns, course, rng)
    everything = [*FACTS, *TRAITS, *STYLE, "patience"]
    prior = [a for a in everything if Random(f"prior/{seed}/{a}").random() < 0.4]
    prior_goals = [g for g in task.goals if Random(f"prior/{seed}/{g}").random() < 0.5]
    truth = {
        "user": task.z, "kind": task.kind, "topic": task.topic, "goals": list(task.goals), "slots": task.slots, "sealed": task.sealed,
        "phrasings": task.phrasings,
        "helpfulness": helpfulness, "seed": seed, "draw": draw, **course, "expressed": expressed,
        "profile_truth": describe(task, everything, task.goals, Random(f"truth/{seed}")),
        "profile_prior": describe(task, prior, prior_goals, Random(f"prior/{seed}")),
    }  # fmt: skip
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    profile = describe(task, expressed, course["asked"], rng)
    return Dialogue(
        id=name, messages=plain, profile=profile, user_id=user_id, source="population", truth=truth
    )


def task_of(dialogue: Dialogue) -> Task:
    """Return the task behind a dialogue of the population."""
    t = dialogue.truth
    goals = tuple(t["goals"])
    return Task(t["kind"], t["user"], t["topic"], goals, t["slots"], t["sealed"], t["phrasings"])


def replay(dialogue: Dialogue) -> list[Message]:
    """Return a dialogue's messages again, with what each speaker did in ``meta``."""
    t = dialogue.truth
    seed = f"{t['seed']}/{t['draw']}"  # the same draw, hence the same texts
    return talk(task_of(dialogue), ScriptedAssistant(t["helpfulness"]), seed)[0]


def twin(dialogue: Dialogue, draw: int = 1) -> Dialogue:
    """Return another draw of the same user, goals and kind of assistant: the paired ceiling."""
    t = dialogue.truth
    name = f"{dialogue.id}-twin{draw}"
    return _dialogue(
        task_of(dialogue), dialogue.user_id, name, t["helpfulness"], t["seed"], t["draw"] + draw
    )


def users(
    prefix: str,
    seed: int,
    sealed_phrasings: bool = False,
    sealed_topics: bool = False,
    topics: int | None = None,
    phrasings: int = 0,
) -> Iterator[list[Dialogue]]:
    """Draw users without end; each comes with its dialogues, on different topics.

    Args:
        prefix: part of the population ("train", "test", ...); two prefixes share nothing.
        seed: the population's seed.
        sealed_phrasings: use the phrasings that training never sees.
        sealed_topics: use the topics that training never sees.
        topics: how many of the open topics there are, taken evenly from their sorted names; all
            when None. A model of a few minutes learns a smaller world.
        phrasings: at most so many open phrasings of everything; 0: all.

    Raises:
        UspError: fewer than 8 topics (users have dialogues on up to 5) or more than there are.
    """
    left_out = _left_out(topics)
    i = 0
    while True:
        user_id = f"{prefix}-{seed}-{i}"
        rng = Random(f"population/{user_id}")
        kind, z = draw_user(rng)
        dialogues, seen = [], []
        for j in range(rng.choices(list(_DIALOGUES), list(_DIALOGUES.values()))[0]):
            not_topics = [*seen, *left_out]
            topic, goals = draw_task(kind, z, rng, sealed=sealed_topics, not_topics=not_topics)
            seen.append(topic)
            slots = {
                name: rng.choice(values)
                for name, values in tables()["topics"][topic]["slots"].items()
            }
            task = Task(kind, z, topic, tuple(goals), slots, sealed_phrasings, phrasings)
            helpfulness = rng.choice(list(HELPFULNESS.values()))
            dialogues.append(
                _dialogue(task, user_id, f"{user_id}-{j}", helpfulness, f"{user_id}-{j}")
            )
        yield dialogues
        i += 1


def _left_out(topics: int | None) -> list[str]:
    names = sorted(k for k, t in tables()["topics"].items() if not t["sealed"])
    if topics is None:
        return []
    if not 8 <= topics <= len(names):
        raise UspError(f"topics must lie between 8 and {len(names)}, not {topics}")
    kept = {names[i * len(names) // topics] for i in range(topics)}
    return [n for n in names if n not in kept]


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return 12 hex digits over tables and drawn dialogues; what is trained on it records them.

    Unlike `users.fingerprint`, it does not change with code that draws the same.
    """
    digest = hashlib.sha256(json.dumps(tables(), sort_keys=True).encode())
    for sealed in ({}, {"sealed_phrasings": True}, {"sealed_topics": True}):
        for d in draw("fingerprint", 100, 0, **sealed):
            digest.update(json.dumps(d.model_dump(), sort_keys=True).encode())
    return digest.hexdigest()[:12]


def draw(
    prefix: str,
    n: int,
    seed: int,
    topics: int | None = None,
    phrasings: int = 0,
    **sealed: bool,
) -> list[Dialogue]:
    """Draw n dialogues of whole users (the last user may be cut short); see `users`."""
    out: list[Dialogue] = []
    for dialogues in users(prefix, seed, topics=topics, phrasings=phrasings, **sealed):
        out += dialogues
        if len(out) >= n:
            return out[:n]
    return out
