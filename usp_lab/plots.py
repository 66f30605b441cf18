"""One look for all figures: the palette, `save_figure`, and the plots that several notebooks share.

A plot takes one tidy table of plain columns and returns a figure, so that `90_figures` draws it
again from the saved table alone: `getattr(plots, name)(pandas.read_parquet(table))`. The same table
gives the same bytes, no figure stays open in pyplot, and what is NaN reads "not scored".
"""

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

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

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
    "human_split": Look(SILVER, "d", "real against real"),
    "population": Look(SKY, ">", "population"),
    "real": Look(BLACK, "p", "real people"),
    "assistant": Look(ORANGE, "s", "assistant"),
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
_CHARS = {1: 60, 2: 36, 3: 25}  # that fit over one panel
_NAMES = {1: 40, 2: 28, 3: 22}  # that fit beside it
_BETTER = {"higher": "higher is better \u2192", "lower": "\u2190 lower is better"}


class _Figure(Figure):
    def _repr_png_(self) -> bytes:  # notebooks show bare figures only once pyplot's backend is up
        buffer = io.BytesIO()
        _save(self, buffer, "png", {"Software": None}, dpi=100)
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
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
    described = {"Description": json.dumps(meta, ensure_ascii=False)} if meta else {}
    dateless = {"Date": None, "Creator": None}
    tags = {"png": {**meta, "Software": None}, "svg": {**described, **dateless}}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in (*tags, "parquet")]
    for path, (kind, own) in zip(paths, tags.items(), strict=False):
        with atomic(path) as temporary:
            _save(fig, temporary, kind, own, dpi=160)
    if data is None:
        return paths[:2]
    with atomic(paths[2]) as temporary:
        data.to_parquet(temporary)
    return paths


def _save(fig: Figure, target: Path | io.BytesIO, kind: str, tags: dict, dpi: int) -> None:
    room = {"bbox_inches": "tight", "pad_inches": 0.1}
    with style.context(STYLE, after_reset=True):
        fig.savefig(target, format=kind, dpi=dpi, metadata=tags, **room)


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


def _plot(columns: str, text: str = "", floats: str = "low high") -> Callable:
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
                fig.draw_without_rendering()  # ticks are made here, in our style
                fig.set_layout_engine("none")
            return fig

        return plot

    return decorate


def _empty() -> Figure:
    fig = _Figure(figsize=(4, 1))
    fig.text(0.5, 0.5, "nothing to show: the table has no rows", ha="center", va="center")
    return fig


def _panels(heights: Sequence[float], share_y: bool = False) -> tuple[Figure, list[Axes], int]:
    """Return a figure with one panel a height (inches), their axes, and the number of columns."""
    columns = min(3, len(heights))
    rows = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    size = (_WIDTHS[columns], sum(rows) + 0.95 * len(rows) + 0.3)
    fig = _Figure(figsize=size, layout="constrained")
    grid = fig.subplots(len(rows), columns, squeeze=False, height_ratios=rows, sharey=share_y)
    for ax in list(grid.flat)[len(heights) :]:
        ax.remove()
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return fig, list(grid.flat)[: len(heights)], columns


def _wrap(text: object, width: int) -> str:
    return "\n".join(textwrap.wrap(str(text), width))


def _given(table: pd.DataFrame, column: str, default: object) -> object:
    """Return the first value of an optional column."""
    values = table[column].dropna() if column in table else ()
    return values.iloc[0] if len(values) else default


def _n(values: Iterable[float]) -> str:
    """`n 12`, `n 12 to 15`, or nothing."""
    known = sorted({int(v) for v in values if pd.notna(v)})
    return f"n {' to '.join(dict.fromkeys(map(str, known[:1] + known[-1:])))}" if known else ""


def _numbers(axis, log: bool = False) -> None:
    """Few plain tick labels, also on a logarithmic axis that spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if log else 0
    axis.set_major_formatter(ScalarFormatter(useOffset=False))
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if decades >= 1:
        axis.set_major_locator(LogLocator(subs=(1, 3) if decades < 2 else (1,), numticks=4))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    if log:
        axis.set_minor_formatter(NullFormatter())


def _legend(fig: Figure, look: Mapping[str, Look], notes: Mapping[str, str], line: str) -> None:
    keys = [
        Line2D([], [], color=c, marker=m, markeredgecolor=INK, linestyle=line)
        for c, m, _ in look.values()
    ]
    labels = [_wrap(f"{one.label} {notes.get(arm, '')}", 40) for arm, one in look.items()]
    longest = max(len(part) for label in labels for part in label.split("\n"))
    columns = max(1, min(len(labels), int(fig.get_figwidth() * 12) // (longest + 6)))
    fig.legend(keys, labels, loc="outside lower center", ncols=columns)


def _rows(ax: Axes, labels: Sequence[str], notes: Sequence[str]) -> None:
    """Name the rows of a panel on its left, with what is counted on its right."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    for y, note in enumerate(notes):
        ax.text(
            1.03, y, note, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=GREY
        )


def _dot(
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
    dot = {"markersize": size, "markerfacecolor": fill, "markeredgecolor": edge}
    ax.plot([row.value], [y], look.marker, zorder=4, **dot)


def _interval_panels(table: pd.DataFrame, references: Sequence[str]) -> Figure:
    if "label" in table:  # a difference may come without one
        table = table.assign(label=table.groupby("metric")["label"].transform("first"))
    difference = table["arm"].str.contains("_minus_")
    panel = table["panel"].fillna(table["metric"]) if "panel" in table else table["metric"]
    look = looks(table["arm"])
    ranks = {"metric": list(table["metric"].unique()), "arm": list(look)}
    groups = [
        g.sort_values(["metric", "arm"], key=lambda c: c.map(ranks[c.name].index))
        for _, g in table.groupby([panel, difference], sort=False)
    ]
    names = [_row_names(g, look, _NAMES[min(3, len(groups))]) for g in groups]
    lines = [max(name.count("\n") + 2 for name in own) for own in names]
    heights = [max(0.5, 0.13 * len(g) * k) for g, k in zip(groups, lines, strict=True)]
    fig, axes, columns = _panels(heights)
    units = table["unit"].dropna().unique() if "unit" in table else []
    for i, (ax, group, own) in enumerate(zip(axes, groups, names, strict=True)):
        _interval_panel(ax, group, look, references, columns, unit=len(units) > 1)
        again = i % columns and own == names[i - i % columns]
        _rows(ax, [""] * len(own) if again else own, [_n([n]) for n in group["n"]])
    hollow = table["value"].notna() & table[["low", "high"]].isna().any(axis=1)
    foot = ["point: estimate", "hollow: no interval"] if hollow.any() else ["point: estimate"]
    resampled = f" (resampled: {units[0]})" if len(units) == 1 else ""
    foot += [f"line: 95 % interval{resampled}", "n: items scored"]
    fig.supxlabel(", ".join(foot), fontsize=8)
    return fig


def _row_names(group: pd.DataFrame, look: Mapping[str, Look], width: int) -> list[str]:
    names = [look[a].label for a in group["arm"]]
    if group["metric"].nunique() > 1:
        metric = group["label"].fillna(group["metric"]) if "label" in group else group["metric"]
        names = [f"{m}: {name}" for m, name in zip(metric, names, strict=True)]
    return [_wrap(name, width) for name in names]


def _interval_panel(
    ax: Axes, group: pd.DataFrame, look: dict, references: Sequence[str], columns: int, unit: bool
) -> None:
    one = group["metric"].nunique() == 1
    difference = "_minus_" in group["arm"].iloc[0]
    log = bool(_given(group, "log", False)) and not difference and bool((group["value"] > 0).any())
    if log:
        ax.set_xscale("log")
    for y, row in enumerate(group.itertuples()):
        _dot(ax, y, row, look[row.arm], log)
        if one and row.arm in references and math.isfinite(row.value):
            colour = look[row.arm].colour
            ax.axvline(row.value, color=colour, linewidth=1, alpha=0.7, zorder=1)
            if math.isfinite(row.low + row.high):
                ax.axvspan(row.low, row.high, color=colour, alpha=0.13, linewidth=0, zorder=0)
    if difference:
        ax.axvline(0, color=BLACK, linewidth=1, linestyle="--", zorder=1)
    if np.isfinite(group["value"]).any():
        ax.margins(x=0.08)
        _numbers(ax.xaxis, log)
    else:
        ax.set_xticks([])
    metric = group["metric"].iloc[0]
    label = str(_given(group, "label", metric) if one else _given(group, "panel", metric))
    title = str(_given(group, "panel", label))
    below = [f"{label}, difference"] if difference else [label] if label != title else []
    below += [] if difference else [_BETTER.get(_given(group, "better", ""), "")]
    below += [f"resampled: {_given(group, 'unit', '')}"] if unit else []
    ax.set_title(_wrap(title, _CHARS[columns]))
    ax.set_xlabel("\n".join(_wrap(part, _CHARS[columns] + 4) for part in below if part))


@_plot("metric arm value low high n unit", text="metric arm", floats="value low high")
def metric_intervals(table: pd.DataFrame) -> Figure:
    """Draw every arm's estimate of every metric, one panel a metric, differences in panels of their own.

    Args:
        table: metric, arm, value, low, high, n, unit; as wished better ("higher" or "lower"), label
            (of the metric), log (bool), panel (metrics of one panel share its axis).
    """
    return _interval_panels(table, REFERENCES)


@_plot("statistic corpus value low high n", text="statistic corpus", floats="value low high")
def corpus_comparison(table: pd.DataFrame) -> Figure:
    """Draw statistics of the population (its band runs through) beside those of real corpora.

    Args:
        table: statistic, corpus, value, low, high, n; as wished the columns of `metric_intervals`.
    """
    named = table.rename(columns={"statistic": "metric", "corpus": "arm"})
    return _interval_panels(named, ["population"])


@_plot("model step loss split", text="model", floats="step loss low high")
def learning_curve(table: pd.DataFrame) -> Figure:
    """Draw loss by step, one panel a model: training in grey, validation in the model's colour.

    Args:
        table: model, step, loss (nats per token), split ("train", "validation"); as wished low, high.
    """
    look = looks(table["model"])
    fig, axes, columns = _panels([2.2] * len(look), share_y=True)
    for ax, (model, one) in zip(axes, look.items(), strict=True):
        own = table[table["model"] == model].dropna(subset="loss").sort_values("step")
        train, validation = own[own["split"] == "train"], own[own["split"] == "validation"]
        ax.plot(train["step"], train["loss"], color=SILVER, linewidth=1.2)
        _line(ax, validation, "step", "loss", one, size=5)
        best = "no validation loss"
        if len(validation):
            least = validation.loc[validation["loss"].idxmin()]
            best = f"best {least['loss']:.3f} at step {least['step']:.0f}"
        ax.set_title(_wrap(one.label, _CHARS[columns]))
        ax.set_xlabel(f"step\n{best}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[::columns]:
        ax.set_ylabel("loss, nats per token\n" + _BETTER["lower"])
    fig.supxlabel("grey: training, colour with markers: validation", fontsize=8)
    return fig


def _line(ax: Axes, own: pd.DataFrame, x: str, y: str, look: Look, size: float = 6.5) -> None:
    """Draw a line with markers, and a band where there are intervals."""
    if {"low", "high"} <= set(own):
        band = {"color": look.colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(own[x], own["low"], own["high"], **band)
    if look.colour == YELLOW:  # too pale alone
        ax.plot(own[x], own[y], color=INK, linewidth=2.8)
    drawn = {"color": look.colour, "markeredgecolor": INK, "markersize": size}
    ax.plot(own[x], own[y], marker=look.marker, **drawn)


@_plot("assistant arm turn share_left", text="assistant arm", floats="turn share_left low high")
def stopping(table: pd.DataFrame) -> Figure:
    """Draw the share of dialogues still going by turn, one panel an assistant, one line an arm.

    Args:
        table: assistant, arm, turn (1 is the first), share_left (0 to 1); as wished low, high, n (dialogues).
    """
    look = looks(table["arm"])
    groups = dict(list(table.groupby("assistant", sort=False)))
    fig, axes, columns = _panels([2.6] * len(groups), share_y=True)
    banded = "band: 95 % interval" if {"low", "high"} <= set(table) else ""
    for ax, (name, panel) in zip(axes, groups.items(), strict=True):
        for arm in reversed(look):  # the simulators end up above the references
            own = panel[panel["arm"] == arm].sort_values("turn")
            _line(ax, own, "turn", "share_left", look[arm])
        ax.set_title(_wrap(name, _CHARS[columns]))
        ax.set_xlabel(f"user turn\n{banded}".strip())
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for ax in axes[::columns]:
        ax.set_ylabel("share of dialogues still going")
    notes = {}
    for arm, own in table.groupby("arm"):
        n = _n(own["n"]) if "n" in own else ""
        notes[arm] = "(not scored)" if own["share_left"].isna().all() else f"({n})" if n else ""
    _legend(fig, look, notes, line="-")
    return fig


@_plot("habit arm auc low high n", text="habit arm", floats="auc low high")
def style_recovery(table: pd.DataFrame) -> Figure:
    """Draw how well each style habit of the true user is told from an arm's turns (AUC, 0.5 is chance).

    Args:
        table: habit, arm, auc, low, high, n.
    """
    look = looks(table["arm"])
    habits = dict(list(table.rename(columns={"auc": "value"}).groupby("habit", sort=False)))
    fig, (ax,), _ = _panels([max(1.0, max(0.34, 0.15 * len(look)) * len(habits))])
    for i, own in enumerate(habits.values()):
        if i % 2:
            ax.axhspan(i - 0.5, i + 0.5, color="#F4F4F4", zorder=0)
        for row in own.itertuples():
            y = i + 0.8 * ((list(look).index(row.arm) + 0.5) / len(look) - 0.5)
            _dot(ax, y, row, look[row.arm], who=f"{look[row.arm].label}: ", size=6)
    ax.axvline(0.5, color=BLACK, linewidth=1, linestyle="--", zorder=1)
    _rows(ax, [_wrap(h, 30) for h in habits], [_n(own["n"]) for own in habits.values()])
    ax.set_xlabel(f"AUC, {_BETTER['higher']}  (dashed: chance, line: 95 % interval)")
    _legend(fig, look, {}, line="none")
    return fig


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by order statistics (normal approximation of the binomial).

    >>> _median(np.arange(101.0))
    (50.0, 40.0, 61.0)
    """
    ordered, n = np.sort(values), len(values)
    if n < 6:  # no interval of order statistics reaches 95 %
        return (float(np.median(values)) if n else math.nan, math.nan, math.nan)
    half = 0.98 * math.sqrt(n)
    ends = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return (float(np.median(values)), *map(float, ordered[list(ends)]))


def _ridges(
    ax: Axes, groups: Mapping[str, np.ndarray], look: Mapping[str, Look], names: list, out: str
) -> None:
    """Draw one histogram a row over common bins, with its median; count what is not finite as ``out``."""
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    pooled = np.concatenate(list(finite.values()))
    low, high = (pooled.min(), pooled.max()) if len(pooled) else (0, 1)
    room = (high - low) * 0.02 or max(abs(low), 1) * 0.05
    edges = np.linspace(low - room, high + room, 41)
    notes = []
    for i, (name, values) in enumerate(finite.items()):
        y = i + 0.35  # the row's line
        left_out = len(groups[name]) - len(values)
        notes.append(_n([len(values)]) + (f"\n{left_out} {out}" if left_out else ""))
        if len(values):
            counts = np.histogram(values, edges)[0]
            height = y - 0.75 * np.append(counts, counts[-1]) / counts.max()
            drawn = {"step": "post", "linewidth": 0.8, "edgecolor": INK, "alpha": 0.75}
            ax.fill_between(edges, y, height, color=look[name].colour, **drawn)
        _dot(ax, y, pd.Series(_median(values), ["value", "low", "high"]), look[name], size=5)
    _rows(ax, names, notes)
    ax.set_ylim(len(finite) - 0.4, -0.55)
    _numbers(ax.xaxis)
    if not len(pooled):
        ax.set_xticks([])


@_plot("arm score metric", text="arm metric", floats="score")
def similarity_distribution(table: pd.DataFrame) -> Figure:
    """Draw how the scores of single dialogues spread, one panel a metric, one row an arm.

    Args:
        table: arm, score (NaN: not scored), metric; as wished better ("higher" or "lower").
    """
    look = looks(table["arm"])
    metrics = dict(list(table.groupby("metric", sort=False)))
    fig, axes, columns = _panels([0.45 * len(look) + 0.2] * len(metrics))
    for i, (ax, (metric, own)) in enumerate(zip(axes, metrics.items(), strict=True)):
        scores = {arm: own.loc[own["arm"] == arm, "score"].to_numpy() for arm in look}
        names = ["" if i % columns else _wrap(one.label, _NAMES[columns]) for one in look.values()]
        _ridges(ax, scores, look, names, "not scored")
        ax.set_title(_wrap(metric, _CHARS[columns]))
        ax.set_xlabel(
            f"score of one dialogue\n{_BETTER.get(_given(own, 'better', ''), '')}".strip()
        )
    fig.supxlabel(
        "bars: share of the arm's dialogues, point: median, line: its 95 % interval", fontsize=8
    )
    return fig


@_plot("log_density group", text="group", floats="log_density")
def density_hist(table: pd.DataFrame) -> Figure:
    """Draw the histogram of log p(z) of each group of users; -inf (a contradiction) is counted beside it.

    Args:
        table: log_density (nats), group.
    """
    look = looks(table["group"])
    groups = {g: table.loc[table["group"] == g, "log_density"].to_numpy() for g in look}
    fig, (ax,), _ = _panels([0.6 * len(look) + 0.3])
    _ridges(ax, groups, look, [_wrap(g, 30) for g in groups], "not finite")
    ax.set_xlabel("log p(z), nats: common users are on the right")
    fig.supxlabel("bars: share of the group, point: median, line: its 95 % interval", fontsize=8)
    return fig


@_plot("attribute value share", text="attribute value", floats="share low high")
def attribute_distribution(table: pd.DataFrame) -> Figure:
    """Draw the share of each value of each attribute, attributes with many values first.

    Beyond twelve values the largest eleven are drawn and the rest is summed in words.

    Args:
        table: attribute, value (drawn in this order), share (0 to 1); as wished low, high, n, unit ("users").
    """
    groups = sorted(table.groupby("attribute", sort=False), key=lambda g: -min(12, len(g[1])))
    fig, axes, columns = _panels([max(0.4, 0.2 * min(12, len(g))) for _, g in groups])
    for ax, (name, group) in zip(axes, groups, strict=True):
        kept = group if len(group) <= 12 else group.nlargest(11, "share")
        y = np.arange(len(kept))
        ax.barh(y, kept["share"], color=SKY, edgecolor=INK, linewidth=0.6, height=0.75)
        if {"low", "high"} <= set(kept):
            ax.hlines(y, kept["low"], kept["high"], color=INK, linewidth=1.5)
        values = [_wrap(v, _NAMES[columns]) for v in kept["value"]]
        notes = ["not scored" if math.isnan(s) else f"{100 * s:.1f} %" for s in kept["share"]]
        if rest := len(group) - len(kept):
            values.append(f"{rest} others")
            notes.append(f"{100 * (group['share'].sum() - kept['share'].sum()):.1f} %")
        _rows(ax, values, notes)
        ax.set_xlim(left=0)
        ax.set_title(_wrap(name, _CHARS[columns]))
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    foot = [f"share of {_given(table, 'unit', 'users')}", _n(table["n"]) if "n" in table else ""]
    foot.append("line: 95 % interval" if {"low", "high"} <= set(table) else "")
    fig.supxlabel(", ".join(filter(None, foot)), fontsize=8)
    return fig


_KINDS = {"latent": ("white", "--"), "observed": ("#E3E3E3", "-"), "assistant": ("#F9E3B4", "-")}
_TINTS = ("#CFE8F7", "#CDE9E0", "#F1DCE6", "#FBF7C5")
_GAP = 0.3  # inches between boxes


@_plot("node label x y kind parents", text="node label kind", floats="x y")
def generative_model(table: pd.DataFrame) -> Figure:
    """Draw a generative model as boxes and arrows.

    Args:
        table: node, label, x, y (any grid, y upwards; rows and columns are moved apart until no two
            boxes touch), kind ("latent", "observed", "assistant" or others), parents (node names
            with commas between, or empty), as wished note (small print below the label).

    Raises:
        UspError: a parent is not a node, or two nodes have one name or one place.
    """
    if table["node"].duplicated().any() or table[["x", "y"]].duplicated().any():
        raise UspError(
            "generative_model draws each node once and at its own place; two rows share their node "
            f"or x and y: {table[['node', 'x', 'y']].to_dict('split')['data']}"
        )
    place = table[["x", "y"]].to_numpy()
    box, width = _box_width(place)
    labels = [_fit(t, box - 0.2, 9, "bold") for t in table["label"]]
    notes = table["note"].fillna("") if "note" in table else [""] * len(table)
    notes = [_fit(t, box - 0.2, 7.5) for t in notes]
    tops = np.array([0.165 * (t.count("\n") + 1) for t in labels])
    high = tops + [0.2 + 0.14 * (t.count("\n") + 1 if t else 0) for t in notes]
    centre = _spread(place, box, width, high)
    size = centre.max(axis=0) + (box / 2 + 0.1, high.max() / 2 + 0.05)
    fig = _Figure(figsize=size)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(-0.05, size[0] - 0.05), ylim=(0, size[1]))
    ax.set_axis_off()
    others = [k for k in table["kind"].unique() if k not in _KINDS]
    kinds = _KINDS | {k: (_TINTS[i % len(_TINTS)], "-") for i, k in enumerate(others)}
    boxes = []
    for i, ((x, y), kind) in enumerate(zip(centre, table["kind"], strict=True)):
        drawn = {"facecolor": kinds[kind][0], "linestyle": kinds[kind][1], "edgecolor": INK}
        corner = (x - box / 2 + 0.06, y - high[i] / 2 + 0.06)
        rounded = FancyBboxPatch(corner, box - 0.12, high[i] - 0.12, "round,pad=0.06", **drawn)
        boxes.append(ax.add_patch(rounded))
        top = y + high[i] / 2 - 0.1
        ax.text(x, top, labels[i], fontsize=9, weight="bold", ha="center", va="top")
        ax.text(x, top - tops[i], notes[i], fontsize=7.5, ha="center", va="top")
    halves = np.column_stack([np.full(len(high), box / 2), high / 2])
    for i, j in _edges(table):
        rest = [k for k in range(len(table)) if k not in (i, j)]
        bend = _bend(centre[i], centre[j], centre[rest], halves[rest], size)
        hold = {"patchA": boxes[i], "patchB": boxes[j], "shrinkB": 2, "mutation_scale": 11}
        way = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "-|>", "color": "#444444"}
        ax.add_patch(
            FancyArrowPatch(centre[i], centre[j], zorder=0.5, clip_on=False, **hold, **way)
        )
    shown = [k for k in kinds if k in set(table["kind"])]
    keys = [Patch(facecolor=kinds[k][0], linestyle=kinds[k][1], edgecolor=INK) for k in shown]
    ax.legend(keys, shown, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(6, len(keys)))
    return fig


def _edges(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Return (parent, child) row numbers."""
    index = {node: i for i, node in enumerate(table["node"])}
    edges = []
    for child, parents in enumerate(table["parents"].fillna("")):
        for parent in filter(None, (p.strip() for p in parents.split(","))):
            if parent not in index:
                raise UspError(
                    f"generative_model: node {table['node'][child]!r} names the parent {parent!r}, "
                    f"which is not a node; known: {', '.join(index)}"
                )
            edges.append((index[parent], child))
    return edges


def _box_width(place: np.ndarray) -> tuple[float, float]:
    """Return the width of boxes and of the figure, in inches, at which neighbours of a row do not touch."""
    span = np.ptp(place[:, 0])
    apart = np.abs(place[:, None] - place[None])  # nodes of about the same y are a row
    beside = apart[..., 0][(apart[..., 1] < 0.34) & (apart[..., 0] > 0)]
    if not len(beside):
        return 2.3, 2.3 if not span else 7.0
    ratio = beside.min() / span
    box = min(2.3, (10 - _GAP) * ratio / (1 + ratio))
    return (box, 10.0) if box > 1.1 else (1.1, (1.1 * (1 + ratio) + _GAP) / ratio)


def _spread(place: np.ndarray, box: float, width: float, high: np.ndarray) -> np.ndarray:
    """Return the boxes' centres in inches, rows so far apart that boxes above one another do not touch."""
    span = np.ptp(place[:, 0]) or 1
    x = box / 2 + (place[:, 0] - place[:, 0].min()) * (width - box) / span
    apart = np.abs(place[:, None, 1] - place[None, :, 1])
    above = (np.abs(x[:, None] - x[None]) < box + 0.1) & (apart > 0)
    needed = ((high[:, None] + high[None]) / 2 + _GAP + 0.12)[above] / apart[above]
    y = (place[:, 1] - place[:, 1].min()) * max(needed, default=1.0)
    return np.column_stack([x, y + high.max() / 2 + 0.05])


def _bend(
    a: np.ndarray, b: np.ndarray, centres: np.ndarray, halves: np.ndarray, size: np.ndarray
) -> float:
    """Return the least bend (arc3's rad) of an arrow that touches no other box and no edge, or little of them."""
    t = np.linspace(0, 1, 80)[:, None]

    def touched(bend: float) -> int:
        middle = (a + b) / 2 + bend * np.array([b[1] - a[1], a[0] - b[0]])
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b
        within = np.abs(curve[:, None] - centres[None]) < halves[None] + 0.04
        return int(within.all(axis=2).sum() + ((curve < 0) | (curve > size)).sum())

    return min((sign * k / 8 for k in range(9) for sign in (1, -1)), key=touched)


def _fit(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Break a text into lines that are no wider than so many inches at a font size."""
    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, 72)
    lines = [text]
    for chars in range(80, 0, -1):
        lines = textwrap.wrap(text, chars)
        widths = []
        for line in lines:
            font.set_text(line)
            widths.append(font.get_width_height()[0] / 64 / 72)
        if max(widths, default=0) <= inches:
            break
    return "\n".join(lines)
