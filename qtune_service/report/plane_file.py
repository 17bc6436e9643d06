"""plane.json: all data that a client needs to draw the plane and to move the keep ratio without another request.

The job writes it once at its end, so the service responds in the same time for any number of samples. It holds the
charts of report.html with the same data, which the job's page draws. Its size is limited like the report's: some
thousands of points, two histograms with a fixed number of cells, and one curve. Data are columns and not rows, since
the field names of a point would take more space than its numbers. Charts share datasets by name.

The commands that readers copy from the page are made here. The page's script inserts the chosen ratio or sample.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from qtune_service.config import PruneSpec
from qtune_service.report.axes import Axis, Column, entropy_axis, perplexity_axis, rank_axis, shown_perplexity
from qtune_service.report.chart_layers import PAGE
from qtune_service.report.charts import report_charts
from qtune_service.report.data import (
    QUADRANTS,
    QuadrantName,
    ReportData,
    decisions,
    other_strategy,
    prune_spec,
    quadrant_rule,
)
from qtune_service.report.plane import CELLS, RANK_CELLS
from qtune_service.report.what_if import what_if, why_no_curve

PLACEHOLDER = "OUT"
Rows = Sequence[Mapping[str, Any]]
QUADRANT_NAMES = tuple(meaning.label for meaning in QUADRANTS)
Number = float | Literal["inf", "-inf"]
"""Infinity is text, since JSON has no infinity."""


def output_of(data: ReportData) -> str:
    """Return the folder of the job's output, or a placeholder."""
    return data.output or PLACEHOLDER


def inspect_command(data: ReportData) -> str:
    """Return the command up to the sample's identifier."""
    return f"qtune inspect {shlex.quote(output_of(data))} --sample "


def prune_command(data: ReportData, ratio: float) -> str:
    """Return the command for one ratio. The page's script makes the others."""
    start, stem, flags = prune_parts(data)
    number = repr(ratio).removesuffix(".0")  # as a script writes it
    return f"{start}{shlex.quote(stem + number)} --sample-keep-ratio {number}{flags}"


def prune_parts(data: ReportData) -> tuple[str, str, str]:
    """Return the start up to the new output, that output up to its ratio, unquoted, and the flags after the ratio.

    `qtune prune --from-scores` takes the arguments of the method from its flags alone, so the job's arguments that are
    not defaults are repeated.
    """
    output = output_of(data)
    start = f"qtune prune --from-scores {shlex.quote(output)} --output "
    return start, f"{output.rstrip('/')}-", "".join(_flags(data))


def _flags(data: ReportData) -> list[str]:
    flags = []
    for name, field in PruneSpec.model_fields.items():
        value = prune_spec(data).get(name, field.default)
        if name != "sample_keep_ratio" and value != field.default:
            flags.append(f" --{name.replace('_', '-')} {shlex.quote(str(value))}")
    return flags


def page_data(data: ReportData) -> dict[str, Any]:
    """Return plain data for a strict JSON encoder. `data` must have thresholds."""
    charts = report_charts(data, PAGE)
    datasets = {name: rows for chart in charts.values() for name, rows in chart["datasets"].items()}
    return {
        "charts": {name: {**chart, "datasets": sorted(chart["datasets"])} for name, chart in charts.items()},
        "datasets": {name: as_columns(rows) for name, rows in sorted(datasets.items())},
        "quadrants": {meaning.label: meaning.name for meaning in QUADRANTS},
        "inspect": inspect_command(data),
        "what_if": _curve(data),
    }


def as_columns(rows: Rows) -> dict[str, list[Any]] | Rows:
    """Return a list for each field if all rows have the same fields, else the rows."""
    fields = list(rows[0]) if rows else []
    if not fields or any(list(row) != fields for row in rows):
        return rows
    return {field: [row[field] for row in rows] for field in fields}


def _curve(data: ReportData) -> dict[str, Any] | None:
    found = what_if(data)
    if found is None:
        return None
    names = ("sample_keep_ratio", "alpha", "q1", "q2", "q3", "q4", "kept", "tokens")
    start, stem, flags = prune_parts(data)
    return {
        "points": {name: [getattr(point, name) for point in found.points] for name in names},
        "here": found.here,
        "all_tokens": data.tokens.scored,
        "command": {"start": start, "stem": stem, "flags": flags},
    }


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Bounds(_Part):
    """Edges of the kept corners, in units of the data. Infinite if no sample is beyond."""

    alpha: float = Field(description="Side of the corners, as a share of ranks.")
    ppl_low: Number
    ppl_high: Number
    ent_low: Number = Field(description="Nats.")
    ent_high: Number = Field(description="Nats.")


class QuadrantCount(_Part):
    """A quadrant: its meaning, and the number of its samples."""

    label: QuadrantName
    name: str
    place: str
    fate: str = Field(description="The decision on its samples. Empty if another strategy than Q-Tuning chose.")
    count: int


class Histogram(_Part):
    """Number of samples in the cells of a plane, by quadrant."""

    x_title: str
    y_title: str
    x_scale: Literal["linear", "sqrt", "log"] = Field(description="The scale on which cells have equal width.")
    y_scale: Literal["linear", "sqrt", "log"]
    x_edges: list[float] = Field(description="Ascending, one more than cells. Entropy in nats, or its rank.")
    y_edges: list[float] = Field(description="Perplexity, or its rank.")
    counts: dict[QuadrantName, list[list[int]]] = Field(description="Rows of y, of cells of x, both ascending.")
    samples_each: float = Field(description="Number of samples for each counted one: 1 up to a million samples.")
    num_beyond: int = Field(description="Number of far outliers, which are counted in the cells at the edge.")


class CurveColumns(_Part):
    """Results of other keep ratios: a column for each, an index for each ratio."""

    sample_keep_ratio: list[float]
    alpha: list[float]
    q1: list[int]
    q2: list[int]
    q3: list[int]
    q4: list[int]
    kept: list[int]
    tokens: list[int] = Field(description="Trained tokens left.")


class Command(_Part):
    """`qtune prune --from-scores` for another ratio: start + quoted(stem + ratio) + ratio flag + flags."""

    start: str
    stem: str
    flags: str


class Curve(_Part):
    """The curve, and the position of the job on it."""

    points: CurveColumns
    here: int = Field(description="Index of the job's own ratio.")
    all_tokens: int = Field(description="Trained tokens of all scored samples.")
    command: Command


class Plane(_Part):
    """The error-uncertainty plane of a finished job. Unlike points, histograms count all samples, or a million."""

    version: Literal[1] = 1
    thresholds: Bounds | None = Field(description="null if nothing was scored.")
    counts: dict[str, int] = Field(description="read, scored, kept, pruned, rejected, Q1, Q2, Q3, Q4.")
    tokens: dict[str, int] = Field(
        description="Trained tokens: scored, and before and after stage 2 of the kept samples."
    )
    target: int = Field(description="Number of samples to keep.")
    disjoint_capacity: int = Field(description="Largest number of samples in corners without overlap.")
    strategy: str | None = Field(description="Description of the strategy, if it was not Q-Tuning.")
    quadrant_rule: str | None
    quadrant_counts: list[QuadrantCount]
    histogram: Histogram | None = Field(description="By mean entropy and perplexity.")
    rank_histogram: Histogram | None = Field(description="By their ranks, from 0 to 1.")
    what_if: Curve | None
    why_no_curve: str
    charts: dict[str, dict[str, Any]] = Field(description="Vega-Lite 6. `datasets` of each names its data.")
    datasets: dict[str, Any] = Field(
        description="Columns by name. `samples` holds the points: perplexity p, entropy e, their ranks u and v, "
        "quadrant q, kept k, trained tokens n, sample id, and cut: 1 if the id is shortened."
    )
    quadrants: dict[str, str]
    inspect: str = Field(description="The command that shows a sample, up to its id.")


def plane_file(data: ReportData) -> Plane:
    """Return the plane of a job's report."""
    known, t = decisions(data), data.thresholds
    counts = data.counts.as_dict()
    empty: dict[str, Any] = {"charts": {}, "datasets": {}, "quadrants": {}, "inspect": "", "what_if": None}
    body = {
        "thresholds": None if t is None else {
            name: value if math.isfinite(value) else str(value) for name, value in asdict(t).items()
        },
        "counts": counts,
        "tokens": asdict(data.tokens),
        "target": data.target,
        "disjoint_capacity": data.disjoint_capacity,
        "strategy": other_strategy(data),
        "quadrant_rule": quadrant_rule(data),
        "quadrant_counts": [
            QuadrantCount(label=q.label, name=q.name, place=q.place, fate=known.get(q.label, ""), count=counts[q.label])
            for q in QUADRANTS
        ],
        "histogram": None if t is None else _plane_histogram(data),
        "rank_histogram": None if t is None else _rank_histogram(data),
        "why_no_curve": "" if data.curve else why_no_curve(data),
        **(empty if t is None else page_data(data)),
    }  # fmt: skip
    return Plane.model_validate(body)


def plane_bytes(data: ReportData) -> bytes:
    """Return the file. Half of a surrogate pair, which JSON data can hold, stays an escape."""
    text = json.dumps(plane_file(data).model_dump(), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def _plane_histogram(data: ReportData) -> Histogram:
    sample = data.sample
    x, y = entropy_axis(sample, data.thresholds), perplexity_axis(sample, data.thresholds)
    return _histogram(data, (x, sample.mean_entropy), (y, shown_perplexity(sample)), CELLS)


def _rank_histogram(data: ReportData) -> Histogram:
    x, y = rank_axis("Entropy rank"), rank_axis("Perplexity rank")
    return _histogram(data, (x, data.sample.entropy_rank), (y, data.sample.error_rank), RANK_CELLS)


def _histogram(data: ReportData, x: tuple[Axis, Column], y: tuple[Axis, Column], shape: tuple[int, int]) -> Histogram:
    (x_axis, x_values), (y_axis, y_values), (across, up) = x, y, shape
    cell = y_axis.bins(y_values, up) * across + x_axis.bins(x_values, across)
    size, quadrant = across * up, data.sample.quadrant.astype(np.int64) - 1
    counts = np.bincount(quadrant * size + cell, minlength=4 * size).reshape(4, up, across)
    return Histogram(
        x_title=x_axis.title, y_title=y_axis.title, x_scale=x_axis.scale, y_scale=y_axis.scale,
        x_edges=x_axis.edges(across).tolist(), y_edges=y_axis.edges(up).tolist(),
        counts=dict(zip(QUADRANT_NAMES, counts.tolist(), strict=True)),
        samples_each=data.sample.total / max(len(data.sample.index), 1),
        num_beyond=x_axis.num_beyond + y_axis.num_beyond,
    )  # fmt: skip
