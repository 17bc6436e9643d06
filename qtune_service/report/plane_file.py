"""plane.json: all that a client needs to draw the plane by itself, and to move the keep ratio without asking.

It is written once, at a job's end, when the numbers exist; so the service answers in the same time for any number of
samples. Beside the numbers it holds the charts of report.html, with the same data: the page of a job draws these.
Bounded like the report: some thousands of points, two histograms of a fixed number of cells, one curve.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from qtune_service.report.axes import Axis, Column, entropy_axis, perplexity_axis, rank_axis, shown_perplexity
from qtune_service.report.choice import fates, other_strategy, quadrant_rule
from qtune_service.report.data import QUADRANTS, QuadrantName, ReportData
from qtune_service.report.page_data import page_data
from qtune_service.report.plane import CELLS
from qtune_service.report.rank_plane import CELLS as RANK_CELLS
from qtune_service.report.what_if import why_no_curve

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
