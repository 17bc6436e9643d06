"""Tests of the even sample: which samples, and that parts give what the whole gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qtune_service.report import sample
from qtune_service.report.sample import EvenSample, even_sample, pick_points

LIMIT = 4_000


def test_a_small_job_shows_every_sample() -> None:
    """Nothing is left out below the limit."""
    assert pick_points(5, LIMIT).tolist() == [0, 1, 2, 3, 4]
    assert pick_points(0, LIMIT).tolist() == []


@pytest.mark.parametrize("total", [LIMIT + 1, 10_000, 123_457, 10**8])
def test_picks_are_the_same_every_time_distinct_and_spread(total: int) -> None:
    """One of each equal stride, ascending, so densities are true."""
    picks = pick_points(total, LIMIT)
    assert picks.tolist() == pick_points(total, LIMIT).tolist()
    assert len(picks) == LIMIT
    strides = np.arange(LIMIT + 1, dtype=np.int64) * total // LIMIT
    assert np.all((strides[:-1] <= picks) & (picks < strides[1:]))


def test_picks_do_not_beat_with_periodic_data() -> None:
    """Where kinds alternate with the stride's own period, each is still shown in proportion."""
    kinds = pick_points(40_000, LIMIT) % 10
    shares = np.bincount(kinds, minlength=10) / LIMIT
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.03)


@pytest.mark.parametrize("limit", [7, 50, 1000])
def test_parts_of_a_population_give_the_sample_of_the_whole(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """However the population is cut, also into empty parts, the joined picks are those of all at once."""
    monkeypatch.setattr(sample, "SAMPLE_LIMIT", limit)
    rng = np.random.default_rng(1)
    nll, entropy, labels = rng.normal(size=400), rng.normal(size=400), rng.integers(1, 5, 400)
    cuts = [0, 1, 130, 130, 399, 400]
    parts = [even_sample(nll[a:b], entropy[a:b], labels[a:b], start=a, total=400) for a, b in itertools.pairwise(cuts)]
    whole, joined = even_sample(nll, entropy, labels), EvenSample.joined(parts)
    assert len(whole.index) == min(limit, 400)
    for name in ("index", "mean_nll", "mean_entropy", "quadrant"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.mean_nll, nll[whole.index])
