"""The plots of `05_profile_sampler`: the density as a landscape, and whom each kind of draw brings.

As in `plots`: a function takes one tidy table of plain columns and returns a figure.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from usp_lab.canvas import (
    BLACK,
    BLUE,
    CHARS,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    Look,
    NotebookFigure,
    as_plot,
    legend,
    line,
    n_text,
    number_axis,
    panels,
    wrap,
)

_KINDS = {
    "majority": Look(BLUE, "o", "majority"),
    "minority": Look(VERMILION, "^", "minority"),
    "virtual": Look(GREEN, "s", "virtual"),
    "density": Look(GREY, "D", "density"),
    "uniform": Look(PURPLE, "v", "uniform"),
    "all": Look(BLACK, "o", "all profiles"),
}


def _look(kind: str) -> Look:
    return _KINDS.get(kind, Look(BLACK, ".", kind))


def terrain_table(sampler, cells: int = 70, **points: np.ndarray) -> pd.DataFrame:
    """Return the density of a map of two dimensions on a grid, and places of kinds of profiles on it.

    Args:
        sampler: fitted, with n_components=2.
        cells: of the grid along each side.
        points: kind -> coordinates, shape (n, 2).

    Returns:
        columns kind ("grid" or a kind of profile), x, y, value (density over its maximum; NaN for profiles).
    """
    places = sampler.coordinates_
    low, high = places.min(0), places.max(0)
    margin = 0.05 * (high - low)
    axes = [np.linspace(a, b, cells) for a, b in zip(low - margin, high + margin, strict=True)]
    x, y = (v.ravel() for v in np.meshgrid(*axes))
    value = np.exp(sampler.density_.score_samples(np.column_stack([x, y])))
    out = [pd.DataFrame({"kind": "grid", "x": x, "y": y, "value": value / value.max()})]
    out += [pd.DataFrame({"kind": k, "x": p[:, 0], "y": p[:, 1], "value": np.nan}) for k, p in points.items()]  # fmt: skip
    return pd.concat(out, ignore_index=True)


@as_plot("kind x y value", text="kind", floats="x y value")
def terrain(table: pd.DataFrame) -> Figure:
    """Draw a map's density twice, from above with profiles on it, and as a surface.

    Args:
        table: as `terrain_table` gives it.
    """
    grid = table[table["kind"] == "grid"].pivot(index="y", columns="x", values="value")
    x, y = np.meshgrid(grid.columns, grid.index)
    fig = NotebookFigure(figsize=(9.6, 4.4), layout="constrained")
    above, hill = fig.add_subplot(1, 2, 1), fig.add_subplot(1, 2, 2, projection="3d")
    shade = above.pcolormesh(x, y, grid.to_numpy(), cmap="Greys", vmax=1.3, rasterized=True)
    for kind, own in table[table["kind"] != "grid"].groupby("kind", sort=False):
        look = _look(kind)
        above.scatter(own["x"], own["y"], s=11, c=look.colour, marker=look.marker, linewidths=0, label=f"{look.label} ({len(own):,})")  # fmt: skip
    if above.get_legend_handles_labels()[0]:
        fig.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    above.set(title="from above", xlabel="map, first axis (no unit)", ylabel="second axis")
    bar = fig.colorbar(shade, ax=above, label="density, share of the maximum", shrink=0.85)
    bar.ax.set_ylim(0, 1)
    hill.plot_surface(x, y, grid.to_numpy(), cmap="viridis", rcount=70, ccount=70, linewidth=0)
    hill.set(title="as a landscape", xticks=[], yticks=[], zlim=(0, 1))
    hill.set_zlabel("density")
    hill.view_init(elev=42, azim=-60)
    return fig


def spread_table(sampler, drawn: dict[str, np.ndarray], neighbours: int = 50) -> pd.DataFrame:
    """Return percentiles of local density, the mean distance to the nearest profiles, by kind of draw.

    Args:
        sampler: fitted.
        drawn: kind -> places on the map, shape (n, d).
        neighbours: how many; fewer where there are fewer profiles.
    """
    from scipy.spatial import cKDTree

    tree, rows = cKDTree(sampler.coordinates_), []
    near = min(neighbours, len(sampler.coordinates_) - 1)
    for kind, places in drawn.items():
        distance = tree.query(places, k=near + 1)[0][:, 1:].mean(1)
        rows += [{"kind": kind, "percentile": p, "value": float(np.percentile(distance, p)), "n": len(places)} for p in range(0, 101, 5)]  # fmt: skip
    return pd.DataFrame(rows)


@as_plot("kind percentile value n", text="kind", floats="percentile value n")
def local_density(table: pd.DataFrame) -> Figure:
    """Draw how far the nearest profiles are from those of each kind of draw.

    Args:
        table: as `spread_table` gives it.
    """
    fig, (ax,), columns = panels([3.2])
    look = {k: _look(k) for k in dict.fromkeys(table["kind"])}
    notes = {k: f"({n_text(own['n'])})" for k, own in table.groupby("kind", sort=False)}
    for kind, own in table.groupby("kind", sort=False):
        line(ax, own, "percentile", "value", look[kind], size=4)
    ax.set_yscale("log")
    number_axis(ax.yaxis, log=True)
    ax.set_xlabel("percentile of profiles")
    ax.set_ylabel("mean distance to the nearest profiles\n(on the map, no unit)")
    ax.set_title(wrap("the higher, the lonelier", CHARS[columns]))
    legend(fig, look, notes, "-")
    return fig


@as_plot("kind share value n", text="kind", floats="share value n")
def agreement(table: pd.DataFrame) -> Figure:
    """Draw how many members groups by density and groups by neighbours share.

    Args:
        table: kind (majority, minority), share (size of the group, 0 to 1), value (share of members that
            both groups have), n (members).
    """
    fig, (ax,), columns = panels([2.8])
    look = {k: _look(k) for k in dict.fromkeys(table["kind"])}
    for kind, own in table.groupby("kind", sort=False):
        line(ax, own, "share", "value", look[kind])
    ax.plot([0, table["share"].max()], [0, table["share"].max()], "--", color=GREY, linewidth=1)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(sorted(set(table["share"])))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel(wrap("size of the group, share of all profiles (dashed: chance)", CHARS[columns]))
    ax.set_ylabel("members in common")
    legend(fig, look, {}, "")
    return fig
