"""Quantiles, ties and rank correlation of the scores, from parts that merge, so no process needs all samples.

Quantiles are order statistics without interpolation, as the method's thresholds are, so the quantiles of perplexity are
those of mean NLL exponentiated. They and the largest tie come from ranges of the sorted columns, which stage 1 makes
anyway. Numbers of tokens are counted by length. All of these are exact. Rank correlation needs two orders together and
gains nothing from more samples, so it is taken over an even sample of at most a million (even_sample.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import perplexity
from qtune_service.selection.distributed import sorted_run
from qtune_service.selection.even_sample import even_picks
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.ranks import double_midranks

QUANTILES = {
    "min": 0.0, "p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Distributions:
    """Quantiles, ties and rank correlation of the scores of all samples."""

    perplexity: Mapping[str, float]  # quantile name -> value; empty where nothing was scored
    entropy: Mapping[str, float]  # nats
    num_tokens: Mapping[str, float]  # trained tokens of a sample
    median_q2_tokens: float | None
    rank_correlation: float | None  # Spearman's, of perplexity and entropy; None where either is constant
    largest_tie: int  # most samples that share one perplexity


@dataclass(frozen=True, slots=True)
class OrderStatistics:
    """Quantiles and the largest tie of a range of a sorted column, or of the whole column."""

    quantiles: Mapping[str, float]
    largest_tie: int

    @classmethod
    def of_range(
        cls, values: NDArray[np.float64], ends: NDArray[np.integer[Any]], below: int, num_samples: int
    ) -> OrderStatistics:
        """Compute the statistics of a range from its ascending distinct values (D,).

        `ends` (D,) are the samples of the population up to each value, `below` those below the range.
        """
        if not len(values):
            return cls({}, 0)
        indices = {name: at for name, at in _quantile_indices(num_samples).items() if below <= at < ends[-1]}
        found = np.searchsorted(ends, list(indices.values()), side="right")
        quantiles = dict(zip(indices, values[found].tolist(), strict=True))
        return cls(quantiles, int(np.diff(ends.astype(np.int64), prepend=below).max()))

    @classmethod
    def merged(cls, ranges: Iterable[OrderStatistics]) -> OrderStatistics:
        """Return the statistics of a whole column from those of its ranges."""
        parts = list(ranges)
        found = {name: value for part in parts for name, value in part.quantiles.items()}
        ordered = {name: found[name] for name in QUANTILES if name in found}
        return cls(ordered, max((part.largest_tie for part in parts), default=0))


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Number of samples by trained tokens, (L,) each: of all samples and of Q2."""

    every: NDArray[np.int64]
    q2: NDArray[np.int64]

    @classmethod
    def counted(cls, num_tokens: NDArray[np.integer[Any]], quadrant: NDArray[np.integer[Any]]) -> Lengths:
        """Count samples by their trained tokens (n,) and quadrants (n,), 1..4."""
        size = int(num_tokens.max(initial=0)) + 1
        in_q2 = num_tokens[quadrant == Quadrant.Q2]
        return cls(np.bincount(num_tokens, minlength=size), np.bincount(in_q2, minlength=size))

    def plus(self, other: Lengths) -> Lengths:
        """Return the counts of both."""
        return Lengths(_added(self.every, other.every), _added(self.q2, other.q2))

    def quantiles(self) -> dict[str, float]:
        """Return the quantiles of all samples' trained tokens."""
        ends = np.cumsum(self.every)
        indices = _quantile_indices(int(ends[-1])) if ends[-1] else {}
        return {name: float(np.searchsorted(ends, at, side="right")) for name, at in indices.items()}

    def q2_median(self) -> float | None:
        """Return the median of Q2, the mean of the middle two for an even number. None where Q2 is empty."""
        ends = np.cumsum(self.q2)
        if not ends[-1]:
            return None
        middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return float(middle.mean())


def describe_parts(
    nll: OrderStatistics, entropy: OrderStatistics, lengths: Lengths, correlation: float | None
) -> Distributions:
    """Describe a population by the merged statistics of its parts."""
    return Distributions(
        perplexity={name: float(perplexity(value)) for name, value in nll.quantiles.items()},
        entropy=dict(entropy.quantiles),
        num_tokens=lengths.quantiles(),
        median_q2_tokens=lengths.q2_median(),
        rank_correlation=correlation,
        largest_tie=nll.largest_tie,
    )


def describe(
    mean_nll: NDArray[np.float64],  # (N,) nats
    mean_entropy: NDArray[np.float64],  # (N,) nats
    num_tokens: NDArray[np.integer[Any]],  # (N,) trained tokens
    quadrant: NDArray[np.integer[Any]],  # (N,) 1..4
) -> Distributions:
    """Describe a population in memory."""
    nll, entropy = (
        OrderStatistics.of_range(run["value"], run["end"], 0, len(mean_nll))
        for run in (sorted_run(column) for column in (mean_nll, mean_entropy))
    )
    picks = even_picks(len(mean_nll))
    correlation = rank_correlation(mean_nll[picks], mean_entropy[picks])
    return describe_parts(nll, entropy, Lengths.counted(num_tokens, quadrant), correlation)


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation with mid-ranks; None where either column is constant."""
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    ranks = [double_midranks(side).astype(np.float64) for side in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _quantile_indices(num_samples: int) -> dict[str, int]:
    """Return the 0-based index of each quantile: the first with at least that share at or below it."""
    return {name: max(math.ceil(q * num_samples) - 1, 0) for name, q in QUANTILES.items()}


def _added(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
