"""selection/curve.py: what every ratio would keep."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.selection.curve import EntryCounts
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.thresholds import Selection, select

SCORES = st.sampled_from([0.5, 1.0, 1.0, 2.0]) | st.floats(0, 12)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=60)
RATIOS = st.lists(st.floats(0.001, 1), min_size=1, max_size=5)


def counted(selection: Selection, tokens: NDArray[np.int64], cuts: list[int]) -> EntryCounts:
    """Return the counts of a population that is cut into parts. Half of a Q2 sample's tokens are kept."""
    placed, bounds = selection.placed, [0, *cuts, selection.num_samples]
    parts = [
        EntryCounts.counted(
            placed.nll_ranks[lo:hi], placed.entropy_ranks[lo:hi], selection.entry[lo:hi],
            tokens[lo:hi], tokens[lo:hi] // 2, selection.num_samples,
        )
        for lo, hi in pairwise(bounds)
    ]  # fmt: skip
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


@given(PAIRS, RATIOS, st.integers(0, 60))
def test_the_curve_is_what_selections_would_give(
    pairs: list[tuple[float, float]], ratios: list[float], cut: int
) -> None:
    """Alpha, counts of each quadrant and tokens left, for the price of one ranking, over any cut."""
    nll, entropy = np.array(pairs).T
    tokens = np.arange(len(pairs)) * 7 % 31 + 2
    entries = counted(select(nll, entropy, sample_keep_ratio=1.0), tokens, [min(cut, len(pairs))])
    for ratio, point in zip(ratios, entries.curve(ratios), strict=True):
        want = select(nll, entropy, sample_keep_ratio=ratio)
        assert (point.alpha, point.target, point.kept) == (want.thresholds.alpha, want.target, want.kept)
        assert (point.q1, point.q2, point.q3, point.q4) == tuple(want.counts[q] for q in Quadrant)
        left = np.where(want.labels == 2, tokens // 2, tokens)[want.is_kept]
        assert point.tokens == left.sum()


def test_a_large_population_is_off_by_one_bin_at_most() -> None:
    """Above 2^15 samples a bin holds several bounds: the count is over the target by those that share the last one."""
    rng = np.random.default_rng(0)
    nll, entropy = rng.normal(size=(2, 300_000))
    selection = select(nll, entropy, sample_keep_ratio=0.3)
    (point,) = counted(selection, np.ones(300_000, np.int64), [100_000]).curve([0.3])
    assert 0 <= point.alpha - selection.thresholds.alpha <= 16 / 600_000
    assert selection.kept <= point.kept <= selection.kept + 60
    assert point.q1 + point.q2 + point.q3 + point.q4 == 300_000
