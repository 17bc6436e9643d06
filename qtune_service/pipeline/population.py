"""The population as stage 1 sees it: groups of consecutive score shards, and their columns.

A group is what one process holds at a time. A population of one group is selected on the driver (see thresholds.py);
a larger one never comes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.layout import Output

GROUP_SAMPLES = 1 << 22
"""Samples that one process holds at a time; a shard with more is a group of its own. About 100 bytes each."""
READ_THREADS = 8

TYPES: Mapping[str, type[np.generic]] = {"mean_nll": np.float64, "mean_entropy": np.float64, "num_tokens": np.int32}
"""What stage 1 and the report read of a sample: two scores in nats, and its trained tokens."""


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive shards."""

    index: int
    start: int
    """Its first sample in the population."""
    shards: Mapping[int, int]
    """Shard index -> samples, in order."""

    @property
    def num_samples(self) -> int:
        """Samples of all its shards."""
        return sum(self.shards.values())

    def spans(self) -> dict[int, slice]:
        """Where each shard's samples lie in the group."""
        ends = np.cumsum(list(self.shards.values())).tolist()
        return {s: slice(end - rows, end) for (s, rows), end in zip(self.shards.items(), ends, strict=True)}


class Source(Protocol):
    """Where columns come from. It travels to workers, so it is small."""

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Columns of a group's samples, (n,) of TYPES[name] each."""
        ...


@dataclass(frozen=True, slots=True)
class ScoreShards:
    """The scores/ of an output."""

    root: str

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Read columns of the group's shards, in parallel."""
        columns: list[NDArray[Any]] = [np.empty(group.num_samples, TYPES[name]) for name in names]
        output = Output(self.root)

        def fill(item: tuple[int, slice]) -> None:
            shard, span = item
            table = output.read_part("scores", shard, list(names))
            for name, column in zip(names, columns, strict=True):
                column[span] = table[name].to_numpy()

        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(fill, group.spans().items()))
        return columns


@dataclass(frozen=True, slots=True)
class Population:
    """All scored samples, in shard order."""

    source: Source
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, source: Source, shards: Mapping[int, int]) -> Population:
        """Shards (index -> samples) in groups of at most GROUP_SAMPLES, or of one shard."""
        groups: list[dict[int, int]] = []
        filled = 0
        for shard, rows in shards.items():
            if not groups or filled + rows > GROUP_SAMPLES:
                groups.append({})
                filled = 0
            groups[-1][shard] = rows
            filled += rows
        starts = np.cumsum([0, *(sum(group.values()) for group in groups)]).tolist()
        return cls(source, tuple(Group(i, starts[i], group) for i, group in enumerate(groups)))

    @property
    def num_samples(self) -> int:
        """Samples of all groups."""
        return sum(group.num_samples for group in self.groups)
