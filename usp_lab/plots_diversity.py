"""The plots of `12_diversity`: ADV's percentile curves, and what each metric makes of known breaks.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from usp_lab.canvas import (
    BLACK,
    ORANGE,
    REFERENCES,
    VERMILION,
    Look,
    as_plot,
    curve_panels,
    line,
    looks,
    n_text,
)

_BREAKS = {
    "collapse": Look(VERMILION, "X", "crosses: collapse, one outsider's turns instead"),
    "foreign": Look(ORANGE, "s", "squares: foreign, the assistant's turns instead"),
}


@as_plot("arm percentile value low high n", text="arm", floats="percentile value low high n")
def adv_curves(table: pd.DataFrame) -> Figure:
    """Draw percentile curves of ADV distances, one panel a simulator, the references in each.

    Args:
        table: arm, percentile (0 to 100), value (distance, 0 up), low, high, n (dialogues), as
            `adv.adv_curves` gives them.
    """
    look = looks(table["arm"])
    behind = [a for a in look if a in REFERENCES]
    shown = [a for a in look if a not in REFERENCES] or behind
    parts = {a: table[table["arm"] == a].sort_values("percentile") for a in look}
    scored = {a: own.dropna(subset=["value"]) for a, own in parts.items()}
    ns = [n_text(scored[a]["n"].iloc[:1]) or "not scored" for a in shown]
    fig, axes = curve_panels(
        [look[a].label for a in shown],
        [f"percentile of dialogues\n{n}" for n in ns],
        ["distance to the target\n\u2190 lower is better"] * len(shown),
        height=1.9,
    )
    for ax, arm in zip(axes, shown, strict=True):
        for name in [a for a in behind if a != arm]:
            style = {"color": look[name].colour, "linewidth": 1.2}
            own = parts[name]
            ax.plot(own["percentile"], own["value"], "--" if name == "twin" else ":", **style)
        if len(scored[arm]):
            line(ax, scored[arm], "percentile", "value", look[arm], size=4)
    foot = ["band: 95 % interval", "n: dialogues"]
    foot += ["dashed: twin"] if "twin" in look else []
    foot += ["dotted: other user"] if "other" in look else []
    fig.supxlabel(", ".join(foot), fontsize=8)
    return fig


@as_plot(
    "break metric dose value low high n verdict",
    text="break metric verdict",
    floats="dose value low high n",
)
def dose_response(table: pd.DataFrame) -> Figure:
    """Draw what metrics make of real turns of which a known share was replaced, one panel a metric.

    Args:
        table: break ("collapse", "foreign"), metric, dose (share replaced, 0 to 1), value, low, high,
            n (replicates), verdict, as `verdicts.judge` gives it.
    """
    names = list(table["metric"].unique())
    shown = {b: look for b, look in _BREAKS.items() if (table["break"] == b).any()}
    known = table.drop_duplicates(["break", "metric"]).set_index(["metric", "break"])["verdict"]
    said = [[f"{b}: {known[m, b]}" for b in shown if (m, b) in known] for m in names]
    failed = [" (failed)" if "failed" in set(known[m]) else "" for m in names]
    fig, axes = curve_panels(
        [m.replace("_", " ") + f for m, f in zip(names, failed, strict=True)],
        ["\n".join(["share replaced", *lines]) for lines in said],
        [""] * len(names),
        height=1.7,
        share_y=False,
    )
    for ax, metric in zip(axes, names, strict=True):
        ax.set_ylabel(metric.replace("_", " "))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        if table.loc[table["metric"] == metric, "value"].isna().all():
            ax.set_yticks([])
        for broken, look in shown.items():
            own = table[(table["metric"] == metric) & (table["break"] == broken)]
            own = own[own["value"].notna()].sort_values("dose")
            if len(own):
                line(ax, own, "dose", "value", look, size=5)
                ax.axhline(own["value"].iloc[0], color=BLACK, linewidth=1, linestyle="--", zorder=1)
    foot = "; ".join(look.label for look in shown.values())
    foot += f"\nband: 95 % of replicates ({n_text(table.loc[table['value'].notna(), 'n'])}), dashed: intact"
    fig.supxlabel(foot, fontsize=8)
    return fig
