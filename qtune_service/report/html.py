"""report.html: one self-contained page.

The chart library is part of an installed package (vl-convert) and is inlined, 0.9 MB. The other scripts are ES modules
in templates/js, joined into one inline script without their imports and exports. The service's pages import the same
modules. The page's content security policy allows its own two scripts by their hash, no evaluation of strings and no
connection, so nothing in the data can run or load anything, even if an escape were forgotten. Limits on everything that
depends on the data (rows, names, tokens, points) keep the page under 3 MB for any number of samples.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qtune_service.report import text as wording
from qtune_service.report.axes import entropy_axis, perplexity_axis
from qtune_service.report.data import (
    QUADRANTS,
    Counts,
    QuadrantMeaning,
    QuadrantName,
    ReportData,
    decisions,
    other_strategy,
    quadrant_rule,
)
from qtune_service.report.examples import shown_examples
from qtune_service.report.plane_file import page_data, prune_command
from qtune_service.report.text import count, find_warnings, percent
from qtune_service.report.what_if import what_if, why_no_curve

MAX_NAME_CHARS = 120
SHORT_NAME_CHARS = 60
MAX_WARNINGS = 40
MAX_WARNING_CHARS = 1_200
MAX_SPEC_CHARS = 12_000
ENGINE_FACTS = {"engine": "Engine", "name": "Engine", "version": "Version", "device": "Device", "dtype": "Precision"}
STYLES = ("page", "figures", "tables", "samples", "media")
SCRIPT_MODULES = ("format", "copy", "charts", "picking", "what_if", "tokens", "sorting", "start")
"""In the order of the joined script: a module comes after those that it imports. Their names share one scope."""
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
MAX_ROWS = 100
MAX_REASONS = 6
TALL = 15
"""Number of rows beyond which a table scrolls."""


def render_report(data: ReportData) -> str:
    """Return the page. The same data give the same bytes."""
    bundle = chart_library() if data.thresholds is not None else ""
    script = inline_script()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_texts(data),
            data=data,
            quadrants=QUADRANTS,
            cards=quadrant_cards(data),
            decisions=decisions(data),
            flow=record_flow(data),
            groups=group_tables(data),
            reasons=largest(data.counts.reasons, MAX_ROWS),
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
    """Return model, engine and time. A table below has all facts of the engine."""
    engine = data.engine
    created = data.created_at.replace("T", " ").replace("+00:00", " UTC")
    found = [("Model", data.spec.get("model", {}).get("name", ""))]
    found += [(name, str(engine[key])) for key, name in ENGINE_FACTS.items() if engine.get(key)]
    return [(key, value) for key, value in [*found, ("Created", created)] if value]


def _num_beyond(data: ReportData) -> int:
    axes = (perplexity_axis(data.sample, data.thresholds), entropy_axis(data.sample, data.thresholds))
    return sum(axis.num_beyond for axis in axes)


def _json_for_script(value: Any) -> Markup:
    """Return JSON for a script element: no character in it can end the element or open another."""
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
        largest=largest,
        reasons_text=reasons_text,
        max_reasons=MAX_REASONS,
    )
    return environment


def _words(command: str) -> Markup:
    """Return an element for each word, so that lines break between words and not at the hyphens of a flag."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


@cache
def _resource(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


@cache
def inline_script() -> str:
    """Return the script of report.html: all modules in one function."""
    joined = "\n".join(_resource(f"js/{name}.js") for name in SCRIPT_MODULES)
    return f'"use strict";\n(async () => {{\n{_EXPORT.sub("", _IMPORT.sub("", joined))}\n}})();'


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one classic script that sets `window.vegaEmbed`."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def chart_library_version() -> str:
    """Return the version of the package that bundles the chart library."""
    return metadata.version("vl-convert-python")


@dataclass(frozen=True, slots=True)
class GroupTable:
    """A table of counts by source or category: its largest rows, and the number of all rows."""

    key: str
    title: str
    heading: str
    rows: tuple[tuple[str, Counts], ...]
    total: int
    folder: str = ""
    """The common beginning of all names, up to a slash, shown once: names are cut and differ at their ends."""

    @property
    def is_tall(self) -> bool:
        """Return whether the table scrolls."""
        return len(self.rows) > TALL


@dataclass(frozen=True, slots=True)
class QuadrantCard:
    """A quadrant, the number of its samples, and the decision on them."""

    meaning: QuadrantMeaning
    count: int
    decision: str


@dataclass(frozen=True, slots=True)
class Flow:
    """A part of the bar of records. `css` is the class of its colour."""

    css: str
    name: str
    size: int


def record_flow(data: ReportData) -> list[Flow]:
    """Return kept, dropped and rejected records: by quadrant if quadrants decide."""
    c, known = data.counts, decisions(data)
    sizes: tuple[tuple[QuadrantName, int], ...] = (("Q2", c.q2), ("Q4", c.q4), ("Q1", c.q1), ("Q3", c.q3))
    parts = [Flow("chosen", "kept", c.kept), Flow("left-out", "dropped", c.pruned)]
    if known:
        parts = [Flow(label, f"{label} {known[label]}", size) for label, size in sizes]
    parts.append(Flow("rejected", "rejected before scoring", c.rejected))
    return [part for part in parts if part.size]


def group_tables(data: ReportData) -> list[GroupTable]:
    """Return the tables that have rows."""
    groupings = (("source", "Source", data.by_source), ("category", "Category", data.by_category))
    tables = []
    for key, heading, groups in groupings:
        rows = tuple(sorted(groups.items(), key=lambda item: (-item[1].read, item[0]))[:MAX_ROWS])
        folder = common_folder([name for name, _ in rows])
        rows = tuple((name.removeprefix(folder), counts) for name, counts in rows)
        tables.append(GroupTable(key, f"By {key}", heading, rows, len(groups), folder))
    return [table for table in tables if table.rows]


def quadrant_cards(data: ReportData) -> list[QuadrantCard]:
    """Return a card for each quadrant, in order. For another strategy it has the kept share of the even sample."""
    sizes = (data.counts.q1, data.counts.q2, data.counts.q3, data.counts.q4)
    known = decisions(data)
    return [
        QuadrantCard(meaning, size, known.get(meaning.label) or _kept_share(data, number))
        for number, (meaning, size) in enumerate(zip(QUADRANTS, sizes, strict=True), start=1)
    ]


def largest(values: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the names with the largest numbers, in descending order."""
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))[:limit]


def common_folder(names: Sequence[str]) -> str:
    """Return the longest common beginning of several names that ends in a slash."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, length) + 1]


def reasons_text(counts: Counts) -> str:
    """Return the reasons of a group's rejected records, in one line."""
    return ", ".join(f"{reason} {count(number)}" for reason, number in largest(counts.reasons, MAX_REASONS))


def _kept_share(data: ReportData, number: int) -> str:
    of_quadrant = data.sample.kept[data.sample.quadrant == number]
    return f"{percent(float(of_quadrant.sum()), len(of_quadrant))} of them kept"
