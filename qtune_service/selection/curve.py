"""The what-if curve: the outcome of every keep ratio, exact and from one ranking.

Whether a sample is kept at a scaled alpha depends on its entry alpha alone (plane.py). Its label if kept and its label
if removed do not depend on alpha. So the scaled alphas of all ratios are order statistics of the entry alphas, and they
divide the samples into segments. Samples are counted by segment and by both labels, with their trained tokens. At the
k-th scaled alpha the samples of the segments up to k are kept, and those of the later segments are removed. Counts of
groups add up to those of the population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import count_of_share
from qtune_service.selection.plane import is_misconception, is_noise
from qtune_service.selection.ranked_samples import RankedSamples
from qtune_service.selection.ranks import DoubleRanks, blocks

COLUMNS = ("q1", "q2", "q3", "q4", "q2_tokens", "q4_tokens")
"""Counts of a segment. q1 and q3 count samples by their label if removed, the others by their label if kept."""


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
            in_q1, in_q2 = is_noise(p, e, ranked.num_samples), is_misconception(p, e)
            columns = (in_q1, in_q2, ~in_q1, ~in_q2, in_q2 * tokens_as_q2[block], ~in_q2 * num_tokens[block])
            for column, weights in enumerate(columns):
                counted = np.bincount(segment, weights=weights, minlength=size)  # float64: exact below 2^53
                segments[:, column] += counted.astype(np.int64)
        return cls(scaled_alphas, segments)

    def plus(self, other: CurveCounts) -> CurveCounts:
        """Return the counts of both, for the same scaled alphas."""
        return CurveCounts(self.scaled_alphas, self.segments + other.segments)

    def points(self, ratios: Sequence[float], num_samples: int) -> tuple[CurvePoint, ...]:
        """Return one point per ratio, for the R ascending ratios that the scaled alphas belong to."""
        upto = np.cumsum(self.segments, axis=0)
        removed = upto[-1] - upto
        return tuple(
            CurvePoint(
                sample_keep_ratio=ratio,
                alpha=scaled_alpha / (2 * num_samples),
                target=count_of_share(ratio, num_samples),
                q1=int(out[0]), q2=int(kept[1]), q3=int(out[2]), q4=int(kept[3]),
                tokens=int(kept[4] + kept[5]),
            )
            for ratio, scaled_alpha, kept, out in zip(
                ratios, self.scaled_alphas.tolist(), upto[:-1], removed[:-1], strict=True
            )
        )  # fmt: skip
