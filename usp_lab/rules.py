"""The rules of ``profiling/rules.toml``, compiled: values of attributes and the patterns that meet them."""

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

STATED, HINTED = 0.9, 0.6  # confidence of what is said outright, and of what is likely


@dataclass(frozen=True)
class Rule:
    """A value of an attribute, its patterns, and the population's values that agree with it."""

    attribute: str
    value: str
    codes: frozenset[str]
    stated: re.Pattern[str] | None
    hinted: re.Pattern[str] | None


@lru_cache(maxsize=1)
def _table() -> dict:
    return tomllib.loads(
        (resources.files("usp_lab") / "profiling" / "rules.toml").read_text("utf-8")
    )


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return 8 hex digits over all that decides what the rules find."""
    digest = hashlib.sha256()
    package = resources.files("usp_lab")
    files = [package / "profiling" / n for n in ("rules.toml", "clauses.toml")]
    files += [package / f"{m}.py" for m in ("ages", "extract_rules", "rules", "statements", "read_style", "read_goals", "spelling", "profiles")]  # fmt: skip
    for file in files:
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]


def _compiled(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(_filled, patterns)), re.IGNORECASE) if patterns else None


def _filled(pattern: str) -> str:
    macro = _table()["macro"]
    while (filled := re.sub(r"\{([A-Z]+)\}", lambda m: macro[m[1]], pattern)) != pattern:
        pattern = filled
    return pattern


@lru_cache(maxsize=1)
def rules() -> list[Rule]:
    """Return the rules of ``rules.toml``, but for jobs, ages and places."""
    return [
        Rule(
            r["attribute"],
            r["value"],
            frozenset(r["codes"]),
            _compiled(r.get("stated", ())),
            _compiled(r.get("hinted", ())),
        )
        for r in _table()["rule"]
    ]


@lru_cache(maxsize=1)
def trait_patterns() -> list[tuple[str, str, re.Pattern[str]]]:
    """Return (trait, level, pattern)."""
    return [(t["attribute"], t["level"], _compiled(t["patterns"])) for t in _table()["trait"]]


_RETIRED = {"are a teacher": "are a retired teacher", "are an engineer": "are a retired engineer", "worked as a clerk": "worked as a clerk", "sat as a judge": "sat as a judge"}  # fmt: skip


@lru_cache(maxsize=1)
def job_patterns() -> list[tuple[str, str, frozenset[str], re.Pattern[str]]]:
    """Return (value, value when retired, codes, pattern)."""
    out, filler = (
        [],
        r"(?:(?!(?:in|at|for|to|not|no|never|of|with|about|like|than|an?|the|my|your|retired|\w+ing)\b)[\w-]+ ){0,2}?",
    )
    for value, job in _table()["jobs"].items():
        pattern = (
            r"\b(?:(?:i'?m|i am|we're|i work(?:ed)?(?: \w+)? as|(?P<was>i (?:was|used to be)|i worked as)|my (?:job|work) (?:is|as)|working as|(?<!act )(?<!same )(?<!job )(?<!work )(?<!such )as(?= an? )|being(?= an? ))"
            rf" (?:an? |the )?{filler}(?P<retired>retired |former )?{filler}"
            rf"(?:{job['words']}))s?\b(?! (?:of|in) (?:the|a) (?:story|game|book|film))"
        )
        codes = frozenset(job["codes"])
        retired = _RETIRED.get(value, "are retired" if value.startswith("are") else "")
        out.append((value, retired, codes, re.compile(pattern, re.IGNORECASE)))
    return out


@lru_cache(maxsize=1)
def place_patterns() -> tuple[list[tuple[re.Pattern[str], float]], dict[str, str]]:
    """Return (pattern, confidence) pairs, and places in lower case with how they are written."""
    table = _table()["places"]
    names = [n.strip() for line in table["names"].strip().splitlines() for n in _names(line)]
    known = {n: _title(n) for n in names}
    alternatives = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    named = rf"(?P<place>(?:{alternatives})\b)"
    capital = r"(?-i:[A-Z][\w'-]+(?: [A-Z][\w'-]+)?)"
    either = rf"(?P<place>(?:{alternatives})\b|{capital})"
    out = []
    for sure, key in ((STATED, "stated"), (HINTED, "hinted")):
        for p in table[key]:
            filled = p.replace("{PLACE}", either).replace("{KNOWN}", named)
            out.append((re.compile(_filled(filled), re.IGNORECASE), sure))
    return out, known


def _names(line: str) -> list[str]:
    return line.split("|") if "|" in line else line.split()


def _title(name: str) -> str:
    small = {"the", "of", "de"}
    upper = {"uk", "us", "usa"}
    return " ".join(
        w.upper() if w in upper else w if w in small else w.capitalize() for w in name.split()
    )
