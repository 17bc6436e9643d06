"""Stage 1 of a job: thresholds, and each sample's label and ranks, for any number of samples.

A population of one group is selected in memory. The samples of a larger one stay in their shards, and workers go
through them in rounds (distributed_selection.py). Both ways give bit-identical results: ranks, labels, thresholds,
counts, the what-if curve, and the report's figures and picks. Only a user's rule sees the difference: it is called once
for all samples, or once a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.pipeline.distributed_selection import DistributedSelection, Workers
from qtune_service.pipeline.population import Group, Population
from qtune_service.pipeline.selection_tasks import SCORES, SelectionContext, count_curve, read_lengths
from qtune_service.pipeline.shard_selection import LabelSource, SampleLabels, ShardSelection, StoredLabels
from qtune_service.samples import count_of_share
from qtune_service.selection.curve import CurvePoint
from qtune_service.selection.distributions import Distributions, EvenSample, describe, even_sample
from qtune_service.selection.examples import ExampleKind, borderline_samples, typical_samples
from qtune_service.selection.plane import QuadrantRule
from qtune_service.selection.strategies import Priority, Weighing, WeightedSides, loss_sum, mean_of, priority_of
from qtune_service.selection.thresholds import SelectionSummary, select, smallest_scaled_alphas

EXAMPLES_PER_KIND = 4
"""Samples of each quadrant that the report shows as typical, and as borderline."""
CURVE_RATIOS = tuple(percent / 200 for percent in range(1, 201))
"""Keep ratios of the report's what-if curve."""


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Samples that the report shows: points of the plane, and examples with their tokens."""

    points: NDArray[np.int64]  # (P,) population indices, ascending
    examples: Mapping[int, ExampleKind]
    """Population index, ascending -> why the sample is shown."""

    @classmethod
    def of(cls, sample: EvenSample, alpha: float) -> Picks:
        """Pick samples; the same scores always give the same picks."""
        kinds: dict[int, ExampleKind] = {}
        for rows in borderline_samples(sample, alpha, EXAMPLES_PER_KIND).values():
            kinds |= dict.fromkeys(sample.index[rows].tolist(), "borderline")
        for rows in typical_samples(sample, EXAMPLES_PER_KIND).values():
            kinds |= dict.fromkeys(sample.index[rows].tolist(), "typical")
        return cls(sample.points().index, dict(sorted(kinds.items())))

    def within(self, start: int, rows: int) -> tuple[list[int], dict[int, ExampleKind]]:
        """Return the rows of a shard that are points, and those that are examples."""
        stop = start + rows
        points = self.points[slice(*np.searchsorted(self.points, [start, stop]))] - start
        return points.tolist(), {at - start: why for at, why in self.examples.items() if start <= at < stop}


@dataclass(frozen=True, slots=True, eq=False)
class SelectionResult:
    """Outcome of stage 1."""

    summary: SelectionSummary
    distributions: Distributions
    sample: EvenSample
    picks: Picks
    curve: tuple[CurvePoint, ...]
    """Outcomes of other ratios. Empty where another strategy or a user's rule decides."""
    weighing: Weighing | None
    """Weights of a strategy that weighs its samples."""
    groups: tuple[Group, ...]
    labels_of: Callable[[Group, slice], LabelSource]
    """Returns the labels of a span of a group's samples."""

    def of_shard(self, shard: int, group: Group, span: slice) -> ShardSelection:
        """Return the input of a shard's pruning task."""
        start = group.start + span.start
        points, examples = self.picks.within(start, span.stop - span.start)
        return ShardSelection(
            self.labels_of(group, span), start, self.weighing, points, examples, scores=group.path(shard)
        )

    def shards(self) -> Mapping[int, tuple[Group, slice]]:
        """Return the group and the span of each shard's samples."""
        return {shard: (group, span) for group in self.groups for shard, span in group.spans().items()}


def find_thresholds(
    population: Population,
    prune: PruneSpec,
    *,
    rule: QuadrantRule | None,
    workers: Workers,
    folder: str,
    advance: Callable[[int], None],
) -> SelectionResult:
    """Select from a population.

    `folder` is for the files of a distributed selection, which are needed until the shards are pruned. `advance` is
    called with a number of samples when these have their labels.
    """
    if len(population.groups) > 1:
        context = SelectionContext(population.source, folder, population.num_samples, prune)
        return _select_distributed(DistributedSelection(population.groups, workers, context), rule, advance)
    result = _select_in_memory(population, prune, rule)
    advance(population.num_samples)
    return result


def _select_in_memory(population: Population, prune: PruneSpec, rule: QuadrantRule | None) -> SelectionResult:
    """Select from a population of one group, with about 100 bytes a sample."""
    (group,) = population.groups
    nll, entropy = population.source.read(group, *SCORES)
    num_tokens, num_protected = read_lengths(population.source, group, prune)
    priority = _priority(prune, lambda: mean_of(loss_sum(nll), len(nll)))
    selection = select(
        nll,
        entropy,
        sample_keep_ratio=prune.sample_keep_ratio,
        bisect_max_iter=prune.bisect_max_iter,
        rule=rule,
        priority=None if priority is None else priority.keys(nll, entropy, num_tokens, 0),
    )
    labels, kept = selection.labels, selection.is_kept

    def labels_of(_group: Group, span: slice) -> LabelSource:
        return SampleLabels(labels[span], kept[span], selection.p(span), selection.e(span))

    sample = even_sample(selection.ranked, labels=labels, kept=kept, num_tokens=num_tokens)
    ratios = _curve_ratios(prune)
    alphas = smallest_scaled_alphas(selection.entry, [count_of_share(ratio, len(nll)) for ratio in ratios])
    curve = count_curve(selection.ranked, selection.entry, num_tokens, num_protected, alphas, prune)
    return SelectionResult(
        summary=selection,
        distributions=describe(nll, entropy, num_tokens, labels),
        sample=sample,
        picks=Picks.of(sample, selection.thresholds.alpha),
        curve=curve.points(ratios, len(nll)),
        weighing=_weighing(priority, None if priority is None else priority.sides(nll, kept)),
        groups=population.groups,
        labels_of=labels_of,
    )


def _select_distributed(
    selection: DistributedSelection, rule: QuadrantRule | None, advance: Callable[[int], None]
) -> SelectionResult:
    """Select from a population of several groups, by the workers."""
    prune = selection.context.prune
    priority = _priority(prune, selection.mean_loss)
    context = replace(selection.context, priority=priority)
    found = replace(selection, context=context).select(
        sample_keep_ratio=prune.sample_keep_ratio,
        bisect_max_iter=prune.bisect_max_iter,
        rule=rule,
        curve_ratios=_curve_ratios(prune),
        advance=advance,
    )

    def labels_of(group: Group, span: slice) -> LabelSource:
        return StoredLabels(context, group.index, span)

    return SelectionResult(
        summary=found.summary,
        distributions=found.distributions,
        sample=found.sample,
        picks=Picks.of(found.sample, found.summary.thresholds.alpha),
        curve=found.curve,
        weighing=_weighing(priority, found.sides),
        groups=selection.groups,
        labels_of=labels_of,
    )


def _priority(prune: PruneSpec, mean_loss: Callable[[], float]) -> Priority | None:
    return priority_of(prune.strategy, prune.strategy_order, prune.seed, mean_loss)


def _curve_ratios(prune: PruneSpec) -> list[float]:
    """Return the keep ratios of the what-if curve, ascending; none where alpha alone does not decide."""
    if prune.strategy != "q_tuning" or prune.quadrant_rule is not None:
        return []
    return sorted({*CURVE_RATIOS, prune.sample_keep_ratio})


def _weighing(priority: Priority | None, sides: WeightedSides | None) -> Weighing | None:
    return None if priority is None or sides is None else Weighing(priority.mean_loss, sides)
