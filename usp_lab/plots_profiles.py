"""The plots of `02_profiles`: how much of what is claimed is right, and of what is shown is found.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure

from usp_lab.canvas import BETTER, as_plot, dot, legend, looks, n_text, name_rows, panels, wrap

_TITLES = {"extract_precision": "Precision: claims that are right", "extract_recall": "Recall: shown attributes that are found"}  # fmt: skip


@as_plot("metric arm part value low high n", text="metric arm part", floats="value low high")
def attribute_quality(table: pd.DataFrame) -> Figure:
    """Draw precision and recall by attribute, a panel each, one marker an arm.

    Args:
        table: metric, arm (extractor and phrasings), part (an attribute or a group), value (0 to 1), low, high, n (claims,
            or attributes shown).
    """
    look = looks(table["arm"])
    parts = list(dict.fromkeys(table["part"]))
    metrics = dict(list(table.groupby("metric", sort=False)))
    height = max(1.0, max(0.24, 0.15 * len(look)) * len(parts))
    fig, axes, columns = panels([height] * len(metrics))
    for i, (ax, (metric, own)) in enumerate(zip(axes, metrics.items(), strict=True)):
        notes = []
        for y, part in enumerate(parts):
            if y % 2:
                ax.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", zorder=0)
            rows = own[own["part"] == part]
            notes.append(n_text(rows["n"]))
            for one in rows[rows["n"] > 0].itertuples():
                step = (list(look).index(one.arm) + 0.5) / len(look) - 0.5
                dot(ax, y + 0.8 * step, one, look[one.arm], size=5)
        name_rows(ax, ["" if i % columns else wrap(p, 22) for p in parts], notes)
        ax.set_xlim(-0.04, 1.04)
        ax.set_title(_TITLES.get(metric, metric))
        counted = "claims" if metric == "extract_precision" else "shown attributes"
        ax.set_xlabel(f"{BETTER['higher']}\nline: 95 % interval, n: {counted}")
    legend(fig, look, {}, line="none")
    return fig


@as_plot("attribute arm value low high n", text="attribute arm", floats="value low high")
def coverage(table: pd.DataFrame) -> Figure:
    """Draw the share of dialogues in which an attribute is found, one marker a source.

    Args:
        table: attribute, arm, value (0 to 1), low, high, n (dialogues).
    """
    look = looks(table["arm"])
    parts = list(dict.fromkeys(table["attribute"]))
    fig, (ax,), _ = panels([max(1.0, 0.24 * len(parts))])
    for y, part in enumerate(parts):
        for one in table[table["attribute"] == part].itertuples():
            step = (list(look).index(one.arm) + 0.5) / len(look) - 0.5
            dot(ax, y + 0.7 * step, one, look[one.arm], size=5)
    notes = [n_text(table.loc[table["attribute"] == p, "n"]) for p in parts]
    name_rows(ax, [wrap(p, 30) for p in parts], notes)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("share of dialogues in which it is found  (line: 95 % interval)")
    legend(fig, look, {}, line="none")
    return fig
