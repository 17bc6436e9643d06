"""selection/plane.py: the corner rule is stated once, and every other language computes the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import qtune_service
from qtune_service.output.query.fields import ENTRY_ALPHA
from qtune_service.report.plane import rank_plane_chart
from qtune_service.selection.plane import entry_alpha, entry_alpha_text, scaled_entry_alphas
from qtune_service.server.routes.pages import corner_rule
from tests.report_data import made_up_report

PACKAGE = Path(qtune_service.__file__).parent
RNG = np.random.default_rng(0)
P, E = np.concatenate([RNG.random((2, 500)), RNG.random((1, 20)).repeat(2, axis=0), [[0.5, 0.25], [0.5, 0.75]]], axis=1)
IN_JAVASCRIPT = re.compile(
    r"Math\.min\(\s*Math\.max\(1 - ([\w.]+), ([\w.]+)\),\s*Math\.max\(([\w.]+), 1 - ([\w.]+)\)\s*\)"
)


def by_definition(p: float, e: float) -> float:
    """Return the smaller of the alphas from which each corner holds the sample: max(1 - p, e) and max(p, 1 - e)."""
    return min(
        alpha for alpha in (1 - p, e, p, 1 - e) if (p >= 1 - alpha and e <= alpha) or (p <= alpha and e >= 1 - alpha)
    )


def test_the_rule_is_the_corners_definition() -> None:
    """A sample is in a corner from its entry alpha on, and in none below it."""
    ranks = np.arange(1, 16) / 16  # exact in binary
    for p in ranks:
        for e in ranks:
            assert entry_alpha(p, e) == by_definition(p, e)


def test_scaled_entry_alphas_are_the_rule_on_integers() -> None:
    """Doubled ranks of N = 1,024 samples, whose quotients are exact in binary."""
    p, e = RNG.integers(1, 2_048, (2, 500)).astype(np.uint32)
    np.testing.assert_array_equal(scaled_entry_alphas(p, e, 1_024) / 2_048, entry_alpha(p / 2_048, e / 2_048))


def test_sql_computes_the_rule() -> None:
    """The text of `borderline` in queries, run by DuckDB."""
    samples = {"error_rank": P, "entropy_rank": E}
    connection = duckdb.connect()
    connection.register("samples", pa.table(samples))
    found = connection.execute(f"SELECT {ENTRY_ALPHA} AS entry FROM samples").fetchnumpy()["entry"]
    np.testing.assert_array_equal(found, entry_alpha(P, E))


def test_vega_computes_the_rule() -> None:
    """The text of the rank plane in reports, run by Vega. The chart holds it, and no other statement of the rule."""
    import vl_convert

    text = entry_alpha_text("datum.u", "datum.v")
    chart: dict[str, Any] = rank_plane_chart(made_up_report())
    calculated = [t["calculate"] for layer in chart["layer"] for t in layer.get("transform", []) if "calculate" in t]
    assert [found for found in calculated if "max(" in found and "datum.u" in found]
    assert all(text in found for found in calculated if "datum.u" in found and "max(" in found)
    spec = {
        "data": {"values": [{"u": p, "v": e} for p, e in zip(P.tolist(), E.tolist(), strict=True)]},
        "transform": [{"calculate": f"'=' + ({text})", "as": "entry"}],
        "mark": "text",
        "encoding": {"text": {"field": "entry", "type": "nominal"}, "x": {"field": "u", "type": "quantitative"}},
    }
    found = [float(value) for value in re.findall(r">=([0-9.e-]+)<", vl_convert.vegalite_to_svg(spec))]
    assert found == entry_alpha(P, E).tolist()


def test_the_page_runs_the_generated_text() -> None:
    """The page's script is generated from the rule, and no other script states it."""
    assert entry_alpha_text("errorRank", "entropyRank", minimum="Math.min", maximum="Math.max") in corner_rule()
    assert not [path for path in PACKAGE.rglob("*.js") if IN_JAVASCRIPT.search(path.read_text(encoding="utf-8"))]
    # The expression has the same meaning in Python, with these two functions.
    text = entry_alpha_text("x", "y", minimum="Math.min", maximum="Math.max")
    for p, e in zip(P.tolist(), E.tolist(), strict=True):
        assert eval(text, {"Math": SimpleNamespace(min=min, max=max), "x": p, "y": e}) == entry_alpha(p, e)


def test_no_other_module_states_the_rule() -> None:
    """Python states it in selection/plane.py."""
    pattern = re.compile(r"\w*min\w*\(\s*\S*max\w*\(\s*(1|one|double_n) - ")
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())]
    assert files == ["selection/plane.py"]
