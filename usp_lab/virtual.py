"""Virtual profiles: the facts of one user and the manner of another near by, where both can be one person.

    made = draw(sampler, 1000)          # made.texts, made.pairs, made.counts
    made.acceptance

The paper (arXiv 2502.18968, diverse profile sampler) joins the objective half of one neighbour of a drawn point to
the subjective half of another and says no more. Here pairs that contradict each other are rejected, by rules over
the attributes that both halves state and, where a model is there, by entailment; so are real profiles and near-copies.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import hypergeom

from usp_lab.attributes import OBJECTIVE, SUBJECTIVE, attributes, values
from usp_lab.errors import UspError
from usp_lab.profiles import split_profile
from usp_lab.users import contradictions

Item = tuple[str, str]  # attribute, value
NEAR_COPY = 0.8  # Jaccard overlap of words from which two halves count as one


class PairRules:
    """Pairs of a fact and a manner that one person does not have.

    Args:
        pairs: ((attribute, value) of the objective half, (attribute, value) of the subjective half).
    """

    def __init__(self, pairs: Sequence[tuple[Item, Item]]) -> None:
        self.pairs = frozenset(pairs)
        self._banned: dict[Item, set[Item]] = {}
        for fact, manner in self.pairs:
            self._banned.setdefault(fact, set()).add(manner)

    @classmethod
    def stated(cls) -> "PairRules":
        """Return the rules of the profile schema as the known-truth population states them."""
        facts, manners = values(OBJECTIVE), values(SUBJECTIVE)
        return cls([(f, m) for f in facts for m in manners if contradictions(dict((f, m)))])

    @classmethod
    def learned(cls, rows: Sequence[Mapping[str, str]], significance: float = 0.05) -> "PairRules":
        """Return the pairs that never occur together though chance would have brought them together.

        A pair is kept where Fisher's exact test finds its absence too unlikely, at ``significance`` over all
        pairs tested (Bonferroni).

        Args:
            rows: what real profiles state (`attributes`), one profile a user.
            significance: chance of one wrong rule among all.
        """
        tests = []
        for a in OBJECTIVE:
            for b in SUBJECTIVE:
                both = [(r[a], r[b]) for r in rows if a in r and b in r]
                left, right = Counter(x for x, _ in both), Counter(y for _, y in both)
                seen = set(both)
                tests += [
                    (((a, x), (b, y)), len(both), n, m)
                    for x, n in left.items()
                    for y, m in right.items()
                    if (x, y) not in seen
                ]
        if not tests:
            return cls([])
        pairs, total, n, m = zip(*tests, strict=True)
        chance = hypergeom.pmf(0, np.array(total), np.array(n), np.array(m))
        return cls([p for p, c in zip(pairs, chance, strict=True) if c < significance / len(tests)])

    def __or__(self, other: "PairRules") -> "PairRules":
        return PairRules([*self.pairs, *other.pairs])

    def banned(self, facts: Mapping[str, str]) -> set[Item]:
        """Return the manners that these facts exclude; a coarse fact excludes what all of its values do.

        >>> rules = PairRules([(("age", "65+"), ("filler", "lol"))])
        >>> rules.banned({"age": "65+"}), rules.banned({"age": "18-24|65+"})
        ({('filler', 'lol')}, set())
        """
        out: set[Item] = set()
        for a, value in facts.items():
            each = [self._banned.get((a, v), set()) for v in (value, *value.split("|"))]
            out |= each[0] | set.intersection(*each[1:])
        return out


def _hits(banned: set[Item], manner: Mapping[str, str]) -> bool:
    return any((a, v) in banned or all((a, c) in banned for c in v.split("|")) for a, v in manner.items())  # fmt: skip


@dataclass(frozen=True)
class VirtualProfiles:
    """Accepted virtual profiles.

    Attributes:
        texts: of two paragraphs.
        pairs: whose facts and whose manner, indices of the sampler's profiles, shape (n, 2).
        counts: drawn, accepted, and why others were rejected.
    """

    texts: list[str]
    pairs: np.ndarray
    counts: dict[str, int]

    @property
    def acceptance(self) -> float:
        """Accepted among drawn."""
        return self.counts["accepted"] / self.counts["drawn"]


def candidates(sampler, n: int, rng: np.random.Generator, neighbours: int = 10) -> np.ndarray:
    """Return pairs as they come, nothing rejected: near neighbours of n points of the density, shape (n, 2)."""
    neighbours = min(neighbours, len(sampler.coordinates_))
    if neighbours < 2:
        raise UspError("virtual profiles need two profiles at least; fit on more")
    tree = cKDTree(sampler.coordinates_)
    near = tree.query(sampler.density_.sample(n, rng), k=neighbours, workers=-1)[1]
    first = rng.integers(neighbours, size=n)
    second = (first + rng.integers(1, neighbours, size=n)) % neighbours
    rows = np.arange(n)
    return np.column_stack([near[rows, first], near[rows, second]])


def draw(
    sampler,
    n: int,
    rules: PairRules | None = None,
    entails: Callable[[list[tuple[str, str]]], Sequence[bool]] | None = None,
    neighbours: int = 10,
    random_state: int | None = None,
) -> VirtualProfiles:
    """Draw n virtual profiles.

    Args:
        sampler: a fitted `ProfileSampler` that has texts.
        n: how many.
        rules: which facts and manners exclude each other; by default those stated and those learned from the
            sampler's own profiles (`PairRules`).
        entails: tells for (objective half, subjective half) whether they contradict each other, as a model of
            natural language inference can; asked about what the rules let pass.
        neighbours: of a drawn point, among which two are taken.
        random_state: of the draw; the sampler's own when None.

    Raises:
        UspError: fitted on embeddings; n below 1; next to nothing is accepted.
    """
    if sampler.texts_ is None:
        raise UspError("fitted on embeddings, which have no halves to join; fit on texts")
    if n < 1:
        raise UspError(f"n must be at least 1, not {n}")
    rng = np.random.default_rng(sampler.random_state if random_state is None else random_state)
    halves = _Halves(sampler.texts_, rules)
    counts, texts, pairs, known = Counter(), [], [], set(halves.whole)
    while len(texts) < n:
        if counts["drawn"] > 1000 + 100 * n:
            raise UspError(
                f"{len(texts)} of {counts['drawn']} virtual profiles were accepted ({dict(counts)}); fit on more profiles or give fewer rules"
            )
        asked = candidates(sampler, max(256, n - len(texts)), rng, neighbours)
        reasons = [halves.flaw(i, j) for i, j in asked.tolist()]
        if entails is not None:
            left = [k for k, r in enumerate(reasons) if not r]
            told = [(halves.first[asked[k, 0]], halves.second[asked[k, 1]]) for k in left]
            for k, bad in zip(left, entails(told), strict=True):
                reasons[k] = "contradiction (entailment)" if bad else ""
        for (i, j), reason in zip(asked.tolist(), reasons, strict=True):
            if len(texts) == n:
                break
            both = (halves.first[i], halves.second[j])
            reason = reason or ("a real profile, or drawn before" if both in known else "")
            counts.update(["drawn", reason or "accepted"])
            if not reason:
                known.add(both)
                texts.append("\n\n".join(both))
                pairs.append((i, j))
    return VirtualProfiles(texts, np.array(pairs), dict(counts))


class _Halves:
    """The halves of profiles, and what is wrong with a pair of them."""

    def __init__(self, profiles: Sequence[str], rules: PairRules | None = None) -> None:
        self.whole = [tuple(half.strip() for half in split_profile(p)) for p in profiles]
        self.first, self.second = zip(*self.whole, strict=True)
        told = [attributes(p) for p in profiles]
        rules = rules or PairRules.stated() | PairRules.learned(told)
        self.manner = [{a: v for a, v in t.items() if a in SUBJECTIVE} for t in told]
        self.banned = [rules.banned({a: v for a, v in t.items() if a in OBJECTIVE}) for t in told]
        self.words = [tuple(frozenset(half.lower().split()) for half in w) for w in self.whole]

    def flaw(self, i: int, j: int) -> str:
        """Return why the facts of i and the manner of j make no virtual profile; "" where they do."""
        if not self.first[i] or not self.second[j]:
            return "a half is missing"
        if _hits(self.banned[i], self.manner[j]):
            return "contradiction (rules)"
        if any(_overlap(a, b) >= NEAR_COPY for a, b in zip(self.words[i], self.words[j], strict=True)):  # fmt: skip
            return "near-copy"  # the joined profile is, all but a few words, that of i or that of j
        return ""


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def flagged(profiles: Sequence[str], pairs: np.ndarray, rules: PairRules) -> np.ndarray:
    """Return whether rules reject each pair of halves, shape (n,), read off the texts."""
    halves = _Halves(profiles, rules)
    return np.array([_hits(halves.banned[i], halves.manner[j]) for i, j in pairs.tolist()])


def impossible(
    users: Sequence[Mapping[str, str]], pairs: np.ndarray, told: Sequence[set[str]] | None = None
) -> np.ndarray:
    """Return whether nobody in the population has the facts of one user and the manner of another, shape (n,).

    Args:
        users: true attributes of each (``truth["user"]``).
        pairs: whose facts and whose manner.
        told: the attributes that each profile states; all when None.
    """
    told = told or [set(OBJECTIVE) | set(SUBJECTIVE)] * len(users)
    out = []
    for i, j in pairs.tolist():
        z = {a: users[i][a] for a in OBJECTIVE if a in told[i]}
        out.append(bool(contradictions(z | {a: users[j][a] for a in SUBJECTIVE if a in told[j]})))
    return np.array(out)
