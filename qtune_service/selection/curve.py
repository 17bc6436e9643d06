"""What every keep ratio would lead to, from counts that add up over any cut of the population.

Whether a sample is kept at a bound A depends on its corner entry alone (plane.py), and what it would be labelled, kept
or not, does not depend on A. So samples are counted by entry in 2^16 bins of the bounds, by both labels, with their
trained tokens; sums from the left are what is kept at a bin's end, sums from the right what is removed. A ratio is
answered with the first bin that reaches its target: exact up to 2^15 samples, where a bin is one bound; above, the
count is over the target by what shares the bin, in practice about 2^-16 of the population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import share_of
from qtune_service.selection.ranks import DoubleRanks, blocks
from qtune_service.selection.search import BINS, Window

NAMES = ("q1", "q2", "q3", "q4", "q2_tokens", "q4_tokens")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a sample_keep_ratio leads to."""

    sample_keep_ratio: float
    alpha: float
    target: int
    q1: int
    q2: int
    q3: int
    q4: int
    tokens: int
    """Trained tokens left, after stage 2."""

    @property
    def kept(self) -> int:
        """Samples kept."""
        return self.q2 + self.q4


@dataclass(frozen=True, slots=True, eq=False)
class EntryCounts:
    """Samples and tokens of some of the population by the bin in which they enter."""

    num_samples: int  # of the whole population
    bins: NDArray[np.int64]  # (BINS, 6): see NAMES; q1 and q3 are the labels while removed

    @classmethod
    def counted(
        cls,
        nll_ranks: DoubleRanks,  # (n,)
        entropy_ranks: DoubleRanks,  # (n,)
        entry: DoubleRanks,  # (n,)
        num_tokens: NDArray[np.integer[Any]],  # (n,) trained tokens
        tokens_as_q2: NDArray[np.integer[Any]],  # (n,) of these, the ones that stage 2 would leave of a Q2 sample
        num_samples: int,
    ) -> EntryCounts:
        """Of n samples of a population of `num_samples`."""
        shift = Window.whole(num_samples).shift
        bins = np.zeros((BINS, len(NAMES)), np.int64)
        for block in blocks(len(entry)):
            p, e = nll_ranks[block], entropy_ranks[block]
            place = (entry[block].astype(np.int64) - 1) >> shift
            in_q2, in_q1 = p >= e, p > 2 * num_samples - e
            columns = (in_q1, in_q2, ~in_q1, ~in_q2, in_q2 * tokens_as_q2[block], ~in_q2 * num_tokens[block])
            for column, weight in enumerate(columns):
                found = np.bincount(place, weights=weight, minlength=BINS)  # float64: exact below 2^53
                bins[:, column] += found.astype(np.int64)
        return cls(num_samples, bins)

    @classmethod
    def nothing(cls, num_samples: int) -> EntryCounts:
        """Of no samples."""
        return cls(num_samples, np.zeros((BINS, len(NAMES)), np.int64))

    def plus(self, other: EntryCounts) -> EntryCounts:
        """Of both."""
        return EntryCounts(self.num_samples, self.bins + other.bins)

    def curve(self, ratios: Sequence[float]) -> tuple[CurvePoint, ...]:
        """One point a ratio."""
        entered = np.cumsum(self.bins, axis=0)
        kept = entered[:, 1] + entered[:, 3]
        shift, double_n = Window.whole(self.num_samples).shift, 2 * self.num_samples
        points = []
        for ratio in ratios:
            target = share_of(ratio, self.num_samples)
            place = int(np.searchsorted(kept, target))
            q1, q2, q3, q4, q2_tokens, q4_tokens = entered[place].tolist()
            out_q1, out_q3 = int(entered[-1, 0]) - q1, int(entered[-1, 2]) - q3
            bound = min((place + 1) << shift, double_n)
            points.append(CurvePoint(ratio, bound / double_n, target, out_q1, q2, out_q3, q4, q2_tokens + q4_tokens))
        return tuple(points)
