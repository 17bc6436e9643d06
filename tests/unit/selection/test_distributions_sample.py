"""Tests of the even sample: which samples, and that parts give what the whole gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qtune_service.selection import distributions as sample
from qtune_service.selection.distributions import COLUMNS, EvenSample, even_sample, pick_points
from qtune_service.selection.ranked_samples import RankedSamples
from qtune_service.selection.thresholds import select
from tests.report_data import made_up_scores

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
    nll, entropy, lengths = made_up_scores(400)
    found = select(nll, entropy, sample_keep_ratio=0.4)
    cuts = [0, 1, 130, 130, 399, 400]
    parts = [
        even_sample(
            _part(found.ranked, a, b), labels=found.labels[a:b], kept=found.is_kept[a:b], num_tokens=lengths[a:b],
            start=a, total=400,
        )
        for a, b in itertools.pairwise(cuts)
    ]  # fmt: skip
    whole = even_sample(found.ranked, labels=found.labels, kept=found.is_kept, num_tokens=lengths)
    joined = EvenSample.joined(parts)
    assert len(whole.index) == min(limit, 400)
    assert joined.total == whole.total == 400
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.mean_nll, nll[whole.index])
    np.testing.assert_array_equal(whole.num_tokens, lengths[whole.index])


def test_ranks_are_those_among_the_whole_population(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mid-ranks in (0, 1), also where only some samples are picked."""
    monkeypatch.setattr(sample, "SAMPLE_LIMIT", 30)
    nll, entropy, lengths = made_up_scores(100)
    found = select(nll, entropy, sample_keep_ratio=0.4)
    picked = even_sample(found.ranked, labels=found.labels, kept=found.is_kept, num_tokens=lengths)
    below = np.array([np.sum(nll < value) for value in picked.mean_nll])
    np.testing.assert_allclose(picked.error_rank, (below + 0.5) / 100)


def _part(ranked: RankedSamples, start: int, stop: int) -> RankedSamples:
    span = slice(start, stop)
    scores = ranked.mean_nll[span], ranked.mean_entropy[span]
    return RankedSamples(*scores, ranked.nll_ranks[span], ranked.entropy_ranks[span], ranked.num_samples)
