"""The population's generative model as a diagram: its nodes and arrows as a table, and the drawing."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from usp_lab.canvas import INK, NotebookFigure, as_plot
from usp_lab.errors import UspError

_KINDS = {"latent": ("white", "--"), "observed": ("#E3E3E3", "-"), "assistant": ("#F9E3B4", "-")}
_TINTS = ("#CFE8F7", "#CDE9E0", "#F1DCE6", "#FBF7C5")
_GAP = 0.3  # inches between boxes


@as_plot("node label x y kind parents", text="node label kind", floats="x y")
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
    fig = NotebookFigure(figsize=size)
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
