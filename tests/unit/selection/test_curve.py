"""selection/thresholds.py: what every ratio would keep."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.samples import count_of_share
from qtune_service.selection.curve import CurveCounts, CurvePoint
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.ranked_samples import RankedSamples
from qtune_service.selection.thresholds import Selection, select, smallest_scaled_alphas

SCORES = st.sampled_from([0.5, 1.0, 1.0, 2.0]) | st.floats(0, 12)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=60)
RATIOS = st.lists(st.floats(0.001, 1), min_size=1, max_size=5).map(sorted)


def curve(
    selection: Selection, tokens: NDArray[np.int64], ratios: list[float], cuts: list[int]
) -> tuple[CurvePoint, ...]:
    """Return the curve of a population in groups. Stage 2 leaves half of the tokens of a Q2 sample."""
    ranked, num_samples = selection.ranked, selection.num_samples
    alphas = smallest_scaled_alphas(selection.entry, [count_of_share(ratio, num_samples) for ratio in ratios])
    groups = [
        CurveCounts.of(
            _cut(ranked, low, high), selection.entry[low:high], tokens[low:high], tokens[low:high] // 2, alphas
        )
        for low, high in pairwise([0, *cuts, num_samples])
    ]
    return reduce(CurveCounts.plus, groups).points(ratios, num_samples)


def check_point(
    point: CurvePoint, ratio: float, nll: NDArray[np.float64], entropy: NDArray[np.float64], tokens: NDArray[np.int64]
) -> None:
    """Check that a point is the outcome of a selection at its ratio."""
    want = select(nll, entropy, sample_keep_ratio=ratio)
    assert (point.alpha, point.target, point.kept) == (want.thresholds.alpha, want.target, want.kept)
    assert (point.q1, point.q2, point.q3, point.q4) == tuple(want.counts[q] for q in Quadrant)
    left = np.where(want.labels == 2, tokens // 2, tokens)[want.is_kept]
    assert (point.sample_keep_ratio, point.tokens) == (ratio, left.sum())


@given(PAIRS, RATIOS, st.integers(0, 60))
def test_the_curve_is_what_selections_would_give(
    pairs: list[tuple[float, float]], ratios: list[float], cut: int
) -> None:
    """Alpha, counts of each quadrant and tokens left, for the price of one ranking, over any cut."""
    nll, entropy = np.array(pairs).T
    tokens = np.arange(len(pairs)) * 7 % 31 + 2
    points = curve(select(nll, entropy, sample_keep_ratio=1.0), tokens, ratios, [min(cut, len(pairs))])
    for ratio, point in zip(ratios, points, strict=True):
        check_point(point, ratio, nll, entropy, tokens)


def test_a_large_population_has_an_exact_curve() -> None:
    """Also with more scaled alphas than 2^16, with ties and without."""
    rng = np.random.default_rng(0)
    nll, entropy = rng.normal(size=(2, 300_000))
    tokens = rng.integers(1, 400, 300_000)
    for decimals in (1, 16):
        scores = nll.round(decimals), entropy.round(decimals)
        ratios = [0.001, 0.3, 0.7, 1.0]
        points = curve(select(*scores, sample_keep_ratio=0.3), tokens, ratios, [100_000])
        for ratio, point in zip(ratios, points, strict=True):
            check_point(point, ratio, *scores, tokens)


def test_no_ratios_give_no_points() -> None:
    """A selection by another strategy has no curve."""
    selection = select([1.0, 2.0], [2.0, 1.0], sample_keep_ratio=0.5)
    assert curve(selection, np.array([3, 4]), [], [1]) == ()


def _cut(ranked: RankedSamples, low: int, high: int) -> RankedSamples:
    span = slice(low, high)
    scores = ranked.mean_nll[span], ranked.mean_entropy[span]
    return RankedSamples(*scores, ranked.nll_ranks[span], ranked.entropy_ranks[span], ranked.num_samples)
