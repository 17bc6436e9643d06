"""Stage 1 of a job: thresholds, and each sample's label and ranks, whatever the number of samples.

A population of one group is selected in memory. A larger one stays where it is, and workers go through it in rounds
(see rounds.py). Both ways give the same, bit for bit: ranks, labels, thresholds, counts, the report's figures and
picks. Only a user's rule sees the difference: it is called at once, or group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.core.plane import QuadrantRule
from qtune_service.core.ranks import rank_type
from qtune_service.core.thresholds import Totals, select
from qtune_service.pipeline.group_tasks import SCORES, Ground
from qtune_service.pipeline.population import Group, Population
from qtune_service.pipeline.rounds import Rounds, Workers
from qtune_service.report.contents import Distributions
from qtune_service.report.distributions import describe
from qtune_service.report.examples import typical_samples
from qtune_service.report.plane import MAX_POINTS
from qtune_service.report.sample import EvenSample, even_sample, pick_points

EXAMPLES_PER_QUADRANT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Some samples' places on the plane."""

    labels: NDArray[np.int8]  # (n,) Quadrant
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
        pairs = slice(2 * span.start, 2 * span.stop)
        ranks = self.ground.read("ranks", self.group, rank_type(num_samples), pairs) / (2 * num_samples)
        return Places(
            self.ground.read("labels", self.group, np.dtype(np.int8), span),
            np.ascontiguousarray(ranks[0::2]),
            np.ascontiguousarray(ranks[1::2]),
        )


class Placement(Protocol):
    """What a shard's pruning task is sent."""

    def read(self) -> Places:
        """Labels and ranks of the shard's samples."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Samples that the report shows: points of the plane, and examples with their tokens."""

    points: EvenSample
    examples: NDArray[np.int64]  # (E,) places in the population, ascending

    @classmethod
    def of(cls, sample: EvenSample) -> Picks:
        """The same picks every time for the same scores."""
        at = pick_points(len(sample.index), MAX_POINTS)
        typical = typical_samples(sample.mean_nll, sample.mean_entropy, sample.quadrant, EXAMPLES_PER_QUADRANT)
        examples = sorted(int(sample.index[i]) for group in typical.values() for i in group)
        points = EvenSample(sample.index[at], sample.mean_nll[at], sample.mean_entropy[at], sample.quadrant[at])
        return cls(points, np.array(examples, np.int64))

    def within(self, start: int, rows: int) -> list[list[int]]:
        """Rows of a shard that are points, and that are examples."""
        picks = (self.points.index, self.examples)
        return [(p[(p >= start) & (p < start + rows)] - start).tolist() for p in picks]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What stage 1 gave."""

    totals: Totals
    distributions: Distributions
    picks: Picks
    groups: tuple[Group, ...]
    placement: Callable[[Group, slice], Placement]
    """Of samples of a group."""

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
        ground = Ground(population.source, folder, population.num_samples)
        return _by_rounds(Rounds(population.groups, workers, ground), prune, rule, advance)
    verdict = _at_once(population, prune, rule)
    advance(population.num_samples)
    return verdict


def _at_once(population: Population, prune: PruneSpec, rule: QuadrantRule | None) -> Verdict:
    """In memory: about 100 bytes a sample, of one group."""
    (group,) = population.groups
    nll, entropy, num_tokens = population.source.read(group, *SCORES, "num_tokens")
    selection = select(
        nll, entropy, sample_keep_ratio=prune.sample_keep_ratio, bisect_max_iter=prune.bisect_max_iter, rule=rule
    )
    distributions = describe(nll, entropy, num_tokens, selection.labels)
    picks = Picks.of(even_sample(nll, entropy, selection.labels))

    def placement(_group: Group, span: slice) -> Placement:
        return Places(selection.labels[span], selection.p(span), selection.e(span))

    return Verdict(selection, distributions, picks, population.groups, placement)


def _by_rounds(rounds: Rounds, prune: PruneSpec, rule: QuadrantRule | None, advance: Callable[[int], None]) -> Verdict:
    """Where the samples are; see rounds.py."""
    ground = rounds.ground
    found = rounds.select(
        sample_keep_ratio=prune.sample_keep_ratio, bisect_max_iter=prune.bisect_max_iter, rule=rule, advance=advance
    )

    def placement(group: Group, span: slice) -> Placement:
        return FiledPlaces(ground, group.index, span)

    return Verdict(found.totals, found.distributions, Picks.of(found.sample), rounds.groups, placement)
