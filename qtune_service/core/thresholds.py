"""Stage 1: find the thresholds that keep a given share of the whole population.

keep(a), the samples in Q2's or Q4's corner (see plane.py), only grows with a and holds every sample at a = 1, so
bisection for the smallest a with |keep(a)| >= ceil(ratio * N) always converges. Mid-ranks are multiples of 1/2N, so
the search runs over the integers A = 2N a and is exact after log2(2N) counts. Stopped early it returns the upper end,
so the count is never below the target. The four thresholds are order statistics of the data, without
interpolation. A target beyond what disjoint corners hold needs a > 1/2; that is allowed, and `Selection`
tells. Nothing is ever topped up with other samples: the count exceeds the target by ties at A only.

Source: Wang et al., arXiv:2509.23873. Known implementations search a in [0, 0.49] in the wrong direction and keep 99.9%
when asked for half. Memory for N samples: the two float64 columns, plus 16 bytes a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtune_service.core.metrics import perplexity, share_of
from qtune_service.core.plane import (
    Quadrant,
    QuadrantRule,
    Thresholds,
    apply_rule,
    classify,
    corner_entry,
    plane_view,
)
from qtune_service.core.ranks import DoubleRanks, blocks, double_midranks
from qtune_service.errors import DataError, SpecError

__all__ = ["CurvePoint", "Selection", "Thresholds", "curve", "select"]

Column = NDArray[np.float64]  # (N,) nats


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The outcome of stage 1."""

    thresholds: Thresholds
    labels: NDArray[np.int8]  # (N,) Quadrant of each sample
    target: int  # ceil(sample_keep_ratio * N)
    kept: int  # samples labelled Q2 or Q4; a user's rule decides freely
    disjoint_capacity: int  # the most that corners without overlap (alpha <= 1/2) hold
    num_samples: int
    counts: dict[Quadrant, int]
    nll_ranks: DoubleRanks  # (N,)
    entropy_ranks: DoubleRanks  # (N,)

    def p(self, span: slice) -> Column:
        """Mid-ranks of mean NLL in (0, 1) of some samples: how large their error is among all."""
        return self.nll_ranks[span] / (2 * self.num_samples)

    def e(self, span: slice) -> Column:
        """Mid-ranks of mean entropy in (0, 1) of some samples: how large their uncertainty is among all."""
        return self.entropy_ranks[span] / (2 * self.num_samples)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a sample_keep_ratio would lead to."""

    sample_keep_ratio: float
    alpha: float
    target: int
    kept: int


def select(
    mean_nll: ArrayLike,
    mean_entropy: ArrayLike,
    *,
    sample_keep_ratio: float,
    bisect_max_iter: int | None = None,
    rule: QuadrantRule | None = None,
) -> Selection:
    """Thresholds and labels of a population of scored samples: two (N,) columns in nats, finite, N >= 1.

    Without `bisect_max_iter` the bisection goes on until exact. Raises DataError for scores that cannot be ranked
    and SpecError for arguments out of range or a rule that returns something else than labels.
    """
    nll, entropy = _columns(mean_nll, mean_entropy)
    num_samples = len(nll)
    target = _target(sample_keep_ratio, num_samples)
    nll_ranks, entropy_ranks = double_midranks(nll), double_midranks(entropy)
    entry = corner_entry(nll_ranks, entropy_ranks)
    bound = _bisect(entry, target, bisect_max_iter)
    ppl_low, ppl_high = (float(perplexity(edge)) for edge in _edges(nll, nll_ranks, bound))
    thresholds = Thresholds(bound / (2 * num_samples), ppl_low, ppl_high, *_edges(entropy, entropy_ranks, bound))
    labels = classify(nll_ranks, entropy_ranks, entry, bound)
    if rule is not None:
        plane = plane_view(
            mean_nll=nll,
            mean_entropy=entropy,
            nll_ranks=nll_ranks,
            entropy_ranks=entropy_ranks,
            thresholds=thresholds,
            labels=labels,
        )
        labels = apply_rule(rule, plane)
    counts = {quadrant: int(np.count_nonzero(labels == quadrant)) for quadrant in Quadrant}
    return Selection(
        thresholds=thresholds,
        labels=labels,
        target=target,
        kept=counts[Quadrant.Q2] + counts[Quadrant.Q4],
        disjoint_capacity=_count_within(entry, num_samples),
        num_samples=num_samples,
        counts=counts,
        nll_ranks=nll_ranks,
        entropy_ranks=entropy_ranks,
    )


def curve(mean_nll: ArrayLike, mean_entropy: ArrayLike, ratios: Sequence[float]) -> list[CurvePoint]:
    """What each ratio would keep, exactly, for the price of one ranking."""
    nll, entropy = _columns(mean_nll, mean_entropy)
    entry = corner_entry(double_midranks(nll), double_midranks(entropy))
    entry.sort()
    points = []
    for ratio in ratios:
        target = _target(ratio, len(entry))
        bound = entry[target - 1]
        kept = int(np.searchsorted(entry, bound, side="right"))
        points.append(CurvePoint(ratio, int(bound) / (2 * len(entry)), target, kept))
    return points


def _columns(mean_nll: ArrayLike, mean_entropy: ArrayLike) -> tuple[Column, Column]:
    nll, entropy = np.asarray(mean_nll, dtype=np.float64), np.asarray(mean_entropy, dtype=np.float64)
    if nll.ndim != 1 or nll.shape != entropy.shape:
        raise DataError(
            f"mean_nll has shape {nll.shape} and mean_entropy {entropy.shape}",
            "Pass one number a sample in each, in the same order.",
        )
    if not len(nll):
        raise DataError("no sample was scored, so there are no thresholds", "Look at the reasons of the rejected ones.")
    for name, column in (("mean_nll", nll), ("mean_entropy", entropy)):
        # The extremes are non-finite wherever a value is, and need no temporary array.
        if not (math.isfinite(column.min()) and math.isfinite(column.max())):
            bad = int(np.argmin(np.isfinite(column)))
            raise DataError(f"{name} of sample {bad} is {column[bad]}", "Reject samples with non-finite scores first.")
    return nll, entropy


def _target(sample_keep_ratio: float, num_samples: int) -> int:
    if not 0 < sample_keep_ratio <= 1:
        raise SpecError(f"sample_keep_ratio is {sample_keep_ratio}", "Choose a number above 0 and at most 1.")
    return share_of(sample_keep_ratio, num_samples)


def _bisect(entry: DoubleRanks, target: int, max_iter: int | None) -> int:
    """The smallest A with at least `target` entries <= A; with `max_iter`, an A at most 2N / 2^max_iter above it."""
    if max_iter is not None and max_iter < 1:
        raise SpecError(f"bisect_max_iter is {max_iter}", "Choose at least 1, or leave it out to search until exact.")
    below, bound = 0, 2 * len(entry)  # nothing has entered at 0, everything at 2N
    iterations = 0
    while bound - below > 1 and iterations != max_iter:
        middle = (below + bound) // 2
        if _count_within(entry, middle) >= target:
            bound = middle
        else:
            below = middle
        iterations += 1
    return bound


def _count_within(entry: DoubleRanks, bound: int) -> int:
    return sum(int(np.count_nonzero(entry[block] <= bound)) for block in blocks(len(entry)))


def _edges(values: Column, ranks: DoubleRanks, bound: int) -> tuple[float, float]:
    """max{value : rank <= a} and min{value : rank >= 1 - a}; -inf and +inf where a set is empty."""
    far = 2 * len(values) - bound
    low, high = -math.inf, math.inf
    for block in blocks(len(values)):
        low = max(low, float(np.where(ranks[block] <= bound, values[block], -math.inf).max()))
        high = min(high, float(np.where(ranks[block] >= far, values[block], math.inf).min()))
    return low, high
