"""report.html: one page that needs nothing but itself.

The chart library comes out of an installed package (vl-convert) and is inlined, 0.9 MB; the rest is hand-written. The
page carries a content security policy that allows its own two scripts by their hash, no evaluation of strings, and no
connection at all: whatever the data hold, nothing in them can run or call home, even if an escape were forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qtune_service.report import wording
from qtune_service.report.contents import QUADRANTS, Counts, ReportData
from qtune_service.report.examples import shown_examples
from qtune_service.report.findings import find_warnings
from qtune_service.report.plane import PAGE, Points, plane_chart

MAX_TABLE_ROWS = 100
MAX_NAME_CHARS = 120
MAX_WARNINGS = 40
MAX_WARNING_CHARS = 1_200
MAX_SPEC_CHARS = 12_000


@dataclass(frozen=True, slots=True)
class GroupTable:
    """A table of counts by source or category: its largest rows, and how many there are in all."""

    title: str
    heading: str
    rows: tuple[tuple[str, Counts], ...]
    total: int


def render_report(data: ReportData) -> str:
    """The page. Deterministic: the same data give the same bytes."""
    script = _resource("report.js")
    bundle = _chart_library() if data.thresholds is not None else ""
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            model=data.spec.get("model", {}).get("name", ""),
            prune=data.spec.get("prune", {}),
            warnings=[wording.shorten(text, MAX_WARNING_CHARS) for text in find_warnings(data)[:MAX_WARNINGS]],
            quadrants=QUADRANTS,
            groups=[table for table in _group_tables(data) if table.rows],
            reasons=_largest(data.counts.reasons)[:MAX_TABLE_ROWS],
            examples=shown_examples(data.examples),
            spec_text=wording.shorten(json.dumps(data.spec, indent=2, ensure_ascii=False, default=str), MAX_SPEC_CHARS),
            plane=_chart(data),
            css=Markup(_resource("report.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            bundle=Markup(bundle),  # noqa: S704 - an installed package's
            policy=_policy([bundle, script]),
        )
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON data can hold half a surrogate pair


def _chart(data: ReportData) -> Markup | None:
    if data.thresholds is None:
        return None
    return _json_for_script(plane_chart(Points.of(data.sample, data.point_ids), data.thresholds, PAGE))


def _json_for_script(value: Any) -> Markup:
    """JSON that can stand in a script element: no character in it can end the element or open another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


def _policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text)
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {sources}; {rest}"


def _group_tables(data: ReportData) -> list[GroupTable]:
    sides = (("By source", "Source", data.by_source), ("By category", "Category", data.by_category))
    return [
        GroupTable(title, heading, tuple(sorted(groups.items(), key=_by_size)[:MAX_TABLE_ROWS]), len(groups))
        for title, heading, groups in sides
    ]


def _by_size(item: tuple[str, Counts]) -> tuple[int, str]:
    return -item[1].read, item[0]


def _largest(values: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qtune_service.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(count=wording.count, number=wording.number, duration=wording.duration)
    environment.filters["name"] = lambda text: wording.shorten(str(text), MAX_NAME_CHARS)
    environment.globals["percent"] = wording.percent
    return environment


@cache
def _resource(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


@cache
def _chart_library() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
