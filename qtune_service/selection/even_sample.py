"""An even sample of the population, from which charts, examples and the rank correlation are made.

The population is divided into `limit` equal strides, and one sample is taken from each, at an offset that a hash of the
stride's number decides. This is deterministic and keeps densities true. It does not resonate with data that repeat with
a period, as taking every k-th sample would. A group of the population knows its own picks, so groups take them
separately and the parts are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.hashing import split_mix
from qtune_service.selection.ranked_samples import RankedSamples

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
