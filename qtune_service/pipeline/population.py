"""The whole population on the driver: two floats and a length a sample, read from the score shards.

20 bytes a sample: 2 GB at 1e8. Everything else of a sample stays in its shard.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.thresholds import Selection
from qtune_service.data import storage
from qtune_service.pipeline.output import Output
from qtune_service.pipeline.scored import Scored
from qtune_service.report.examples import typical_samples
from qtune_service.report.plane import pick_points

EXAMPLES_PER_QUADRANT = 4


@dataclass(frozen=True, slots=True)
class Population:
    """All scored samples in shard order."""

    mean_nll: NDArray[np.float64]  # (N,) nats
    mean_entropy: NDArray[np.float64]  # (N,) nats
    num_tokens: NDArray[np.int32]  # (N,) trained tokens
    starts: dict[int, int]
    """Shard index -> its first sample."""

    def span(self, shard: int, rows: int) -> slice:
        """Samples of a shard."""
        return slice(self.starts[shard], self.starts[shard] + rows)


def read_population(output: Output, scored: Scored) -> Population:
    """Read the means of every shard, in parallel."""
    starts, total = {}, 0
    for shard, rows in scored.shards.items():
        starts[shard], total = total, total + rows
    population = Population(np.empty(total), np.empty(total), np.empty(total, np.int32), starts)

    def fill(item: tuple[int, int]) -> None:
        shard, rows = item
        table = storage.read_table(output.part("scores", shard), columns=["mean_nll", "mean_entropy", "num_tokens"])
        span = population.span(shard, rows)
        for name in ("mean_nll", "mean_entropy", "num_tokens"):
            getattr(population, name)[span] = table[name].to_numpy()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, scored.shards.items()))
    return population


@dataclass(frozen=True, slots=True)
class Picks:
    """Samples that the report shows, as indices into the population: points of the plane, and examples with tokens."""

    points: NDArray[np.int64]  # (S,)
    examples: NDArray[np.int64]  # (E,) ascending

    def within(self, span: slice) -> list[list[int]]:
        """Rows of one shard that are points, and that are examples."""
        picks = (self.points, self.examples)
        return [(p[(p >= span.start) & (p < span.stop)] - span.start).tolist() for p in picks]


def choose_picks(population: Population, selection: Selection) -> Picks:
    """The same picks every time for the same scores."""
    typical = typical_samples(population.mean_nll, population.mean_entropy, selection.labels, EXAMPLES_PER_QUADRANT)
    examples = np.array(sorted(i for group in typical.values() for i in group), np.int64)
    return Picks(pick_points(len(selection.labels)), examples)
