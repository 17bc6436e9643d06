"""Where samples lie on the plane and whether they are kept: what stage 1 tells the task that prunes a shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.pipeline.selection_tasks import Ground
from qtune_service.selection.examples import ExampleKind
from qtune_service.selection.ranks import rank_type
from qtune_service.selection.strategies import Weighing


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Some samples' places on the plane."""

    labels: NDArray[np.int8]  # (n,) Quadrant
    kept: NDArray[np.bool_]  # (n,)
    error_rank: NDArray[np.float64]  # (n,) mid-rank of mean NLL in (0, 1)
    entropy_rank: NDArray[np.float64]  # (n,)

    def read(self) -> Places:
        """They are here."""
        return self


@dataclass(frozen=True, slots=True)
class FiledPlaces:
    """The same, in the files of the rounds."""

    ground: Ground
    group: int
    span: slice

    def read(self) -> Places:
        """Read them."""
        num_samples, span = self.ground.num_samples, self.span
        width = len(self.ground.columns)
        flat = self.ground.read("ranks", self.group, rank_type(num_samples), _rows(span, width))
        ranks = flat.reshape(-1, width) / (2 * num_samples)
        verdicts = self.ground.read("labels", self.group, np.dtype(np.int8), _rows(span, 2)).reshape(-1, 2)
        return Places(
            np.ascontiguousarray(verdicts[:, 0]),
            verdicts[:, 1] == 1,
            np.ascontiguousarray(ranks[:, 0]),
            np.ascontiguousarray(ranks[:, 1]),
        )


class Placement(Protocol):
    """Where a shard's samples lie."""

    def read(self) -> Places:
        """Labels and ranks of the shard's samples."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ShardVerdict:
    """What a shard's pruning task is sent."""

    placement: Placement
    start: int
    """Place of its first sample in the population."""
    weighing: Weighing | None
    points: list[int]
    """Rows that the report draws one by one."""
    examples: dict[int, ExampleKind]
    """Rows that it shows with their tokens."""


def _rows(span: slice, width: int) -> slice:
    return slice(width * span.start, width * span.stop)
