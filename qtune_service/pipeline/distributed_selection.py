"""Stage 1 of a population that no process holds: what the driver asks of each round, and decides.

The rounds are those of group_tasks.py. Each group or range is a task, tasks of a round may run anywhere in any order,
and their results merge: counts add up, edges and ranges of order statistics join. At 1e9 samples in 239 groups the
driver holds shown values and the places of pieces (some 10 MB), 2^16 counters, and an even sample of a million
samples (46 MB). A user's rule runs in this process, where it was loaded, one group at a time.
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

from qtune_service.output.removal import WORKING
from qtune_service.pipeline.population import Group
from qtune_service.pipeline.selection_tasks import (
    SCORES,
    CountTask,
    EdgeTask,
    Ground,
    LabelledGroup,
    LabelTask,
    LossTask,
    PlaceTask,
    RankedPieces,
    RankTask,
    SortedColumn,
    SortTask,
    count_group,
    edge_group,
    label_group,
    place_group,
    rank_values,
    sort_group,
    sum_losses,
)
from qtune_service.selection.curve import EntryCounts
from qtune_service.selection.distributions import (
    Distributions,
    Lengths,
    OrderStatistics,
    describe_parts,
    rank_correlation,
)
from qtune_service.selection.even_sample import EvenSample
from qtune_service.selection.partition import part_to_read, splitters
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds
from qtune_service.selection.ranked_samples import Edges
from qtune_service.selection.search import BinCounts, Window, smallest_bound, stopped_early
from qtune_service.selection.strategies import WeightedSides, mean_of
from qtune_service.selection.thresholds import Totals, check_target
from qtune_service.storage import file_io, folder_io
from qtune_service.storage.confined import Root

OVERSAMPLING = 8
"""Values that a group shows for each range."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Whoever runs `work` on each (index, payload): tasks of Ray in a job, processes in a benchmark."""

    def __call__(self, items: Sequence[tuple[int, bytes]], ground: Ground, /) -> Iterator[tuple[int, bytes]]:
        """Yield (index, result) in any order. An error of `work` is raised as it was."""
        ...


def work(_index: int, payload: bytes, ground: Ground) -> bytes:
    """Do one task of a round."""
    function, task = pickle.loads(payload)  # noqa: S301 - from this job's driver
    return pickle.dumps(function(ground, task))


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """What the rounds found. Labels and ranks of samples stay in the ground's files."""

    totals: Totals
    distributions: Distributions
    sample: EvenSample
    entries: EntryCounts
    sides: WeightedSides | None


@dataclass(frozen=True, slots=True)
class Rounds:
    """A population in groups, and who works on it."""

    groups: tuple[Group, ...]
    workers: Workers
    ground: Ground

    def select(
        self,
        *,
        sample_keep_ratio: float,
        bisect_max_iter: int | None,
        rule: QuadrantRule | None,
        advance: Callable[[int], None],
    ) -> Selected:
        """The same as core.thresholds.select. advance: called with a number of samples that have their labels."""
        num_samples = self.ground.num_samples
        target = check_target(sample_keep_ratio, num_samples)
        folder = Root(self.ground.folder)
        for name in folder_io.list_files(folder):  # what a driver that was killed left
            if re.fullmatch(WORKING["ranks"], name):
                folder_io.remove_file(folder, name)
        statistics = self.rank()
        smallest = smallest_bound(num_samples, target, self.count)
        priority_bound = smallest_bound(num_samples, target, self.count_keys) if self.ground.priority else None
        bound = stopped_early(smallest, num_samples, bisect_max_iter)
        thresholds = self.edges(bound).thresholds(bound, num_samples)
        labelled: dict[int, LabelledGroup] = {}
        entries = EntryCounts.nothing(num_samples)
        for index, (found, counted) in self.label(bound, thresholds, rule, priority_bound):
            labelled[index] = found
            entries = entries.plus(counted)  # 3 MB a group, so not kept
            advance(self.groups[index].num_samples)
        return self._merged([labelled[group.index] for group in self.groups], entries, thresholds, target, statistics)

    def rank(self) -> dict[str, OrderStatistics]:
        """Place every sample; returns what the sorted columns tell."""
        step, columns = self._step(), self.ground.columns
        sorts = [SortTask(group, step) for group in self.groups]
        runs = [run for _, run in sorted(self._carry_out(sort_group, sorts), key=operator.itemgetter(0))]
        tasks: list[RankTask] = []
        for column, name in enumerate(columns):
            tasks += _ranges(name, [run[column] for run in runs], step)
        ranked = dict(self._carry_out(rank_values, tasks))
        pieces = {name: [ranked[i] for i, task in enumerate(tasks) if task.name == name] for name in columns}
        places = {name: _places(of_ranges) for name, of_ranges in pieces.items()}
        tasks_by_group = [PlaceTask(g, tuple(places[name][g.index] for name in columns)) for g in self.groups]
        for _ in self._carry_out(place_group, tasks_by_group):
            pass
        for name in columns:
            self._remove(name, len(self.groups))
            self._remove(f"{name}-ranked", len(pieces[name]))
        return {name: OrderStatistics.merged(p.statistics for p in of_ranges) for name, of_ranges in pieces.items()}

    def count(self, window: Window) -> BinCounts:
        """Corner entries of all samples by bin."""
        return self._count(window, by_priority=False)

    def count_keys(self, window: Window) -> BinCounts:
        """The same of another strategy's keys."""
        return self._count(window, by_priority=True)

    def _count(self, window: Window, *, by_priority: bool) -> BinCounts:
        tasks = [CountTask(group, window, by_priority) for group in self.groups]
        return functools.reduce(operator.iadd, (counts for _, counts in self._carry_out(count_group, tasks)))

    def mean_loss(self) -> float:
        """Nats, of the population."""
        total = sum(part for _, part in self._carry_out(sum_losses, [LossTask(group) for group in self.groups]))
        return mean_of(total, self.ground.num_samples)

    def edges(self, bound: int) -> Edges:
        """Scores at the corners' edges."""
        tasks = [EdgeTask(group, bound) for group in self.groups]
        return Edges.merged(edges for _, edges in self._carry_out(edge_group, tasks))

    def label(
        self, bound: int, thresholds: Thresholds, rule: QuadrantRule | None, priority_bound: int | None
    ) -> Iterator[tuple[int, tuple[LabelledGroup, EntryCounts]]]:
        """Label every sample; with a rule, here."""
        tasks = [LabelTask(group, bound, thresholds, rule, priority_bound) for group in self.groups]
        if rule is None:
            return self._carry_out(label_group, tasks)
        return ((task.group.index, label_group(self.ground, task)) for task in tasks)

    def _merged(
        self,
        labelled: Sequence[LabelledGroup],
        entries: EntryCounts,
        thresholds: Thresholds,
        target: int,
        statistics: dict[str, OrderStatistics],
    ) -> Selected:
        counts = {quadrant: sum(group.counts[quadrant] for group in labelled) for quadrant in Quadrant}
        totals = Totals(
            thresholds=thresholds,
            target=target,
            kept=sum(group.kept for group in labelled),
            disjoint_capacity=sum(group.within_half for group in labelled),
            num_samples=self.ground.num_samples,
            counts=counts,
        )
        lengths = functools.reduce(Lengths.plus, (group.lengths for group in labelled))
        sample = EvenSample.joined([group.sample for group in labelled])
        nll, entropy = (statistics[name] for name in SCORES)
        correlation = rank_correlation(sample.mean_nll, sample.mean_entropy)
        distributions = describe_parts(nll, entropy, lengths, correlation)
        sides = [group.sides for group in labelled if group.sides is not None]
        return Selected(totals, distributions, sample, entries, WeightedSides.merged(sides) if sides else None)

    def _step(self) -> int:
        """Of how many distinct values each is shown; there are as many ranges as groups."""
        return max(1, self.ground.num_samples // (OVERSAMPLING * len(self.groups) ** 2))

    def _remove(self, kind: str, count: int) -> None:
        for index in range(count):
            file_io.remove_file(self.ground.file(kind, index))

    def _carry_out(
        self, function: Callable[[Ground, Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """One round: (index of the task, result) in any order."""
        items = [(index, pickle.dumps((function, task))) for index, task in enumerate(tasks)]
        for index, payload in self.workers(items, self.ground):
            yield index, pickle.loads(payload)  # noqa: S301 - from `work` of this job


def _ranges(name: str, runs: Sequence[SortedColumn], step: int) -> list[RankTask]:
    """Cut a column into ranges, as many as there are runs or fewer."""
    ends = splitters((run.shown for run in runs), len(runs)).tolist()
    return [
        RankTask(name, index, low, high, tuple(part_to_read(r.shown, r.size, step, low, high) for r in runs))
        for index, (low, high) in enumerate(itertools.pairwise([-math.inf, *ends]))
    ]


def _places(ranges: Sequence[RankedPieces]) -> list[tuple[slice, ...]]:
    """For each group, where the file of each range holds the ranks of its values."""
    ends = np.cumsum([pieces.sizes for pieces in ranges], axis=1)  # (R, G)
    starts = ends - np.array([pieces.sizes for pieces in ranges])
    return [
        tuple(itertools.starmap(slice, zip(starts[:, group].tolist(), ends[:, group].tolist(), strict=True)))
        for group in range(ends.shape[1])
    ]
