"""What is done to one group of samples, or to one range of scores, in each round of stage 1.

    loss    a group: the sum of its losses, where a strategy needs their mean
    sort    a group: each column's distinct values, sorted (partition.py)       writes a run a column
    rank    a range of a column: merge what all runs have in it                 writes the ranks of each run's values
    place   a group: hand the ranks to its samples                              writes all ranks of a sample
    count   a group: corner entries by bin (search.py), a round each 16 bits
    edge    a group: the scores at the edges of the corners
    label   a group: quadrants, and what the report needs                       writes a label a sample

What is small comes back to the driver (rounds.py) and merges; what is large goes through files, by ranges, so that
a group and a range need not be on one machine and a lost task is just done again. Bytes a sample, if all scores
differ: 24 in runs and 8 in ranks of ranges, both removed after `place`, then 9 (13 above 2^31 samples) until the job
ends. Another strategy than Q-Tuning has a third column, its keys: half as much again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.pipeline.population import READ_THREADS, Group, Source
from qtune_service.selection.curve import EntryCounts
from qtune_service.selection.distributions import Lengths, OrderStatistics
from qtune_service.selection.even_sample import EvenSample, even_sample
from qtune_service.selection.partition import RUN, Column, hand_out, part_within, rank_range, shown_values, sorted_run
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds, corner_entry
from qtune_service.selection.ranked_samples import Edges, Placed, check_finite, count_labels, count_within, kept_labels
from qtune_service.selection.ranks import DoubleRanks, rank_type
from qtune_service.selection.search import BinCounts, Window
from qtune_service.selection.strategies import Priority, WeightedSides, loss_sum
from qtune_service.selection.token_masks import tokens_left
from qtune_service.storage import file_io

SCORES = ("mean_nll", "mean_entropy")
PRIORITY = "priority"
"""The column of another strategy's keys."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all rounds of a population share."""

    source: Source
    folder: str
    """Where the rounds keep their files."""
    num_samples: int  # N
    prune: PruneSpec
    priority: Priority | None = None
    """Another strategy than Q-Tuning."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is ranked."""
        return SCORES if self.priority is None else (*SCORES, PRIORITY)

    def read_columns(self, group: Group) -> list[Column]:
        """A group's values of each column, (n,) float64."""
        if self.priority is None:
            return self.source.read(group, *SCORES)
        nll, entropy, num_tokens = self.source.read(group, *SCORES, "num_tokens")
        return [nll, entropy, self.priority.keys(nll, entropy, num_tokens, group.start)]

    def file(self, kind: str, index: int) -> str:
        """URI of a file of a group or range."""
        return file_io.join(self.folder, f"{kind}-{index:05}.bin")

    def read(self, kind: str, index: int, dtype: np.dtype[Any], items: slice) -> NDArray[Any]:
        """Some items of a file."""
        start, stop = items.start * dtype.itemsize, items.stop * dtype.itemsize
        return np.frombuffer(file_io.read_range(self.file(kind, index), start, stop), dtype)

    def write(self, kind: str, index: int, items: NDArray[Any]) -> None:
        """Write a file."""
        file_io.write_bytes(self.file(kind, index), np.ascontiguousarray(items).data.cast("B"))

    def placed(self, group: Group) -> Placed:
        """A group with the ranks that `place` found."""
        nll_ranks, entropy_ranks = self.ranks(group)[:2]
        nll, entropy = self.source.read(group, *SCORES)
        return Placed(nll, entropy, nll_ranks, entropy_ranks, self.num_samples)

    def ranks(self, group: Group) -> tuple[NDArray[Any], ...]:
        """The doubled mid-ranks of a group's samples in each column, (n,) each."""
        width = len(self.columns)
        flat = self.read("ranks", group.index, rank_type(self.num_samples), slice(0, width * group.num_samples))
        return tuple(np.ascontiguousarray(column) for column in flat.reshape(-1, width).T)


# --- loss


@dataclass(frozen=True, slots=True)
class LossTask:
    """A group."""

    group: Group


def sum_losses(ground: Ground, task: LossTask) -> int:
    """A group's part in the mean loss."""
    (nll,) = ground.source.read(task.group, "mean_nll")
    return loss_sum(nll)


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
    """Write the runs of a group."""
    found = []
    for name, values in zip(ground.columns, ground.read_columns(task.group), strict=True):
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
    """Write the ranks of a group's samples, (n, 2) or (n, 3), so that a shard's are in one place."""
    dtype = rank_type(ground.num_samples)
    ranks = np.empty((task.group.num_samples, len(ground.columns)), dtype)
    columns = ground.read_columns(task.group)
    for column, (name, pieces) in enumerate(zip(ground.columns, task.pieces, strict=True)):

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
    by_priority: bool
    """Of the strategy's keys, not of the corners."""


def count_group(ground: Ground, task: CountTask) -> BinCounts:
    """Entries of a group's samples by bin of the window."""
    ranks = ground.ranks(task.group)
    entry = ranks[2] if task.by_priority else corner_entry(ranks[0], ranks[1], ground.num_samples)
    return task.window.count(entry)


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
    priority_bound: int | None
    """Of the strategy's keys."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledGroup:
    """A group's part in totals and report."""

    counts: dict[Quadrant, int]
    kept: int
    within_half: int
    """Samples in corners that do not overlap."""
    lengths: Lengths
    sample: EvenSample
    sides: WeightedSides | None


def label_group(ground: Ground, task: LabelTask) -> tuple[LabelledGroup, EntryCounts]:
    """Write a group's labels, and whether each sample is kept."""
    group, placed, num_samples = task.group, ground.placed(task.group), ground.num_samples
    entry = placed.entry()
    labels = placed.labels(entry, task.bound, task.thresholds, task.rule)
    kept = kept_labels(labels) if task.priority_bound is None else ground.ranks(group)[2] <= task.priority_bound
    ground.write("labels", group.index, np.stack([labels, kept.astype(np.int8)], axis=1))
    (num_tokens,) = ground.source.read(group, "num_tokens")
    labelled = LabelledGroup(
        counts=count_labels(labels),
        kept=int(np.count_nonzero(kept)),
        within_half=count_within(entry, num_samples),
        lengths=Lengths.counted(num_tokens, labels),
        sample=even_sample(
            placed, labels=labels, kept=kept, num_tokens=num_tokens, start=group.start, total=num_samples
        ),
        sides=None if ground.priority is None else ground.priority.sides(placed.mean_nll, kept),
    )
    return labelled, count_entries(placed, entry, num_tokens, ground.prune)


def count_entries(
    placed: Placed, entry: DoubleRanks, num_tokens: NDArray[np.integer[Any]], prune: PruneSpec
) -> EntryCounts:
    """What samples (n,) add to the curve of keep ratios."""
    left = tokens_left(
        num_tokens,
        token_keep_ratio=prune.token_keep_ratio,
        min_tokens_to_prune=prune.min_tokens_to_prune,
        token_strategy=prune.token_strategy,
    )
    return EntryCounts.counted(placed.nll_ranks, placed.entropy_ranks, entry, num_tokens, left, placed.num_samples)


def _together(read: Callable[[tuple[int, slice]], NDArray[Any]], items: Sequence[tuple[int, slice]]) -> Iterator[Any]:
    """Read many small pieces at a time, in order."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(read, items)
