"""The EU plane as Vega-Lite charts, in scores and in ranks.

In scores, entropy is the x axis and perplexity the y axis, on a log scale. With these axes the quadrants are those of
mathematics: Q1 at the upper right, Q2 at the upper left. Thresholds are drawn at their values, so for alpha above 0.5
they cross and the corners overlap. The line between Q1 and Q3 (or, where corners overlap, between Q2 and Q4) is a
diagonal in ranks, and goes through the quantiles of both scores here.

In ranks, the rule is straight lines: both axes run from 0 to 1, and distances are shares of samples. The kept corners
are squares of side alpha. One of the two diagonals decides: p + e = 1 separates the removed samples if the corners are
disjoint, and p = e the kept samples if they overlap (alpha > 1/2). All of this depends on one number, the signal
`alpha`. When a page changes it, the corners, the diagonals and the quadrant of every point follow. At the job's own
alpha the points have the job's own labels, which a rule of the user may have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtune_service.report.axes import Axis, entropy_axis, perplexity_axis, rank_axis, shown_perplexity
from qtune_service.report.chart_layers import (
    LIGHT,
    PADDING,
    Fields,
    Palette,
    chart_config,
    density_layer,
    density_rows,
    example_rows,
    inline_row,
    name_layers,
    point_layers,
    point_rows,
)
from qtune_service.report.data import QuadrantName, ReportData, decisions
from qtune_service.report.text import number
from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.plane import Thresholds, entry_alpha_text

CELLS = (84, 60)  # of the density, across and up
BORDER_STEPS = 48
HEIGHT = 460
NAME_HEIGHT = 13  # pixels of a line of names

Row = dict[str, Any]
RANK_CELLS = (48, 48)
TICKS = [0, 0.25, 0.5, 0.75, 1]


@dataclass(frozen=True, slots=True)
class _Scene:
    """The inputs of the layers."""

    alt: Any
    x: Axis
    y: Axis
    thresholds: Thresholds
    palette: Palette


def plane_chart(data: ReportData, palette: Palette = LIGHT, width: int | str = 720) -> dict[str, Any]:
    """Return the Vega-Lite specification of the plane. `data` must have thresholds."""
    assert data.thresholds is not None
    points, examples = point_rows(data), example_rows(data)
    return plane_of(
        data.sample, data.thresholds, points, decisions(data), examples=examples, palette=palette, width=width
    )


def plane_of(
    sample: EvenSample,
    thresholds: Thresholds,
    points: list[Row],
    quadrant_decisions: Mapping[QuadrantName, str],
    *,
    examples: Sequence[Row] = (),
    palette: Palette = LIGHT,
    width: int | str = 720,
) -> dict[str, Any]:
    """Return the plane of some samples, with the rows of those drawn as points, and the decision on each quadrant."""
    import altair as alt

    scene = _Scene(alt, entropy_axis(sample, thresholds), perplexity_axis(sample, thresholds), thresholds, palette)
    cells = _cells(scene, sample, len(points))
    x, y = alt.X("e:Q", **scene.x.encoding()), alt.Y("p:Q", **scene.y.encoding())
    layers = [
        *_corners(scene),
        *([density_layer(alt, "plane_cells", cells, palette)] if cells else []),
        _border(scene, sample),
        *point_layers(alt, x, y, palette, num_points=len(points), over_density=bool(cells)),
        *_perplexity_rules(scene),
        *_entropy_rules(scene),
        *name_layers(alt, palette, quadrant_decisions),
    ]
    spec: dict[str, Any] = alt.layer(*layers).properties(width=width, height=HEIGHT, padding=PADDING).to_dict()
    own = {"samples": points, "examples": list(examples), "picked": [], **({"plane_cells": cells} if cells else {})}
    return spec | {"datasets": {**spec["datasets"], **own}, "config": chart_config(palette)}


def _cells(scene: _Scene, sample: EvenSample, num_points: int) -> list[Row]:
    """Return the density below the points, empty if all samples are points."""
    if len(sample.index) <= num_points:
        return []
    weight = sample.total / len(sample.index)
    x, y = (scene.x, sample.mean_entropy), (scene.y, shown_perplexity(sample))
    return density_rows(x, y, sample.quadrant, weight, CELLS)


def _corners(scene: _Scene) -> list[Any]:
    """Return a faint rectangle over each kept corner. If the corners overlap, the rectangles do too."""
    alt, t, (left, right), (low, high) = scene.alt, scene.thresholds, scene.x.domain, scene.y.domain
    rectangles = []
    if 0 < t.ppl_high < math.inf and math.isfinite(t.ent_low):
        rectangles.append((left, t.ent_low, t.ppl_high, high, scene.palette.of("Q2")))
    if 0 < t.ppl_low < math.inf and math.isfinite(t.ent_high):
        rectangles.append((t.ent_high, right, low, t.ppl_low, scene.palette.of("Q4")))
    return [
        alt.Chart(inline_row(alt, x=x, x2=x2, y=y, y2=y2))
        .mark_rect(color=color, opacity=0.09, clip=True)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
        for x, x2, y, y2, color in rectangles
    ]


def _border(scene: _Scene, sample: EvenSample) -> Any:
    """Return the line between Q1 and Q3, or Q2 and Q4: a diagonal in ranks, mapped through both quantile functions."""
    alpha = scene.thresholds.alpha
    rank = np.linspace(min(alpha, 1 - alpha), max(alpha, 1 - alpha), BORDER_STEPS)
    entropy = np.quantile(sample.mean_entropy, rank, method="inverted_cdf")
    error = np.quantile(shown_perplexity(sample), 1 - rank if alpha <= 0.5 else rank, method="inverted_cdf")
    rows = [{"e": e, "p": p, "i": i} for i, (e, p) in enumerate(zip(entropy.tolist(), error.tolist(), strict=True))]
    return (
        scene.alt.Chart(scene.alt.InlineData(values=rows), name="border")
        .mark_line(color=scene.palette.ink, strokeWidth=1, opacity=0.45, clip=True)
        .encode(x="e:Q", y="p:Q", order="i:Q")
    )


def _perplexity_rules(scene: _Scene) -> list[Any]:
    """Return dashed horizontal thresholds, named beyond the right edge. Names that are close move apart."""
    t = scene.thresholds
    found = [(name, value) for name, value in (("low", t.ppl_low), ("high", t.ppl_high)) if 0 < value < math.inf]
    pixels = [HEIGHT * (1 - scene.y.share(value)) for _, value in found]  # pixels from the top
    shifts = _apart(pixels)
    layers = []
    for (name, value), shift in zip(found, shifts, strict=True):
        base = scene.alt.Chart(inline_row(scene.alt, y=value, t=f"{name} {number(value)}"))
        text = base.mark_text(align="left", dx=6, dy=shift, **_name_style(scene.palette))
        named = text.encode(x=scene.alt.value("width"), y="y:Q", text="t:N")
        layers += [base.mark_rule(**_line_style(scene.palette)).encode(y="y:Q"), named]
    return layers


def _entropy_rules(scene: _Scene) -> list[Any]:
    """Return dashed vertical thresholds, named above: the larger at its right, the other at its left with room."""
    t = scene.thresholds
    layers = []
    for name, value, is_larger in (
        ("low", t.ent_low, t.ent_low > t.ent_high),
        ("high", t.ent_high, t.ent_high >= t.ent_low),
    ):
        if not math.isfinite(value):
            continue
        share = scene.x.share(value)
        to_the_right = (is_larger or share < 0.2) and share < 0.8
        is_crowded = to_the_right != is_larger  # on the side of the other name: one line up
        base = scene.alt.Chart(inline_row(scene.alt, x=value, t=f"{name} {number(value)}"))
        text = base.mark_text(
            align="left" if to_the_right else "right",
            dx=3 if to_the_right else -3,
            dy=-8 - NAME_HEIGHT * is_crowded,
            **_name_style(scene.palette),
        )
        named = text.encode(x="x:Q", y=scene.alt.value(0), text="t:N")
        layers += [base.mark_rule(**_line_style(scene.palette)).encode(x="x:Q"), named]
    return layers


def _apart(pixels: list[float]) -> list[float]:
    """Return the shift in pixels of one or two names, so that they do not overlap."""
    if len(pixels) < 2 or abs(pixels[0] - pixels[1]) >= NAME_HEIGHT:
        return [0.0] * len(pixels)
    half = (NAME_HEIGHT - abs(pixels[0] - pixels[1])) / 2
    return [half, -half] if pixels[0] > pixels[1] else [-half, half]


def _line_style(palette: Palette) -> dict[str, Any]:
    return {"strokeDash": [5, 4], "strokeWidth": 1.2, "color": palette.ink, "opacity": 0.75}


def _name_style(palette: Palette) -> dict[str, Any]:
    return {"fontSize": 11, "color": palette.ink}


def rank_plane_chart(data: ReportData, palette: Palette = LIGHT, width: int | str = 420) -> dict[str, Any]:
    """Return the Vega-Lite specification of the plane in ranks. `data` must have thresholds."""
    import altair as alt

    assert data.thresholds is not None
    alpha = data.thresholds.alpha
    cells = _rank_cells(data.sample, len(data.point_ids))
    fields = Fields("now", "in_now")
    x, y = (
        alt.X("v:Q", **_channel("Entropy rank e")),
        alt.Y("u:Q", **_channel("Perplexity rank p")),
    )
    density = density_layer(alt, "rank_cells", cells, palette, "now") if cells else None
    points = point_layers(alt, x, y, palette, num_points=len(data.point_ids), over_density=bool(cells), fields=fields)
    layers = [
        *_rank_corners(alt, palette),
        *([_relabelled(density, alpha)] if density else []),
        *_diagonals(alt, palette),
        *(_relabelled(layer, alpha) for layer in points),
        *name_layers(alt, palette, decisions(data)),
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


def _rank_cells(sample: EvenSample, num_points: int) -> list[Row]:
    """Return the density below the points, empty if all samples are points. The middle of a cell is (u, v)."""
    if len(sample.index) <= num_points:
        return []
    axis = rank_axis("")
    rows = density_rows(
        (axis, sample.entropy_rank),
        (axis, sample.error_rank),
        sample.quadrant,
        sample.total / len(sample.index),
        RANK_CELLS,
    )
    return [row | {"u": _middle(row["y"], row["y2"]), "v": _middle(row["x"], row["x2"]), "k": 0} for row in rows]


def _relabelled(layer: Any, alpha: float) -> Any:
    """Add quadrant and decision at the signal's alpha. At the job's alpha they are those of the job."""
    entry = entry_alpha_text("datum.u", "datum.v")
    moved = f"abs(alpha - {alpha!r}) > 1e-9"
    is_in = f"{entry} <= alpha + 1e-9"
    kept, removed = "datum.u >= datum.v ? 'Q2' : 'Q4'", "datum.u + datum.v > 1 ? 'Q1' : 'Q3'"
    return layer.transform_calculate(
        now=f"{moved} ? ({is_in} ? ({kept}) : ({removed})) : datum.q",
        in_now=f"{moved} ? ({is_in} ? 1 : 0) : datum.k",
    )


def _rank_corners(alt: Any, palette: Palette) -> list[Any]:
    """Return a faint square over each kept corner. If the corners overlap, the squares do too."""
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
    """Return both diagonals, faint, and the part of the one that decides."""
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
