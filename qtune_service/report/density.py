"""Density of samples in a plane: a two-dimensional histogram for where there are more samples than points are drawn.

A cell has the colour of the quadrant that most of its samples are in, and is the stronger the more there are (by the
square root, so that sparse regions stay visible). Bins are of equal width on the page, whatever the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.report.chart_layers import quadrant_scale
from qtune_service.report.axes import Axis, Column
from qtune_service.report.palette import QUADRANT_LABELS, Palette

Row = dict[str, Any]


def density_rows(
    x: tuple[Axis, Column], y: tuple[Axis, Column], quadrant: NDArray[np.int8], weight: float, shape: tuple[int, int]
) -> list[Row]:
    """One row for each cell that holds samples: its edges, how many samples (times `weight`), and their quadrant.

    Axes with their values (S,); quadrant (S,) 1..4; shape: cells across and up.
    """
    across, up = shape
    cell = y[0].bins(y[1], up) * across + x[0].bins(x[1], across)
    size = across * up
    flat = (quadrant.astype(np.int64) - 1) * size + cell
    counts = np.bincount(flat, minlength=4 * size).reshape(4, size)
    total, most = counts.sum(axis=0), counts.argmax(axis=0)
    x_edges, y_edges = (axis.edges(bins).tolist() for axis, bins in ((x[0], across), (y[0], up)))
    return [
        {
            "x": _short(x_edges[at % across]), "x2": _short(x_edges[at % across + 1]),
            "y": _short(y_edges[at // across]), "y2": _short(y_edges[at // across + 1]),
            "n": round(int(total[at]) * weight), "q": QUADRANT_LABELS[most[at]],
        }
        for at in np.flatnonzero(total).tolist()
    ]  # fmt: skip


def density_layer(alt: Any, name: str, rows: list[Row], palette: Palette, color: str = "q") -> Any:
    """The cells of a dataset `name`, for channels of quantitative axes that other layers define."""
    most = max((row["n"] for row in rows), default=1)
    strength = alt.Scale(type="sqrt", domain=[0, most], range=[0.05, 0.9])
    return (
        alt.Chart(alt.NamedData(name), name=name)
        .mark_rect(clip=True, strokeWidth=0)
        .encode(
            x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q",
            fill=alt.Fill(f"{color}:N", legend=None, scale=quadrant_scale(alt, palette)),
            opacity=alt.Opacity("n:Q", legend=None, scale=strength),
            tooltip=[alt.Tooltip("n:Q", title="samples here", format=","), alt.Tooltip(f"{color}:N", title="most are")],
        )
    )  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.5g}")
