"""Stage 1 of a population that no process holds: the driver's side.

The driver runs the rounds of tasks of selection_tasks.py. Each group or range is a task. The tasks of a round may run
anywhere in any order, and their results merge: counts add up, edges and order statistics of ranges join. The outcome is
that of a selection in memory (selection/thresholds.py), bit for bit. At 1e9 samples in 239 groups the driver holds the
candidates for splitters and the spans of pieces (some 10 MB), 2^16 counters, some 3 million listed entry alphas
(50 MB), and an even sample of a million samples (46 MB). A user's rule runs in this process, where it was loaded, one
group at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.removal import WORKING
from qtune_service.pipeline.population import Group
from qtune_service.pipeline.selection_tasks import (
    SCORES,
    CountTask,
    EdgeTask,
    LabelledGroup,
    LabelTask,
    ListTask,
    LossTask,
    PlaceTask,
    RankedPieces,
    RankTask,
    SelectionContext,
    SortedColumn,
    SortTask,
    count_entries,
    find_edges,
    label_group,
    list_entries,
    place_group,
    rank_values,
    sort_group,
    sum_losses,
)
from qtune_service.samples import count_of_share
from qtune_service.selection.curve import CurveCounts, CurvePoint
from qtune_service.selection.distributed import (
    EntryBins,
    EntryList,
    slice_to_read,
    smallest_in_bins,
    splitters,
    target_bins,
)
from qtune_service.selection.distributions import (
    Distributions,
    EvenSample,
    Lengths,
    OrderStatistics,
    describe_parts,
    rank_correlation,
)
from qtune_service.selection.plane import Quadrant, QuadrantRule
from qtune_service.selection.ranked_samples import Edges
from qtune_service.selection.strategies import WeightedSides, mean_of
from qtune_service.selection.thresholds import SelectionSummary, bisected_alpha, target_count
from qtune_service.storage import file_io, folder_io
from qtune_service.storage.confined import Root

OVERSAMPLING = 8
"""Candidates for splitters that a group gives for each range."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Runs `work` on each (index, payload): tasks of Ray in a job, processes in a benchmark."""

    def __call__(self, items: Sequence[tuple[int, bytes]], context: SelectionContext, /) -> Iterator[tuple[int, bytes]]:
        """Yield (index, result) in any order. An error of `work` is raised unchanged."""
        ...


def work(_index: int, payload: bytes, context: SelectionContext) -> bytes:
    """Run one task of a round."""
    function, task = pickle.loads(payload)  # noqa: S301 - from this job's driver
    return pickle.dumps(function(context, task))


@dataclass(frozen=True, slots=True, eq=False)
class DistributedResult:
    """Outcome for the population. Labels and ranks of samples stay in the context's files."""

    summary: SelectionSummary
    distributions: Distributions
    sample: EvenSample
    curve: tuple[CurvePoint, ...]
    sides: WeightedSides | None


@dataclass(frozen=True, slots=True)
class DistributedSelection:
    """A population in groups, and the workers that run its tasks."""

    groups: tuple[Group, ...]
    workers: Workers
    context: SelectionContext

    def select(
        self,
        *,
        sample_keep_ratio: float,
        bisect_max_iter: int | None,
        rule: QuadrantRule | None,
        curve_ratios: Sequence[float],
        advance: Callable[[int], None],
    ) -> DistributedResult:
        """Select as `selection.thresholds.select` does.

        `curve_ratios` are the ascending keep ratios of the what-if curve. `advance` is called with a number of samples
        when these have their labels.
        """
        num_samples = self.context.num_samples
        target = target_count(sample_keep_ratio, num_samples)
        folder = Root(self.context.folder)
        for name in folder_io.list_files(folder):  # files of a driver that was killed
            if re.fullmatch(WORKING["ranks"], name):
                folder_io.remove_file(folder, name)
        statistics = self.rank()
        targets = [target, *(count_of_share(ratio, num_samples) for ratio in curve_ratios)]
        smallest, *curve_alphas = self.smallest_scaled_alphas(targets, by_priority=False).tolist()
        max_priority = None
        if self.context.priority is not None:
            (max_priority,) = self.smallest_scaled_alphas([target], by_priority=True).tolist()
        scaled_alpha = bisected_alpha(smallest, num_samples, bisect_max_iter)
        thresholds = self.edges(scaled_alpha).thresholds(scaled_alpha, num_samples)
        alphas = np.array(curve_alphas, np.int64)
        tasks = [LabelTask(group, scaled_alpha, thresholds, rule, max_priority, alphas) for group in self.groups]
        labelled: dict[int, LabelledGroup] = {}
        for index, group in self._label(tasks):
            labelled[index] = group
            advance(self.groups[index].num_samples)
        in_order = [labelled[group.index] for group in self.groups]
        summary = SelectionSummary(
            thresholds=thresholds,
            target=target,
            kept=sum(group.kept for group in in_order),
            disjoint_capacity=sum(group.disjoint_capacity for group in in_order),
            num_samples=num_samples,
            counts={quadrant: sum(group.counts[quadrant] for group in in_order) for quadrant in Quadrant},
        )
        sample = EvenSample.joined([group.sample for group in in_order])
        curve = functools.reduce(CurveCounts.plus, (group.curve for group in in_order))
        sides = [group.sides for group in in_order if group.sides is not None]
        return DistributedResult(
            summary=summary,
            distributions=_describe(statistics, in_order, sample),
            sample=sample,
            curve=curve.points(curve_ratios, num_samples),
            sides=WeightedSides.merged(sides) if sides else None,
        )

    def mean_loss(self) -> float:
        """Return the mean loss of the population, in nats."""
        total = sum(part for _, part in self._run(sum_losses, [LossTask(group) for group in self.groups]))
        return mean_of(total, self.context.num_samples)

    def rank(self) -> dict[str, OrderStatistics]:
        """Write the ranks of all samples. Return the order statistics of each column."""
        step, columns = self._step(), self.context.columns
        sorts = [SortTask(group, step) for group in self.groups]
        runs = [run for _, run in sorted(self._run(sort_group, sorts), key=operator.itemgetter(0))]
        tasks: list[RankTask] = []
        for column, name in enumerate(columns):
            tasks += _ranges(name, [run[column] for run in runs], step)
        ranked = dict(self._run(rank_values, tasks))
        pieces = {name: [ranked[i] for i, task in enumerate(tasks) if task.name == name] for name in columns}
        slices = {name: _slices(of_ranges) for name, of_ranges in pieces.items()}
        tasks_by_group = [PlaceTask(g, tuple(slices[name][g.index] for name in columns)) for g in self.groups]
        for _ in self._run(place_group, tasks_by_group):
            pass
        for name in columns:
            self._remove(name, len(self.groups))
            self._remove(f"{name}-ranked", len(pieces[name]))
        return {name: OrderStatistics.merged(p.statistics for p in of_ranges) for name, of_ranges in pieces.items()}

    def smallest_scaled_alphas(self, targets: Sequence[int], *, by_priority: bool) -> NDArray[np.int64]:
        """Return the smallest scaled alpha (T,) that keeps each target (1 to N), in two rounds.

        `by_priority` takes the ranks of another strategy's keys instead of entry alphas.
        """
        counting = [CountTask(group, by_priority) for group in self.groups]
        counts = functools.reduce(operator.iadd, (counts for _, counts in self._run(count_entries, counting)))
        wanted = target_bins(counts, targets)
        listing = [ListTask(group, by_priority, wanted) for group in self.groups]
        found = EntryList.merged([part for _, part in self._run(list_entries, listing)])
        return smallest_in_bins(EntryBins(self.context.num_samples), counts, found, targets)

    def edges(self, scaled_alpha: int) -> Edges:
        """Return the scores at the edges of the corners."""
        tasks = [EdgeTask(group, scaled_alpha) for group in self.groups]
        return Edges.merged(edges for _, edges in self._run(find_edges, tasks))

    def _label(self, tasks: Sequence[LabelTask]) -> Iterator[tuple[int, LabelledGroup]]:
        """Label every sample: by the workers, or with a user's rule in this process."""
        if all(task.rule is None for task in tasks):
            return self._run(label_group, tasks)
        return ((task.group.index, label_group(self.context, task)) for task in tasks)

    def _step(self) -> int:
        """Return the distance of candidates in a run, for as many ranges as groups."""
        return max(1, self.context.num_samples // (OVERSAMPLING * len(self.groups) ** 2))

    def _remove(self, kind: str, count: int) -> None:
        for index in range(count):
            file_io.remove_file(self.context.file(kind, index))

    def _run(
        self, function: Callable[[SelectionContext, Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Run one round. Yield (index of the task, result) in any order."""
        items = [(index, pickle.dumps((function, task))) for index, task in enumerate(tasks)]
        for index, payload in self.workers(items, self.context):
            yield index, pickle.loads(payload)  # noqa: S301 - from `work` of this job


def _describe(
    statistics: dict[str, OrderStatistics], groups: Sequence[LabelledGroup], sample: EvenSample
) -> Distributions:
    nll, entropy = (statistics[name] for name in SCORES)
    lengths = functools.reduce(Lengths.plus, (group.lengths for group in groups))
    return describe_parts(nll, entropy, lengths, rank_correlation(sample.mean_nll, sample.mean_entropy))


def _ranges(name: str, runs: Sequence[SortedColumn], step: int) -> list[RankTask]:
    """Return tasks for the ranges of a column: as many as there are runs, or fewer."""
    ends = splitters((run.candidates for run in runs), len(runs)).tolist()
    return [
        RankTask(name, index, low, high, tuple(slice_to_read(r.candidates, r.size, step, low, high) for r in runs))
        for index, (low, high) in enumerate(itertools.pairwise([-math.inf, *ends]))
    ]


def _slices(ranges: Sequence[RankedPieces]) -> list[tuple[slice, ...]]:
    """Return, for each group, the items of each range's file with the ranks of the group's values."""
    ends = np.cumsum([pieces.sizes for pieces in ranges], axis=1)  # (R, G)
    starts = ends - np.array([pieces.sizes for pieces in ranges])
    return [
        tuple(itertools.starmap(slice, zip(starts[:, group].tolist(), ends[:, group].tolist(), strict=True)))
        for group in range(ends.shape[1])
    ]
