"""What the page's script reads: the charts, their data, the curve, and what commands are made of.

Data are columns, not rows: a point's field names would weigh more than its numbers. Charts share datasets by
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.report.commands import inspect_command, prune_parts
from qtune_service.report.data import QUADRANTS, ReportData
from qtune_service.report.palette import PAGE
from qtune_service.report.pictures import pictures
from qtune_service.report.what_if import what_if

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
