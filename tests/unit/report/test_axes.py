"""Tests of the axes: what they span, on which scale, and that bins lose nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qtune_service.report.axes import Axis, entropy_axis, length_axis, perplexity_axis, shown_perplexity
from qtune_service.report.chart_layers import density_rows
from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.plane import Thresholds
from tests.report_data import made_up_report, made_up_scores


def _sample(nll: NDArray[np.float64], entropy: NDArray[np.float64] | None = None) -> EvenSample:
    return made_up_report((nll, nll if entropy is None else entropy, np.arange(1, len(nll) + 1))).sample


def test_every_sample_and_every_threshold_is_inside() -> None:
    """With a margin; no perplexity below 1 and no entropy below 0."""
    sample = made_up_report(made_up_scores(500)).sample
    t = Thresholds(0.1, 1.0, 9e5, 0.0, 77.0)
    low, high = perplexity_axis(sample, t).domain
    assert 1.0 <= low <= shown_perplexity(sample).min()
    assert 9e5 < high < 4e6
    low, high = entropy_axis(sample, t).domain
    assert low == 0.0
    assert 77 < high < 80


def test_far_outliers_are_drawn_on_the_edge_and_counted() -> None:
    """One in ten thousand does not squeeze the rest; of few samples each is shown where it is."""
    nll = np.append(np.linspace(1, 2, 9_999), 60.0)
    axis = perplexity_axis(_sample(nll), None)
    assert axis.num_beyond == 1
    assert axis.domain[1] < np.exp(3)
    few = perplexity_axis(_sample(np.append(np.linspace(1, 2, 99), 60.0)), None)
    assert few.num_beyond == 0
    assert few.domain[1] > np.exp(60)


def test_entropy_that_hugs_zero_is_on_a_root_scale() -> None:
    """Where half of the samples would share a twentieth of the axis; else it is linear, as people expect."""
    spread = np.linspace(0, 1, 1_000)
    assert entropy_axis(_sample(spread), None).scale == "linear"
    hugging = entropy_axis(_sample(spread, spread**6), None)
    assert hugging.scale == "sqrt"
    assert "square-root" in hugging.title
    assert hugging.ticks()[:2] == [0.0, 0.01]


def test_lengths_have_bins_between_integers() -> None:
    """So none is empty by nature."""
    axis = length_axis(_sample(np.linspace(1, 2, 30)))
    edges = axis.edges(40)
    assert np.all(edges % 1 == 0.5)
    assert (edges[0], edges[-1]) == (0.5, 30.5)
    counts = np.bincount(axis.bins(np.linspace(1, 30, 30), 40), minlength=len(edges) - 1)
    assert counts.min() >= 1
    assert counts.sum() == 30
    assert axis.ticks() == [1, 3, 10, 30]
    assert length_axis(_sample(np.linspace(1, 2, 4))).ticks() == [1, 2, 3, 4]


@pytest.mark.parametrize("scale", ["linear", "sqrt", "log"])
def test_each_value_is_in_the_bin_that_holds_it(scale: str) -> None:
    """And what lies beyond an end in the last one."""
    axis = Axis("", "linear", 0.0, 4.0)
    axis = replace(axis, scale=scale)  # type: ignore[arg-type]
    edges = axis.edges(10)
    values = np.random.default_rng(0).uniform(edges[0], edges[-1], 500)
    bins = axis.bins(values, 10)
    assert np.all((edges[bins] <= values) & (values <= edges[bins + 1]))
    assert axis.bins(np.array([edges[0] - 1, edges[-1] + 1]), 10).tolist() == [0, 9]
    assert [axis.share(edge) for edge in (edges[0], edges[5], edges[-1])] == pytest.approx([0, 0.5, 1])


def test_cells_tell_how_many_and_which() -> None:
    """Counts by cell, times the weight, with the quadrant of most; empty cells are left out."""
    axis = Axis("", "linear", 0.0, 2.0)
    x, y = np.array([0.5, 0.6, 0.7, 1.5]), np.array([0.1, 0.2, 0.3, 1.9])
    rows = density_rows((axis, x), (axis, y), np.array([1, 3, 3, 2], dtype=np.int8), 10.0, (2, 2))
    assert rows == [
        {"x": 0.0, "x2": 1.0, "y": 0.0, "y2": 1.0, "n": 30, "q": "Q3"},
        {"x": 1.0, "x2": 2.0, "y": 1.0, "y2": 2.0, "n": 10, "q": "Q2"},
    ]
