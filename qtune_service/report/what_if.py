"""Results of other keep ratios: the curve as a chart, and the numbers behind the slider.

All numbers of the chart are shares: of the scored samples by quadrant (stacked), of their trained tokens, and alpha,
which is a share of ranks. One scale from 0 to 1 therefore serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qtune_service.report.chart_layers import LIGHT, PADDING, Palette, chart_config, inline_row, quadrant_scale
from qtune_service.report.data import ReportData, other_strategy, prune_spec, quadrant_rule
from qtune_service.selection.curve import CurvePoint

HEIGHT = 220
STACK = ("Q2", "Q4", "Q1", "Q3")  # from the bottom up: kept, then dropped

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The start of the slider: the point of the curve that is the job's, and the first one with overlapping corners."""

    points: tuple[CurvePoint, ...]
    here: int
    first_overlap: int | None

    @property
    def now(self) -> CurvePoint:
        """Return the job's own point."""
        return self.points[self.here]

    @property
    def overlap_share(self) -> float | None:
        """Return the position of the first overlap, as a share of the slider's length."""
        return None if self.first_overlap is None else self.first_overlap / max(len(self.points) - 1, 1)

    @property
    def names_apart(self) -> bool:
        """Return whether both positions can be named below the slider."""
        way = max(len(self.points) - 1, 1)
        return self.first_overlap is not None and abs(self.first_overlap - self.here) > way / 4


def what_if(data: ReportData) -> WhatIf | None:
    """Return the curve, None if the data have none.

    The job's own point has the counts of the job, since those of the curve may be a few samples higher.
    """
    if not data.curve or data.thresholds is None:
        return None
    requested = prune_spec(data).get("sample_keep_ratio", data.target / max(data.counts.scored, 1))
    distances = [abs(point.sample_keep_ratio - requested) for point in data.curve]
    here, points, c = distances.index(min(distances)), list(data.curve), data.counts
    points[here] = CurvePoint(
        points[here].sample_keep_ratio, data.thresholds.alpha, data.target, c.q1, c.q2, c.q3, c.q4, data.tokens.after
    )
    overlap = next((i for i, point in enumerate(points) if point.alpha > 0.5), None)
    return WhatIf(tuple(points), here, overlap)


def why_no_curve(data: ReportData) -> str:
    """Return a sentence for a page without a slider."""
    strategy, rule = other_strategy(data), quadrant_rule(data)
    if strategy is not None:
        return f"The keep ratio has no slider: these samples were chosen by another strategy ({strategy})."
    if rule is not None:
        return f"The keep ratio has no slider: the quadrant rule {rule!r} decides, whatever the ratio."
    return "The keep ratio has no slider: this output has no curve of other ratios."


def what_if_chart(data: ReportData, palette: Palette = LIGHT, width: int | str = 560) -> dict[str, Any]:
    """Return the Vega-Lite specification of the curve, which `data` must have. The signal `ratio` moves a line."""
    import altair as alt

    found = what_if(data)
    assert found is not None
    share = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("r:Q", title="Keep ratio", scale=share, axis=alt.Axis(format=".0%", tickCount=5))
    y = alt.Y("y:Q", title="Share", scale=share, axis=alt.Axis(format=".0%", tickCount=5))
    bands = (
        alt.Chart(alt.NamedData("bands"), name="bands")
        .mark_area(strokeWidth=0, opacity=0.62)
        .encode(x=x, y=y, y2="y2:Q", fill=alt.Fill("q:N", legend=None, scale=quadrant_scale(alt, palette)))
    )
    layers = [bands, *_names(alt, found, palette), *_lines(alt, palette), *_rules(alt, found, palette)]
    spec: dict[str, Any] = alt.layer(*layers).properties(width=width, height=HEIGHT, padding=PADDING).to_dict()
    own = {"bands": _bands(found.points), "shares": _shares(found.points, data.tokens.scored)}
    params = [{"name": "ratio", "value": found.now.sample_keep_ratio}]
    return spec | {"datasets": {**spec["datasets"], **own}, "params": params, "config": chart_config(palette)}


def _lines(alt: Any, palette: Palette) -> list[Any]:
    """Return the lines of tokens left and of alpha, with their names at their ends."""
    layers = []
    for field, name, dash, down in (("t", "tokens", [1, 0], 7), ("a", "alpha", [2, 2], -5)):
        base = alt.Chart(alt.NamedData("shares"))
        line = base.mark_line(color=palette.ink, strokeWidth=1.6, strokeDash=dash).encode(x="r:Q", y=f"{field}:Q")
        end = (
            base.transform_filter("datum.r == 1")
            .transform_calculate(name=f"'{name}'")
            .mark_text(align="left", dx=5, dy=down, fontSize=11, color=palette.ink)
            .encode(x="r:Q", y=f"{field}:Q", text="name:N")
        )
        layers += [line, end]
    return layers


def _names(alt: Any, found: WhatIf, palette: Palette) -> list[Any]:
    """Return the names of wide bands: dropped quadrants at the left, kept ones at the right."""
    inset = len(found.points) // 16
    dropped, kept = _bands([found.points[inset]])[2:], _bands([found.points[-1 - inset]])[:2]
    rows = [
        {"r": band["r"], "y": (band["y"] + band["y2"]) / 2, "t": band["q"]}
        for band in (*dropped, *kept)
        if band["y2"] - band["y"] > 0.1
    ]
    text = alt.Chart(alt.InlineData(values=rows)).mark_text(fontSize=12, fontWeight=700, color=palette.ink)
    return [text.encode(x="r:Q", y="y:Q", text="t:N")]


def _rules(alt: Any, found: WhatIf, palette: Palette) -> list[Any]:
    """Return the line of the chosen ratio, and the one where disjoint corners end."""
    chosen = (
        alt.Chart(inline_row(alt, s=2), name="chosen")
        .transform_calculate(r="ratio")
        .mark_rule(color=palette.ink, strokeWidth=2)
        .encode(x="r:Q")
    )
    if found.first_overlap is None:
        return [chosen]
    ends = alt.Chart(inline_row(alt, r=found.points[found.first_overlap].sample_keep_ratio, t="corners overlap →"))
    line = ends.mark_rule(color=palette.ink, strokeDash=[5, 4], opacity=0.75).encode(x="r:Q")
    is_late = found.points[found.first_overlap].sample_keep_ratio > 0.7
    text = ends.mark_text(align="right" if is_late else "left", dy=-8, fontSize=11, color=palette.ink)
    return [line, text.encode(x="r:Q", y=alt.value(0), text="t:N"), chosen]


def _bands(points: Sequence[CurvePoint]) -> list[Row]:
    rows = []
    for point in points:
        total, low = point.q1 + point.q2 + point.q3 + point.q4, 0.0
        for label, size in zip(STACK, (point.q2, point.q4, point.q1, point.q3), strict=True):
            high = low + size / max(total, 1)
            rows.append({"r": point.sample_keep_ratio, "y": round(low, 5), "y2": round(high, 5), "q": label})
            low = high
    return rows


def _shares(points: Sequence[CurvePoint], tokens: int) -> list[Row]:
    return [
        {"r": point.sample_keep_ratio, "t": round(point.tokens / max(tokens, 1), 5), "a": round(point.alpha, 5)}
        for point in points
    ]
