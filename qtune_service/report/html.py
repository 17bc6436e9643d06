"""report.html: one page that needs nothing but itself.

The chart library comes out of an installed package (vl-convert) and is inlined, 0.9 MB; the rest is hand-written. The
page carries a content security policy that allows its own two scripts by their hash, no evaluation of strings, and no
connection at all: whatever the data hold, nothing in them can run or call home, even if an escape were forgotten.
Bounds on everything that the data decide (rows, names, tokens, points) keep it under 3 MB for any number of samples.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qtune_service.report import tables, wording
from qtune_service.report.axes import entropy_axis, perplexity_axis
from qtune_service.report.choice import fates, other_strategy, quadrant_rule
from qtune_service.report.commands import prune_command
from qtune_service.report.data import QUADRANTS, ReportData
from qtune_service.report.examples import shown_examples
from qtune_service.report.page_data import page_data
from qtune_service.report.scripts import chart_library, inline_script
from qtune_service.report.text import find_warnings
from qtune_service.report.what_if import what_if, why_no_curve

MAX_NAME_CHARS = 120
SHORT_NAME_CHARS = 60
MAX_WARNINGS = 40
MAX_WARNING_CHARS = 1_200
MAX_SPEC_CHARS = 12_000
ENGINE_FACTS = {"engine": "Engine", "name": "Engine", "version": "Version", "device": "Device", "dtype": "Precision"}
STYLES = ("page", "figures", "tables", "samples", "media")


def render_report(data: ReportData) -> str:
    """The page. Deterministic: the same data give the same bytes."""
    bundle = chart_library() if data.thresholds is not None else ""
    script = inline_script()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_texts(data),
            data=data,
            quadrants=QUADRANTS,
            cards=tables.quadrant_cards(data),
            fates=fates(data),
            flow=tables.record_flow(data),
            groups=tables.group_tables(data),
            reasons=tables.largest(data.counts.reasons, tables.MAX_ROWS),
            examples=shown_examples(data.examples),
            what_if=what_if(data),
            num_beyond=_num_beyond(data),
            page_data=_json_for_script(page_data(data)) if data.thresholds is not None else "",
            css=Markup("\n".join(_resource(f"css/{name}.css") for name in STYLES)),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704 - our own files
            bundle=Markup(bundle),  # noqa: S704 - an installed package's
            policy=_policy([bundle, script]),
        )
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON data can hold half a surrogate pair


def _texts(data: ReportData) -> dict[str, Any]:
    spec = json.dumps(data.spec, indent=2, ensure_ascii=False, default=str)
    point = what_if(data)
    return {
        "facts": _facts(data),
        "strategy": other_strategy(data),
        "rule": quadrant_rule(data),
        "warnings": [wording.shorten(text, MAX_WARNING_CHARS) for text in find_warnings(data)[:MAX_WARNINGS]],
        "spec_text": wording.shorten(spec, MAX_SPEC_CHARS),
        "why_no_curve": why_no_curve(data),
        "prune_command": prune_command(data, point.now.sample_keep_ratio) if point else "",
    }


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """Model, engine and time; all that an engine says of itself stands below."""
    engine = data.engine
    made = data.created_at.replace("T", " ").replace("+00:00", " UTC")
    found = [("Model", data.spec.get("model", {}).get("name", ""))]
    found += [(name, str(engine[key])) for key, name in ENGINE_FACTS.items() if engine.get(key)]
    return [(key, value) for key, value in [*found, ("Made", made)] if value]


def _num_beyond(data: ReportData) -> int:
    axes = (perplexity_axis(data.sample, data.thresholds), entropy_axis(data.sample, data.thresholds))
    return sum(axis.num_beyond for axis in axes)


def _json_for_script(value: Any) -> Markup:
    """JSON that can stand in a script element: no character in it can end the element or open another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


def _policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text)
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {sources}; {rest}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qtune_service.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(count=wording.count, number=wording.number, duration=wording.duration, rank=wording.rank)
    environment.filters["name"] = lambda text: wording.shorten(str(text), MAX_NAME_CHARS)
    environment.filters["short_name"] = lambda text: wording.shorten(str(text), SHORT_NAME_CHARS)
    environment.filters["file_name"] = lambda text: wording.shorten(wording.file_name(text), SHORT_NAME_CHARS)
    environment.filters["words"] = _words
    environment.globals.update(
        percent=wording.percent,
        largest=tables.largest,
        told_reasons=tables.told_reasons,
        max_reasons=tables.MAX_REASONS,
    )
    return environment


def _words(command: str) -> Markup:
    """Each word is an element, so that a line ends between words and not at the hyphens of a flag."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


@cache
def _resource(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
