"""Samples with their ranks in the whole population, and what a scaled alpha makes of them.

The samples are the whole population or one group of it. Ranks are among all N samples in both cases, so edges and
counts of groups merge into those of the population. Selection in memory (thresholds.py) and distributed selection
(pipeline/distributed_selection.py) both use this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.samples import perplexity
from qtune_service.selection.plane import (
    Quadrant,
    QuadrantRule,
    Thresholds,
    apply_rule,
    classify,
    plane_view,
    scaled_entry_alphas,
)
from qtune_service.selection.ranks import DoubleRanks, blocks

Column = NDArray[np.float64]  # (n,) nats


@dataclass(frozen=True, slots=True)
class Edges:
    """Scores at the edges of the corners, in nats; infinite where no sample is beyond the edge."""

    nll_low: float = -math.inf
    nll_high: float = math.inf
    entropy_low: float = -math.inf
    entropy_high: float = math.inf

    @classmethod
    def merged(cls, parts: Iterable[Edges]) -> Edges:
        """Return the edges of several groups together."""
        return reduce(cls._outer, parts, cls())

    def _outer(self, other: Edges) -> Edges:
        return Edges(
            max(self.nll_low, other.nll_low),
            min(self.nll_high, other.nll_high),
            max(self.entropy_low, other.entropy_low),
            min(self.entropy_high, other.entropy_high),
        )

    def thresholds(self, scaled_alpha: int, num_samples: int) -> Thresholds:
        """Return the edges as thresholds: perplexities instead of NLL, and alpha in [0, 1]."""
        ppl_low, ppl_high = (float(perplexity(edge)) for edge in (self.nll_low, self.nll_high))
        return Thresholds(scaled_alpha / (2 * num_samples), ppl_low, ppl_high, self.entropy_low, self.entropy_high)


@dataclass(frozen=True, slots=True, eq=False)
class RankedSamples:
    """n samples of a population of N, with their ranks among all N."""

    mean_nll: Column
    mean_entropy: Column
    nll_ranks: DoubleRanks  # (n,) doubled mid-ranks, see ranks.py
    entropy_ranks: DoubleRanks  # (n,)
    num_samples: int  # N

    def entry_alphas(self) -> DoubleRanks:
        """Return the scaled alpha from which each sample is kept, (n,)."""
        return scaled_entry_alphas(self.nll_ranks, self.entropy_ranks, self.num_samples)

    def edges(self, scaled_alpha: int) -> Edges:
        """Return max{score : rank <= a} and min{score : rank >= 1 - a} of these samples."""
        far = 2 * self.num_samples - scaled_alpha
        return Edges(
            *_edges(self.mean_nll, self.nll_ranks, scaled_alpha, far),
            *_edges(self.mean_entropy, self.entropy_ranks, scaled_alpha, far),
        )

    def labels(
        self, entry: DoubleRanks, scaled_alpha: int, thresholds: Thresholds, rule: QuadrantRule | None
    ) -> NDArray[np.int8]:
        """Return one quadrant a sample (n,). Raise SpecError where the rule returns anything else."""
        labels = classify(self.nll_ranks, self.entropy_ranks, entry, scaled_alpha, self.num_samples)
        if rule is None:
            return labels
        plane = plane_view(
            mean_nll=self.mean_nll,
            mean_entropy=self.mean_entropy,
            nll_ranks=self.nll_ranks,
            entropy_ranks=self.entropy_ranks,
            thresholds=thresholds,
            labels=labels,
            num_samples=self.num_samples,
        )
        return apply_rule(rule, plane)


def count_kept(entry: DoubleRanks, scaled_alpha: int) -> int:
    """Return how many of some samples, by their scaled entry alphas (n,), are kept at a scaled alpha."""
    return sum(int(np.count_nonzero(entry[block] <= scaled_alpha)) for block in blocks(len(entry)))


def count_labels(labels: NDArray[np.int8]) -> dict[Quadrant, int]:
    """Return the number of samples of each quadrant, from labels (n,)."""
    return {quadrant: int(np.count_nonzero(labels == quadrant)) for quadrant in Quadrant}


def kept_labels(labels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return which samples (n,) the method keeps, by their labels (n,)."""
    kept: NDArray[np.bool_] = (labels == Quadrant.Q2) | (labels == Quadrant.Q4)
    return kept


def check_finite(start: int = 0, /, **columns: Column) -> None:
    """Raise DataError for the first score that is not finite. `start` is the population index of the first sample."""
    for name, column in columns.items():
        # The extremes are non-finite wherever a value is, and need no temporary array.
        if len(column) and not (math.isfinite(column.min()) and math.isfinite(column.max())):
            bad = int(np.argmin(np.isfinite(column)))
            raise DataError(
                f"{name} of sample {start + bad} is {column[bad]}", "Reject samples with non-finite scores first."
            )


def _edges(values: Column, ranks: DoubleRanks, scaled_alpha: int, far: int) -> tuple[float, float]:
    low, high = -math.inf, math.inf
    for block in blocks(len(values)):
        low = max(low, float(np.where(ranks[block] <= scaled_alpha, values[block], -math.inf).max()))
        high = min(high, float(np.where(ranks[block] >= far, values[block], math.inf).min()))
    return low, high
