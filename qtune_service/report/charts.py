"""All charts of a report by name, as Vega-Lite specifications, and the histograms among them.

    import vl_convert
    png = vl_convert.vegalite_to_png(report_charts(data)["plane"], scale=2)

Histograms of perplexity, entropy and length count the even sample, stacked by quadrant. Kept samples are at the bottom
in full colour, so that their height can be read from the axis. Dropped samples are above them and fainter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qtune_service.report.axes import Axis, Column, entropy_axis, length_axis, perplexity_axis, shown_perplexity
from qtune_service.report.chart_layers import (
    LIGHT,
    PAGE,
    QUADRANT_LABELS,
    Palette,
    chart_config,
    inline_row,
    quadrant_scale,
)
from qtune_service.report.data import ReportData
from qtune_service.report.plane import plane_chart, rank_plane_chart
from qtune_service.report.what_if import what_if_chart
from qtune_service.selection.distributions import EvenSample

BINS = 40
HEIGHT = 170
STACK = tuple((decision, label) for decision in ("kept", "dropped") for label in ("Q2", "Q4", "Q1", "Q3"))
"""From the bottom up."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Histogram:
    """One score of the sample. `lines` are thresholds."""

    name: str
    axis: Axis
    values: Column
    lines: tuple[float, ...] = ()


def histogram_charts(data: ReportData, palette: Palette = LIGHT, width: int | str = 320) -> dict[str, dict[str, Any]]:
    """Return specifications by name: `perplexity`, `entropy`, `length`. Thresholds are dashed."""
    sample, t = data.sample, data.thresholds
    lengths = np.maximum(sample.num_tokens.astype(np.float64), 1.0)
    errors, entropies = ((t.ppl_low, t.ppl_high), (t.ent_low, t.ent_high)) if t else ((), ())
    histograms = (
        _Histogram("perplexity", perplexity_axis(sample, t), shown_perplexity(sample), errors),
        _Histogram("entropy", entropy_axis(sample, t), sample.mean_entropy, entropies),
        _Histogram("length", length_axis(sample), lengths),
    )
    return {histogram.name: _chart(histogram, sample, palette, width) for histogram in histograms}


def _chart(histogram: _Histogram, sample: EvenSample, palette: Palette, width: int | str) -> dict[str, Any]:
    import altair as alt

    name = f"{histogram.name}_bars"
    bars = (
        alt.Chart(alt.NamedData(name), name=name)
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X("x:Q", **histogram.axis.encoding()), x2="x2:Q",
            y=alt.Y("y:Q", title="Samples", axis=alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=4)),
            y2="y2:Q",
            fill=alt.Fill("q:N", legend=None, scale=quadrant_scale(alt, palette)),
            opacity={"condition": {"test": "datum.f == 'kept'", "value": 1}, "value": 0.5},
            tooltip=[
                alt.Tooltip("x:Q", title=f"{histogram.name} from", format=".3~g"),
                alt.Tooltip("x2:Q", title="to", format=".3~g"), alt.Tooltip("q:N", title="quadrant"),
                alt.Tooltip("f:N", title="decision"), alt.Tooltip("n:Q", title="samples", format=","),
            ],
        )
    )  # fmt: skip
    low, high = histogram.axis.domain
    layers = [bars, *(_rule(alt, value, palette) for value in histogram.lines if low <= value <= high)]
    spec: dict[str, Any] = alt.layer(*layers).properties(width=width, height=HEIGHT, padding=4).to_dict()
    datasets = {**spec.get("datasets", {}), name: _rows(histogram, sample)}
    return spec | {"datasets": datasets, "config": chart_config(palette)}


def _rows(histogram: _Histogram, sample: EvenSample) -> list[Row]:
    """Return one row for each bin, quadrant and decision with samples, with its position in the stack."""
    kind = np.where(sample.kept, 0, 4) + (sample.quadrant.astype(np.int64) - 1)
    edges = [float(f"{edge:.5g}") for edge in histogram.axis.edges(BINS).tolist()]
    size = len(edges) - 1
    at_bin = histogram.axis.bins(histogram.values, BINS)
    counts = np.bincount(kind * size + at_bin, minlength=8 * size).reshape(8, size)
    order = [4 * (decision == "dropped") + QUADRANT_LABELS.index(label) for decision, label in STACK]
    weight = sample.total / max(len(sample.index), 1)
    stacked = np.rint(counts[order] * weight).astype(np.int64)
    tops = np.cumsum(stacked, axis=0)
    return [
        {
            "x": edges[at], "x2": edges[at + 1], "n": int(stacked[level, at]),
            "f": STACK[level][0], "q": STACK[level][1],
            "y": int(tops[level, at] - stacked[level, at]), "y2": int(tops[level, at]),
        }
        for level, at in np.argwhere(stacked).tolist()
    ]  # fmt: skip


def _rule(alt: Any, value: float, palette: Palette) -> Any:
    style = {"strokeDash": [5, 4], "strokeWidth": 1.2, "color": palette.ink, "opacity": 0.75}
    return alt.Chart(inline_row(alt, x=value)).mark_rule(**style).encode(x="x:Q")


def report_charts(data: ReportData, palette: Palette = LIGHT) -> dict[str, dict[str, Any]]:
    """Return all charts that the data allow. With the palette PAGE they fill their container."""
    if data.thresholds is None:
        return {}
    wide = {"width": "container"} if palette is PAGE else {}
    found = {"plane": plane_chart(data, palette, **wide), "ranks": rank_plane_chart(data, palette, **wide)}
    if data.curve:
        found["what_if"] = what_if_chart(data, palette, **wide)
    return found | histogram_charts(data, palette, **wide)
