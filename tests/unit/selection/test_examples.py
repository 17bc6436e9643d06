"""Tests of the choice of example samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qtune_service.selection.distributions import EvenSample, even_sample
from qtune_service.selection.examples import borderline_samples, typical_samples
from qtune_service.selection.plane import entry_alpha
from qtune_service.selection.thresholds import select
from tests.report_data import made_up_report, made_up_scores


def _sample(nll: NDArray[np.float64], entropy: NDArray[np.float64], labels: list[int]) -> EvenSample:
    found = select(nll, entropy, sample_keep_ratio=0.5)
    quadrant = np.array(labels, dtype=np.int8)
    return even_sample(found.ranked, labels=quadrant, kept=found.is_kept, num_tokens=np.full(len(nll), 9))


def test_typical_samples_lie_nearest_to_their_quadrants_median() -> None:
    """Nearest first; a quadrant with fewer samples gives what it has."""
    sample = _sample(np.array([1.0, 2.0, 3.0, 9.0, 5.0]), np.ones(5), [2, 2, 2, 2, 4])
    chosen = typical_samples(sample, per_quadrant=2)
    assert {label: rows.tolist() for label, rows in chosen.items()} == {1: [], 2: [1, 2], 3: [], 4: [4]}


def test_borderline_samples_are_those_that_another_alpha_would_decide_otherwise() -> None:
    """Of each quadrant, the ones whose entry into a corner is nearest to alpha, on their own side of it."""
    data = made_up_report(made_up_scores(500))
    assert data.thresholds is not None
    alpha, entry = data.thresholds.alpha, entry_alpha(data.sample.error_rank, data.sample.entropy_rank)
    for label, rows in borderline_samples(data.sample, alpha, 3).items():
        members = data.sample.quadrant == label
        assert len(rows) == 3
        assert np.all(members[rows])
        assert np.sort(np.abs(entry[members] - alpha))[:3] == pytest.approx(np.abs(entry[rows] - alpha))
        assert np.all((entry[rows] <= alpha + 1e-12) == (label in (2, 4)))
