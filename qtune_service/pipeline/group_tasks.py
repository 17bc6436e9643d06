"""What is done to one group of samples, or to one range of scores, in each round of stage 1.

    sort    a group: each column's distinct values, sorted (partition.py)       writes a run a column
    rank    a range of a column: merge what all runs have in it                 writes the ranks of each run's values
    place   a group: hand the ranks to its samples                              writes both ranks a sample
    count   a group: corner entries by bin (search.py), a round each 16 bits
    edge    a group: the scores at the edges of the corners
    label   a group: quadrants, and what the report needs                       writes a label a sample

What is small comes back to the driver (rounds.py) and merges; what is large goes through files, by ranges, so that
a group and a range need not be on one machine and a lost task is just done again. Bytes a sample, if all scores
differ: 24 in runs and 8 in ranks of ranges, both removed after `place`, then 9 (13 above 2^31 samples) until the job
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.partition import (
    RUN,
    Column,
    hand_out,
    part_within,
    rank_range,
    shown_values,
    sorted_run,
)
from qtune_service.core.placed import Edges, Placed, check_finite, count_labels, count_within
from qtune_service.core.plane import Quadrant, QuadrantRule, Thresholds, corner_entry
from qtune_service.core.ranks import rank_type
from qtune_service.core.search import BinCounts, Window
from qtune_service.data import storage
from qtune_service.pipeline.population import READ_THREADS, Group, Source
from qtune_service.report.distributions import Lengths, OrderStatistics
from qtune_service.report.sample import EvenSample, even_sample

SCORES = ("mean_nll", "mean_entropy")


@dataclass(frozen=True, slots=True)
class Ground:
    """What all rounds of a population share."""

    source: Source
    folder: str
    """Where the rounds keep their files."""
    num_samples: int  # N

    def file(self, kind: str, index: int) -> str:
        """URI of a file of a group or range."""
        return storage.join(self.folder, f"{kind}-{index:05}.bin")

    def read(self, kind: str, index: int, dtype: np.dtype[Any], items: slice) -> NDArray[Any]:
        """Some items of a file."""
        start, stop = items.start * dtype.itemsize, items.stop * dtype.itemsize
        return np.frombuffer(storage.read_range(self.file(kind, index), start, stop), dtype)

    def write(self, kind: str, index: int, items: NDArray[Any]) -> None:
        """Write a file."""
        storage.write_bytes(self.file(kind, index), np.ascontiguousarray(items).data.cast("B"))

    def placed(self, group: Group) -> Placed:
        """A group with the ranks that `place` found."""
        nll_ranks, entropy_ranks = self.ranks(group)
        nll, entropy = self.source.read(group, *SCORES)
        return Placed(nll, entropy, nll_ranks, entropy_ranks, self.num_samples)

    def ranks(self, group: Group) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both doubled mid-ranks of a group's samples, (n,) each."""
        flat = self.read("ranks", group.index, rank_type(self.num_samples), slice(0, 2 * group.num_samples))
        pairs = flat.reshape(-1, 2)
        return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


# --- sort


@dataclass(frozen=True, slots=True)
class SortTask:
    """A group, and which of its distinct values to show."""

    group: Group
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class SortedColumn:
    """What the driver knows of a run."""

    size: int
    shown: Column


def sort_group(ground: Ground, task: SortTask) -> tuple[SortedColumn, ...]:
    """Write both runs of a group."""
    found = []
    for name, values in zip(SCORES, ground.source.read(task.group, *SCORES), strict=True):
        check_finite(task.group.start, **{name: values})
        run = sorted_run(values)
        ground.write(name, task.group.index, run)
        found.append(SortedColumn(len(run), shown_values(run, task.step)))
    return tuple(found)


# --- rank


@dataclass(frozen=True, slots=True)
class RankTask:
    """A range (low, high] of a column, and where each group's run may have values of it."""

    name: str
    index: int
    low: float
    high: float
    parts: tuple[slice, ...]  # by group


@dataclass(frozen=True, slots=True)
class RankedPieces:
    """What the driver knows of a ranked range."""

    sizes: tuple[int, ...]
    """Values of each group in the range: its file holds their ranks in this order."""
    statistics: OrderStatistics


def rank_values(ground: Ground, task: RankTask) -> RankedPieces:
    """Write the ranks of all values of a range."""

    def read(item: tuple[int, slice]) -> NDArray[Any]:
        group, items = item
        return ground.read(task.name, group, RUN, items)

    parts = [part_within(items, task.low, task.high) for items in _together(read, list(enumerate(task.parts)))]
    ranked = rank_range(parts, ground.num_samples)
    ground.write(f"{task.name}-ranked", task.index, np.concatenate(ranked.ranks))
    statistics = OrderStatistics.of_range(ranked.values, ranked.ends, ranked.below, ground.num_samples)
    return RankedPieces(tuple(len(ranks) for ranks in ranked.ranks), statistics)


# --- place


@dataclass(frozen=True, slots=True)
class PlaceTask:
    """A group, and where the ranks of its runs' values are: for each column, items of each range's file."""

    group: Group
    pieces: tuple[tuple[slice, ...], ...]


def place_group(ground: Ground, task: PlaceTask) -> None:
    """Write the ranks of a group's samples, (n, 2), so that a shard's are in one place."""
    dtype = rank_type(ground.num_samples)
    ranks = np.empty((task.group.num_samples, len(SCORES)), dtype)
    columns = ground.source.read(task.group, *SCORES)
    for column, (name, pieces) in enumerate(zip(SCORES, task.pieces, strict=True)):

        def read(item: tuple[int, slice], kind: str = f"{name}-ranked") -> NDArray[Any]:
            return ground.read(kind, item[0], dtype, item[1])

        run_ranks = np.concatenate(list(_together(read, list(enumerate(pieces)))))
        ranks[:, column] = hand_out(columns[column], run_ranks)
    ground.write("ranks", task.group.index, ranks)


# --- count, edge, label


@dataclass(frozen=True, slots=True)
class CountTask:
    """A group, and the bounds to tell apart."""

    group: Group
    window: Window


def count_group(ground: Ground, task: CountTask) -> BinCounts:
    """Entries of a group's samples by bin of the window."""
    return task.window.count(corner_entry(*ground.ranks(task.group), ground.num_samples))


@dataclass(frozen=True, slots=True)
class EdgeTask:
    """A group, and the bound that was found."""

    group: Group
    bound: int


def edge_group(ground: Ground, task: EdgeTask) -> Edges:
    """A group's part in the thresholds."""
    return ground.placed(task.group).edges(task.bound)


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A group, and what decides on its samples."""

    group: Group
    bound: int
    thresholds: Thresholds
    rule: QuadrantRule | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelledGroup:
    """A group's part in totals and report."""

    counts: dict[Quadrant, int]
    within_half: int
    """Samples in corners that do not overlap."""
    lengths: Lengths
    sample: EvenSample


def label_group(ground: Ground, task: LabelTask) -> LabelledGroup:
    """Write a group's labels."""
    group, placed = task.group, ground.placed(task.group)
    entry = placed.entry()
    labels = placed.labels(entry, task.bound, task.thresholds, task.rule)
    ground.write("labels", group.index, labels)
    sample = even_sample(placed.mean_nll, placed.mean_entropy, labels, start=group.start, total=ground.num_samples)
    (num_tokens,) = ground.source.read(group, "num_tokens")
    lengths = Lengths.counted(num_tokens, labels)
    return LabelledGroup(count_labels(labels), count_within(entry, ground.num_samples), lengths, sample)


def _together(read: Callable[[tuple[int, slice]], NDArray[Any]], items: Sequence[tuple[int, slice]]) -> Iterator[Any]:
    """Read many small pieces at a time, in order."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(read, items)
