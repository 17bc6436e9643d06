"""Other ways to choose samples, from the same scores: the baselines that Q-Tuning is compared with.

Each gives every sample a key, and the samples with the smallest keys are kept until the target is reached, so that
ties, targets and populations of any size are treated as the method's own are (see search.py). Keys of a sample depend
on itself, on its place in the population and on the seed, so a part of the population knows its own.

    random      a number drawn for each sample
    longest     the most trained tokens first; equal lengths in drawn order
    perplexity  the highest mean NLL first                    order `lowest` turns these three round
    entropy     the highest mean entropy first
    infobatch   samples at or above the mean loss are all kept, and of the others as many as the target leaves, drawn at
                random; the kept ones of these weigh more, so that the expected gradient stays that of the whole data

Sources: random, longest, entropy and InfoBatch are the sample baselines of Wang et al., arXiv:2509.23873; longest: Zhao
et al., arXiv:2402.04833; perplexity: Marion et al., arXiv:2309.04564; InfoBatch: Qin et al., arXiv:2303.04947, which
draws anew each epoch with a fixed probability, while here one draw is made and its size meets the target. A target
below the share at or above the mean lies outside of that method: then these samples are drawn from, too, and the others
all go (`WeightedSides.is_unbiased` tells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.selection.hashing import uniform

NAMES = ("random", "longest", "perplexity", "entropy", "infobatch")
"""The strategies beside the method, `q_tuning`."""
FIXED_POINT = 1 << 32
"""Losses are added up in units of 2^-32 nats, so that their mean does not depend on how they were grouped."""
MAX_LOSS_NATS = 1e3

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Priority:
    """A strategy, ready to give keys."""

    strategy: str
    order: str = "highest"
    seed: int = 0
    mean_loss: float = 0.0
    """Of the population, in nats; `infobatch` needs it."""

    def __post_init__(self) -> None:
        if self.strategy not in NAMES:
            raise SpecError(f"strategy is {self.strategy!r}", f"Choose one of q_tuning, {', '.join(NAMES)}.")

    def keys(self, mean_nll: Column, mean_entropy: Column, num_tokens: NDArray[np.integer[Any]], start: int) -> Column:
        """Keys (n,) of n consecutive samples from place `start` on; the smallest are kept first."""
        drawn = uniform(self.seed, np.arange(start, start + len(mean_nll)))
        if self.strategy == "random":
            return drawn
        if self.strategy == "infobatch":
            return drawn + self.below_mean(mean_nll)
        by = {"longest": num_tokens.astype(np.float64), "perplexity": mean_nll, "entropy": mean_entropy}[self.strategy]
        ordered = by if self.order == "lowest" else -by
        return ordered + drawn if self.strategy == "longest" else ordered

    def below_mean(self, mean_nll: Column) -> NDArray[np.bool_]:
        """Samples that the model has learned better than the average, (n,)."""
        return mean_nll < self.mean_loss

    def sides(self, mean_nll: Column, kept: NDArray[np.bool_]) -> WeightedSides | None:
        """Counts of n samples by which `infobatch` weighs; None of other strategies."""
        if self.strategy != "infobatch":
            return None
        below = self.below_mean(mean_nll)
        counts = (below, ~below, below & kept, ~below & kept)
        return WeightedSides(*(int(np.count_nonzero(side)) for side in counts))


def priority_of(strategy: str, order: str, seed: int, mean_loss: Callable[[], float]) -> Priority | None:
    """A strategy by its name; None for the method itself. mean_loss: asked only where the strategy needs it."""
    if strategy == "q_tuning":
        return None
    return Priority(strategy, order, seed, mean_loss() if strategy == "infobatch" else 0.0)


def loss_sum(mean_nll: Column) -> int:
    """Sum of some samples' losses in units of 1 / FIXED_POINT nats. Sums of parts add up exactly."""
    return int(np.rint(np.minimum(mean_nll, MAX_LOSS_NATS) * FIXED_POINT).astype(np.int64).sum())


def mean_of(total: int, num_samples: int) -> float:
    """Nats, of such a sum."""
    return total / num_samples / FIXED_POINT


@dataclass(frozen=True, slots=True)
class WeightedSides:
    """How many samples lie on each side of the mean loss, and how many of them are kept."""

    below: int
    above: int
    kept_below: int
    kept_above: int

    @classmethod
    def merged(cls, parts: Iterable[WeightedSides]) -> WeightedSides:
        """Of all parts of a population."""
        columns = zip(*(astuple(part) for part in parts), strict=True)
        return cls(*(sum(column) for column in columns))

    @property
    def weights(self) -> tuple[float, float]:
        """By how much a kept sample's loss counts: below the mean, and at or above it."""
        return self.below / max(self.kept_below, 1), self.above / max(self.kept_above, 1)

    @property
    def is_unbiased(self) -> bool:
        """Whether every sample had a chance to be kept."""
        return (self.kept_below > 0 or self.below == 0) and (self.kept_above > 0 or self.above == 0)


@dataclass(frozen=True, slots=True)
class Weighing:
    """By how much the loss of kept samples counts: two numbers, by side of the mean loss."""

    mean_loss: float  # nats
    sides: WeightedSides

    def of(self, mean_nll: Column) -> Column:
        """Weights (n,) of kept samples."""
        below, above = self.sides.weights
        return np.where(mean_nll < self.mean_loss, below, above)
