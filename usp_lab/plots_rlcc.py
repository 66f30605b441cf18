"""The plots of `06_rlcc`: the reward while it is optimised, what it costs meanwhile, gains by judge and weight.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from usp_lab.canvas import BLACK, CHARS, GREY, as_plot, looks, n_text, panels, wrap

_TITLES = {
    "reward": "reward",
    "r_cc": "cycle consistency r_cc",
    "r_ai": "detector r_ai",
    "profile_copy": "profile 4-grams repeated",
    "first_turn_diversity": "diversity of openings",
    "words_per_turn": "words a turn",
    "turns": "turns a dialogue",
    "ppl": "perplexity of real turns",
}


@as_plot("metric run step value least most n", text="metric run", floats="value least most n")
def guards(table: pd.DataFrame) -> Figure:
    """Draw the reward and its guards on validation users by step, one panel each, a line a run.

    Args:
        table: metric, run (a seed's name), step (optimizer steps), value, least and most (bounds of a guard; NaN for
            none), n (validation users).
    """
    measured = set(table.loc[table["value"].notna(), "metric"])
    names = [m for m in _TITLES if m in measured]
    fig, axes, columns = panels([1.7] * len(names))
    for ax, metric in zip(axes, names, strict=True):
        own = table[table["metric"] == metric].sort_values("step")
        for _, one in own.groupby("run"):
            ax.plot(one["step"], one["value"], "o-", color=looks(["usp_rlcc"])["usp_rlcc"].colour, markersize=3, linewidth=1.2)  # fmt: skip
        for bound in ("least", "most"):
            limits = own.groupby("run")[bound].first().dropna()
            for value in limits[np.isfinite(limits)]:
                ax.axhline(value, color=GREY, linewidth=1, linestyle="--", zorder=1)
        ax.set_title(wrap(_TITLES[metric], CHARS[columns]))
        ax.set_xlabel(f"step\n{n_text(own['n'].iloc[:1])}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    fig.supxlabel("a line a run, dashed: bounds beyond which weights are not kept, n: validation users", fontsize=8)  # fmt: skip
    return fig


@as_plot("metric arm lam value low high n", text="metric arm", floats="lam value low high n")
def gain_by_weight(table: pd.DataFrame) -> Figure:
    """Draw each judge's gain by the weight of cycle consistency, one panel a judge.

    Args:
        table: metric ("all users" or "hard slice"), arm (the judge), lam (0 to 1), value, low, high, n.
    """
    judges = list(dict.fromkeys(table["arm"]))
    fig, axes, columns = panels([1.9] * len(judges))
    marks = {m: s for m, s in zip(dict.fromkeys(table["metric"]), "os^", strict=False)}
    look = looks(["usp_rlcc"])["usp_rlcc"]
    for ax, judge in zip(axes, judges, strict=True):
        own = table[table["arm"] == judge]
        for k, (metric, mark) in enumerate(marks.items()):
            part = own[own["metric"] == metric].sort_values("lam")
            x = part["lam"] + 0.012 * (k - 0.5)
            ax.vlines(x, part["low"], part["high"], color="#333333", linewidth=1.2)
            face = look.colour if k == 0 else "white"
            ax.plot(x, part["value"], mark, color=look.colour, markerfacecolor=face, label=metric)
        ax.axhline(0, color=BLACK, linewidth=1, zorder=1)
        ax.set_title(wrap(judge.replace("_", " "), CHARS[columns]))
        ax.set_xlabel(f"weight of cycle consistency\n{n_text(own['n'])}")
        ax.set_xticks(sorted(table["lam"].unique()))
    axes[0].set_ylabel("gain over SFT\nhigher is better \u2192")
    keys = axes[0].get_legend_handles_labels()
    fig.legend(*keys, loc="outside upper right", ncols=len(marks))
    fig.supxlabel("line: 95 % interval, n: seed × profile", fontsize=8)
    return fig
