"""Stage 1: find the thresholds that keep a given share of the whole population.

A sample's entry alpha is the smallest alpha at which it is kept (plane.py). Keeping more samples only needs a larger
alpha, and alpha = 1 keeps all. So the smallest alpha that keeps ceil(ratio * N) samples is an order statistic of the
entry alphas. Mid-ranks are multiples of 1 / (2N), so the scaled alpha A = 2N a is an integer, and `np.partition` finds
it exactly. The four thresholds are order statistics of the data, without interpolation. Corners that do not overlap
(alpha <= 1/2) may hold fewer samples than requested. Then alpha is above 1/2, and `SelectionSummary` reports it. No
other samples are added to reach the target: the kept count exceeds it only by ties at A.

This module selects a population in memory: two float64 columns, and at the peak 25 bytes more per sample. Distributed
selection (pipeline/distributed_selection.py) takes the same steps group by group, with bit-identical results. curve.py
has the outcome of every other ratio.

Source: Wang et al., arXiv:2509.23873. Implementations by others search a in [0, 0.49] in the wrong direction and keep
99.9% where half was requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.samples import count_of_share
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds
from qtune_service.selection.ranked_samples import (
    Column,
    RankedSamples,
    check_finite,
    count_kept,
    count_labels,
    kept_labels,
)
from qtune_service.selection.ranks import DoubleRanks, double_midranks


@dataclass(frozen=True, slots=True)
class SelectionSummary:
    """Outcome of stage 1 for the population."""

    thresholds: Thresholds
    target: int  # ceil(sample_keep_ratio * N)
    kept: int  # by the method, those labelled Q2 or Q4; with a user's rule or another strategy, its choice
    disjoint_capacity: int  # the most samples that corners without overlap (alpha <= 1/2) hold
    num_samples: int
    counts: dict[Quadrant, int]


@dataclass(frozen=True, slots=True, eq=False)
class Selection(SelectionSummary):
    """Outcome of stage 1 for the population and for each of its samples."""

    labels: NDArray[np.int8]  # (N,) Quadrant of each sample
    is_kept: NDArray[np.bool_]  # (N,)
    entry: DoubleRanks  # (N,) scaled entry alpha of each sample
    ranked: RankedSamples  # (N,) scores and ranks

    def p(self, span: slice) -> Column:
        """Return the mid-ranks of mean NLL in (0, 1) of the samples in a span."""
        return self.ranked.nll_ranks[span] / (2 * self.num_samples)

    def e(self, span: slice) -> Column:
        """Return the mid-ranks of mean entropy in (0, 1) of the samples in a span."""
        return self.ranked.entropy_ranks[span] / (2 * self.num_samples)


def select(
    mean_nll: ArrayLike,
    mean_entropy: ArrayLike,
    *,
    sample_keep_ratio: float,
    bisect_max_iter: int | None = None,
    rule: QuadrantRule | None = None,
    priority: ArrayLike | None = None,
) -> Selection:
    """Return thresholds and labels of a population of scored samples: two (N,) columns in nats, finite, N >= 1.

    Without `bisect_max_iter` alpha is exact. With it, alpha is where a bisection with so many steps ends. With
    `priority` (N,), keys of another strategy (strategies.py), the samples with the smallest keys are kept, and labels
    only show where a sample is on the plane. Raise DataError for scores that cannot be ranked, and SpecError for
    arguments out of range or a rule that returns anything else than labels.
    """
    nll, entropy = _columns(mean_nll, mean_entropy)
    num_samples = len(nll)
    target = target_count(sample_keep_ratio, num_samples)
    ranked = RankedSamples(nll, entropy, double_midranks(nll), double_midranks(entropy), num_samples)
    entry = ranked.entry_alphas()
    (smallest,) = smallest_scaled_alphas(entry, [target]).tolist()
    scaled_alpha = bisected_alpha(smallest, num_samples, bisect_max_iter)
    thresholds = ranked.edges(scaled_alpha).thresholds(scaled_alpha, num_samples)
    labels = ranked.labels(entry, scaled_alpha, thresholds, rule)
    counts = count_labels(labels)
    is_kept = kept_labels(labels) if priority is None else _first(np.asarray(priority, np.float64), target)
    return Selection(
        thresholds=thresholds,
        target=target,
        kept=int(np.count_nonzero(is_kept)),
        disjoint_capacity=count_kept(entry, num_samples),
        num_samples=num_samples,
        counts=counts,
        labels=labels,
        is_kept=is_kept,
        entry=entry,
        ranked=ranked,
    )


def smallest_scaled_alphas(entry: DoubleRanks, targets: Sequence[int]) -> NDArray[np.int64]:
    """Return the smallest scaled alpha (T,) that keeps each target (1 to N), from scaled entry alphas (N,)."""
    indices = np.asarray(targets, np.int64) - 1
    return np.partition(entry, indices)[indices].astype(np.int64)


def bisected_alpha(smallest: int, num_samples: int, max_iter: int | None) -> int:
    """Return the scaled alpha that a bisection of `max_iter` steps finds. Without `max_iter`, return `smallest`.

    The result is the upper end of the last interval, at most 2N / 2^max_iter above `smallest`, so the count is never
    below the target. The bisection needs no counts: a scaled alpha keeps enough samples if it is at least `smallest`.
    Raise SpecError for less than one step.
    """
    if max_iter is None:
        return smallest
    if max_iter < 1:
        raise SpecError(f"bisect_max_iter is {max_iter}", "Choose at least 1, or leave it out to search until exact.")
    low, high = 0, 2 * num_samples  # no sample is kept at 0, every sample at 2N
    for _ in range(min(max_iter, high.bit_length())):
        middle = (low + high) // 2
        low, high = (low, middle) if middle >= smallest else (middle, high)
    return high


def target_count(sample_keep_ratio: float, num_samples: int) -> int:
    """Return the number of samples that a ratio requests.

    Raise DataError for an empty population and SpecError for a ratio out of range.
    """
    if not num_samples:
        raise DataError("no sample was scored, so there are no thresholds", "Look at the reasons of the rejected ones.")
    if not 0 < sample_keep_ratio <= 1:
        raise SpecError(f"sample_keep_ratio is {sample_keep_ratio}", "Choose a number above 0 and at most 1.")
    return count_of_share(sample_keep_ratio, num_samples)


def _first(priority: Column, target: int) -> NDArray[np.bool_]:
    """Return which samples (N,) have the smallest keys: `target` of them, and those that tie with the last one."""
    check_finite(priority=priority)
    ranks = double_midranks(priority)
    kept: NDArray[np.bool_] = ranks <= smallest_scaled_alphas(ranks, [target])
    return kept


def _columns(mean_nll: ArrayLike, mean_entropy: ArrayLike) -> tuple[Column, Column]:
    """Return both columns as float64 (N,). Raise DataError unless they are finite and of one length."""
    nll, entropy = np.asarray(mean_nll, dtype=np.float64), np.asarray(mean_entropy, dtype=np.float64)
    if nll.ndim != 1 or nll.shape != entropy.shape:
        raise DataError(
            f"mean_nll has shape {nll.shape} and mean_entropy {entropy.shape}",
            "Pass one number a sample in each, in the same order.",
        )
    check_finite(mean_nll=nll, mean_entropy=entropy)
    return nll, entropy
