"""Tests of quantiles, ties and rank correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtune_service.selection.distributions import QUANTILES, Lengths, describe, rank_correlation
from tests.report_data import made_up_scores


def test_quantiles_are_samples_of_the_data() -> None:
    """No value is interpolated, and perplexity's are those of mean NLL exponentiated."""
    nll = np.array([3.0, 1.0, 2.0, 4.0])
    shown = describe(nll, nll / 10, np.array([10, 20, 30, 40]), np.array([1, 2, 3, 2]))
    assert shown.perplexity["p50"] == pytest.approx(math.exp(2.0))
    assert (shown.entropy["min"], shown.entropy["p75"], shown.entropy["max"]) == (0.1, 0.3, 0.4)
    assert shown.num_tokens["p25"] == 10
    assert shown.median_q2_tokens == 30  # of 20 and 40


def test_ties_are_counted() -> None:
    """The largest group of equal perplexities counts, wherever its members stand."""
    nll = np.array([1.0, 2.0, 1.0, 3.0, 1.0])
    assert describe(nll, nll, np.ones(5, dtype=np.int64), np.ones(5, dtype=np.int8)).largest_tie == 3


def test_nothing_scored_is_described_as_such() -> None:
    """An empty population has no quantiles and no correlation."""
    none = np.empty(0)
    shown = describe(none, none, none.astype(np.int64), none.astype(np.int8))
    assert (shown.perplexity, shown.median_q2_tokens, shown.rank_correlation, shown.largest_tie) == ({}, None, None, 0)


def test_rank_correlation_sees_order_only() -> None:
    """A rising transformation changes nothing, the reverse order is -1, a constant has none."""
    x = np.array([0.3, 0.1, 0.9, 0.5])
    assert rank_correlation(x, np.exp(5 * x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, np.ones(4)) is None
    # By hand: ranks 1 2.5 2.5 4 and 1 2 3 4 have covariance 1.125 (n = 4), variances 1.125 and 1.25.
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        1.125 / math.sqrt(1.125 * 1.25)
    )


def test_rank_correlation_of_a_large_job_comes_from_a_part() -> None:
    """Above a million samples it is taken over a million of them and stays near the whole."""
    nll, entropy, lengths = made_up_scores(1_200_000, correlation=0.75)
    shown = describe(nll, entropy, lengths, np.full(len(nll), 2))
    # Spearman's rho of a normal pair: 6/pi asin(r/2).
    assert shown.rank_correlation == pytest.approx(6 / math.pi * math.asin(0.375), abs=0.003)
    assert shown.rank_correlation != rank_correlation(nll, entropy)


def test_lengths_add_up_over_groups() -> None:
    """Counts of groups, of different longest samples, give the quantiles and the median of all."""
    rng = np.random.default_rng(2)
    tokens, labels = rng.integers(1, 900, 1_001), rng.integers(1, 5, 1_001)
    tokens[400:] //= 2
    parts = [Lengths.counted(tokens[a:b], labels[a:b]) for a, b in ((0, 400), (400, 400), (400, 1_001))]
    total = parts[2].plus(parts[1]).plus(parts[0])
    ordered = np.sort(tokens)
    assert total.quantiles() == {name: ordered[max(math.ceil(q * 1_001) - 1, 0)] for name, q in QUANTILES.items()}
    assert total.q2_median() == np.median(tokens[labels == 2])
    assert parts[1].quantiles() == {}
    assert parts[1].q2_median() is None
