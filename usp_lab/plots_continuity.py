"""The plots of `13_continuity`: when users stop, and whether predicted ends come true.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from usp_lab.canvas import BLACK, GREY, as_plot, curve_panels, given, line, looks, n_text

_QUANTITIES = {
    "survival": "share of users still there",
    "hazard": "share that ends here,\nof those still there",
}
_BEHIND = ("real", "population")  # drawn behind every simulator


@as_plot("quantity arm turn value low high n", text="quantity arm", floats="turn value low high n")
def stopping_curves(table: pd.DataFrame) -> Figure:
    """Draw survival and hazard of stopping by decision, one panel an arm, real people behind it.

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
    fig, axes = curve_panels(
        [f"{look[a].label}: {q}" for q, a in shown],
        [f"decision after user turn\n{n}".strip() for n in ns],
        [_QUANTITIES[q] for q, _ in shown],
        height=1.9,
    )
    for ax, (quantity, arm) in zip(axes, shown, strict=True):
        part = table[(table["quantity"] == quantity) & table["value"].notna()].sort_values("turn")
        true = part[part["arm"] == "population"]
        ax.plot(true["turn"], true["value"], color=GREY, linewidth=1.2, linestyle="--", zorder=2)
        for name in ("real", arm) if arm != "population" else ():
            own = part[part["arm"] == name]
            line(ax, own, "turn", "value", look.get(name, look[arm]), size=4 if name == arm else 3)
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    foot = ["band: 95 % interval", "n: dialogues"]
    foot += ["black: real people"] if "real" in look else []
    foot += ["dashed: the population's own hazards"] if "population" in look else []
    fig.supxlabel(", ".join(foot), fontsize=8)
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
