"""Stage 1 of a job: thresholds, and each sample's label and ranks, whatever the number of samples.

A population of one group is selected in memory. A larger one stays where it is, and workers go through it in rounds
(see rounds.py). Both ways give the same, bit for bit: ranks, labels, thresholds, counts, the report's figures and
picks. Only a user's rule sees the difference: it is called at once, or group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.pipeline.distributed_selection import Rounds, Workers
from qtune_service.pipeline.population import Group, Population
from qtune_service.pipeline.selection_tasks import SCORES, Ground, count_entries
from qtune_service.pipeline.shard_selection import FiledPlaces, Placement, Places, ShardVerdict
from qtune_service.selection.curve import CurvePoint, EntryCounts
from qtune_service.selection.distributions import Distributions, describe
from qtune_service.selection.even_sample import EvenSample, even_sample
from qtune_service.selection.examples import ExampleKind, borderline_samples, typical_samples
from qtune_service.selection.plane import QuadrantRule
from qtune_service.selection.strategies import Priority, Weighing, WeightedSides, loss_sum, mean_of, priority_of
from qtune_service.selection.thresholds import Totals, select

EXAMPLES_PER_KIND = 4
"""Samples of each quadrant that the report shows as typical, and as borderline."""
CURVE_RATIOS = tuple(percent / 200 for percent in range(1, 201))
"""Keep ratios of the report's what-if curve."""


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Samples that the report shows: points of the plane, and examples with their tokens."""

    points: NDArray[np.int64]  # (P,) places in the population, ascending
    examples: Mapping[int, ExampleKind]
    """Place in the population, ascending -> why it is shown."""

    @classmethod
    def of(cls, sample: EvenSample, alpha: float) -> Picks:
        """The same picks every time for the same scores."""
        kinds: dict[int, ExampleKind] = {}
        for rows in borderline_samples(sample, alpha, EXAMPLES_PER_KIND).values():
            kinds |= dict.fromkeys(sample.index[rows].tolist(), "borderline")
        for rows in typical_samples(sample, EXAMPLES_PER_KIND).values():
            kinds |= dict.fromkeys(sample.index[rows].tolist(), "typical")
        return cls(sample.points().index, dict(sorted(kinds.items())))

    def within(self, start: int, rows: int) -> tuple[list[int], dict[int, ExampleKind]]:
        """Rows of a shard that are points, and that are examples."""
        stop = start + rows
        points = self.points[slice(*np.searchsorted(self.points, [start, stop]))] - start
        return points.tolist(), {at - start: why for at, why in self.examples.items() if start <= at < stop}


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What stage 1 gave."""

    totals: Totals
    distributions: Distributions
    sample: EvenSample
    picks: Picks
    curve: tuple[CurvePoint, ...]
    """What other ratios would keep; empty where another strategy, or a rule, chose."""
    weighing: Weighing | None
    """Of a strategy that weighs its samples."""
    groups: tuple[Group, ...]
    placement: Callable[[Group, slice], Placement]
    """Of samples of a group."""

    def of_shard(self, group: Group, span: slice) -> ShardVerdict:
        """What a shard's pruning task is sent."""
        start = group.start + span.start
        points, examples = self.picks.within(start, span.stop - span.start)
        return ShardVerdict(self.placement(group, span), start, self.weighing, points, examples)

    def shards(self) -> Mapping[int, tuple[Group, slice]]:
        """Where each shard's samples are."""
        return {shard: (group, span) for group in self.groups for shard, span in group.spans().items()}


def find_thresholds(
    population: Population,
    prune: PruneSpec,
    *,
    rule: QuadrantRule | None,
    workers: Workers,
    folder: str,
    advance: Callable[[int], None],
) -> Verdict:
    """Select from a population. `folder` keeps files of the rounds; they are needed until the shards are pruned.

    advance: called with a number of samples when these have their labels.
    """
    if len(population.groups) > 1:
        ground = Ground(population.source, folder, population.num_samples, prune)
        return _by_rounds(Rounds(population.groups, workers, ground), prune, rule, advance)
    verdict = _at_once(population, prune, rule)
    advance(population.num_samples)
    return verdict


def _at_once(population: Population, prune: PruneSpec, rule: QuadrantRule | None) -> Verdict:
    """In memory: about 100 bytes a sample, of one group."""
    (group,) = population.groups
    nll, entropy, num_tokens = population.source.read(group, *SCORES, "num_tokens")
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

    def placement(_group: Group, span: slice) -> Placement:
        return Places(labels[span], kept[span], selection.p(span), selection.e(span))

    sample = even_sample(selection.placed, labels=labels, kept=kept, num_tokens=num_tokens)
    entries = count_entries(selection.placed, selection.entry, num_tokens, prune)
    return Verdict(
        totals=selection,
        distributions=describe(nll, entropy, num_tokens, labels),
        sample=sample,
        picks=Picks.of(sample, selection.thresholds.alpha),
        curve=_curve(entries, prune),
        weighing=_weighing(priority, None if priority is None else priority.sides(nll, kept)),
        groups=population.groups,
        placement=placement,
    )


def _by_rounds(rounds: Rounds, prune: PruneSpec, rule: QuadrantRule | None, advance: Callable[[int], None]) -> Verdict:
    """Where the samples are; see rounds.py."""
    priority = _priority(prune, rounds.mean_loss)
    ground = replace(rounds.ground, priority=priority)
    found = replace(rounds, ground=ground).select(
        sample_keep_ratio=prune.sample_keep_ratio, bisect_max_iter=prune.bisect_max_iter, rule=rule, advance=advance
    )

    def placement(group: Group, span: slice) -> Placement:
        return FiledPlaces(ground, group.index, span)

    return Verdict(
        totals=found.totals,
        distributions=found.distributions,
        sample=found.sample,
        picks=Picks.of(found.sample, found.totals.thresholds.alpha),
        curve=_curve(found.entries, prune),
        weighing=_weighing(priority, found.sides),
        groups=rounds.groups,
        placement=placement,
    )


def _priority(prune: PruneSpec, mean_loss: Callable[[], float]) -> Priority | None:
    return priority_of(prune.strategy, prune.strategy_order, prune.seed, mean_loss)


def _curve(entries: EntryCounts, prune: PruneSpec) -> tuple[CurvePoint, ...]:
    if prune.strategy != "q_tuning" or prune.quadrant_rule is not None:
        return ()
    ratios = sorted({*CURVE_RATIOS, prune.sample_keep_ratio})
    return entries.curve(ratios)


def _weighing(priority: Priority | None, sides: WeightedSides | None) -> Weighing | None:
    return None if priority is None or sides is None else Weighing(priority.mean_loss, sides)
