"""Where a text praises whom it talks to: the phrases that `bubbles` marks, and how often they come.

A rule, not a model: a list of phrases, tried on the population's tables (which praise only when
helped) and on the role-play stand-in's. Thanks alone are manners and no praise, gushing thanks are;
a request ("a tip would be great") and a denial ("not helpful") are none. Irony passes for praise.
"""

import re
from collections.abc import Sequence

_GOOD = (
    r"(?:great|excellent|amazing|wonderful|fantastic|brilliant|awesome|superb|outstanding|perfect|"
    r"lovely|marvell?ous|terrific|incredible|invaluable|admirable|impressive|insightful|remarkable)"
)
_USEFUL = (
    rf"(?:{_GOOD}|helpful|useful|informative|instructive|kind|clear|thoughtful|knowledgeable|"
    r"patient|thorough|clever|smart)"
)
_VERY = r"(?:so|very|really|most|truly|incredibly|extremely|exceptionally|super)"
_PRAISE = re.compile(
    rf"""
    (?:^|(?<=[.!?;:,]\s)) (?:(?:oh|ah|wow|ok|okay),?\s)? {_GOOD} (?=[.,!]|\s+(?:stuff|one|thanks?|thx)\b|$)
  | \b(?:super|nice\sone|great\sstuff|bravo|well\s(?:said|put|done|explained))(?=[.,!]|$)
  | \b(?:you\s?(?:'re|\sare|'ve\sbeen|\shave\sbeen|\swere)|(?:that|this|it)(?:'s|\sis|\swas)|
      your\s\w+\s(?:is|was|has\sbeen)|how|what)\s
      (?:(?:{_VERY}|just|such|always|an?|the|of)\s){{0,3}} {_USEFUL} (?:\sand\s{_USEFUL})?\b
  | \b{_VERY}\s{_USEFUL}\b
  | \b(?:{_USEFUL}|good|sound)\s
      (?:help|answer|advice|tip|idea|suggestion|point|job|explanation|response|reply|assistant|
      guidance|perspective|starting\spoint|way\sto\sput\sit|way\sof\slooking)s?\b
  | \b(?:i\s)?(?:really\s)?(?:love|admire|am\simpressed\s(?:by|with))\s
      (?:it|that|this|how|your)\b (?:\s(?:answer|advice|idea|suggestion|help|patience))?
  | \b(?:you(?:'ve|\shave)\s)?(?:answered\s(?:that\s|it\s)?admirably|saved\s(?:me|my\s\w+))\b
  | \b(?:just|exactly|precisely)\s(?:the\ssort\sof\sthing|what)\s(?:i|we)\s
      (?:need(?:ed)?|wanted|(?:was|were)\safter|hoped\sfor|wished\sto\sknow)\b
  | \b(?:truly|really|deeply|genuinely|greatly|so|incredibly)\s
      (?:appreciate|respect|admire|grateful|thankful|touched|impressed|inspired|resonates)\b
  | \bappreciate\s(?:you|your)\b | \bnothing\sshort\sof\s{_USEFUL}\b | \bvery\sfair\spoint\b
  | \bmeans?\s(?:the\sworld|so\smuch|a\s(?:lot|great\sdeal)|everything|more)\b
  | \b(?:couldn't|could\snot)\s(?:have\sasked\sfor|agree\smore)\b | \babsolutely\sright\b
  | \b(?:can't|cannot)\sthank\syou\senough\b | \bfrom\sthe\sbottom\sof\smy\sheart\b
  | \b(?:exactly|just)\sthe\skind\sof\b | \byou\s(?:really|always|truly)\s(?:understand|know)\b
  | \byou\s(?:explain|put|said)\s(?:that|it|this|things)\sso\swell\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Words before the phrase, in its sentence, that take the praise back or only wish for it.
_TAKEN_BACK = re.compile(
    r"(?:\b(?:not|no|never|hardly|neither|nor|without|would|could|might|i'd|if|hope|hoping|any|some|"
    r"\w+n'?t)\b|(?:^|[.!?;:,]\s*)(?:is|are|was|were|do|does)\b)[^.!?;:,]*$",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[^.!?,;:]*\?")  # "What is a good tip for beginners?" asks


def praise_phrases(text: str) -> list[tuple[int, int]]:
    """Return the character spans (start, end) of a text that praise, in order and apart.

    >>> praise_phrases("That's really helpful, thank you. A map would be great.")
    [(0, 21)]
    """
    text = text.replace("\u2019", "'")
    spans = []
    for found in _PRAISE.finditer(text):
        start, end = found.span()
        if not _TAKEN_BACK.search(text[:start]) and not _ASKED.match(text[end:]):
            spans.append((start, end))
    return spans


def praise_rate(turns: Sequence[str]) -> float:
    """Share of turns that praise, 0 to 1; NaN without a turn.

    >>> praise_rate(["Brilliant, thanks!", "and the bus?"])
    0.5
    """
    return sum(map(bool, map(praise_phrases, turns))) / len(turns) if turns else float("nan")
