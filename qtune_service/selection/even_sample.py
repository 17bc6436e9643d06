"""An even sample of the population: all that pictures, examples and correlation need of it.

One sample from each of `limit` equal strides, at a place inside the stride that a hash of its number decides. That is
deterministic, keeps densities true, and does not beat in time with data that repeat with a period, as taking every
k-th sample would. A part of the population knows its own picks, so parts are taken where the samples are and joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.hashing import split_mix
from qtune_service.selection.ranked_samples import Placed

SAMPLE_LIMIT = 1_000_000
MAX_POINTS = 4_000
"""Samples that a picture draws one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class EvenSample:
    """Samples of a population, in its order: 46 bytes each."""

    index: NDArray[np.int64]  # (S,) place in the population
    mean_nll: NDArray[np.float64]  # (S,) nats
    mean_entropy: NDArray[np.float64]  # (S,) nats
    error_rank: NDArray[np.float64]  # (S,) mid-rank of mean_nll among the whole population, in (0, 1)
    entropy_rank: NDArray[np.float64]  # (S,) mid-rank of mean_entropy
    num_tokens: NDArray[np.int32]  # (S,) trained tokens
    quadrant: NDArray[np.int8]  # (S,) 1..4
    kept: NDArray[np.bool_]  # (S,)
    total: int
    """Samples of the population."""

    @classmethod
    def joined(cls, parts: Sequence[EvenSample]) -> EvenSample:
        """Of parts, in the order of the population."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**columns, total=parts[0].total)

    def taken(self, rows: NDArray[np.int64]) -> EvenSample:
        """Some of its samples."""
        return EvenSample(**{name: getattr(self, name)[rows] for name in COLUMNS}, total=self.total)

    def points(self) -> EvenSample:
        """Those that are drawn one by one."""
        return self.taken(pick_points(len(self.index), MAX_POINTS))


COLUMNS = tuple(field.name for field in fields(EvenSample) if field.name != "total")


def even_sample(
    placed: Placed,
    *,
    labels: NDArray[np.int8],  # (n,) 1..4
    kept: NDArray[np.bool_],  # (n,)
    num_tokens: NDArray[np.integer[Any]],  # (n,) trained tokens
    start: int = 0,
    total: int | None = None,
) -> EvenSample:
    """The part of an even sample that lies in n consecutive samples, from `start` on, of `total`; by default, all."""
    total = len(labels) if total is None else total
    picks = even_picks(total)
    index = picks[slice(*np.searchsorted(picks, [start, start + len(labels)]))]
    at = index - start
    return EvenSample(
        index,
        placed.mean_nll[at],
        placed.mean_entropy[at],
        placed.nll_ranks[at] / (2 * total),
        placed.entropy_ranks[at] / (2 * total),
        num_tokens[at].astype(np.int32),
        labels[at],
        kept[at],
        total,
    )


def even_picks(total: int) -> NDArray[np.int64]:
    """Places of an even sample in a population."""
    return pick_points(total, SAMPLE_LIMIT)


def pick_points(total: int, limit: int) -> NDArray[np.int64]:
    """Indices of at most `limit` of `total` samples: ascending, distinct, the same every time."""
    if total <= limit:
        return np.arange(total, dtype=np.int64)
    edges = (np.arange(limit + 1, dtype=np.int64) * total) // limit
    width = (edges[1:] - edges[:-1]).astype(np.uint64)
    return edges[:-1] + (split_mix(np.arange(limit, dtype=np.uint64)) % width).astype(np.int64)
