"""Describe a population from parts that merge, so no process needs all samples: quantiles, ties, and an even sample.

Quantiles are order statistics without interpolation, as the method's thresholds are, so the quantiles of perplexity are
those of mean NLL exponentiated. They and the largest tie come from ranges of the sorted columns, which stage 1 makes
anyway. Numbers of tokens are counted by length. All of these are exact. Rank correlation needs two orders together and
gains nothing from more samples, so it is taken over an even sample of at most a million.

Charts, examples and the rank correlation use an even sample. The population is divided into `limit` equal strides, and
one sample is taken from each, at an offset that a hash of the stride's number decides. This is deterministic and keeps
densities true. It does not resonate with data that repeat with a period, as taking every k-th sample would. A group of
the population knows its own picks, so groups take them separately and the parts are joined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import perplexity
from qtune_service.selection.distributed import sorted_run
from qtune_service.selection.hashing import split_mix
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.ranked_samples import RankedSamples
from qtune_service.selection.ranks import double_midranks

SAMPLE_LIMIT = 1_000_000
MAX_POINTS = 4_000
"""Samples that a chart draws as points."""


@dataclass(frozen=True, slots=True, eq=False)
class EvenSample:
    """Samples of a population, in its order. 46 bytes each."""

    index: NDArray[np.int64]  # (S,) population index
    mean_nll: NDArray[np.float64]  # (S,) nats
    mean_entropy: NDArray[np.float64]  # (S,) nats
    error_rank: NDArray[np.float64]  # (S,) mid-rank of mean_nll among the whole population, in (0, 1)
    entropy_rank: NDArray[np.float64]  # (S,) mid-rank of mean_entropy
    num_tokens: NDArray[np.int32]  # (S,) trained tokens
    quadrant: NDArray[np.int8]  # (S,) 1..4
    kept: NDArray[np.bool_]  # (S,)
    total: int
    """Number of samples in the population."""

    @classmethod
    def joined(cls, parts: Sequence[EvenSample]) -> EvenSample:
        """Join parts, given in the order of the population."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**columns, total=parts[0].total)

    def taken(self, rows: NDArray[np.int64]) -> EvenSample:
        """Return some of its samples, by their rows."""
        return EvenSample(**{name: getattr(self, name)[rows] for name in COLUMNS}, total=self.total)

    def points(self) -> EvenSample:
        """Return the samples that a chart draws as points."""
        return self.taken(pick_points(len(self.index), MAX_POINTS))


COLUMNS = tuple(field.name for field in fields(EvenSample) if field.name != "total")


def even_sample(
    ranked: RankedSamples,  # n samples
    *,
    labels: NDArray[np.int8],  # (n,) 1..4
    kept: NDArray[np.bool_],  # (n,)
    num_tokens: NDArray[np.integer[Any]],  # (n,) trained tokens
    start: int = 0,
    total: int | None = None,
) -> EvenSample:
    """Return the part of an even sample of `total` samples that is in n consecutive ones from index `start` on.

    By default the n samples are the whole population.
    """
    total = len(labels) if total is None else total
    picks = even_picks(total)
    index = picks[slice(*np.searchsorted(picks, [start, start + len(labels)]))]
    at = index - start
    return EvenSample(
        index,
        ranked.mean_nll[at],
        ranked.mean_entropy[at],
        ranked.nll_ranks[at] / (2 * total),
        ranked.entropy_ranks[at] / (2 * total),
        num_tokens[at].astype(np.int32),
        labels[at],
        kept[at],
        total,
    )


def even_picks(total: int) -> NDArray[np.int64]:
    """Return the population indices of an even sample."""
    return pick_points(total, SAMPLE_LIMIT)


def pick_points(total: int, limit: int) -> NDArray[np.int64]:
    """Return the indices of at most `limit` of `total` samples: ascending, distinct and deterministic."""
    if total <= limit:
        return np.arange(total, dtype=np.int64)
    edges = (np.arange(limit + 1, dtype=np.int64) * total) // limit
    width = (edges[1:] - edges[:-1]).astype(np.uint64)
    return edges[:-1] + (split_mix(np.arange(limit, dtype=np.uint64)) % width).astype(np.int64)


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
