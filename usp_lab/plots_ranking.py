"""The plots of `20_llm_evaluation`: assistants' scores by known helpfulness, and how many users it takes.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from usp_lab.canvas import (
    BETTER,
    BLACK,
    CHARS,
    as_plot,
    given,
    legend,
    line,
    looks,
    n_text,
    panels,
    wrap,
)


@as_plot(
    "criterion assistant arm helpfulness value low high n",
    text="criterion assistant arm",
    floats="helpfulness value low high n",
)
def assistant_scores(table: pd.DataFrame) -> Figure:
    """Draw every assistant's score against its known helpfulness, one panel a criterion, one line an arm.

    Args:
        table: criterion, assistant, arm, helpfulness (share of requests it helps with, 0 to 1),
            value, low, high, n (dialogues); as wished better ("higher" or "lower").
    """
    look = looks(table["arm"])
    groups = dict(list(table.groupby("criterion", sort=False)))
    fig, axes, columns = panels([2.8] * len(groups))
    for ax, (name, panel) in zip(axes, groups.items(), strict=True):
        for arm in reversed(look):  # the simulators end up above the references
            own = panel[(panel["arm"] == arm) & panel["value"].notna()].sort_values("helpfulness")
            line(ax, own, "helpfulness", "value", look[arm])
        ticks = panel.drop_duplicates("assistant").sort_values("helpfulness")
        names = [
            f"{wrap(a, 8)}\n{h:.2f}"
            for a, h in zip(ticks["assistant"], ticks["helpfulness"], strict=True)
        ]
        ax.set_xticks(ticks["helpfulness"], names)
        ax.set_title(wrap(name.replace("_", " "), CHARS[columns]))
        better = BETTER.get(given(panel, "better", ""), "")
        ax.set_xlabel("assistant, how often it helps\nband: 95 % interval")
        ax.set_ylabel(f"share\n{better.replace(' is better', ': better assistant')}".strip())
    _legend(fig, table, look)
    return fig


@as_plot("criterion arm users value n", text="criterion arm", floats="users value n")
def users_needed(table: pd.DataFrame) -> Figure:
    """Draw how often so many users recover the whole order, one panel a criterion, one line an arm.

    Args:
        table: criterion, arm, users, value (share of resamples, 0 to 1), n (users drawn from).
    """
    look = looks(table["arm"])
    groups = dict(list(table.groupby("criterion", sort=False)))
    fig, axes, columns = panels([2.6] * len(groups), share_y=True)
    for ax, (name, panel) in zip(axes, groups.items(), strict=True):
        ax.set_xscale("log", base=2)
        ax.axhline(0.9, color=BLACK, linewidth=1, linestyle="--", zorder=1)
        for arm in reversed(look):
            own = panel[(panel["arm"] == arm) & panel["value"].notna()].sort_values("users")
            line(ax, own, "users", "value", look[arm])
        ax.set_title(wrap(name.replace("_", " "), CHARS[columns]))
        ax.set_xlabel("simulated users a resample\ndashed: nine times in ten")
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_locator(FixedLocator(_spread(panel["users"])))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    for ax in axes[::columns]:
        ax.set_ylabel("share of resamples\nwith the true order")
    _legend(fig, table, look)
    return fig


def _spread(sizes: pd.Series) -> list[float]:
    """Return the sizes to name on the axis, the largest always: seven at the most."""
    known = sorted(sizes.unique(), reverse=True)
    return known[:: 1 + (len(known) - 1) // 7]


def _legend(fig: Figure, table: pd.DataFrame, look: dict) -> None:
    notes = {}
    for arm, own in table.groupby("arm"):
        notes[arm] = "(not scored)" if own["value"].isna().all() else f"({n_text(own['n'])})"
    legend(fig, look, notes, line="-")
