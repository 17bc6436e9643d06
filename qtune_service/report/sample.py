"""An even sample of the population: all that pictures, examples and correlation need of it.

One sample from each of `limit` equal strides, at a place inside the stride that a hash of its number decides. That is
deterministic, keeps densities true, and does not beat in time with data that repeat with a period, as taking every
k-th sample would. A part of the population knows its own picks, so parts are taken where the samples are and joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class EvenSample:
    """Samples of a population, in its order: 25 bytes each."""

    index: NDArray[np.int64]  # (S,) place in the population
    mean_nll: NDArray[np.float64]  # (S,) nats
    mean_entropy: NDArray[np.float64]  # (S,) nats
    quadrant: NDArray[np.integer[Any]]  # (S,) 1..4

    @classmethod
    def joined(cls, parts: Sequence[EvenSample]) -> EvenSample:
        """Of parts, in the order of the population."""
        names = ("index", "mean_nll", "mean_entropy", "quadrant")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def even_sample(
    mean_nll: NDArray[np.float64],  # (n,) nats
    mean_entropy: NDArray[np.float64],  # (n,) nats
    quadrant: NDArray[np.integer[Any]],  # (n,) 1..4
    *,
    start: int = 0,
    total: int | None = None,
) -> EvenSample:
    """The part of an even sample that lies in n consecutive samples, from `start` on, of `total`; by default, all."""
    picks = pick_points(len(mean_nll) if total is None else total, SAMPLE_LIMIT)
    index = picks[slice(*np.searchsorted(picks, [start, start + len(mean_nll)]))]
    here = index - start
    return EvenSample(index, mean_nll[here], mean_entropy[here], quadrant[here])


def pick_points(total: int, limit: int) -> NDArray[np.int64]:
    """Indices of at most `limit` of `total` samples: ascending, distinct, the same every time."""
    if total <= limit:
        return np.arange(total, dtype=np.int64)
    edges = (np.arange(limit + 1, dtype=np.int64) * total) // limit
    width = (edges[1:] - edges[:-1]).astype(np.uint64)
    return edges[:-1] + (_hash(np.arange(limit, dtype=np.uint64)) % width).astype(np.int64)


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: a public-domain mixing function by Sebastiano Vigna."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
