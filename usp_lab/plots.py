"""The plots that several notebooks share.

A plot takes one tidy table of plain columns and returns a figure, so that `90_figures` draws it
again from the saved table alone: `getattr(plots, name)(pandas.read_parquet(table))`. The same table
gives the same bytes, no figure stays open in pyplot, and what is NaN reads "not scored".
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from usp_lab.canvas import (
    BETTER,
    BLACK,
    CHARS,
    INK,
    NAMES,
    REFERENCES,
    SILVER,
    SKY,
    Look,
    as_plot,
    dot,
    given,
    legend,
    line,
    looks,
    n_text,
    name_rows,
    number_axis,
    panels,
    wrap,
)
from usp_lab.canvas import PALETTE as PALETTE  # for those who import plots alone
from usp_lab.canvas import save_figure as save_figure


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
    names = [_row_names(g, look, NAMES[min(3, len(groups))]) for g in groups]
    lines = [max(name.count("\n") + 2 for name in own) for own in names]
    heights = [max(0.5, 0.13 * len(g) * k) for g, k in zip(groups, lines, strict=True)]
    fig, axes, columns = panels(heights)
    units = table["unit"].dropna().unique() if "unit" in table else []
    behind: dict[str, None] = {}
    for i, (ax, group, own) in enumerate(zip(axes, groups, names, strict=True)):
        drawn = _interval_panel(ax, group, look, references, columns, unit=len(units) > 1)
        behind |= dict.fromkeys(drawn)
        again = i % columns and own == names[i - i % columns]
        name_rows(ax, [""] * len(own) if again else own, [n_text([n]) for n in group["n"]])
    hollow = table["value"].notna() & table[["low", "high"]].isna().any(axis=1)
    foot = ["point: estimate", "hollow: no interval"] if hollow.any() else ["point: estimate"]
    resampled = f" (resampled: {units[0]})" if len(units) == 1 else ""
    foot += [f"line: 95 % interval{resampled}", "n: items scored"]
    of = ", ".join(behind)
    again = f"\nupright line and band: estimate and interval of {of}" if behind else ""
    fig.supxlabel(", ".join(foot) + again, fontsize=8)
    return fig


def _row_names(group: pd.DataFrame, look: Mapping[str, Look], width: int) -> list[str]:
    names = [look[a].label for a in group["arm"]]
    if group["metric"].nunique() > 1:
        metric = group["label"].fillna(group["metric"]) if "label" in group else group["metric"]
        names = [f"{m}: {name}" for m, name in zip(metric, names, strict=True)]
    return [wrap(name, width) for name in names]


def _interval_panel(
    ax: Axes, group: pd.DataFrame, look: dict, references: Sequence[str], columns: int, unit: bool
) -> list[str]:
    """Draw one panel, and return the labels of the references that run through it."""
    behind = []
    one = group["metric"].nunique() == 1
    difference = "_minus_" in group["arm"].iloc[0]
    log = bool(given(group, "log", False)) and not difference and bool((group["value"] > 0).any())
    if log:
        ax.set_xscale("log")
    for y, row in enumerate(group.itertuples()):
        dot(ax, y, row, look[row.arm], log)
        if one and row.arm in references and math.isfinite(row.value):
            colour = look[row.arm].colour
            behind.append(look[row.arm].label)
            ax.axvline(row.value, color=colour, linewidth=1, alpha=0.7, zorder=1)
            if math.isfinite(row.low + row.high):
                ax.axvspan(row.low, row.high, color=colour, alpha=0.13, linewidth=0, zorder=0)
    if difference:
        ax.axvline(0, color=BLACK, linewidth=1, linestyle="--", zorder=1)
    if np.isfinite(group["value"]).any():
        ax.margins(x=0.08)
        number_axis(ax.xaxis, log)
    else:
        ax.set_xticks([])
    metric = group["metric"].iloc[0]
    label = str(given(group, "label", metric) if one else given(group, "panel", metric))
    title = str(given(group, "panel", label))
    below = [f"{label}, difference"] if difference else [label] if label != title else []
    below += [] if difference else [BETTER.get(given(group, "better", ""), "")]
    below += [f"resampled: {given(group, 'unit', '')}"] if unit else []
    ax.set_title(wrap(title, CHARS[columns]))
    ax.set_xlabel("\n".join(wrap(part, CHARS[columns] + 4) for part in below if part))
    return behind


@as_plot("metric arm value low high n unit", text="metric arm", floats="value low high")
def metric_intervals(table: pd.DataFrame) -> Figure:
    """Draw every arm's estimate of every metric, one panel a metric, differences in panels of their own.

    Args:
        table: metric, arm, value, low, high, n, unit; as wished better ("higher" or "lower"), label
            (of the metric), log (bool), panel (metrics of one panel share its axis).
    """
    return _interval_panels(table, REFERENCES)


@as_plot("statistic corpus value low high n", text="statistic corpus", floats="value low high")
def corpus_comparison(table: pd.DataFrame) -> Figure:
    """Draw statistics of the population (its band runs through) beside those of real corpora.

    Args:
        table: statistic, corpus, value, low, high, n; as wished the columns of `metric_intervals`.
    """
    named = table.rename(columns={"statistic": "metric", "corpus": "arm"})
    return _interval_panels(named, ["population"])


@as_plot("model step loss split", text="model", floats="step loss low high")
def learning_curve(table: pd.DataFrame) -> Figure:
    """Draw loss by step, one panel a model: training in grey, validation in the model's colour.

    Args:
        table: model, step, loss (nats), split ("train", "validation"); as wished low, high, per (what a loss is
            the mean over, "token").
    """
    look = looks(table["model"])
    fig, axes, columns = panels([2.2] * len(look), share_y=True)
    for ax, (model, one) in zip(axes, look.items(), strict=True):
        own = table[table["model"] == model].dropna(subset="loss").sort_values("step")
        train, validation = own[own["split"] == "train"], own[own["split"] == "validation"]
        ax.plot(train["step"], train["loss"], color=SILVER, linewidth=1.2)
        line(ax, validation, "step", "loss", one, size=5)
        best = "no validation loss"
        if len(validation):
            least = validation.loc[validation["loss"].idxmin()]
            best = f"best {least['loss']:.3f} at step {least['step']:.0f}"
        ax.set_title(wrap(one.label, CHARS[columns]))
        ax.set_xlabel(f"step\n{best}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[::columns]:
        ax.set_ylabel(f"loss, nats per {given(table, 'per', 'token')}\n{BETTER['lower']}")
    fig.supxlabel("grey: training, colour with markers: validation", fontsize=8)
    return fig


@as_plot("assistant arm turn share_left", text="assistant arm", floats="turn share_left low high")
def stopping(table: pd.DataFrame) -> Figure:
    """Draw the share of dialogues still going by turn, one panel an assistant, one line an arm.

    Args:
        table: assistant, arm, turn (1 is the first), share_left (0 to 1); as wished low, high, n (dialogues).
    """
    look = looks(table["arm"])
    groups = dict(list(table.groupby("assistant", sort=False)))
    fig, axes, columns = panels([2.6] * len(groups), share_y=True)
    banded = "band: 95 % interval" if {"low", "high"} <= set(table) else ""
    for ax, (name, panel) in zip(axes, groups.items(), strict=True):
        for arm in reversed(look):  # the simulators end up above the references
            own = panel[panel["arm"] == arm].sort_values("turn")
            line(ax, own, "turn", "share_left", look[arm])
        ax.set_title(wrap(name, CHARS[columns]))
        ax.set_xlabel(f"user turn\n{banded}".strip())
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for ax in axes[::columns]:
        ax.set_ylabel("share of dialogues still going")
    notes = {}
    for arm, own in table.groupby("arm"):
        n = n_text(own["n"]) if "n" in own else ""
        notes[arm] = "(not scored)" if own["share_left"].isna().all() else f"({n})" if n else ""
    legend(fig, look, notes, line="-")
    return fig


@as_plot("habit arm auc low high n", text="habit arm", floats="auc low high")
def style_recovery(table: pd.DataFrame) -> Figure:
    """Draw how well each style habit of the true user is told from an arm's turns (AUC, 0.5 is chance).

    Args:
        table: habit, arm, auc, low, high, n.
    """
    look = looks(table["arm"])
    habits = dict(list(table.rename(columns={"auc": "value"}).groupby("habit", sort=False)))
    fig, (ax,), _ = panels([max(1.0, max(0.34, 0.15 * len(look)) * len(habits))])
    for i, own in enumerate(habits.values()):
        if i % 2:
            ax.axhspan(i - 0.5, i + 0.5, color="#F4F4F4", zorder=0)
        for row in own.itertuples():
            y = i + 0.8 * ((list(look).index(row.arm) + 0.5) / len(look) - 0.5)
            dot(ax, y, row, look[row.arm], who=f"{look[row.arm].label}: ", size=6)
    ax.axvline(0.5, color=BLACK, linewidth=1, linestyle="--", zorder=1)
    name_rows(ax, [wrap(h, 30) for h in habits], [n_text(own["n"]) for own in habits.values()])
    ax.set_xlabel(f"AUC, {BETTER['higher']}  (dashed: chance, line: 95 % interval)")
    legend(fig, look, {}, line="none")
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
        notes.append(n_text([len(values)]) + (f"\n{left_out} {out}" if left_out else ""))
        if len(values):
            counts = np.histogram(values, edges)[0]
            height = y - 0.75 * np.append(counts, counts[-1]) / counts.max()
            drawn = {"step": "post", "linewidth": 0.8, "edgecolor": INK, "alpha": 0.75}
            ax.fill_between(edges, y, height, color=look[name].colour, **drawn)
        dot(ax, y, pd.Series(_median(values), ["value", "low", "high"]), look[name], size=5)
    name_rows(ax, names, notes)
    ax.set_ylim(len(finite) - 0.4, -0.55)
    number_axis(ax.xaxis)
    if not len(pooled):
        ax.set_xticks([])


@as_plot("arm score metric", text="arm metric", floats="score")
def similarity_distribution(table: pd.DataFrame) -> Figure:
    """Draw how the scores of single dialogues spread, one panel a metric, one row an arm.

    Args:
        table: arm, score (NaN: not scored), metric; as wished better ("higher" or "lower"), per (what a score is of,
            "dialogue").
    """
    look, per = looks(table["arm"]), given(table, "per", "dialogue")
    metrics = dict(list(table.groupby("metric", sort=False)))
    fig, axes, columns = panels([0.45 * len(look) + 0.2] * len(metrics))
    for i, (ax, (metric, own)) in enumerate(zip(axes, metrics.items(), strict=True)):
        scores = {arm: own.loc[own["arm"] == arm, "score"].to_numpy() for arm in look}
        names = ["" if i % columns else wrap(one.label, NAMES[columns]) for one in look.values()]
        _ridges(ax, scores, look, names, "not scored")
        ax.set_title(wrap(metric, CHARS[columns]))
        ax.set_xlabel(f"score of one {per}\n{BETTER.get(given(own, 'better', ''), '')}".strip())
    fig.supxlabel(
        f"bars: share of the arm's {per}s, point: median, line: its 95 % interval", fontsize=8
    )
    return fig


@as_plot("log_density group", text="group", floats="log_density")
def density_hist(table: pd.DataFrame) -> Figure:
    """Draw the histogram of log p(z) of each group of users; -inf (a contradiction) is counted beside it.

    Args:
        table: log_density (nats), group.
    """
    look = looks(table["group"])
    groups = {g: table.loc[table["group"] == g, "log_density"].to_numpy() for g in look}
    fig, (ax,), _ = panels([0.6 * len(look) + 0.3])
    _ridges(ax, groups, look, [wrap(g, 30) for g in groups], "not finite")
    ax.set_xlabel("log p(z), nats: common users are on the right")
    fig.supxlabel("bars: share of the group, point: median, line: its 95 % interval", fontsize=8)
    return fig


@as_plot("attribute value share", text="attribute value", floats="share low high")
def attribute_distribution(table: pd.DataFrame) -> Figure:
    """Draw the share of each value of each attribute, attributes with many values first.

    Beyond twelve values the largest eleven are drawn and the rest is summed in words.

    Args:
        table: attribute, value (drawn in this order), share (0 to 1); as wished low, high, n, unit ("users").
    """
    groups = sorted(table.groupby("attribute", sort=False), key=lambda g: -min(12, len(g[1])))
    fig, axes, columns = panels([max(0.4, 0.2 * min(12, len(g))) for _, g in groups])
    for ax, (name, group) in zip(axes, groups, strict=True):
        kept = group if len(group) <= 12 else group.nlargest(11, "share")
        y = np.arange(len(kept))
        ax.barh(y, kept["share"], color=SKY, edgecolor=INK, linewidth=0.6, height=0.75)
        if {"low", "high"} <= set(kept):
            ax.hlines(y, kept["low"], kept["high"], color=INK, linewidth=1.5)
        values = [wrap(v, NAMES[columns]) for v in kept["value"]]
        notes = ["not scored" if math.isnan(s) else f"{100 * s:.1f} %" for s in kept["share"]]
        if rest := len(group) - len(kept):
            values.append(f"{rest} others")
            notes.append(f"{100 * (group['share'].sum() - kept['share'].sum()):.1f} %")
        name_rows(ax, values, notes)
        ax.set_xlim(left=0)
        ax.set_title(wrap(name, CHARS[columns]))
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    foot = [f"share of {given(table, 'unit', 'users')}", n_text(table["n"]) if "n" in table else ""]
    foot.append("line: 95 % interval" if {"low", "high"} <= set(table) else "")
    fig.supxlabel(", ".join(filter(None, foot)), fontsize=8)
    return fig
