"""The selection of one shard: labels and ranks of its samples, as the task that prunes the shard gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.pipeline.selection_tasks import SelectionContext
from qtune_service.selection.examples import ExampleKind
from qtune_service.selection.ranks import rank_type
from qtune_service.selection.strategies import Weighing


@dataclass(frozen=True, slots=True, eq=False)
class SampleLabels:
    """Labels and ranks of n samples."""

    quadrants: NDArray[np.int8]  # (n,)
    kept: NDArray[np.bool_]  # (n,)
    error_rank: NDArray[np.float64]  # (n,) mid-rank of mean NLL in (0, 1)
    entropy_rank: NDArray[np.float64]  # (n,)

    def read(self) -> SampleLabels:
        """Return the labels, which are in memory."""
        return self


@dataclass(frozen=True, slots=True)
class StoredLabels:
    """Labels and ranks of a span of a group, in the files of a distributed selection."""

    context: SelectionContext
    group: int
    span: slice

    def read(self) -> SampleLabels:
        """Read the labels from the files."""
        num_samples, span = self.context.num_samples, self.span
        width = len(self.context.columns)
        flat = self.context.read("ranks", self.group, rank_type(num_samples), _items(span, width))
        ranks = flat.reshape(-1, width) / (2 * num_samples)
        labels = self.context.read("labels", self.group, np.dtype(np.int8), _items(span, 2)).reshape(-1, 2)
        return SampleLabels(
            np.ascontiguousarray(labels[:, 0]),
            labels[:, 1] == 1,
            np.ascontiguousarray(ranks[:, 0]),
            np.ascontiguousarray(ranks[:, 1]),
        )


class LabelSource(Protocol):
    """Labels of a shard's samples, in memory or in files."""

    def read(self) -> SampleLabels:
        """Return labels and ranks of the shard's samples."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ShardSelection:
    """Input of the task that prunes a shard."""

    labels: LabelSource
    start: int
    """Population index of its first sample."""
    weighing: Weighing | None
    points: list[int]
    """Rows that the report draws as points."""
    examples: dict[int, ExampleKind]
    """Rows that the report shows with their tokens."""
    scores: str
    """Path of the shard's scores below the output."""


def _items(span: slice, width: int) -> slice:
    """Return the items of a file with `width` items a sample."""
    return slice(width * span.start, width * span.stop)
