"""The plot of `14_leakage_audit`: what a profile made from less is worth.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import math

import pandas as pd
from matplotlib.figure import Figure

from usp_lab.canvas import (
    BLACK,
    BLUE,
    CHARS,
    GREY,
    SKY,
    VERMILION,
    Look,
    as_plot,
    dot,
    n_text,
    name_rows,
    number_axis,
    panels,
    wrap,
)

_BEHIND = "_minus_empty"
_ARMS = {  # top to bottom
    "first_1": "first turn",
    "first_2": "first 2 turns",
    "first_3": "first 3 turns",
    "whole": "whole dialogue",
    "sibling": "another dialogue",
    "prior": "drawn beforehand",
    "shuffled": "another user's",
}
_METRICS = {
    "nll": "Likelihood of true turns\n(nats a token)",
    "sem_sim": "Meaning of written turns\n(Sem-Sim)",
    "style_sim": "Style of written turns\n(Style-Sim)",
}


@as_plot("metric arm value low high n", text="metric arm", floats="value low high n")
def arms_at_a_glance(table: pd.DataFrame) -> Figure:
    """Draw per metric what each arm's profile gains over none; shaded is what only a look ahead gives.

    Args:
        table: metric, arm ("whole_minus_empty"), value, low, high, n; ``better`` is "lower" for losses, which
            are turned round; rows of the metric ``lookahead_share``, whose arms are metrics.
    """
    gains = table[table["arm"].str.endswith(_BEHIND)]
    shares = table[table["metric"] == "lookahead_share"].set_index("arm")
    metrics = list(dict.fromkeys(gains["metric"]))
    groups = [_rows(gains[gains["metric"] == m]) for m in metrics]
    fig, axes, columns = panels([0.34 * max(len(g), 3) for g in groups])
    for ax, metric, rows in zip(axes, metrics, groups, strict=True):
        ax.axvline(0, color=BLACK, linewidth=1, linestyle="--", zorder=1)
        ends = [r.value for r in rows if r.arm in ("first_3", "whole")]
        if len(ends) == 2:
            ax.axvspan(min(ends), max(ends), color=SKY, alpha=0.25, linewidth=0, zorder=0)
        for y, row in enumerate(rows):
            dot(ax, y, row, _look(row.arm))
        name_rows(ax, [_ARMS.get(r.arm, r.arm) for r in rows], [n_text([r.n]) for r in rows])
        ax.margins(x=0.08)
        number_axis(ax.xaxis)
        ax.set_title(_METRICS.get(metric, wrap(metric, CHARS[columns])))
        ax.set_xlabel(f"gain over an empty profile\n{_said(shares, metric)}")
    foot = "line: 95 % interval, shaded: what only a look ahead gives, n: dialogues"
    fig.supxlabel(foot, fontsize=8)
    return fig


def _rows(gains: pd.DataFrame) -> list:
    turned = gains.assign(arm=gains["arm"].str.removesuffix(_BEHIND))
    if "better" in gains and (gains["better"] == "lower").all():
        ends = {"low": -gains["high"], "high": -gains["low"]}
        turned = turned.assign(value=-gains["value"], **ends)
    order = {a: k for k, a in enumerate(_ARMS)}
    rank = turned["arm"].map(order).fillna(len(order))
    return list(turned.iloc[rank.argsort(kind="stable")].itertuples())


def _look(arm: str) -> Look:
    colour = {"whole": VERMILION, "first_3": BLUE}.get(arm, GREY)
    return Look(colour, "o" if arm.startswith("first") else "D", _ARMS.get(arm, arm))


def _said(shares: pd.DataFrame, metric: str) -> str:
    told = "look-ahead's share: cannot be told"
    if metric not in shares.index or not math.isfinite(shares.loc[metric, "value"]):
        return told
    value, low, high = (100 * shares.loc[metric, c] for c in ("value", "low", "high"))
    if high - low > 200:  # a profile gains next to nothing there
        return told
    return f"look-ahead's share: {value:.0f} % [{low:.0f}, {high:.0f}]"
