"""Tests of the EU plane: which points, which lines, which cells, in score and in rank space."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vl_convert

from qtune_service.report import chart_layers
from qtune_service.report.chart_layers import LIGHT, example_rows, point_rows
from qtune_service.report.data import ReportData
from qtune_service.report.plane import plane_chart, rank_plane_chart
from qtune_service.selection.plane import Thresholds
from qtune_service.selection.thresholds import select
from tests.report_data import example, made_up_report, made_up_scores


def _texts(spec: dict[str, Any]) -> list[str]:
    return [row["t"] for rows in spec["datasets"].values() for row in rows if "t" in row]


def _lines(spec: dict[str, Any]) -> dict[str, list[float]]:
    """Values of the thresholds that are named low and high: across and upwards, in the order of drawing."""
    found: dict[str, list[float]] = {"low": [], "high": []}
    for text in _texts(spec):
        name, _, value = text.partition(" ")
        if name in found:
            found[name].append(float(value.replace(",", "")))
    return found


def _fills(spec: dict[str, Any]) -> Counter[str]:
    """Count the circles of each quadrant's colour that have the size of points, as the installed library draws them."""
    svg = vl_convert.vegalite_to_svg({**spec, "datasets": {**spec["datasets"], "examples": []}})
    group = svg[svg.index("samples_marks") :]
    group = group[: group.index("</g>")]
    return Counter({f"Q{i}": group.count(f'fill="{color}"') for i, color in enumerate(LIGHT.quadrants, 1)})


def test_the_chart_holds_the_points_and_the_thresholds() -> None:
    """A row a point, and four named lines at the thresholds."""
    data = made_up_report()
    assert data.thresholds is not None
    t = data.thresholds
    spec = plane_chart(data)
    assert len(spec["datasets"]["samples"]) == 3_000
    lines = _lines(spec)
    assert lines["low"] == pytest.approx([t.ppl_low, t.ent_low], rel=1e-3)
    assert lines["high"] == pytest.approx([t.ppl_high, t.ent_high], rel=1e-3)
    assert lines["low"][0] > lines["high"][0]  # alpha is over a half: they cross, and are drawn so


def test_a_threshold_that_is_not_there_is_not_drawn() -> None:
    """Zero and infinity stand for an empty side; perplexities beyond a float's range are drawn at its end."""
    data = made_up_report((np.array([0.0, 900.0]), np.array([0.0, 1.0]), np.array([3, 1])))
    spec = plane_chart(replace(data, thresholds=Thresholds(0.1, 0.0, math.inf, -math.inf, 0.7)))
    assert _lines(spec) == {"low": [], "high": [0.7]}
    assert spec["datasets"]["samples"][1]["p"] == 1e300


def test_quadrants_are_named_with_their_fate() -> None:
    """Where no token was removed Q2 is not called masked, and where another strategy chose nothing is promised."""
    data = made_up_report()
    assert {"Q1 dropped", "Q2 kept, masked", "Q3 dropped", "Q4 kept whole"} <= set(_texts(plane_chart(data)))
    whole = replace(data, tokens=replace(data.tokens, after=data.tokens.before))
    assert "Q2 kept" in _texts(rank_plane_chart(whole))
    other = replace(data, spec={**data.spec, "prune": {"strategy": "random"}})
    assert {"Q1", "Q2", "Q3", "Q4"} <= set(_texts(plane_chart(other)))


@pytest.mark.parametrize("chart", [plane_chart, rank_plane_chart])
def test_the_installed_library_draws_each_sample_in_its_colour(chart: Any) -> None:
    """As many of each colour as the job has samples of each quadrant."""
    data = made_up_report(made_up_scores(300))
    c = data.counts
    assert _fills(chart(data)) == Counter({"Q1": c.q1, "Q2": c.q2, "Q3": c.q3, "Q4": c.q4})


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.8])
def test_a_moved_alpha_relabels_the_points_as_the_method_does(ratio: float) -> None:
    """The picture's own rule gives the counts of a real selection at another ratio."""
    scores = made_up_scores(300)
    spec = rank_plane_chart(made_up_report(scores, keep_ratio=0.5))
    found = select(scores[0], scores[1], sample_keep_ratio=ratio)
    moved = {**spec, "params": [{"name": "alpha", "value": found.thresholds.alpha}]}
    assert _fills(moved) == Counter({f"Q{int(q)}": size for q, size in found.counts.items()})


def test_labels_of_a_users_rule_are_shown_until_alpha_moves() -> None:
    """They may differ from the method's, and the job's own alpha must not hide that."""
    data = made_up_report(made_up_scores(300))
    turned = replace(data, sample=replace(data.sample, quadrant=np.full(300, 1, dtype=np.int8)))
    assert _fills(rank_plane_chart(turned))["Q1"] == 300


def test_many_samples_get_a_density_that_counts_them_all() -> None:
    """Above the number of points, cells hold every sample once; below, there are none."""
    data = made_up_report(made_up_scores(6_000))
    for chart, name in ((plane_chart, "plane_cells"), (rank_plane_chart, "rank_cells")):
        cells = chart(data)["datasets"][name]
        assert sum(cell["n"] for cell in cells) == 6_000
        assert name not in chart(made_up_report())["datasets"]
        assert vl_convert.vegalite_to_svg(chart(data)).count(f"{name}_marks") == 1


def _row_of(data: ReportData, sample_id: str) -> dict[str, Any]:
    return next(row for row in point_rows(data) if row["id"] == sample_id)


def test_a_point_tells_its_sample() -> None:
    """Scores, ranks, quadrant, fate, length and identifier of one and the same sample."""
    scores = made_up_scores(50)
    data = made_up_report(scores)
    row = _row_of(data, "gsm8k_train.jsonl:18")
    at = 17
    assert row["p"] == pytest.approx(math.exp(scores[0][at]), rel=1e-4)
    assert row["e"] == pytest.approx(scores[1][at], rel=1e-4)
    assert row["u"] == pytest.approx((np.sum(scores[0] < scores[0][at]) + 0.5) / 50)
    assert row["v"] == pytest.approx((np.sum(scores[1] < scores[1][at]) + 0.5) / 50)
    assert row["n"] == scores[2][at]
    assert row["k"] == int(row["q"] in ("Q2", "Q4"))


def test_examples_are_ringed_where_their_ranks_are_known() -> None:
    """Their place among the page's examples goes along."""
    data = made_up_report(
        examples=(example(("a",)), replace(example(("b",), sample_id="s:2"), error_rank=0.9, entropy_rank=0.2))
    )
    (row,) = example_rows(data)
    assert (row["id"], row["at"], row["u"], row["v"], row["n"]) == ("s:2", 1, 0.9, 0.2, 1)


def test_identifiers_are_whole_where_they_fit_and_marked_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of many long names cuts only the long ones."""
    monkeypatch.setattr(chart_layers, "MAX_ID_BYTES", 150)
    data = made_up_report((np.ones(3), np.ones(3), np.ones(3, dtype=np.int64)))
    fits = point_rows(replace(data, point_ids=("a" * 140, "b", "c")))
    assert [row["cut"] for row in fits] == [0, 0, 0]
    short, long, wide = point_rows(replace(data, point_ids=("a" * 50, "b" * 51, "长" * 50)))
    assert (short["cut"], short["id"]) == (0, "a" * 50)
    assert (long["cut"], wide["cut"]) == (1, 1)
    assert len(wide["id"].encode()) <= 50
