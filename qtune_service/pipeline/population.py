"""The population of stage 1: groups of consecutive score shards, and the columns that stage 1 reads.

A group is what one process holds at a time. A population of one group is selected in the driver's memory
(selection_stage.py). A larger one stays in its shards, and tasks go through it group by group.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.columns import PROTECTED, num_protected
from qtune_service.output.layout import Output, part_path
from qtune_service.selection.distributed import MAX_IN_MEMORY_SAMPLES

READ_THREADS = 8

TYPES: Mapping[str, type[np.generic]] = {
    "mean_nll": np.float64,
    "mean_entropy": np.float64,
    "num_tokens": np.int32,
    PROTECTED: np.int32,
}
"""Columns that stage 1 and the report read of a sample: two scores in nats, its trained tokens, and those of them that
`keep_end_of_turn` protects."""


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive shards."""

    index: int
    start: int
    """Population index of its first sample."""
    shards: Mapping[int, int]
    """Shard index -> samples, in order."""
    paths: Mapping[int, str] = field(default_factory=dict)
    """Shard index -> path of its scores below the output, where it is not that of earlier versions."""

    @property
    def num_samples(self) -> int:
        """Samples of all its shards."""
        return sum(self.shards.values())

    def path(self, shard: int) -> str:
        """Return the path of a shard's scores below the output."""
        return self.paths.get(shard) or part_path("scores", shard)

    def spans(self) -> dict[int, slice]:
        """Return the span of each shard's samples in the group."""
        ends = np.cumsum(list(self.shards.values())).tolist()
        return {s: slice(end - rows, end) for (s, rows), end in zip(self.shards.items(), ends, strict=True)}


class Source(Protocol):
    """Reader of columns. It is sent to workers, so it is small."""

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Return columns of a group's samples, (n,) of TYPES[name] each."""
        ...


@dataclass(frozen=True, slots=True)
class ScoreShards:
    """The scores/ folder of an output as a source."""

    root: str
    stop_ids: tuple[int, ...] = ()
    """Stop tokens, for parts of earlier versions, which have no column of protected tokens."""

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Read columns of the group's shards, in parallel."""
        columns: list[NDArray[Any]] = [np.empty(group.num_samples, TYPES[name]) for name in names]
        output = Output(self.root)

        def fill(item: tuple[int, slice]) -> None:
            shard, span = item
            read = functools.partial(output.read_part, group.path(shard))
            table = read(list(names))
            for name, column in zip(names, columns, strict=True):
                is_there = name in table.column_names or name != PROTECTED
                column[span] = table[name].to_numpy() if is_there else num_protected(read, self.stop_ids)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(fill, group.spans().items()))
        return columns


@dataclass(frozen=True, slots=True)
class Population:
    """All scored samples, in shard order."""

    source: Source
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, source: Source, shards: Mapping[int, int], paths: Mapping[int, str] | None = None) -> Population:
        """Arrange shards (index -> samples) in groups of at most MAX_IN_MEMORY_SAMPLES, or of one larger shard."""
        paths = paths or {}
        groups: list[dict[int, int]] = []
        filled = 0
        for shard, rows in shards.items():
            if not groups or filled + rows > MAX_IN_MEMORY_SAMPLES:
                groups.append({})
                filled = 0
            groups[-1][shard] = rows
            filled += rows
        starts = np.cumsum([0, *(sum(group.values()) for group in groups)]).tolist()
        of_group = ({shard: paths[shard] for shard in group if shard in paths} for group in groups)
        return cls(
            source, tuple(Group(i, starts[i], *parts) for i, parts in enumerate(zip(groups, of_group, strict=True)))
        )

    @property
    def num_samples(self) -> int:
        """Samples of all groups."""
        return sum(group.num_samples for group in self.groups)
