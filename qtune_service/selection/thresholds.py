"""Stage 1: find the thresholds that keep a given share of the whole population, and the what-if curve of all shares.

keep(a), the samples in Q2's or Q4's corner (plane.py), only grows with a and holds every sample at a = 1. So the
smallest a with |keep(a)| >= ceil(ratio * N) is an order statistic of the samples' entry alphas. Mid-ranks are multiples
of 1/2N, so the scaled alpha A = 2N a is an integer, and `np.partition` finds it exactly. The four thresholds are order
statistics of the data, without interpolation. A target beyond what disjoint corners hold needs a > 1/2; that is
allowed, and `Totals` reports it. No other samples are added to reach the target: the kept count exceeds it only by
ties at A.

This module selects a population in memory: two float64 columns and 25 bytes more a sample at the peak. Distributed
selection (pipeline/distributed_selection.py) takes the same steps group by group, with bit-identical results.

Source: Wang et al., arXiv:2509.23873. Known implementations search a in [0, 0.49] in the wrong direction and keep 99.9%
where half was requested.

The what-if curve gives the outcome of every keep ratio exactly, from one ranking. Whether a sample is kept at a scaled
alpha depends on its entry alpha alone (plane.py). Its label if kept and its label if removed do not depend on alpha. So
the scaled alphas of all ratios are order statistics of the entry alphas, and they divide the samples into segments.
Samples are counted by segment and by both labels, with their trained tokens: sums from the left are kept, sums from the
right are removed. Counts of groups add up to those of the population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.samples import share_of
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds, is_noise
from qtune_service.selection.ranked_samples import (
    Column,
    RankedSamples,
    check_finite,
    count_kept,
    count_labels,
    kept_labels,
)
from qtune_service.selection.ranks import DoubleRanks, blocks, double_midranks

COLUMNS = ("q1", "q2", "q3", "q4", "q2_tokens", "q4_tokens")
"""Counts of a segment. q1 and q3 are labels of samples while they are removed, the others while they are kept."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Outcome of one sample_keep_ratio."""

    sample_keep_ratio: float
    alpha: float
    target: int
    q1: int
    q2: int
    q3: int
    q4: int
    tokens: int
    """Trained tokens left after stage 2."""

    @property
    def kept(self) -> int:
        """Number of kept samples."""
        return self.q2 + self.q4


@dataclass(frozen=True, slots=True, eq=False)
class CurveCounts:
    """Samples and tokens of a population, or of a group of it, by segment between the scaled alphas of a curve."""

    scaled_alphas: NDArray[np.int64]  # (R,) ascending, one for each ratio
    segments: NDArray[np.int64]  # (R + 1, 6) COLUMNS of the samples up to each scaled alpha, and beyond the last

    @classmethod
    def of(
        cls,
        ranked: RankedSamples,  # n samples of N
        entry: DoubleRanks,  # (n,) scaled entry alphas
        num_tokens: NDArray[np.integer[Any]],  # (n,) trained tokens
        tokens_as_q2: NDArray[np.integer[Any]],  # (n,) trained tokens that stage 2 leaves of a Q2 sample
        scaled_alphas: NDArray[np.int64],  # (R,) ascending
    ) -> CurveCounts:
        """Count n samples."""
        size = len(scaled_alphas) + 1
        segments = np.zeros((size, len(COLUMNS)), np.int64)
        for block in blocks(len(entry)):
            p, e = ranked.nll_ranks[block], ranked.entropy_ranks[block]
            segment = np.searchsorted(scaled_alphas, entry[block].astype(np.int64))
            in_q1, in_q2 = is_noise(p, e, ranked.num_samples), p >= e
            columns = (in_q1, in_q2, ~in_q1, ~in_q2, in_q2 * tokens_as_q2[block], ~in_q2 * num_tokens[block])
            for column, weights in enumerate(columns):
                counted = np.bincount(segment, weights=weights, minlength=size)  # float64: exact below 2^53
                segments[:, column] += counted.astype(np.int64)
        return cls(scaled_alphas, segments)

    def plus(self, other: CurveCounts) -> CurveCounts:
        """Return the counts of both, for the same scaled alphas."""
        return CurveCounts(self.scaled_alphas, self.segments + other.segments)

    def points(self, ratios: Sequence[float], num_samples: int) -> tuple[CurvePoint, ...]:
        """Return one point a ratio, for the R ascending ratios that the scaled alphas belong to."""
        upto = np.cumsum(self.segments, axis=0)
        removed = upto[-1] - upto
        return tuple(
            CurvePoint(
                sample_keep_ratio=ratio,
                alpha=scaled_alpha / (2 * num_samples),
                target=share_of(ratio, num_samples),
                q1=int(out[0]), q2=int(kept[1]), q3=int(out[2]), q4=int(kept[3]),
                tokens=int(kept[4] + kept[5]),
            )
            for ratio, scaled_alpha, kept, out in zip(
                ratios, self.scaled_alphas.tolist(), upto[:-1], removed[:-1], strict=True
            )
        )  # fmt: skip


__all__ = ["Selection", "Thresholds", "Totals", "check_target", "select"]


@dataclass(frozen=True, slots=True)
class Totals:
    """Outcome of stage 1 for the population."""

    thresholds: Thresholds
    target: int  # ceil(sample_keep_ratio * N)
    kept: int  # by the method, those labelled Q2 or Q4; a user's rule or another strategy decides freely
    disjoint_capacity: int  # the most samples that corners without overlap (alpha <= 1/2) hold
    num_samples: int
    counts: dict[Quadrant, int]


@dataclass(frozen=True, slots=True, eq=False)
class Selection(Totals):
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

    Without `bisect_max_iter` alpha is exact; with it, alpha is that of a bisection of so many halvings. With `priority`
    (N,), keys of another strategy (strategies.py), the samples with the smallest keys are kept, and labels only show
    where a sample is on the plane. Raise DataError for scores that cannot be ranked, and SpecError for arguments out of
    range or a rule that returns anything else than labels.
    """
    nll, entropy = _columns(mean_nll, mean_entropy)
    num_samples = len(nll)
    target = check_target(sample_keep_ratio, num_samples)
    ranked = RankedSamples(nll, entropy, double_midranks(nll), double_midranks(entropy), num_samples)
    entry = ranked.entry_alphas()
    (smallest,) = smallest_scaled_alphas(entry, [target]).tolist()
    scaled_alpha = stop_early(smallest, num_samples, bisect_max_iter)
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


def stop_early(smallest: int, num_samples: int, max_iter: int | None) -> int:
    """Return where a bisection for the scaled alpha `smallest` ends after `max_iter` halvings; None is exact.

    It ends at the upper end, at most 2N / 2^max_iter above `smallest`, so the count is never below the target. The
    bisection needs no counts: a scaled alpha keeps enough samples where it is at least `smallest`. Raise SpecError
    for less than one halving.
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


def check_target(sample_keep_ratio: float, num_samples: int) -> int:
    """Return the number of samples that a ratio requests.

    Raise DataError for an empty population and SpecError for a ratio out of range.
    """
    if not num_samples:
        raise DataError("no sample was scored, so there are no thresholds", "Look at the reasons of the rejected ones.")
    if not 0 < sample_keep_ratio <= 1:
        raise SpecError(f"sample_keep_ratio is {sample_keep_ratio}", "Choose a number above 0 and at most 1.")
    return share_of(sample_keep_ratio, num_samples)


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
