"""The population's generative model as a diagram: its nodes and arrows as a table, and the drawing."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from usp_lab.canvas import GREY, INK, NotebookFigure, as_plot
from usp_lab.errors import UspError

# What users.py, speaker.py, assistants.py, surface.py and synthetic.py do. An arrow from or to a
# frame stands for all that is in it.
_COLUMNS = ("node", "label", "x", "y", "kind", "within", "parents", "note")
MODEL = [
    dict(zip(_COLUMNS, row, strict=True))
    for row in (
        ("user", "one user z and one task (up to five tasks a user, each on another topic)", None, None, "frame", "", "kind", ""),
        ("exchange", "each turn, twelve at most", None, None, "frame", "", "", ""),
        ("kind", "kind of person", 1.5, 9.47, "latent", "", "", "one of 20, some common and some rare"),
        ("facts", "facts", 1.5, 8.1, "latent", "user", "", "age, family, work, place and five more; some pairs cannot occur"),
        ("topic", "topic", 0, 7, "latent", "user", "facts", "one of 66, 11 of them sealed for the test"),
        ("temper", "temper", 1, 7, "latent", "user", "facts", "the Big Five, each low, mid or high"),
        ("manner", "manner", 2, 7, "latent", "user", "facts, temper", "ten habits: length, casing, typos, courtesy, ..."),
        ("patience", "patience", 3, 7, "latent", "user", "facts, temper", "short, medium or long"),
        ("goals", "goals", 0, 6, "latent", "user", "topic", "two to four of the topic's six, in order"),
        ("slots", "slots", 1, 6, "latent", "user", "topic", "the particulars: which city, how many nights"),
        ("asides", "asides", 1, 4.63, "latent", "exchange", "user", "facts and temper slip out, without being named"),
        ("act", "the user's move", 0, 3.7, "latent", "exchange", "user, state", "asks for a goal, takes up or doubts the reply, pushes back"),
        ("text", "user turn", 2, 3.7, "observed", "exchange", "act, asides, manner", "one phrasing of many, typed in the user's manner"),
        ("leaving", "leaving", 3, 3.7, "observed", "exchange", "patience, state", "a hazard before each turn, with a goodbye or without"),
        ("state", "state so far", 1, 2.4, "latent", "exchange", "reply", "goals met, annoyance at replies that did not help"),
        ("reply", "reply", 2, 2.4, "assistant", "exchange", "text, helpfulness", "helps, or is vague, wrong, rude or refuses"),
        ("evidence", "evidence", 3, 2.4, "latent", "exchange", "text, reply", "asides, habits that can be seen, patience if it was tested"),
        ("helpfulness", "helpfulness", 2, 1.08, "assistant", "", "", "helps 95, 75, 45 or 15 times in 100"),
        ("truth", "truth profile", 4.15, 7.5, "profile", "", "user", "every attribute, the topic, every goal"),
        ("prior", "prior profile", 4.15, 6.5, "profile", "", "user", "the topic and a random part of the rest"),
        ("profile", "the dialogue's own profile", 4.15, 2.4, "profile", "", "evidence", "what this dialogue shows, the goals asked"),
    )
]  # fmt: skip

_KINDS = {"latent": ("white", "--"), "observed": ("#D4D4D4", "-"), "assistant": ("#F6D99A", "-.")}
_TINTS = ("#DDF0FB", "#CDE9E0", "#F1DCE6", "#FBF7C5")
_GAP = 0.42  # inches between boxes
_PAD, _NAME = 0.14, 0.22  # inches: from boxes to their frame, height of its name
_LINE, _SMALL_LINE = 0.165, 0.14  # inches: line heights of labels and notes
_ARROW, _THICK = "#444444", 2.2  # arrows from and to frames are thick


@as_plot("node label x y kind parents", text="node label kind", floats="x y")
def generative_model(table: pd.DataFrame) -> Figure:
    """Draw a generative model as boxes and arrows.

    Args:
        table: node, label, x, y (any grid, y upwards; rows and columns are moved apart until no two
            boxes touch), kind ("latent", "observed", "assistant" or others), parents (node names
            with commas between, or empty); as wished note (small print below the label), and within
            (name of a row of kind "frame", which is drawn around all that name it and needs no x, y).

    Raises:
        UspError: a parent is not a node, ``within`` names no frame, a frame is empty, or two nodes
            have one name or one place.
    """
    nodes, frames = _checked(table)
    texts, spans = _laid_out(nodes, frames)
    new = [k for k in nodes["kind"].unique() if k not in _KINDS]
    kinds = _KINDS | {k: (_TINTS[i % len(_TINTS)], "-") for i, k in enumerate(new)}
    corners = np.array(list(spans.values()))
    low, top = corners.min(axis=(0, 1)) - 0.05, corners.max(axis=(0, 1)) + 0.05
    fig = NotebookFigure(figsize=top - low)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(low[0], top[0]), ylim=(low[1], top[1]))
    ax.set_axis_off()
    patches = {}
    for frame, label in zip(frames["node"], frames["label"], strict=True):
        patches[frame] = _rounded(ax, spans[frame], "#F7F7F7", ":", GREY, zorder=0.2)
        at = spans[frame][0, 0] + 0.1, spans[frame][1, 1] - 0.07
        ax.text(*at, label, fontsize=8.5, style="italic", color=_ARROW, va="top")
    for node, kind, (label, note) in zip(nodes["node"], nodes["kind"], texts, strict=True):
        patches[node] = _rounded(ax, spans[node], *kinds[kind], INK, zorder=1)
        x, y = spans[node].mean(axis=0)[0], spans[node][1, 1] - 0.1
        ax.text(x, y, label, fontsize=9, weight="bold", ha="center", va="top")
        y -= _LINE * (label.count("\n") + 1)
        ax.text(x, y, note, fontsize=7.5, ha="center", va="top")
    for ends in _edges(nodes, frames):
        apart = ~nodes["node"].isin(ends) & ~nodes["within"].isin(ends)
        a, b = (spans[n].mean(axis=0) for n in ends)
        bend = _bend(a, b, [spans[n] for n in nodes.loc[apart, "node"]], low, top)
        width = _THICK if set(ends) & set(frames["node"]) else 1
        _arrow(ax, a, b, bend, [patches[n] for n in ends], width)
    shown = {k: look for k, look in kinds.items() if k in set(nodes["kind"])}
    keys = {k: Patch(facecolor=c, linestyle=s, edgecolor=INK) for k, (c, s) in shown.items()}
    if len(frames):
        keys["from or to all in a frame"] = Line2D([], [], color=_ARROW, linewidth=_THICK)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": min(6, len(keys))}
    ax.legend(keys.values(), keys.keys(), **below)
    return fig


def _checked(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of nodes and those of frames, with texts in place of what is missing."""
    empty = pd.Series("", index=table.index)
    wished = {c: table.get(c, empty).fillna("") for c in ("parents", "note", "within")}
    table, framed = table.assign(**wished), table["kind"] == "frame"
    nodes, frames = table[~framed].reset_index(drop=True), table[framed]
    if table["node"].duplicated().any() or nodes[["x", "y"]].duplicated().any():
        raise UspError(
            "generative_model draws each node once and at its own place; two rows share their node "
            f"or x and y: {nodes[['node', 'x', 'y']].to_dict('split')['data']}"
        )
    if odd := sorted((set(nodes["within"]) - {""}) ^ set(frames["node"])):
        raise UspError(
            f"generative_model: {odd[0]!r} is either a frame with nothing within it or named by "
            "`within` without being a frame; give a frame a row of its own and nodes within it"
        )
    return nodes, frames


def _laid_out(
    nodes: pd.DataFrame, frames: pd.DataFrame
) -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    """Return (label, note) of each node, broken into lines, and each span in inches: lower left and upper right corner."""
    place = nodes[["x", "y"]].to_numpy()
    box, width = _box_width(place)
    room = box - 0.16
    labels = [_fit(t, room, 9, "bold") for t in nodes["label"]]
    texts = list(zip(labels, [_fit(t, room, 7.5) for t in nodes["note"]], strict=True))
    lines = np.array([[t.count("\n") + 1 if t else 0 for t in both] for both in texts])
    high = 0.2 + lines @ (_LINE, _SMALL_LINE)
    centre = _spread(place, box, width, high, nodes["within"].to_numpy())
    half = np.column_stack([np.full(len(high), box / 2), high / 2])
    spans = dict(zip(nodes["node"], np.stack([centre - half, centre + half], axis=1), strict=True))
    for frame in frames["node"]:
        inside = np.array([spans[n] for n in nodes.loc[nodes["within"] == frame, "node"]])
        low, top = inside[:, 0].min(axis=0), inside[:, 1].max(axis=0)
        spans[frame] = np.array([low - _PAD, top + (_PAD, _PAD + _NAME)])
    return texts, spans


def _rounded(
    ax: Axes, span: np.ndarray, face: str, line: str, edge: str, zorder: float
) -> FancyBboxPatch:
    style = {"facecolor": face, "linestyle": line, "edgecolor": edge, "zorder": zorder}
    wide, high = span[1] - span[0] - 0.12
    return ax.add_patch(FancyBboxPatch(span[0] + 0.06, wide, high, "round,pad=0.06", **style))


def _arrow(
    ax: Axes, a: np.ndarray, b: np.ndarray, bend: float, ends: list[FancyBboxPatch], width: float
) -> None:
    hold = {"patchA": ends[0], "patchB": ends[1], "shrinkB": 2, "clip_on": False, "zorder": 0.5}
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "color": _ARROW, "linewidth": width}
    ax.add_patch(FancyArrowPatch(a, b, connectionstyle=f"arc3,rad={bend}", **hold, **look))


def _edges(nodes: pd.DataFrame, frames: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (parent, child) names."""
    table, edges = pd.concat([nodes, frames]), []
    for child, parents in zip(table["node"], table["parents"], strict=True):
        for parent in filter(None, (p.strip() for p in parents.split(","))):
            if parent not in set(table["node"]):
                raise UspError(
                    f"generative_model: node {child!r} names the parent {parent!r}, "
                    f"which is not a node; known: {', '.join(table['node'])}"
                )
            edges.append((parent, child))
    return edges


def _box_width(place: np.ndarray) -> tuple[float, float]:
    """Return the width of boxes and of the figure, in inches, at which neighbours of a row do not touch."""
    span = np.ptp(place[:, 0])
    apart = np.abs(place[:, None] - place[None])  # nodes of about the same y are a row
    beside = apart[..., 0][(apart[..., 1] < 0.34) & (apart[..., 0] > 0)]
    if not len(beside):
        return 2.3, 2.3 if not span else 7.0
    ratio = beside.min() / span
    box = min(2.3, (10 * ratio - _GAP) / (1 + ratio))
    return (box, 10.0) if box > 1.1 else (1.1, (1.1 * (1 + ratio) + _GAP) / ratio)


def _spread(
    place: np.ndarray, box: float, width: float, high: np.ndarray, within: np.ndarray
) -> np.ndarray:
    """Return the boxes' centres in inches, rows so far apart that boxes above one another do not touch."""
    span = np.ptp(place[:, 0]) or 1
    x = box / 2 + (place[:, 0] - place[:, 0].min()) * (width - box) / span
    apart = np.abs(place[:, None, 1] - place[None, :, 1])
    above = (np.abs(x[:, None] - x[None]) < box + 0.1) & (apart > 0)
    frame = np.where(within[:, None] != within[None], 2 * _PAD + _NAME, 0)
    needed = ((high[:, None] + high[None]) / 2 + _GAP + frame)[above] / apart[above]
    y = (place[:, 1] - place[:, 1].min()) * max(needed, default=1.0)
    return np.column_stack([x, y])


def _bend(
    a: np.ndarray, b: np.ndarray, others: list[np.ndarray], low: np.ndarray, top: np.ndarray
) -> float:
    """Return the least bend (arc3's rad) of an arrow that touches no other box and no edge, or little of them."""
    t = np.linspace(0, 1, 80)[:, None]
    lows, tops = np.reshape(others, (-1, 2, 2)).swapaxes(0, 1)

    def touched(bend: float) -> int:
        middle = (a + b) / 2 + bend * np.array([b[1] - a[1], a[0] - b[0]])
        curve = ((1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b)[:, None]
        inside = (curve > lows - 0.04) & (curve < tops + 0.04)
        return int(inside.all(axis=2).sum() + ((curve < low) | (curve > top)).sum())

    return min((sign * k / 8 for k in range(9) for sign in (1, -1)), key=touched)


def _fit(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Break a text into lines that are no wider than so many inches at a font size, as even as can be."""
    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, 72)

    def wide(lines: list[str]) -> float:
        widths = [0.0]
        for line in lines:
            font.set_text(line)
            widths.append(font.get_width_height()[0] / 64 / 72)
        return max(widths)

    broken = [textwrap.wrap(text, chars) for chars in range(80, 0, -1)]
    fitting = [lines for lines in broken if wide(lines) <= inches] or broken[-1:]
    fewest = [lines for lines in fitting if len(lines) == len(fitting[0])]
    return "\n".join(min(fewest, key=wide))
