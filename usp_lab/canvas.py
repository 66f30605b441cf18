"""What all figures share: the palette, the style, `save_figure`, and panels, rows and legends to draw on."""

import functools
import io
import json
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from usp_lab.errors import UspError
from usp_lab.files import atomic


class Look(NamedTuple):
    """How an arm is drawn in every figure."""

    colour: str
    marker: str
    label: str


# Okabe & Ito's colours, told apart by the colour-blind; the marker tells arms apart in grey.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, GREY, SILVER = "#222222", "#6E6E6E", "#A6A6A6"
PALETTE = {  # the order is the order in figures
    "usp": Look(BLUE, "o", "USP"),
    "usp_end": Look(SKY, "s", "USP + end token"),
    "usp_rlcc": Look(GREEN, "D", "USP + RLCC"),
    "plato": Look(ORANGE, "^", "no profile (PLATO)"),
    "empty": Look(PURPLE, "v", "USP, empty profile"),
    "shuffled": Look(VERMILION, "X", "USP, another's profile"),
    "roleplay": Look(YELLOW, "P", "role-play"),
    "retrieval": Look(GREY, "h", "nearest real turn"),
    "twin": Look(BLACK, "*", "twin (ceiling)"),
    "other": Look(SILVER, "<", "other user (floor)"),
    "bayes": Look(BLACK, "X", "best possible (Bayes)"),
    "bayes_told": Look(GREY, "X", "best possible, told the profile"),
    "always_stop": Look(SILVER, "o", "always stop"),
    "human_split": Look(SILVER, "d", "real against real"),
    "population": Look(SKY, ">", "population"),
    "real": Look(BLACK, "p", "real people"),
    "assistant": Look(ORANGE, "s", "assistant"),
    "detector": Look(BLUE, "P", "AI detector"),
    "uncalibrated": Look(SKY, "^", "uncalibrated"),
    "bag_of_words": Look(ORANGE, "h", "bag of words"),
    "length": Look(GREY, "v", "length alone"),
    "on_purpose": Look(GREEN, "X", "taught on purpose"),
    "generator": Look(BLUE, "p", "profile generator"),
    "rules": Look(VERMILION, "s", "rules"),
    "truth": Look(BLACK, "o", "truth"),
}
REFERENCES = ("twin", "other", "human_split")
_USED = {look[:2] for look in PALETTE.values()}
_FREE = [
    p for p in product((GREEN, VERMILION, PURPLE, BLUE, ORANGE), "HpdD8<>sv^") if p not in _USED
]
STYLE = {
    "font.size": 9.5,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 100,
    "text.parse_math": False,  # a label with two dollar signs is text
    "svg.hashsalt": "usp-lab",
}
_WIDTHS = {1: 6.4, 2: 8.6, 3: 10.4}  # inches of a figure with so many columns of panels
CHARS = {1: 60, 2: 36, 3: 25}  # that fit over one panel
NAMES = {1: 40, 2: 28, 3: 22}  # that fit beside it
BETTER = {"higher": "higher is better \u2192", "lower": "\u2190 lower is better"}


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:  # notebooks show bare figures only once pyplot's backend is up
        buffer = io.BytesIO()
        _save(self, buffer, "png", {"Software": None}, _room(self), dpi=100)
        return buffer.getvalue()


def save_figure(
    fig: Figure,
    stem: Path,
    data: pd.DataFrame | None = None,
    meta: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write <stem>.png and <stem>.svg, and with ``data`` <stem>.parquet, each whole or not at all.

    A second call gives identical bytes: no date and no version is written.

    Args:
        fig: any matplotlib figure; its automatic layout is settled by this.
        stem: path without the ending, in an existing folder.
        data: the table that was plotted.
        meta: where the figure comes from (notebook, hashes of parameters, data and code): text
            keys of the PNG, JSON in the SVG's Description.

    Returns:
        The paths written.
    """
    stem = Path(stem)
    meta = {str(k): str(v) for k, v in sorted((meta or {}).items())}
    if fig.get_layout_engine() is not None:  # each run of it may move things by a hair
        _settle(fig)
    described = {"Description": json.dumps(meta, ensure_ascii=False)} if meta else {}
    dateless = {"Date": None, "Creator": None}
    tags = {"png": {**meta, "Software": None}, "svg": {**described, **dateless}}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in (*tags, "parquet")]
    room = _room(fig)
    for path, (kind, own) in zip(paths, tags.items(), strict=False):
        with atomic(path) as temporary:
            _save(fig, temporary, kind, own, room, dpi=160)
    if data is None:
        return paths[:2]
    with atomic(paths[2]) as temporary:
        data.to_parquet(temporary)
    return paths


def _settle(fig: Figure) -> None:
    fig.draw_without_rendering()
    with style.context(STYLE, after_reset=True):
        fig.set_layout_engine(None)  # "none" keeps a place for one, and each save draws once more


def _room(fig: Figure) -> Bbox:
    """Return what is not empty of a figure, in inches; savefig's "tight" would draw everything once more."""
    with style.context(STYLE, after_reset=True):
        return fig.get_tightbbox().padded(0.1)


def _save(fig: Figure, target, kind: str, tags: dict, room: Bbox, dpi: int) -> None:
    with style.context(STYLE, after_reset=True):
        fig.savefig(target, format=kind, dpi=dpi, metadata=tags, bbox_inches=room)


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """Return each arm's look, in the palette's order, arms that are not in it last and as they come.

    Such an arm's look follows from its name and differs from all others in the figure; a
    difference ``a_minus_b`` takes that of ``a``.

    >>> list(looks(["twin", "mine", "usp", "usp_minus_twin"]))
    ['usp', 'twin', 'mine', 'usp_minus_twin']
    """
    arms = list(dict.fromkeys(map(str, arms)))
    plain = [a for a in arms if "_minus_" not in a]
    out = {a: PALETTE[a] for a in PALETTE if a in plain}
    for arm in (a for a in plain if a not in PALETTE):
        start = zlib.crc32(arm.encode()) % len(_FREE)
        turned = _FREE[start:] + _FREE[:start]
        colours, pairs = {look.colour for look in out.values()}, {look[:2] for look in out.values()}
        best = min(turned, key=lambda p, c=colours, s=pairs: (p in s, p[0] in c))
        out[arm] = Look(*best, arm)
    for arm in (a for a in arms if "_minus_" in a):
        a, b = (out.get(x) or PALETTE.get(x) or Look(GREY, "o", x) for x in arm.split("_minus_", 1))
        out[arm] = Look(a.colour, a.marker, f"{a.label} minus {b.label}")
    return out


def as_plot(columns: str, text: str = "", floats: str = "low high") -> Callable:
    """Make a plot of a drawing function: check and convert the columns, set the style, settle the layout."""

    def decorate(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
        @functools.wraps(draw)
        def plot(table: pd.DataFrame) -> Figure:
            if missing := [c for c in columns.split() if c not in table]:
                raise UspError(
                    f"{draw.__name__} needs a table with {', '.join(columns.split())}; this one has "
                    f"{', '.join(map(str, table.columns)) or 'no column'}: add {', '.join(missing)}"
                )
            kinds = dict.fromkeys(text.split(), str) | dict.fromkeys(floats.split(), float)
            table = table.reset_index(drop=True)
            table = table.astype({c: kind for c, kind in kinds.items() if c in table})
            with style.context(STYLE, after_reset=True):
                fig = draw(table) if len(table) else _empty()
                _settle(fig)  # ticks are made here, in our style
            return fig

        return plot

    return decorate


def _empty() -> Figure:
    fig = NotebookFigure(figsize=(4, 1))
    fig.text(0.5, 0.5, "nothing to show: the table has no rows", ha="center", va="center")
    return fig


def panels(heights: Sequence[float], share_y: bool = False) -> tuple[Figure, list[Axes], int]:
    """Return a figure with one panel a height (inches), their axes, and the number of columns."""
    columns = min(3, len(heights))
    rows = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    size = (_WIDTHS[columns], sum(rows) + 0.95 * len(rows) + 0.3)
    fig = NotebookFigure(figsize=size, layout="constrained")
    grid = fig.subplots(len(rows), columns, squeeze=False, height_ratios=rows, sharey=share_y)
    for ax in list(grid.flat)[len(heights) :]:
        ax.remove()
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return fig, list(grid.flat)[: len(heights)], columns


def curve_panels(
    titles: Sequence[str],
    below: Sequence[str],
    beside: Sequence[str],
    height: float,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel a title, and their axes: ``below`` names each x axis, ``beside`` the y axes (in the first column alone)."""
    fig, axes, columns = panels([height] * len(titles), share_y=share_y)
    for i, (ax, title, x, y) in enumerate(zip(axes, titles, below, beside, strict=True)):
        ax.set_title(wrap(title, CHARS[columns]))
        ax.set_xlabel(x)
        if i % columns == 0:
            ax.set_ylabel(y)
    return fig, axes


def wrap(text: object, width: int) -> str:
    """Break a text into lines of so many characters."""
    return "\n".join(textwrap.wrap(str(text), width))


def given(table: pd.DataFrame, column: str, default: object) -> object:
    """Return the first value of an optional column."""
    values = table[column].dropna() if column in table else ()
    return values.iloc[0] if len(values) else default


def n_text(values: Iterable[float]) -> str:
    """Return "n 12", "n 12 to 15", or nothing."""
    known = sorted({int(v) for v in values if pd.notna(v)})
    return f"n {' to '.join(dict.fromkeys(map(str, known[:1] + known[-1:])))}" if known else ""


def number_axis(axis, log: bool = False) -> None:
    """Give an axis few plain tick labels, also on a logarithmic axis that spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if log else 0
    axis.set_major_formatter(ScalarFormatter(useOffset=False))
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if decades >= 1:
        axis.set_major_locator(LogLocator(subs=(1, 3) if decades < 2 else (1,), numticks=4))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    if log:
        axis.set_minor_formatter(NullFormatter())


def legend(fig: Figure, look: Mapping[str, Look], notes: Mapping[str, str], line: str) -> None:
    """Explain the looks below the figure, each arm with its note; ``line``: matplotlib's line style."""
    keys = [
        Line2D([], [], color=c, marker=m, markeredgecolor=INK, linestyle=line)
        for c, m, _ in look.values()
    ]
    labels = [wrap(f"{one.label} {notes.get(arm, '')}", 40) for arm, one in look.items()]
    longest = max(len(part) for label in labels for part in label.split("\n"))
    columns = max(1, min(len(labels), int(fig.get_figwidth() * 12) // (longest + 6)))
    fig.legend(keys, labels, loc="outside lower center", ncols=columns)


def name_rows(ax: Axes, labels: Sequence[str], notes: Sequence[str]) -> None:
    """Name the rows of a panel on its left, with what is counted on its right."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    for y, note in enumerate(notes):
        ax.text(
            1.03, y, note, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=GREY
        )


def dot(
    ax: Axes, y: float, row, look: Look, log: bool = False, who: str = "", size: float = 7
) -> None:
    """Draw an estimate with its interval, hollow without one; say so where there is nothing to draw."""
    if not math.isfinite(row.value) or (log and row.value <= 0):
        what = "not scored" if math.isnan(row.value) else f"{row.value:g}, off the axis"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
        at = {"transform": ax.get_yaxis_transform(), "va": "center", "bbox": box}
        ax.text(0.03, y, who + what, fontsize=8, style="italic", color=GREY, **at)
        return
    whole = math.isfinite(row.low) and math.isfinite(row.high)
    if whole:
        off = log and row.low <= 0  # a caret: the interval goes on beyond the axis
        ends = [row.value / 3 if off else row.low, row.high]
        ax.plot(ends, [y, y], color="#333333", linewidth=1.5, zorder=3)
        for x, marker in zip(ends, (4 if off else "|", "|"), strict=True):
            ax.plot([x], [y], marker=marker, color="#333333", markersize=size, zorder=3)
    fill = look.colour if whole else "white"
    edge = INK if whole else look.colour
    drawn = {"markersize": size, "markerfacecolor": fill, "markeredgecolor": edge}
    ax.plot([row.value], [y], look.marker, zorder=4, **drawn)


def line(ax: Axes, own: pd.DataFrame, x: str, y: str, look: Look, size: float = 6.5) -> None:
    """Draw a line with markers, and a band where there are intervals."""
    if {"low", "high"} <= set(own):
        band = {"color": look.colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(own[x], own["low"], own["high"], **band)
    if look.colour == YELLOW:  # too pale alone
        ax.plot(own[x], own[y], color=INK, linewidth=2.8)
    drawn = {"color": look.colour, "markeredgecolor": INK, "markersize": size}
    ax.plot(own[x], own[y], marker=look.marker, **drawn)
