"""Tasks of a distributed selection: the work on one group of samples, or on one range of scores, in each round.

    loss    a group: the sum of its losses, where a strategy needs their mean
    sort    a group: each column's distinct values, sorted                      writes a run a column
    rank    a range of a column: merge the parts of all runs in it              writes the ranks of each run's values
    place   a group: the ranks of its samples                                   writes all ranks of a sample
    count   a group: scaled entry alphas by bin
    list    a group: scaled entry alphas in the bins where a target is reached
    edge    a group: the scores at the edges of the corners
    label   a group: quadrants, and its part of the report's figures            writes a label a sample

The algorithms are those of selection/distributed.py. Small results return to the driver (distributed_selection.py) and
merge there. Large ones go through files, by ranges, so a group and a range need not be on one machine, and a lost task
is simply repeated. Files take, if all scores differ, 24 bytes a sample in runs and 8 in ranks of ranges, which are
removed after `place`, then 10 (18 above 2^31 samples) until the job ends. A strategy other than Q-Tuning has a third
column, its keys: 1.5 times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.output.columns import PROTECTED
from qtune_service.pipeline.population import READ_THREADS, Group, Source
from qtune_service.selection.curve import CurveCounts
from qtune_service.selection.distributed import (
    RUN,
    Column,
    EntryBins,
    EntryList,
    candidates_of,
    part_within,
    rank_range,
    ranks_of_samples,
    sorted_run,
)
from qtune_service.selection.distributions import EvenSample, Lengths, OrderStatistics, even_sample
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds, scaled_entry_alphas
from qtune_service.selection.ranked_samples import (
    Edges,
    RankedSamples,
    check_finite,
    count_kept,
    count_labels,
    kept_labels,
)
from qtune_service.selection.ranks import DoubleRanks, rank_type
from qtune_service.selection.strategies import Priority, WeightedSides, loss_sum
from qtune_service.selection.token_masks import tokens_left
from qtune_service.storage import file_io

SCORES = ("mean_nll", "mean_entropy")
PRIORITY = "priority"
"""Column of another strategy's keys."""


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """Parameters and files that all rounds of a distributed selection share."""

    source: Source
    folder: str
    """Folder of the rounds' files."""
    num_samples: int  # N
    prune: PruneSpec
    priority: Priority | None = None
    """A strategy other than Q-Tuning."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the ranked columns."""
        return SCORES if self.priority is None else (*SCORES, PRIORITY)

    def read_columns(self, group: Group) -> list[Column]:
        """Return a group's values of each ranked column, (n,) float64."""
        if self.priority is None:
            return self.source.read(group, *SCORES)
        nll, entropy, num_tokens = self.source.read(group, *SCORES, "num_tokens")
        return [nll, entropy, self.priority.keys(nll, entropy, num_tokens, group.start)]

    def file(self, kind: str, index: int) -> str:
        """Return the URI of a file of a group or range."""
        return file_io.join(self.folder, f"{kind}-{index:05}.bin")

    def read(self, kind: str, index: int, dtype: np.dtype[Any], items: slice) -> NDArray[Any]:
        """Read some items of a file."""
        start, stop = items.start * dtype.itemsize, items.stop * dtype.itemsize
        return np.frombuffer(file_io.read_range(self.file(kind, index), start, stop), dtype)

    def write(self, kind: str, index: int, items: NDArray[Any]) -> None:
        """Write a file."""
        file_io.write_bytes(self.file(kind, index), np.ascontiguousarray(items).data.cast("B"))

    def ranked(self, group: Group) -> RankedSamples:
        """Return a group with the ranks that `place` wrote."""
        nll_ranks, entropy_ranks = self.ranks(group)[:2]
        nll, entropy = self.source.read(group, *SCORES)
        return RankedSamples(nll, entropy, nll_ranks, entropy_ranks, self.num_samples)

    def ranks(self, group: Group) -> tuple[NDArray[Any], ...]:
        """Return the doubled mid-ranks of a group's samples in each column, (n,) each."""
        width = len(self.columns)
        flat = self.read("ranks", group.index, rank_type(self.num_samples), slice(0, width * group.num_samples))
        return tuple(np.ascontiguousarray(column) for column in flat.reshape(-1, width).T)

    def entry_alphas(self, group: Group, *, by_priority: bool) -> DoubleRanks:
        """Return the scaled entry alphas of a group's samples (n,), or the ranks of another strategy's keys."""
        ranks = self.ranks(group)
        return ranks[2] if by_priority else scaled_entry_alphas(ranks[0], ranks[1], self.num_samples)


# --- loss


@dataclass(frozen=True, slots=True)
class LossTask:
    """Input of `sum_losses`."""

    group: Group


def sum_losses(context: SelectionContext, task: LossTask) -> int:
    """Return a group's part of the mean loss."""
    (nll,) = context.source.read(task.group, "mean_nll")
    return loss_sum(nll)


# --- sort


@dataclass(frozen=True, slots=True)
class SortTask:
    """Input of `sort_group`."""

    group: Group
    step: int
    """Every step-th distinct value is a candidate for a splitter."""


@dataclass(frozen=True, slots=True, eq=False)
class SortedColumn:
    """Size of a run, and its candidates for splitters."""

    size: int
    candidates: Column


def sort_group(context: SelectionContext, task: SortTask) -> tuple[SortedColumn, ...]:
    """Write the runs of a group."""
    found = []
    for name, values in zip(context.columns, context.read_columns(task.group), strict=True):
        check_finite(task.group.start, **{name: values})
        run = sorted_run(values)
        context.write(name, task.group.index, run)
        found.append(SortedColumn(len(run), candidates_of(run, task.step)))
    return tuple(found)


# --- rank


@dataclass(frozen=True, slots=True)
class RankTask:
    """Input of `rank_values`: a range (low, high] of a column, and the items of each run that may be in it."""

    name: str
    index: int
    low: float
    high: float
    parts: tuple[slice, ...]  # by group


@dataclass(frozen=True, slots=True)
class RankedPieces:
    """Sizes and statistics of a ranked range."""

    sizes: tuple[int, ...]
    """Values of each group in the range. The range's file holds their ranks in this order."""
    statistics: OrderStatistics


def rank_values(context: SelectionContext, task: RankTask) -> RankedPieces:
    """Write the ranks of all values of a range."""

    def read(item: tuple[int, slice]) -> NDArray[Any]:
        group, items = item
        return context.read(task.name, group, RUN, items)

    parts = [part_within(items, task.low, task.high) for items in _read_all(read, list(enumerate(task.parts)))]
    ranked = rank_range(parts, context.num_samples)
    context.write(f"{task.name}-ranked", task.index, np.concatenate(ranked.ranks))
    statistics = OrderStatistics.of_range(ranked.values, ranked.ends, ranked.below, context.num_samples)
    return RankedPieces(tuple(len(ranks) for ranks in ranked.ranks), statistics)


# --- place


@dataclass(frozen=True, slots=True)
class PlaceTask:
    """Input of `place_group`: a group, and for each column the items of each range's file with its values' ranks."""

    group: Group
    pieces: tuple[tuple[slice, ...], ...]


def place_group(context: SelectionContext, task: PlaceTask) -> None:
    """Write the ranks of a group's samples, (n, 2) or (n, 3), so that those of a shard are in one range of a file."""
    dtype = rank_type(context.num_samples)
    ranks = np.empty((task.group.num_samples, len(context.columns)), dtype)
    columns = context.read_columns(task.group)
    for column, (name, pieces) in enumerate(zip(context.columns, task.pieces, strict=True)):

        def read(item: tuple[int, slice], kind: str = f"{name}-ranked") -> NDArray[Any]:
            return context.read(kind, item[0], dtype, item[1])

        run_ranks = np.concatenate(list(_read_all(read, list(enumerate(pieces)))))
        ranks[:, column] = ranks_of_samples(columns[column], run_ranks)
    context.write("ranks", task.group.index, ranks)


# --- count and list


@dataclass(frozen=True, slots=True)
class CountTask:
    """Input of `count_entries`."""

    group: Group
    by_priority: bool
    """Whether to count the ranks of another strategy's keys instead of entry alphas."""


def count_entries(context: SelectionContext, task: CountTask) -> NDArray[np.int64]:
    """Return the samples of a group in each bin of scaled entry alphas (B,)."""
    return EntryBins(context.num_samples).count(context.entry_alphas(task.group, by_priority=task.by_priority))


@dataclass(frozen=True, slots=True, eq=False)
class ListTask:
    """Input of `list_entries`."""

    group: Group
    by_priority: bool
    bins: NDArray[np.int64]  # (W,) bins where a target is reached


def list_entries(context: SelectionContext, task: ListTask) -> EntryList:
    """Return the scaled entry alphas of a group that are in the given bins."""
    entry = context.entry_alphas(task.group, by_priority=task.by_priority)
    return EntryList.within(EntryBins(context.num_samples), task.bins, entry)


# --- edge and label


@dataclass(frozen=True, slots=True)
class EdgeTask:
    """Input of `find_edges`."""

    group: Group
    scaled_alpha: int


def find_edges(context: SelectionContext, task: EdgeTask) -> Edges:
    """Return a group's part of the thresholds."""
    return context.ranked(task.group).edges(task.scaled_alpha)


@dataclass(frozen=True, slots=True, eq=False)
class LabelTask:
    """Input of `label_group`."""

    group: Group
    scaled_alpha: int
    thresholds: Thresholds
    rule: QuadrantRule | None
    max_priority: int | None
    """Largest kept rank of another strategy's keys."""
    curve_alphas: NDArray[np.int64]  # (R,) scaled alphas of the what-if curve, ascending


@dataclass(frozen=True, slots=True, eq=False)
class LabelledGroup:
    """A group's part of the summary and the report."""

    counts: dict[Quadrant, int]
    kept: int
    disjoint_capacity: int
    """Samples in corners that do not overlap."""
    lengths: Lengths
    sample: EvenSample
    sides: WeightedSides | None
    curve: CurveCounts


def label_group(context: SelectionContext, task: LabelTask) -> LabelledGroup:
    """Write a group's labels, and whether each sample is kept."""
    group, ranked, num_samples = task.group, context.ranked(task.group), context.num_samples
    entry = ranked.entry_alphas()
    labels = ranked.labels(entry, task.scaled_alpha, task.thresholds, task.rule)
    kept = kept_labels(labels) if task.max_priority is None else context.ranks(group)[2] <= task.max_priority
    context.write("labels", group.index, np.stack([labels, kept.astype(np.int8)], axis=1))
    num_tokens, num_protected = read_lengths(context.source, group, context.prune)
    return LabelledGroup(
        counts=count_labels(labels),
        kept=int(np.count_nonzero(kept)),
        disjoint_capacity=count_kept(entry, num_samples),
        lengths=Lengths.counted(num_tokens, labels),
        sample=even_sample(
            ranked, labels=labels, kept=kept, num_tokens=num_tokens, start=group.start, total=num_samples
        ),
        sides=None if context.priority is None else context.priority.sides(ranked.mean_nll, kept),
        curve=count_curve(ranked, entry, num_tokens, num_protected, task.curve_alphas, context.prune),
    )


def read_lengths(source: Source, group: Group, prune: PruneSpec) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return a group's trained tokens (n,), and those of them that stay in each sample, if any do."""
    if not prune.keep_end_of_turn:
        return source.read(group, "num_tokens")[0], None
    num_tokens, num_protected = source.read(group, "num_tokens", PROTECTED)
    return num_tokens, num_protected


def count_curve(
    ranked: RankedSamples,
    entry: DoubleRanks,  # (n,) scaled entry alphas
    num_tokens: NDArray[np.integer[Any]],  # (n,) trained tokens
    num_protected: NDArray[np.integer[Any]] | None,  # (n,) those that stay
    scaled_alphas: NDArray[np.int64],  # (R,) ascending
    prune: PruneSpec,
) -> CurveCounts:
    """Return the counts of n samples for the what-if curve."""
    left = tokens_left(
        num_tokens,
        num_protected,
        token_keep_ratio=prune.token_keep_ratio,
        min_tokens_to_prune=prune.min_tokens_to_prune,
        token_strategy=prune.token_strategy,
    )
    return CurveCounts.of(ranked, entry, num_tokens, left, scaled_alphas)


def _read_all(read: Callable[[tuple[int, slice]], NDArray[Any]], items: Sequence[tuple[int, slice]]) -> Iterator[Any]:
    """Read many small pieces in parallel, and yield them in order."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(read, items)
