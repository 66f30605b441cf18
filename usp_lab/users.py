"""Who the users of the known-truth population are: p(z), drawn and evaluated exactly.

z is a dict of attribute -> value (facts, temper, manner, patience), plus ``place``. It is drawn
from a mixture of kinds (``population/kinds.toml``); inside a kind the attributes follow one another,
each with p(value | kind, earlier attributes) proportional to base x factors and zero where a
forbidden pair says so. So log p(z), rarity and contradiction all have a truth:

    p(z, topic, goals) = sum_k w_k  prod_i p(z_i | z_<i, k)  p(topic | z, k)  p(goals | topic, k)
"""

import hashlib
import math
import tomllib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from importlib import resources
from random import Random

from usp_lab.errors import UspError

FACTS = (
    "age",
    "gender",
    "occupation",
    "education",
    "place",
    "family",
    "social",
    "routine",
    "experience",
)
TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
STYLE = (
    "length", "casing", "punctuation", "typos", "politeness", "directness", "abbreviations", "opening", "filler", "signoff"
)  # fmt: skip
N_GOALS = {2: 0.3, 3: 0.4, 4: 0.3}  # how many goals a user brings to a dialogue
_FAVOURED, _GOAL_WEIGHT = 3, 4.0  # in each topic a kind favours three of the six goals, four to one


def _folder():
    return resources.files("usp_lab") / "population"


@lru_cache(maxsize=1)
def tables() -> dict:
    """Return the population's tables by file name, and ``topics`` by key, sorted."""
    out = {
        p.name[:-5]: tomllib.loads(p.read_text("utf-8"))
        for p in _folder().iterdir()
        if p.name.endswith(".toml")
    }
    topics = [
        tomllib.loads(p.read_text("utf-8"))
        for p in (_folder() / "topics").iterdir()
        if p.name.endswith(".toml")
    ]
    out["topics"] = {t["key"]: t for t in sorted(topics, key=lambda t: t["key"])}
    return out


def texts(node) -> Iterator[str]:
    """Yield every text of a table, of the tables inside it too; keys are no texts."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for v in node.values() if isinstance(node, dict) else node:
            yield from texts(v)


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return 12 hex digits over tables and generating code; what is trained on it records them."""
    package = resources.files("usp_lab")
    files = [
        package / f"{m}.py"
        for m in ("users", "surface", "goals", "assistants", "wording", "speaker", "synthetic")
    ]
    files += [
        p
        for folder in (_folder(), _folder() / "topics")
        for p in folder.iterdir()
        if p.name.endswith(".toml")
    ]
    digest = hashlib.sha256()
    for p in sorted(files, key=lambda p: p.name):
        digest.update(p.name.encode() + b"\0" + p.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def _kinds() -> dict[str, dict]:
    return {k["name"]: k for k in tables()["kinds"]["kind"]}


@lru_cache(maxsize=1)
def _places() -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for p in tables()["attributes"]["place"]["names"]:
        out.setdefault(p["region"], []).append(p["name"])
    return out


@lru_cache(maxsize=1)
def _region_of() -> dict[str, str]:
    return {name: region for region, names in _places().items() for name in names}


@lru_cache(maxsize=1)
def _forbidden() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(attribute, value) -> the pairs that it excludes, both ways round."""
    out: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for rule in tables()["kinds"]["forbid"]:
        for a, va in ((a, v) for a, vs in rule["a"].items() for v in vs):
            for b, vb in ((b, v) for b, vs in rule["b"].items() for v in vs):
                out.setdefault((a, va), []).append((b, vb))
                out.setdefault((b, vb), []).append((a, va))
    return out


def contradictions(z: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Return the forbidden pairs in z, each once, as (attribute, value, attribute, value)."""
    found = set()
    for a, va in z.items():
        for b, vb in _forbidden().get((a, va), ()):
            if z.get(b) == vb:
                found.add((a, va, b, vb) if (a, va) < (b, vb) else (b, vb, a, va))
    return sorted(found)


def _conditional(attribute: str, z: dict[str, str], kind: dict) -> dict[str, float]:
    """Return p(value | kind, earlier attributes z), unforbidden values only."""
    population = tables()["kinds"]
    factor = kind["factor"].get(attribute, {})
    weights = {v: w * factor.get(v, 1.0) for v, w in population["base"][attribute].items()}
    for boost in population["boost"]:
        if attribute in boost["factor"] and all(z.get(a) == v for a, v in boost["when"].items()):
            for v, f in boost["factor"][attribute].items():
                weights[v] *= f
    for v in list(weights):
        if any(z.get(b) == vb for b, vb in _forbidden().get((attribute, v), ())):
            del weights[v]
    total = sum(weights.values())
    if not total:
        raise UspError(
            f"population/kinds.toml leaves no value of {attribute!r} possible for {z}; "
            "remove a forbid rule"
        )
    return {v: w / total for v, w in weights.items()}


def _off_topics(z: dict[str, str]) -> frozenset[str]:
    """Return the topics that nobody with these attributes would ask about."""
    rules = [
        r
        for r in tables()["kinds"]["off_topic"]
        if any(z[a] in values for a, values in r["who"].items())
    ]
    return frozenset(t for r in rules for t in r["topics"])


@lru_cache(maxsize=4096)
def _topic_weights(kind: str, sealed: bool, off: frozenset[str]) -> dict[str, float]:
    """Return p(topic | z, kind) among open or sealed topics; z excludes those in ``off``."""
    factor, topics = _kinds()[kind]["topics"], tables()["topics"].values()
    weights = {
        t["key"]: factor.get(t["key"], 1.0)
        for t in topics
        if t["sealed"] == sealed and t["key"] not in off
    }
    total = sum(weights.values())
    return {t: w / total for t, w in weights.items()}


@lru_cache(maxsize=4096)
def _goal_weights(kind: str, topic: str) -> dict[str, float]:
    """Return this kind's goal weights in a topic; the names fix which goals it favours."""
    keys = [g["key"] for g in tables()["topics"][topic]["goal"]]
    start = hashlib.sha256(f"{kind}/{topic}".encode()).digest()[0] % len(keys)
    favoured = {keys[(start + i) % len(keys)] for i in range(_FAVOURED)}
    return {k: _GOAL_WEIGHT if k in favoured else 1.0 for k in keys}


def pick(weights: dict[str, float], rng: Random) -> str:
    """Draw a key with probability proportional to its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def draw_user(rng: Random) -> tuple[str, dict[str, str]]:
    """Draw (kind, z) from p(z)."""
    kinds = _kinds()
    kind = pick({name: k["weight"] for name, k in kinds.items()}, rng)
    z: dict[str, str] = {}
    for attribute in tables()["kinds"]["order"]:
        z[attribute] = pick(_conditional(attribute, z, kinds[kind]), rng)
    z["place"] = rng.choice(_places()[z.pop("region")])
    return kind, z


def draw_task(
    kind: str,
    z: dict[str, str],
    rng: Random,
    sealed: bool = False,
    not_topics: Collection[str] = (),
) -> tuple[str, list[str]]:
    """Draw (topic, goals in the order they matter); ``sealed``: topics never trained on."""
    weights = {
        t: w for t, w in _topic_weights(kind, sealed, _off_topics(z)).items() if t not in not_topics
    }
    topic = pick(weights, rng)
    left, goals = dict(_goal_weights(kind, topic)), []
    for _ in range(rng.choices(list(N_GOALS), list(N_GOALS.values()))[0]):
        goals.append(pick(left, rng))
        del left[goals[-1]]
    return topic, goals


def log_density(
    z: dict[str, str], topic: str | None = None, goals: Sequence[str] | None = None
) -> float:
    """Return log p(z), log p(z, topic), or log p(z, topic, ordered goals) in nats.

    It is -inf where z contradicts itself or the topic.

    Args:
        z: every attribute of ``kinds.toml``'s order, with ``place`` instead of the region.
        topic: a topic key; goals: goal keys in order (needs ``topic``).
    """
    off = _off_topics(z)
    if contradictions(z) or topic in off:
        return -math.inf
    full = {**z, "region": _region_of()[z["place"]]}
    weights = {name: k["weight"] for name, k in _kinds().items()}
    logs = []
    for name, kind in _kinds().items():
        log_p, earlier = math.log(weights[name] / sum(weights.values())), {}
        for attribute in tables()["kinds"]["order"]:
            log_p += math.log(_conditional(attribute, earlier, kind)[full[attribute]])
            earlier[attribute] = full[attribute]
        if topic is not None:
            log_p += math.log(_topic_weights(name, tables()["topics"][topic]["sealed"], off)[topic])
        if goals is not None:
            left = dict(_goal_weights(name, topic))
            log_p += math.log(N_GOALS[len(goals)])
            for g in goals:
                log_p += math.log(
                    left.pop(g) / (sum(left.values()) + _goal_weights(name, topic)[g])
                )
        logs.append(log_p)
    top = max(logs)
    return (
        top
        + math.log(sum(math.exp(v - top) for v in logs))
        - math.log(len(_places()[full["region"]]))
    )
