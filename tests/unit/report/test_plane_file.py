"""plane.json: complete, bounded, strict JSON, and of one mind with the report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qtune_service.report.plane_file import Plane, page_data, plane_bytes, plane_file
from tests.report_data import made_up_report, made_up_scores, nothing_scored


def refused(constant: str) -> Any:
    """Refuse constants that are not strict JSON."""
    raise AssertionError(constant)


@pytest.mark.parametrize("num_samples", [1, 300, 5_000])
def test_histograms_count_every_sample_in_its_quadrant(num_samples: int) -> None:
    """By value and by rank; edges are one more than cells, and ascend."""
    data = made_up_report(made_up_scores(num_samples))
    plane = plane_file(data)
    for histogram in (plane.histogram, plane.rank_histogram):
        assert histogram is not None
        assert histogram.samples_each == 1
        for label, rows in histogram.counts.items():
            assert np.sum(rows) == plane.counts[label]
            assert np.shape(rows) == (len(histogram.y_edges) - 1, len(histogram.x_edges) - 1)
        assert np.all(np.diff(histogram.x_edges) > 0)
        assert np.all(np.diff(histogram.y_edges) > 0)


def test_cells_are_where_the_samples_are() -> None:
    """A client that sums the cells above a threshold finds the samples there."""
    data = made_up_report(made_up_scores(2_000))
    found = plane_file(data).rank_histogram
    assert found is not None
    counts = np.sum([found.counts[label] for label in found.counts], axis=0)
    upper = counts[np.array(found.y_edges[:-1]) >= 0.5 - 1e-9].sum()
    assert upper == np.sum(data.sample.error_rank >= 0.5)


def test_it_holds_what_the_report_draws() -> None:
    """The same charts, data and curve: there is one source."""
    data = made_up_report()
    body = json.loads(plane_bytes(data))
    assert json.loads(json.dumps(page_data(data))).items() <= body.items()
    assert body["what_if"]["points"]["kept"][body["what_if"]["here"]] == data.target


def test_a_large_job_has_a_file_of_bounded_size() -> None:
    """Under 2 MB, with identifiers of any length."""
    data = made_up_report(made_up_scores(60_000))
    long = replace(data, point_ids=("é" * 10_000,) * len(data.point_ids))
    assert len(plane_bytes(long)) < 2_000_000


def test_strange_numbers_and_texts_are_strict_json() -> None:
    """Infinite thresholds are text, half a surrogate pair is an escape; the schema takes it back."""
    data = made_up_report(made_up_scores(30))
    assert data.thresholds is not None
    strange = replace(
        data, thresholds=replace(data.thresholds, ent_low=-np.inf, ppl_high=np.inf), point_ids=("\ud800",) * 30
    )
    body = json.loads(plane_bytes(strange), parse_constant=refused)
    assert (body["thresholds"]["ent_low"], body["thresholds"]["ppl_high"]) == ("-inf", "inf")
    assert Plane.model_validate(body).datasets["samples"]["id"][0] == "\ud800"


def test_a_job_that_scored_nothing_has_a_file_too() -> None:
    """Without thresholds, pictures and curve."""
    plane = plane_file(nothing_scored())
    assert (plane.thresholds, plane.histogram, plane.what_if, plane.charts) == (None, None, None, {})
    assert plane.counts["rejected"] == 5


def test_another_strategy_is_named_and_has_no_curve() -> None:
    """And quadrants promise nothing."""
    plane = plane_file(made_up_report(curve=(), spec={"prune": {"strategy": "random"}}))
    assert (plane.strategy, plane.what_if) == ("random choice", None)
    assert "another strategy" in plane.why_no_curve
    assert {quadrant.fate for quadrant in plane.quadrant_counts} == {""}
