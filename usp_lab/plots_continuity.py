"""The plots of `13_continuity`: when users stop, and whether predicted ends come true.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from usp_lab.canvas import (
    BLACK,
    INK,
    SILVER,
    Look,
    as_plot,
    curve_panels,
    given,
    line,
    looks,
    n_text,
)

_QUANTITIES = {
    "survival": "share of users still there",
    "hazard": "share that ends here,\nof those still there",
}
_BEHIND = ("real", "population")  # drawn behind every simulator
_REAL = Look(SILVER, "p", "real people")  # not black, which `twin` is
FEWEST = 5  # dialogues at risk that a hazard is drawn for


@as_plot("quantity arm turn value low high n", text="quantity arm", floats="turn value low high n")
def stopping_curves(table: pd.DataFrame) -> Figure:
    """Draw survival and hazard of stopping by decision, one panel an arm, real people behind it.

    A hazard of fewer than five dialogues is left out: one dialogue more or less would move it across
    the panel.

    Args:
        table: quantity ("survival" or "hazard"), arm ("real" and the "population"'s own hazards
            stand behind the others), turn (user turns before the decision), value, low, high, n
            (dialogues at risk), as `continuity.stopping_curves` gives them.
    """
    look = looks(table["arm"])
    alone = [a for a in look if a not in _BEHIND] or list(look)
    shown = [(q, a) for q in _QUANTITIES for a in alone if (table["quantity"] == q).any()]
    first = table[table["turn"] == table["turn"].min()]
    ns = [n_text(first.loc[first["arm"] == a, "n"]) for _, a in shown]
    rare = (table["quantity"] == "hazard") & (table["n"] < FEWEST)
    kept = table[table["value"].notna() & ~rare].sort_values("turn")
    fig, axes = curve_panels(
        [f"{look[a].label}: {q}" for q, a in shown],
        [f"decision after user turn\n{n}".strip() for n in ns],
        [_QUANTITIES[q] for q, _ in shown],
        height=1.9,
    )
    for ax, (quantity, arm) in zip(axes, shown, strict=True):
        part = kept[kept["quantity"] == quantity]
        true = part[part["arm"] == "population"]
        ax.plot(true["turn"], true["value"], color=INK, linewidth=1, linestyle="--", zorder=2)
        if arm != "real":
            line(ax, part[part["arm"] == "real"], "turn", "value", _REAL, size=4)
        if arm != "population":
            line(ax, part[part["arm"] == arm], "turn", "value", look[arm], size=5)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlim(table["turn"].min() - 0.4, table["turn"].max() + 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    foot = ["band: 95 % interval", "n: dialogues at the first decision"]
    foot += ["light grey: real people"] if "real" in look else []
    foot += ["dashed: the population's own hazards"] if "population" in look else []
    left_out = f"\nleft out: hazards of fewer than {FEWEST} dialogues" if rare.any() else ""
    fig.supxlabel(", ".join(foot) + left_out, fontsize=8)
    return fig


@as_plot("arm predicted value low high n", text="arm", floats="predicted value low high n")
def reliability(table: pd.DataFrame) -> Figure:
    """Draw how often something happened against how probable an arm called it, one panel an arm.

    On the dashed diagonal probabilities mean what they say.

    Args:
        table: arm, predicted (mean probability of a bin, 0 to 1), value (share in which it happened), low,
            high, n, as `termination.reliability` gives them; as wished event ("an end") and happened
            ("that ended"), in words.
    """
    look = looks(table["arm"])
    scored = table[table["value"].notna()].sort_values("predicted")
    parts = {arm: scored[scored["arm"] == arm] for arm in look}
    ns = [n_text([own["n"].sum()]) if len(own) else "not scored" for own in parts.values()]
    fig, axes = curve_panels(
        [one.label for one in look.values()],
        [f"predicted probability of {given(table, 'event', 'an end')}\n{n}" for n in ns],
        [f"share {given(table, 'happened', 'that ended')}"] * len(look),
        height=2.2,
    )
    for ax, (arm, own) in zip(axes, parts.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=BLACK, linewidth=1, linestyle="--", zorder=1)
        line(ax, own, "predicted", "value", look[arm], size=5)
        ax.vlines(own["predicted"], own["low"], own["high"], color="#333333", linewidth=1.2)
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
    fig.supxlabel("dashed: as predicted, line: 95 % interval", fontsize=8)
    return fig
