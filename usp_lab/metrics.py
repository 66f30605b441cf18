"""Numbers in, numbers out: lexical variety, copying, what a user's turns look like. Texts are lists of user turns.

Each docstring gives formula, source, range and direction; an item that cannot be scored is NaN and never 0.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[a-z0-9']+")


def words(text: str) -> list[str]:
    """Return lower-case words: runs of letters, digits and apostrophes.

    >>> words("It's 9 o'clock!")
    ["it's", '9', "o'clock"]
    """
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a token list in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(turns: Sequence[str], n: int, sample: int | None = None) -> float:
    """Share of distinct n-grams among all n-grams (Li et al., NAACL 2016); 0 to 1, higher is more varied.

    The value falls with the amount of text: compare like with like by giving ``sample``, the number of turns taken (the first ones).

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
    if len(tokens) < window:
        return math.nan
    return float(np.mean([len(set(tokens[i : i + window])) / window for i in range(len(tokens) - window + 1)]))


def pairwise_difference(turns: Sequence[str], pairs: int = 5000, seed: int = 0) -> float:
    """Mean share of 1-grams not shared by two turns, 1 - |A & B| / |A | B| (first-turn diversity, UserLM arXiv 2510.06552); 0 to 1, higher is more varied.

    >>> pairwise_difference(["a b", "c d"])
    1.0
    """
    sets = [s for t in turns if (s := frozenset(words(t)))]
    if len(sets) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    i, j = rng.integers(len(sets), size=(2, pairs))
    return float(np.mean([1 - len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in zip(i, j, strict=True) if a != b]))


def identical_share(turns: Sequence[str], training: Sequence[str], least_words: int = 4) -> list[float]:
    """Per turn, whether a training turn has the same words in the same order; NaN for bare turns of fewer than ``least_words``.

    >>> identical_share(["Is it far from here?", "ok"], ["is it far from here"])
    [1.0, nan]
    """
    known = {" ".join(words(t)) for t in training}
    return [float(" ".join(w) in known) if len(w := words(t)) >= least_words else math.nan for t in turns]


def profile_copy(profile: str, turns: Sequence[str], n: int = 4) -> float:
    """Share of the profile's word n-grams that the user's turns repeat; 0 to 1. High means reciting, which people do not do. NaN without n-grams.

    >>> profile_copy("you love long quiet walks", ["i love long quiet walks"])
    0.5
    """
    grams = set(ngrams(words(profile), n))
    said = {g for t in turns for g in ngrams(words(t), n)}
    return len(grams & said) / len(grams) if grams else math.nan


def copied_phrases(profile: str, text: str, n: int = 4) -> list[tuple[int, int]]:
    """Return the character spans of a text whose words repeat a profile's n-grams, merged, for highlighting."""
    grams = set(ngrams(words(profile), n))
    found = [(m.group(), m.start(), m.end()) for m in _WORD.finditer(text.lower())]
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
    """Return plain statistics of user turns, one list a dialogue: variety on the same amount of text, lengths, surface habits.

    distinct-1 and -2 are taken over the first 300 turns, so that corpora of different sizes compare.
    """
    turns = [t for d in dialogues for t in d]
    lengths = np.array([len(t.split()) for t in turns]) if turns else np.array([math.nan])
    return {
        "distinct-1": distinct(turns, 1, 300),
        "distinct-2": distinct(turns, 2, 300),
        "MATTR": mattr(turns[:2000]),
        "opening diversity": pairwise_difference([d[0] for d in dialogues]),
        "words per turn": float(lengths.mean()),
        "words per turn, p10": float(np.percentile(lengths, 10)),
        "words per turn, p90": float(np.percentile(lengths, 90)),
        "turns per dialogue": float(np.mean([len(d) for d in dialogues])),
        "question mark": float(np.mean(["?" in t for t in turns])),
        "lower-case opening": float(np.mean([t[:1].islower() for t in turns])),
        "final . ? !": float(np.mean([t[-1:] in ".?!" for t in turns])),
        "three words or fewer": float((lengths <= 3).mean()),
        "thanks": float(np.mean([bool(re.search(r"\b(thanks?|thx|thank you)\b", t.lower())) for t in turns])),
    }
