"""Define samples and their token scores, and compute means over tokens.

All logarithms are natural, so NLL and entropy are in nats. A position is scored when the loss mask is 1 and it is not
position 0, which has no prediction. Token arrays hold the scored tokens only, in order. Many samples are held flat: the
values of sample s are `values[offsets[s]:offsets[s + 1]]`, as in an Arrow list array. Means are computed in float64,
sample by sample, so they do not depend on the neighbours of a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtune_service.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenised conversation. `loss_mask[0]` is 0."""

    input_ids: NDArray[np.int32]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) 1 = the trainer would train on this token


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of the n scored tokens of one sample."""

    nll: NDArray[np.float32]  # (n,) nats
    entropy: NDArray[np.float32]  # (n,) nats, over the full vocabulary


def perplexity(mean_nll: ArrayLike) -> NDArray[np.float64]:
    """Return exp(mean_nll), in the shape of its argument. It is inf above 709 nats."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(np.asarray(mean_nll, dtype=np.float64)))


def sample_means(values_flat: NDArray[np.floating[Any]], offsets: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the mean of each sample's tokens: values (M,), offsets (S + 1,) -> (S,). NaN where a sample has none."""
    bounds = check_offsets(offsets, len(values_flat), "values_flat")
    sizes = np.diff(bounds)
    filled = sizes > 0
    means = np.full(len(sizes), np.nan)
    if filled.any():
        # Empty samples own no values, so the starts of the others alone cut the array into samples.
        values = np.asarray(values_flat, dtype=np.float64)
        means[filled] = np.add.reduceat(values, bounds[:-1][filled]) / sizes[filled]
    return means


def check_offsets(offsets: NDArray[np.integer[Any]], length: int, what: str) -> NDArray[np.int64]:
    """Return offsets as int64 (S + 1,) after checking that they cut an array of `length` into S runs."""
    bounds = np.asarray(offsets, dtype=np.int64)
    if bounds.ndim != 1 or not len(bounds) or bounds[0] != 0 or bounds[-1] != length or (np.diff(bounds) < 0).any():
        raise DataError(
            f"offsets of {what} must rise from 0 to its length, {length}",
            "Pass S + 1 offsets for S samples; a sliced Arrow list array needs its first offset subtracted.",
        )
    return bounds


def count_of_share(ratio: float, count: int) -> int:
    """Return ceil(ratio * count), from 1 to count. Rounding first prevents 0.07 * 100 from becoming 8."""
    return min(count, max(1, math.ceil(round(ratio * count, 9))))
