"""plane.json: all that a client needs to draw the plane by itself, and to move the keep ratio without asking.

It is written once, at a job's end, when the numbers exist; so the service answers in the same time for any number of
samples. Beside the numbers it holds the charts of report.html, with the same data: the page of a job draws these.
Bounded like the report: some thousands of points, two histograms of a fixed number of cells, one curve.

Commands that a reader copies from the page. The page's script puts in what was chosen: a ratio, a sample.

What the page's script reads: the charts, their data, the curve, and what commands are made of.

Data are columns, not rows: a point's field names would weigh more than its numbers. Charts share datasets by
name.
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
from qtune_service.report.charts import pictures
from qtune_service.report.data import (
    QUADRANTS,
    QuadrantName,
    ReportData,
    fates,
    other_strategy,
    prune_spec,
    quadrant_rule,
)
from qtune_service.report.plane import CELLS, RANK_CELLS
from qtune_service.report.what_if import what_if, why_no_curve

PLACEHOLDER = "OUT"


def output_of(data: ReportData) -> str:
    """Where the job's output is, or a word in its place."""
    return data.output or PLACEHOLDER


def inspect_command(data: ReportData) -> str:
    """Up to the sample's identifier."""
    return f"qtune inspect {shlex.quote(output_of(data))} --sample "


def prune_command(data: ReportData, ratio: float) -> str:
    """For one ratio; the page's script makes the others."""
    start, stem, flags = prune_parts(data)
    number = repr(ratio).removesuffix(".0")  # as a script writes it
    return f"{start}{shlex.quote(stem + number)} --sample-keep-ratio {number}{flags}"


def prune_parts(data: ReportData) -> tuple[str, str, str]:
    """The start up to the new output; that output up to its ratio, unquoted; and the flags after the ratio.

    `qtune prune --from-scores` takes the method's arguments from its flags alone, so those of this job that are not the
    defaults are repeated.
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


Rows = Sequence[Mapping[str, Any]]


def page_data(data: ReportData) -> dict[str, Any]:
    """Plain data, ready for a strict JSON encoder; `data` must have thresholds."""
    charts = pictures(data, PAGE)
    datasets = {name: rows for chart in charts.values() for name, rows in chart["datasets"].items()}
    return {
        "charts": {name: {**chart, "datasets": sorted(chart["datasets"])} for name, chart in charts.items()},
        "datasets": {name: as_columns(rows) for name, rows in sorted(datasets.items())},
        "quadrants": {meaning.label: meaning.name for meaning in QUADRANTS},
        "inspect": inspect_command(data),
        "what_if": _curve(data),
    }


def as_columns(rows: Rows) -> dict[str, list[Any]] | Rows:
    """A list for each field, where all rows have the same fields."""
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


QUADRANT_NAMES = tuple(meaning.label for meaning in QUADRANTS)
Number = float | Literal["inf", "-inf"]
"""JSON has no infinity."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Bounds(_Part):
    """Edges of the kept corners, in the data's own units; infinite where no sample lies beyond."""

    alpha: float = Field(description="Side of the corners, as a share of ranks.")
    ppl_low: Number
    ppl_high: Number
    ent_low: Number = Field(description="Nats.")
    ent_high: Number = Field(description="Nats.")


class QuadrantCount(_Part):
    """A quadrant: what it means, and how many samples are there."""

    label: QuadrantName
    name: str
    place: str
    fate: str = Field(description="What happened to its samples; empty where another strategy than Q-Tuning chose.")
    count: int


class Histogram(_Part):
    """Samples in the cells of a plane, by quadrant."""

    x_title: str
    y_title: str
    x_scale: Literal["linear", "sqrt", "log"] = Field(description="On which cells are of equal width.")
    y_scale: Literal["linear", "sqrt", "log"]
    x_edges: list[float] = Field(description="Ascending; one more than cells. Entropy in nats, or its rank.")
    y_edges: list[float] = Field(description="Perplexity, or its rank.")
    counts: dict[QuadrantName, list[list[int]]] = Field(description="Rows of y, of cells of x, both ascending.")
    samples_each: float = Field(description="Samples that each counted one stands for: 1 up to a million samples.")
    num_beyond: int = Field(description="Far outliers; they are counted in the cells at the edge.")


class CurveColumns(_Part):
    """What other keep ratios would lead to: a column each, one place a ratio."""

    sample_keep_ratio: list[float]
    alpha: list[float]
    q1: list[int]
    q2: list[int]
    q3: list[int]
    q4: list[int]
    kept: list[int]
    tokens: list[int] = Field(description="Trained tokens left.")


class Command(_Part):
    """`qtune prune --from-scores` of another ratio: start + quoted(stem + ratio) + ratio flag + flags."""

    start: str
    stem: str
    flags: str


class Curve(_Part):
    """The curve, and where on it the job is."""

    points: CurveColumns
    here: int = Field(description="The job's own place.")
    all_tokens: int = Field(description="Trained tokens of all scored samples.")
    command: Command


class Plane(_Part):
    """The error-uncertainty plane of a finished job. Unlike points, histograms count all samples, or a million."""

    version: Literal[1] = 1
    thresholds: Bounds | None = Field(description="null where nothing was scored.")
    counts: dict[str, int] = Field(description="read, scored, kept, pruned, rejected, Q1, Q2, Q3, Q4.")
    tokens: dict[str, int] = Field(description="Trained tokens: scored; before and after, of the kept samples.")
    target: int = Field(description="Samples asked for.")
    disjoint_capacity: int = Field(description="The most that corners hold without overlap.")
    strategy: str | None = Field(description="What chose the samples, in words, where it was not Q-Tuning.")
    quadrant_rule: str | None
    quadrant_counts: list[QuadrantCount]
    histogram: Histogram | None = Field(description="By mean entropy and perplexity.")
    rank_histogram: Histogram | None = Field(description="By their ranks, from 0 to 1.")
    what_if: Curve | None
    why_no_curve: str
    charts: dict[str, dict[str, Any]] = Field(description="Vega-Lite 6; `datasets` of each names what it draws.")
    datasets: dict[str, Any] = Field(
        description="Columns by name. `samples` holds the points: perplexity p, entropy e, their ranks u and v, "
        "quadrant q, kept k, trained tokens n, sample id, and whether that is cut."
    )
    quadrants: dict[str, str]
    inspect: str = Field(description="The command that shows a sample, up to its id.")


def plane_file(data: ReportData) -> Plane:
    """Of a job's report."""
    known, t = fates(data), data.thresholds
    counts = data.counts.as_dict()
    empty: dict[str, Any] = {"charts": {}, "datasets": {}, "quadrants": {}, "inspect": "", "what_if": None}
    body = {
        "thresholds": None if t is None else {name: _number(value) for name, value in asdict(t).items()},
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
    """The file. Half of a surrogate pair, which JSON data can hold, stays an escape."""
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


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
