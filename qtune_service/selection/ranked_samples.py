"""Samples with their places in the whole population: what a bound makes of them.

All of it, or one group of many: ranks are among all N samples either way, so what a group gives is what it would
give as a part of the whole, and edges and counts of groups merge into those of the population. Both ways of stage 1,
in memory (thresholds.py) and by groups (pipeline/distributed_selection.py), go through here.
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
    corner_entry,
    plane_view,
)
from qtune_service.selection.ranks import DoubleRanks, blocks

Column = NDArray[np.float64]  # (n,) nats


@dataclass(frozen=True, slots=True)
class Edges:
    """The scores at the edges of the corners, in nats; infinite where no sample lies beyond."""

    nll_low: float = -math.inf
    nll_high: float = math.inf
    entropy_low: float = -math.inf
    entropy_high: float = math.inf

    @classmethod
    def merged(cls, parts: Iterable[Edges]) -> Edges:
        """Of several groups."""
        return reduce(cls._outer, parts, cls())

    def _outer(self, other: Edges) -> Edges:
        return Edges(
            max(self.nll_low, other.nll_low),
            min(self.nll_high, other.nll_high),
            max(self.entropy_low, other.entropy_low),
            min(self.entropy_high, other.entropy_high),
        )

    def thresholds(self, bound: int, num_samples: int) -> Thresholds:
        """In the units of a report."""
        ppl_low, ppl_high = (float(perplexity(edge)) for edge in (self.nll_low, self.nll_high))
        return Thresholds(bound / (2 * num_samples), ppl_low, ppl_high, self.entropy_low, self.entropy_high)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """n samples of a population of N."""

    mean_nll: Column
    mean_entropy: Column
    nll_ranks: DoubleRanks  # (n,) doubled mid-ranks among all N, see ranks.py
    entropy_ranks: DoubleRanks  # (n,)
    num_samples: int  # N

    def entry(self) -> DoubleRanks:
        """The bound at which each sample is kept, (n,)."""
        return corner_entry(self.nll_ranks, self.entropy_ranks, self.num_samples)

    def edges(self, bound: int) -> Edges:
        """max{score : rank <= a} and min{score : rank >= 1 - a} of these samples."""
        far = 2 * self.num_samples - bound
        return Edges(
            *_edges(self.mean_nll, self.nll_ranks, bound, far),
            *_edges(self.mean_entropy, self.entropy_ranks, bound, far),
        )

    def labels(
        self, entry: DoubleRanks, bound: int, thresholds: Thresholds, rule: QuadrantRule | None
    ) -> NDArray[np.int8]:
        """One quadrant a sample, (n,). Raises SpecError where the rule gives something else."""
        labels = classify(self.nll_ranks, self.entropy_ranks, entry, bound, self.num_samples)
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


def count_within(entry: DoubleRanks, bound: int) -> int:
    """Samples that have entered at a bound."""
    return sum(int(np.count_nonzero(entry[block] <= bound)) for block in blocks(len(entry)))


def count_labels(labels: NDArray[np.int8]) -> dict[Quadrant, int]:
    """Samples of each quadrant."""
    return {quadrant: int(np.count_nonzero(labels == quadrant)) for quadrant in Quadrant}


def kept_labels(labels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which samples the method keeps, (n,)."""
    kept: NDArray[np.bool_] = (labels == Quadrant.Q2) | (labels == Quadrant.Q4)
    return kept


def check_finite(start: int = 0, /, **columns: Column) -> None:
    """Raise DataError for a score that cannot be ranked. start: the first sample's place in the population."""
    for name, column in columns.items():
        # The extremes are non-finite wherever a value is, and need no temporary array.
        if len(column) and not (math.isfinite(column.min()) and math.isfinite(column.max())):
            bad = int(np.argmin(np.isfinite(column)))
            raise DataError(
                f"{name} of sample {start + bad} is {column[bad]}", "Reject samples with non-finite scores first."
            )


def _edges(values: Column, ranks: DoubleRanks, bound: int, far: int) -> tuple[float, float]:
    low, high = -math.inf, math.inf
    for block in blocks(len(values)):
        low = max(low, float(np.where(ranks[block] <= bound, values[block], -math.inf).max()))
        high = min(high, float(np.where(ranks[block] >= far, values[block], math.inf).min()))
    return low, high
