"""The plots of `11_consistency`: can the entailment scorer be believed, and does DPC fall as it must?

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from usp_lab.canvas import (
    BETTER,
    BLACK,
    PALETTE,
    as_plot,
    given,
    legend,
    line,
    looks,
    n_text,
    panels,
)


def named_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Return a tidy table whose arms `true` and `shuffled` say what they are here: real dialogues.

    In other notebooks `shuffled` is a simulator that is told another user's profile.

    >>> named_arms(pd.DataFrame({"arm": ["usp_minus_shuffled"]}))["arm"].tolist()
    ["usp_minus_real, another's profile"]
    """
    arms = table["arm"].astype(str).replace(
        {r"\bshuffled$": "real, another's profile", r"(?<=_)shuffled$": "real, another's profile", r"^true$": "real, own profile"},
        regex=True,
    )  # fmt: skip
    return table.assign(arm=arms)


@as_plot("kind fpr tpr", text="kind", floats="fpr tpr auc n")
def roc(table: pd.DataFrame) -> Figure:
    """Draw the ROC curve of a scorer for each kind of item; on the dashed diagonal it is guessing.

    Args:
        table: kind, fpr, tpr (0 to 1, in order along the curve); as wished auc, n (items), and at
            (bool: the point of the threshold in use).
    """
    look = looks(table["kind"])
    fig, (ax,), _ = panels([4.2])
    ax.plot([0, 1], [0, 1], color=BLACK, linewidth=1, linestyle="--", zorder=1)
    notes = {}
    for kind, own in table.groupby("kind", sort=False):
        ax.plot(own["fpr"], own["tpr"], color=look[kind].colour, linewidth=2)
        at = own[own["at"].astype(bool)] if "at" in own else own.iloc[:0]
        drawn = {"color": look[kind].colour, "markeredgecolor": "#222222", "markersize": 8}
        ax.plot(at["fpr"], at["tpr"], look[kind].marker, linestyle="none", zorder=4, **drawn)
        auc = f"AUC {own['auc'].iloc[0]:.2f}, " if "auc" in own else ""
        notes[kind] = f"({auc}{n_text(own['n'].iloc[:1]) if 'n' in own else ''})"
    foot = "\nmarker: the threshold in use, dashed: guessing" if "at" in table else ""
    ax.set_xlabel(f"share of unsupported facts called supported\n{BETTER['lower']}{foot}")
    ax.set_ylabel("share of supported facts found\n" + BETTER["higher"])
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    legend(fig, look, notes, line="-")
    return fig


@as_plot("dose value low high n", floats="dose value low high n")
def dose_response(table: pd.DataFrame) -> Figure:
    """Draw DPC against the share of profile facts exchanged, with the straight line through it.

    Args:
        table: dose (0 to 1), value, low, high, n (dialogues a dose); as wished slope, slope_low,
            slope_high (the same in every row), unit.
    """
    own = table[table["value"].notna()].sort_values("dose")
    fig, (ax,), _ = panels([3.0])
    if len(own) > 1:
        fit = np.polyfit(own["dose"], own["value"], 1)
        ends = own["dose"].iloc[[0, -1]]
        ax.plot(ends, np.polyval(fit, ends), color=BLACK, linewidth=1, linestyle="--", zorder=1)
    line(ax, own, "dose", "value", PALETTE["usp"])
    ax.vlines(own["dose"], own["low"], own["high"], color="#333333", linewidth=1.2)
    ax.set_xticks(own["dose"], [f"{100 * d:g} %" for d in own["dose"]])
    ax.set_xlabel("share of the profile's facts exchanged for another user's")
    ax.set_ylabel("DPC\n" + BETTER["higher"])
    ax.set_ylim(bottom=0)
    foot = [f"line: 95 % interval (resampled: {given(table, 'unit', 'user')})"]
    foot += [n_text(table["n"]) + " dialogues a dose"]
    if "slope" in table:
        s, low, high = (given(table, c, float("nan")) for c in ("slope", "slope_low", "slope_high"))
        foot += [f"dashed: slope {s:.2f} ({low:.2f} to {high:.2f}) per 100 %"]
    fig.supxlabel(", ".join(foot), fontsize=8)
    return fig
