"""How a user of the population types, and the way back.

`render` turns plain sentences of normal orthography into a user's spelling, casing and punctuation.
`measure_style` reads habits off text alone, so that simulated users can be checked
against the manner they were given (`HABITS` names the feature that betrays each habit).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from usp_lab.chat import is_closing
from usp_lab.users import tables, texts

TEXTING = {
    "you": "u", "your": "ur", "you're": "ur", "please": "pls", "thanks": "thx", "because": "cuz", "are": "r", "tomorrow": "tmrw", "people": "ppl",
    "about": "abt", "really": "rly", "though": "tho", "through": "thru", "minutes": "mins", "weekend": "wknd", "something": "smth", "probably": "prob",
    "without": "w/o", "with": "w", "before": "b4", "tonight": "tonite", "okay": "k", "going to": "gonna", "want to": "wanna", "and": "n",
    "would": "wld", "could": "cld", "should": "shld", "good": "gd", "just": "jst", "what": "wat", "next": "nxt", "by the way": "btw",
}  # fmt: skip
_ABBREVIATES = 0.8  # of the words that have a short form
_TEXTING = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, TEXTING), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_ENDS = re.compile(r"(?<=[.?!])\s+")
# Per word of four letters and more; and per common word that fingers know one slip for.
_TYPO_RATE = {"careful": (0.0, 0.0), "slips": (0.02, 0.08), "careless": (0.06, 0.4)}
_EXPECTED = {
    "none": 0.85,
    "exclaiming": 0.75,
    "dots": 0.75,
}  # how reliably a punctuation habit shows, per sentence
POLITE = re.compile(
    r"\b(please|pls|thank|thanks|thx|grateful|kind|kindly|appreciate\w*|obliged|sorry|cheers|would you|could you|may i|i wonder|i should like)\b", re.IGNORECASE
)  # fmt: skip
FORMAL = re.compile(
    r"\b(grateful|obliged|kind as|kindly|may i|i should|i would|i wonder|good (morning|afternoon|evening|day)|regards|most helpful|indeed|i shall|"
    r"assistance|allow me|permit me|enquir\w+|i am|i have|i had|cannot|(do|does|did|is|are|was|will|would|could) not|(it|that|what|there|how) is|it has)\b",
    re.IGNORECASE,
)  # fmt: skip
# The formal write contractions out; an inverted "won't it" takes its subject first: "will it not".
_INVERTED = re.compile(
    r"\b(wo|is|are|does|do|did|ca|could|should|would|has|have|was|were)n't (I|you|it|he|she|we|they|there|that|this)\b",
    re.IGNORECASE,
)
_WHOLE = {"wo": "will", "Wo": "Will", "ca": "can", "Ca": "Can"}
_HAD = r"(?=(?: (?:never|always|rather))? (?:been|better|had|hoped|thought|planned|expected|imagined|seen|heard|feared|started)\b)"
_HAS = r"(?=(?: (?:never|always|just|already|only))? (?:been|got|gone|had|become|taken|happened|grown|turned|stopped|started)\b)"
_HE_HAS = r"(?= (?!tired|bored|married|retired|worried|interested|excited|scared|convinced|supposed)(?:\w+ed|seen|told|made|put|left|bought|sent|given)\b)"
_SPELT_OUT = [
    (re.compile(pattern, re.IGNORECASE), long)
    for pattern, long in (
        (r"\bcan't\b", "cannot"), (r"\bwon't\b", "will not"), (r"\b(is|are|does|do|did|could|should|would|has|have|had|was|were)n't\b", r"\1 not"),
        (r"\bI'm\b", "I am"), (r"(?<=\w)'re\b", " are"), (r"(?<=\w)'ll\b", " will"), (r"(?<=\w)'ve\b", " have"),
        (rf"(?<=\w)'d\b{_HAD}", " had"), (r"(?<=\w)'d\b", " would"), (r"\b(let)'s\b", r"\1 us"),
        (rf"\b(it|that|what|there|here|where|how|who|he|she)'s\b{_HAS}", r"\1 has"), (rf"\b(who|he|she)'s\b{_HE_HAS}", r"\1 has"), (r"\b(it|that|what|there|here|where|how|who|he|she)'s\b", r"\1 is"),
    )
]  # fmt: skip


def _typo(word: str, rng: Random) -> str:
    i = rng.randrange(1, len(word) - 2)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]  # two letters exchanged
    return (
        word[:i] + word[i + 1 :] if kind == 1 else word[:i] + word[i] + word[i:]
    )  # one dropped, one doubled


def _mistype(word: str, habit: str, rng: Random) -> str:
    usual = tables()["typos"]["common"].get(word)
    if rng.random() >= _TYPO_RATE[habit][usual is not None]:
        return word
    return usual or _typo(word, rng)


def spell_out(text: str) -> str:
    """Write contractions out: "I'd been" -> "I had been", "Won't it" -> "Will it not"."""
    text = _INVERTED.sub(lambda m: f"{_WHOLE.get(m[1], m[1])} {m[2]} not", text)
    for pattern, long in _SPELT_OUT:
        text = pattern.sub(lambda m, long=long: _like(m[0], m.expand(long)), text)
    return text


def _like(word: str, new: str) -> str:
    return new[0].upper() + new[1:] if word[0].isupper() else new


def _shorten(text: str, rng: Random) -> str:
    return _TEXTING.sub(
        lambda m: _like(m[0], TEXTING[m[0].lower()]) if rng.random() < _ABBREVIATES else m[0], text
    )


def _punctuate(sentence: str, habit: str, rng: Random, last: bool) -> str:
    if habit == "normal" or rng.random() > _EXPECTED[habit]:
        return sentence
    if habit == "none":
        sentence = sentence.replace(",", "") if rng.random() < 0.5 else sentence
        return sentence.rstrip(".?!") if last or rng.random() < 0.4 else sentence
    if sentence.endswith("."):
        return sentence.rstrip(".") + ("..." if habit == "dots" else rng.choice(["!", "!", "!!"]))
    if sentence.endswith("?") and rng.random() < 0.3:
        return sentence + "!" if habit == "exclaiming" else sentence[:-1] + "...?"
    return sentence


def render(sentences: Sequence[str], z: dict[str, str], rng: Random) -> str:
    """Write sentences of normal orthography as the user z types them."""
    sentences = [s for text in sentences for s in _ENDS.split(text.strip()) if s]
    if z["politeness"] == "formal":
        sentences = [spell_out(s) for s in sentences]
    if z["abbreviations"] == "texting":
        sentences = [_shorten(s, rng) for s in sentences]
    last = len(sentences) - 1
    text = " ".join(
        _punctuate(s, z["punctuation"], rng, last=i == last) for i, s in enumerate(sentences)
    )
    if z["punctuation"] == "none" and rng.random() < 0.6:
        text = re.sub(r"(?<=\w)'(?=\w)", "", text)
    if z["typos"] != "careful":  # names and figures stay intact: people look at those
        text = re.sub(r"\b[a-z]{4,}\b", lambda m: _mistype(m[0], z["typos"], rng), text)
    return text.lower() if z["casing"] == "lower" else text


# --- the way back -------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def lexicon() -> frozenset[str]:
    """Return every word that the tables spell, lower case, with its form without apostrophe."""
    spelt = {name: table for name, table in tables().items() if name != "typos"}
    words = {w for text in texts(spelt) for w in _WORD.findall(text.lower())}
    words |= {w for v in TEXTING.values() for w in v.split("/")} | {"cannot"}
    parts = {w: w.partition("'") for w in words if "'" in w}
    words |= {TEXTING[a] + b + c for a, b, c in parts.values() if a in TEXTING}  # "u've"
    return frozenset(words | {w.replace("'", "") for w in words})


@lru_cache(maxsize=1)
def _fillers() -> tuple[str, ...]:
    found = {
        w.strip(" ,.").lower()
        for f in tables()["manner"]["style"]["filler"].values()
        for w in f.get("start", []) + f.get("end", [])
    }
    return tuple(sorted(found))


_MARKS = {
    "lower": lambda t: t[:1].islower(),
    "no_final": lambda t: t[-1:] not in ".?!" or not t,
    "exclaims": lambda t: "!" in t,
    "dots": lambda t: ".." in t,
    "texting": lambda t: bool(
        set(re.findall(r"[a-z0-9/]+", t.lower())) & (set(TEXTING.values()) - {"w", "k"})
    ),
    "polite": lambda t: bool(POLITE.search(t)),
    "formal": lambda t: bool(FORMAL.search(t)),
    "filler": lambda t: any(re.search(rf"\b{re.escape(f)}\b", t.lower()) for f in _fillers()),
}


def _words(turns: Sequence[str]) -> list[str]:
    """Return the words that `render` may mistype: those of four letters and more."""
    return [w for t in turns for w in _WORD.findall(t.lower()) if len(w) >= 4]


def _mistyped(words: Sequence[str]) -> list[str]:
    return [w for w in words if w not in lexicon()]


def measure_style(turns: Sequence[str]) -> dict[str, float]:
    """Return habits read off a user's turns.

    Shares of turns per mark, ``typos`` per long word, ``words`` per turn that is no goodbye.
    """
    turns = [t for t in turns if t.strip()]
    if not turns:
        return dict.fromkeys([*_MARKS, "typos", "words"], float("nan"))
    out = {name: sum(map(mark, turns)) / len(turns) for name, mark in _MARKS.items()}
    words = _words(turns)
    out["typos"] = len(_mistyped(words)) / max(len(words), 1)
    asking = [t for t in turns if not is_closing(t)] or turns  # everybody's goodbye is short
    out["words"] = sum(len(t.split()) for t in asking) / len(asking)
    return out


_VISIBLE = {"none": "no_final", "exclaiming": "exclaims", "dots": "dots", "texting": "texting"}


def shows(turns: Sequence[str], attribute: str, value: str) -> bool:
    """Tell whether a habit can be seen in a user's turns; those without a mark always can."""
    if attribute == "typos" and value != "careful":
        return bool(_mistyped(_words(turns)))
    if attribute not in ("punctuation", "abbreviations") or value not in _VISIBLE:
        return True
    return any(map(_MARKS[_VISIBLE[value]], turns))


# habit -> (attribute, value that has it, feature of `measure_style`, sign)
HABITS = {
    "lower case": ("casing", "lower", "lower", 1),
    "no final stop": ("punctuation", "none", "no_final", 1),
    "exclaiming": ("punctuation", "exclaiming", "exclaims", 1),
    "trailing dots": ("punctuation", "dots", "dots", 1),
    "texting": ("abbreviations", "texting", "texting", 1),
    "careless typing": ("typos", "careless", "typos", 1),
    "formal": ("politeness", "formal", "formal", 1),
    "terse": ("length", "terse", "words", -1),
    "wordy": ("length", "wordy", "words", 1),
}
