"""Numbers in, numbers out: lexical variety, copying, what a user's turns look like.

Texts are lists of user turns. Each docstring gives formula, source, range and direction; an item that
cannot be scored is NaN and never 0.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")  # \u2019: the apostrophe that phones write
_THANKS = re.compile(r"\b(thanks?|thx|thank you)\b", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Return lower-case words: runs of letters and digits, joined by apostrophes.

    >>> words("It's 9 o'clock, 'Zoë'!")
    ["it's", '9', "o'clock", 'zoë']
    """
    return list(_words(text))


@lru_cache(maxsize=100_000)  # resampling asks for the same turns again and again
def _words(text: str) -> tuple[str, ...]:
    return tuple(_plain(w) for w in _WORD.findall(text))


def _plain(word: str) -> str:
    return word.lower().replace("\u2019", "'")


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a token list in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(turns: Sequence[str], n: int, sample: int | None = None) -> float:
    """Share of distinct n-grams among all n-grams (Li et al., NAACL 2016); 0 to 1, higher is more varied.

    NaN without an n-gram. The value falls with the amount of text: compare like with like by giving
    ``sample``, the number of turns taken (the first ones).

    >>> distinct(["a b a b"], 1)
    0.5
    """
    grams = [g for t in turns[:sample] for g in ngrams(words(t), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def mattr(turns: Sequence[str], window: int = 50) -> float:
    """Moving-average type-token ratio over all turns (Covington & McFall 2010); 0 to 1; NaN below one window.

    >>> mattr(["a b c d"], window=2)
    1.0
    """
    tokens = [w for t in turns for w in words(t)]
    n, seen = len(tokens), {}
    if n < window:
        return math.nan
    before = np.empty(n, dtype=int)  # where each token stood last
    for i, token in enumerate(tokens):
        before[i], seen[token] = seen.get(token, -1), i
    # A token is a new type in the windows that hold it and not its former place: count these.
    place = np.arange(n)
    first = np.maximum(before + 1, place - window + 1).clip(min=0)
    last = np.minimum(place, n - window)
    types = (last - first + 1).clip(min=0).sum()
    return float(types / (n - window + 1) / window)


def pairwise_difference(turns: Sequence[str], pairs: int = 5000, seed: int = 0) -> float:
    """Mean share of 1-grams that two turns do not share, 1 - |A & B| / |A | B|; 0 to 1.

    Higher is more varied (first-turn diversity, UserLM arXiv 2510.06552). All pairs where there are no
    more than ``pairs``, else that many drawn; NaN below two turns with words.

    >>> round(pairwise_difference(["a b", "b c", "d"]), 3)
    0.889
    """
    sets = [s for t in turns if (s := frozenset(words(t)))]
    n = len(sets)
    if n < 2:
        return math.nan
    index: Iterable = combinations(range(n), 2)
    if n * (n - 1) // 2 > pairs:
        rng = np.random.default_rng(seed)
        first = rng.integers(n, size=pairs)
        index = zip(first, (first + rng.integers(1, n, size=pairs)) % n, strict=True)
    return float(np.mean([1 - len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in index]))


def identical_share(
    turns: Sequence[str], training: Sequence[str], least_words: int = 4
) -> list[float]:
    """Per turn, whether a training turn has the same words in the same order: 1 or 0.

    NaN for bare turns of fewer than ``least_words``.

    >>> identical_share(["Is it far from here?", "ok"], ["is it far from here"])
    [1.0, nan]
    """
    known = {" ".join(words(t)) for t in training}
    return [
        float(" ".join(w) in known) if len(w := words(t)) >= least_words else math.nan
        for t in turns
    ]


def profile_copy(profile: str, turns: Sequence[str], n: int = 4) -> float:
    """Share of the profile's distinct word n-grams that the user's turns repeat, each within a turn; 0 to 1.

    High means reciting, which people do not do. NaN for a profile shorter than n words and for a user
    who says nothing.

    >>> profile_copy("you love long quiet walks", ["i love long quiet walks"])
    0.5
    """
    grams = set(ngrams(words(profile), n))
    spoken = [words(t) for t in turns]
    said = {g for w in spoken for g in ngrams(w, n)}
    return len(grams & said) / len(grams) if grams and any(spoken) else math.nan


def copied_phrases(profile: str, text: str, n: int = 4) -> list[tuple[int, int]]:
    """Return the character spans (start, end) of a text whose words repeat a profile's n-grams.

    Spans that overlap or touch are one; for highlighting.

    >>> copied_phrases("you love long quiet walks", "Yes: I love long quiet walks.")
    [(7, 28)]
    """
    grams = set(ngrams(words(profile), n))
    found = [(_plain(m.group()), m.start(), m.end()) for m in _WORD.finditer(text)]
    spans: list[tuple[int, int]] = []
    for i in range(len(found) - n + 1):
        if tuple(w for w, _, _ in found[i : i + n]) in grams:
            start, end = found[i][1], found[i + n - 1][2]
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return spans


def describe_turns(dialogues: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return plain statistics of user turns, one list a dialogue: variety, lengths, surface habits.

    distinct-1 and -2 are over the first 300 turns and MATTR over the first 2,000, so that corpora of
    different sizes compare. Without a turn all but "turns per dialogue" are NaN.
    """
    turns = [t for d in dialogues for t in d]
    lengths = np.array([len(t.split()) for t in turns] or [math.nan])

    def share(flags: Iterable[bool]) -> float:
        return _mean([float(f) for f in flags])

    return {
        "distinct-1": distinct(turns, 1, 300),
        "distinct-2": distinct(turns, 2, 300),
        "MATTR": mattr(turns[:2000]),
        "opening diversity": pairwise_difference([d[0] for d in dialogues if d]),
        "words per turn": float(lengths.mean()),
        "words per turn, p10": float(np.percentile(lengths, 10)),
        "words per turn, p90": float(np.percentile(lengths, 90)),
        "turns per dialogue": _mean([len(d) for d in dialogues]),
        "question mark": share("?" in t for t in turns),
        "lower-case opening": share(t[:1].islower() for t in turns),
        "final . ? !": share(t.rstrip().endswith((".", "?", "!")) for t in turns),
        "three words or fewer": share(len(t.split()) <= 3 for t in turns),
        "thanks": share(bool(_THANKS.search(t)) for t in turns),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def mean_known(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN without one.

    >>> mean_known([1.0, math.nan, 3.0])
    2.0
    """
    return _mean([v for v in values if math.isfinite(v)])
