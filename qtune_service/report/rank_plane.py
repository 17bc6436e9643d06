"""The plane in ranks, where the rule is straight lines: both axes run from 0 to 1, distances are shares of samples.

The kept corners are squares of side alpha. Of the two diagonals one decides at a time: p + e = 1 parts the removed
where the corners are disjoint, p = e parts the kept where they overlap (alpha > 1/2). All of that hangs on one number,
the signal `alpha`, so a page moves it and the picture follows: corners, diagonals, and the quadrant of every point. At
the job's own alpha the points have the job's own labels, which a rule of the user's may have changed.
"""

from __future__ import annotations

from typing import Any

from qtune_service.report.chart_layers import Fields, inline_row, name_layers, point_layers
from qtune_service.report.axes import rank_axis
from qtune_service.report.choice import fates
from qtune_service.report.data import ReportData
from qtune_service.report.density import density_layer, density_rows
from qtune_service.report.palette import LIGHT, Palette, chart_config
from qtune_service.report.points import example_rows, point_rows
from qtune_service.selection.even_sample import EvenSample

CELLS = (48, 48)
TICKS = [0, 0.25, 0.5, 0.75, 1]

Row = dict[str, Any]


def rank_plane_chart(data: ReportData, palette: Palette = LIGHT, width: int | str = 420) -> dict[str, Any]:
    """Vega-Lite specification of the plane in ranks; `data` must have thresholds."""
    import altair as alt

    assert data.thresholds is not None
    alpha = data.thresholds.alpha
    cells = _cells(data.sample, len(data.point_ids))
    fields = Fields("now", "in_now")
    x, y = (
        alt.X("v:Q", **_channel("Entropy rank e")),
        alt.Y("u:Q", **_channel("Perplexity rank p")),
    )
    density = density_layer(alt, "rank_cells", cells, palette, "now") if cells else None
    points = point_layers(alt, x, y, palette, num_points=len(data.point_ids), over_density=bool(cells), fields=fields)
    layers = [
        *_corners(alt, palette),
        *([_relabelled(density, alpha)] if density else []),
        *_diagonals(alt, palette),
        *(_relabelled(layer, alpha) for layer in points),
        *name_layers(alt, palette, fates(data)),
    ]
    height = width if isinstance(width, int) else 420
    spec: dict[str, Any] = alt.layer(*layers).properties(width=width, height=height, padding=4).to_dict()
    own = {"samples": point_rows(data), "examples": example_rows(data), "picked": []}
    if cells:
        own["rank_cells"] = cells
    params = [{"name": "alpha", "value": alpha}]
    return spec | {"datasets": {**spec["datasets"], **own}, "params": params, "config": chart_config(palette)}


def _channel(title: str) -> dict[str, Any]:
    encoding = rank_axis(title).encoding()
    return encoding | {"axis": {"values": TICKS, "format": ".2~f"}}


def _cells(sample: EvenSample, num_points: int) -> list[Row]:
    """The density below the points, where these are not all. A cell is relabelled by its middle (u, v)."""
    if len(sample.index) <= num_points:
        return []
    axis = rank_axis("")
    rows = density_rows(
        (axis, sample.entropy_rank), (axis, sample.error_rank), sample.quadrant, sample.total / len(sample.index), CELLS
    )
    return [row | {"u": _middle(row["y"], row["y2"]), "v": _middle(row["x"], row["x2"]), "k": 0} for row in rows]


def _relabelled(layer: Any, alpha: float) -> Any:
    """Quadrant and fate at the signal's alpha; the given ones while it stands at the job's."""
    entry = "min(max(1 - datum.u, datum.v), max(datum.u, 1 - datum.v))"  # selection/plane.py: where a sample enters
    moved = f"abs(alpha - {alpha!r}) > 1e-9"
    is_in = f"{entry} <= alpha + 1e-9"
    kept, removed = "datum.u >= datum.v ? 'Q2' : 'Q4'", "datum.u + datum.v > 1 ? 'Q1' : 'Q3'"
    return layer.transform_calculate(
        now=f"{moved} ? ({is_in} ? ({kept}) : ({removed})) : datum.q",
        in_now=f"{moved} ? ({is_in} ? 1 : 0) : datum.k",
    )


def _corners(alt: Any, palette: Palette) -> list[Any]:
    """A faint square over each kept corner; where they overlap, so do the sheets."""
    return [
        alt.Chart(inline_row(alt, s=0), name=f"corner_{label}")
        .transform_calculate(x=x, x2=x2, y=y, y2=y2)
        .mark_rect(
            fill=palette.of(label), fillOpacity=0.1, stroke=palette.ink, strokeWidth=1.2, strokeDash=[5, 4], clip=True
        )
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
        for label, x, x2, y, y2 in (("Q2", "0", "alpha", "1 - alpha", "1"), ("Q4", "1 - alpha", "1", "0", "alpha"))
    ]


def _diagonals(alt: Any, palette: Palette) -> list[Any]:
    """Both, faintly; and the part of the one that decides."""
    low, high = "min(alpha, 1 - alpha)", "max(alpha, 1 - alpha)"
    lines = (
        ("rising", 0.2, 1.0, {"x": "0", "x2": "1", "y": "0", "y2": "1"}),
        ("falling", 0.2, 1.0, {"x": "0", "x2": "1", "y": "1", "y2": "0"}),
        ("deciding", 0.8, 1.4, {
            "x": low, "x2": high, "y": f"alpha > 0.5 ? {low} : {high}", "y2": f"alpha > 0.5 ? {high} : {low}",
        }),
    )  # fmt: skip
    return [
        alt.Chart(inline_row(alt, s=1), name=name)
        .transform_calculate(**ends)
        .mark_rule(color=palette.ink, strokeWidth=width, opacity=opacity, clip=True)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
        for name, opacity, width, ends in lines
    ]


def _middle(low: float, high: float) -> float:
    return round((low + high) / 2, 5)
