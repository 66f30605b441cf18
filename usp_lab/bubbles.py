"""Dialogues in notebooks: as chat bubbles, the user on the right, or as the tokens trained on.

    show_dialogue(dialogue.messages, title="usp", profile=dialogue.profile, stop=dialogue.stop)
    side_by_side([show_dialogue(real, title="real"), show_dialogue(simulated, title="usp")])
    side_by_side([show_dialogue(d, profile=p, praise=True) for d in several], legend=True)
    show_trained_tokens(tokenizer, dialogue.messages)

Every text is shown as it is: HTML, markdown and formulas in it stay text. No JavaScript and no style
sheet; half-transparent colours on the page's own make it legible in light and dark themes.
"""

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from usp_lab.chat import Message, chat_template, trained_mask, without_special_tokens
from usp_lab.metrics import copied_phrases
from usp_lab.praise import praise_phrases

_USER, _ASSISTANT = "rgba(0,114,178,.2)", "rgba(128,128,128,.2)"  # Okabe & Ito's blue, grey
# Told apart by the line as well as by the colour; where both hold, copied words keep their ground.
_MARK = "background:rgba(230,159,0,.45);color:inherit;border-bottom:2px solid rgba(230,159,0,.9)"
_PRAISED = "border-bottom:3px dotted rgba(204,121,167,1);color:inherit"
_PRAISE_ALONE = f"background:rgba(204,121,167,.4);{_PRAISED}"
_MEANING = {"copied": "repeats the profile", "praise": "praises the assistant"}
_TRAINED = "background:rgba(0,114,178,.25);color:inherit;border-bottom:2px solid rgba(0,114,178,.8)"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;text-align:start"
_SMALL = f"font-size:.85em;opacity:.75;margin:.2em 0;{_TEXT}"
_BOX = "border:1px dashed rgba(128,128,128,.6);border-radius:.5em;padding:.4em .7em;margin:.4em 0"
_CUT = "border-right:1px solid rgba(128,128,128,.5)"  # after each token
# MathJax (JupyterLab's, nbconvert's) leaves elements of these classes alone: "$5 or $6" is no formula.
_ROOT = 'class="mathjax_ignore tex2jax_ignore" style="color:inherit;line-height:1.35;{}"'
# C0 and C1 but for line feed and tab, and the two that turn the direction of what follows.
_CONTROL = {i: "\ufffd" for i in (*range(32), *range(127, 160), 0x202D, 0x202E) if i not in (9, 10)}


@dataclass(frozen=True)
class Bubbles:
    """What a notebook shows as HTML and a terminal as text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show_dialogue(
    messages: Sequence[Message],
    title: str = "",
    profile: str | None = None,
    highlight: bool | Sequence[str] = True,
    stop: str | None = None,
    meta: Mapping[str, object] | None = None,
    notes: Sequence[str] | None = None,
    praise: bool = False,
    show_profile: bool = True,
) -> Bubbles:
    """Show one dialogue.

    Args:
        messages: in order; a system message is shown in a box.
        title: above it, e.g. the arm.
        profile: what the user was told; shown in a box above the dialogue.
        highlight: what to mark in the user's turns: True what they copy from ``profile`` (runs of
            four words, `metrics.copied_phrases`), False nothing, or these phrases.
        stop: why the dialogue ended; shown as "ends: ...".
        meta: names and values for a small line below the title.
        notes: one small line below each message, "" for none.
        praise: mark in the user's turns, in another colour, what praises the assistant
            (`praise.praise_phrases`).
        show_profile: False: the profile is there for ``highlight`` alone.
    """
    parts = [f'<div style="font-weight:bold;{_TEXT}">{_escape(title)}</div>'] if title else []
    if meta:
        line = " \u00b7 ".join(f"{k}: {v}" for k, v in meta.items())
        parts.append(f'<div style="{_SMALL}">{_escape(line)}</div>')
    if profile and show_profile:
        parts.append(_boxed("profile", profile))
    for message, note in zip(messages, notes or [""] * len(messages), strict=True):
        parts.append(_bubble(message, note, profile, highlight, praise))
    if not messages:
        parts.append(f'<div style="{_SMALL}">(no messages)</div>')
    if stop:
        parts.append(f'<div style="{_SMALL};text-align:center">ends: {_escape(stop)}</div>')
    body = f"<div {_ROOT.format('max-width:46em')}>{''.join(parts)}</div>"
    return Bubbles(body, as_text(messages, title=title, stop=stop))


def side_by_side(dialogues: Sequence[Bubbles], legend: bool = False) -> Bubbles:
    """Show dialogues in columns, as many as the page has room for.

    Args:
        dialogues: from `show_dialogue`.
        legend: say above them what the marks mean.
    """
    cells = "".join(f'<div style="min-width:0">{d.html}</div>' for d in dialogues)
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(17em,1fr));gap:1.5em"
    columns = f"<div {_ROOT.format(grid)}>{cells}</div>"
    if legend:
        marks = " \u00b7 ".join(_mark(html.escape(_MEANING[kind]), {kind}) for kind in _MEANING)
        columns = f'<div style="{_SMALL}">Marked in the user\'s turns: {marks}</div>{columns}'
    return Bubbles(columns, "\n\n".join(d.text for d in dialogues))


def show_trained_tokens(tokenizer, messages: Sequence[Message], speaker: str = "user") -> Bubbles:
    """Show the tokens that a dialogue is trained as, and which of them carry the loss.

    A character of several tokens stands on the first of them. In a terminal, tokens that carry the
    loss are in brackets.

    Args:
        tokenizer: a fast tokenizer (it knows where in the text each token begins).
        messages: in order, as in training.
        speaker: whose turns are learned: "user", "assistant" or "both".
    """
    if not messages:
        return show_dialogue([])
    ids, mask = trained_mask(tokenizer, messages, speaker)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    count = f"{sum(mask)} of {len(ids)} tokens carry the loss"
    shown, plain = [], [f"{count}: those in [brackets]\n\n"]
    pieces = _pieces(tokenizer, messages, speaker)
    for i, piece, trained in zip(ids, pieces, mask, strict=True):
        tag, style = ("mark", f"{_TRAINED};{_CUT}") if trained else ("span", _CUT)
        style += ";font-size:.65em" if i in special else ""
        text = _clean(piece)
        shown.append(f'<{tag} style="{style}">{html.escape(text)}</{tag}>')
        plain.append(f"[{text}]" if trained else text)
    legend = f'{count}: the <mark style="{_TRAINED}">shaded</mark> ones. Thin lines end tokens; special tokens are small.'
    body = f'<div style="{_SMALL}">{legend}</div><div dir="auto" style="{_TEXT}">{"".join(shown)}</div>'
    return Bubbles(f"<div {_ROOT.format('max-width:60em')}>{body}</div>", "".join(plain))


def _pieces(tokenizer, messages: Sequence[Message], speaker: str) -> list[str]:
    """Return the text of each token; joined they are the rendered dialogue."""
    text = tokenizer.apply_chat_template(
        without_special_tokens(tokenizer, messages),
        chat_template=chat_template(speaker),
        tokenize=False,
    )
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [0]  # a token may reach back over a space that its offsets leave out
    for _, end in again["offset_mapping"]:
        ends.append(max(end, ends[-1]))
    return [text[a:b] for a, b in pairwise(ends)]


def as_text(
    messages: Sequence[Message], title: str = "", stop: str | None = None, width: int = 100
) -> str:
    r"""Return a dialogue for a terminal, one paragraph a message; control characters are made visible.

    >>> print(as_text([{"role": "user", "content": "hi\x1b[2J"}], stop="closing"))
    user: hi�[2J
    (ends: closing)
    """
    lines = [_clean(title)] if title else []
    for message in messages:
        text = f"{message['role']}: {_clean(message['content']) or '(empty)'}"
        for i, line in enumerate(text.split("\n")):
            indent = {"initial_indent": "  " if i else "", "subsequent_indent": "  "}
            lines += textwrap.wrap(line, width, **indent) or [""]
    lines += [] if messages else ["(no messages)"]
    return "\n".join(lines + ([f"(ends: {_clean(stop)})"] if stop else []))


def _bubble(
    message: Message, note: str, profile: str | None, highlight: bool | Sequence, praise: bool
) -> str:
    role, text = message["role"], _clean(message["content"])
    below = f'<div style="{_SMALL}">{_escape(note)}</div>' if note else ""
    if role == "system":
        return _boxed("system", text) + below
    user = role == "user"
    spans = {
        "copied": _spans(text, profile, highlight) if user else [],
        "praise": praise_phrases(text) if user and praise else [],
    }
    shown = _marked(text, spans) or "(empty)"
    side = "margin-left:auto" if user else "margin-right:auto"
    corner = "border-bottom-right-radius:.2em" if user else "border-bottom-left-radius:.2em"
    bubble = (
        f"background:{_USER if user else _ASSISTANT};border-radius:1em;{corner};padding:.4em .8em"
    )
    return (
        f'<div style="width:fit-content;max-width:82%;margin-top:.5em;{side}">'
        f'<div title="{_escape(role)}" dir="auto" style="color:inherit;{bubble};{_TEXT}">{shown}</div>'
        f"{below}</div>"
    )


def _boxed(name: str, text: str) -> str:
    inside = f'<div dir="auto" style="{_TEXT}">{_escape(text)}</div>'
    return (
        f'<details open style="{_BOX};font-size:.9em"><summary>{name}</summary>{inside}</details>'
    )


def _spans(
    text: str, profile: str | None, highlight: bool | Sequence[str]
) -> list[tuple[int, int]]:
    """Return the character spans to mark, in order and apart."""
    if isinstance(highlight, bool):
        return copied_phrases(profile, text) if highlight and profile else []
    found = [
        m.span() for p in highlight if p for m in re.finditer(re.escape(p), text, re.IGNORECASE)
    ]
    spans: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _marked(text: str, spans: Mapping[str, Sequence[tuple[int, int]]]) -> str:
    """Escape a text and mark its spans, which of several kinds may overlap."""
    ends = {i for own in spans.values() for span in own for i in span}
    cuts, parts = sorted({0, len(text), *ends}), []
    for start, stop in pairwise(cuts):
        kinds = {k for k, own in spans.items() if any(a <= start and stop <= b for a, b in own)}
        piece = html.escape(text[start:stop])
        parts.append(_mark(piece, kinds) if kinds else piece)
    return "".join(parts)


def _mark(escaped: str, kinds: set[str]) -> str:
    style = _PRAISE_ALONE if kinds == {"praise"} else _MARK
    style += f";{_PRAISED}" if len(kinds) > 1 else ""
    return f'<mark style="{style}">{escaped}</mark>'


def _escape(text: object) -> str:
    return html.escape(_clean(text))


def _clean(text: object) -> str:
    """Replace what no terminal or file should be given: control characters, lone surrogates."""
    text = str(text).replace("\r\n", "\n").translate(_CONTROL)
    return text.encode("utf-8", "replace").decode("utf-8")
