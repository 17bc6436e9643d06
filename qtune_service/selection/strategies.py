"""Other strategies to choose samples, from the same scores: the baselines that Q-Tuning is compared with.

Each strategy gives every sample a key, and the samples with the smallest keys are kept until the target is reached. So
ties, targets and populations of any size are treated as those of the method (thresholds.py). The key of a sample
depends on the sample, on its population index and on the seed, so a group computes its own keys.

    random      a number drawn for each sample
    longest     the most trained tokens first; equal lengths in drawn order
    perplexity  the highest mean NLL first                    order `lowest` reverses these three
    entropy     the highest mean entropy first
    infobatch   samples at or above the mean loss are all kept, and of the others as many as the target leaves, drawn at
                random; the kept ones of these weigh more, so that the expected gradient stays that of the whole data

Sources: random, longest, entropy and InfoBatch are the sample baselines of Wang et al., arXiv:2509.23873; longest: Zhao
et al., arXiv:2402.04833; perplexity: Marion et al., arXiv:2309.04564; InfoBatch: Qin et al., arXiv:2303.04947, which
draws again each epoch with a fixed probability, while here one draw is made and its size meets the target. A target
below the share at or above the mean is outside of that method: then these samples are drawn from, too, and all others
are removed (`WeightedSides.is_unbiased` is false).
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
"""Strategies other than the method, `q_tuning`."""
FIXED_POINT = 1 << 32
"""Losses are added up in units of 2^-32 nats, so that their mean does not depend on how they were grouped."""
MAX_LOSS_NATS = 1e3

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Priority:
    """A strategy with its parameters. Raises SpecError for an unknown one."""

    strategy: str
    order: str = "highest"
    seed: int = 0
    mean_loss: float = 0.0
    """Mean loss of the population in nats, for `infobatch`."""

    def __post_init__(self) -> None:
        if self.strategy not in NAMES:
            raise SpecError(f"strategy is {self.strategy!r}", f"Choose one of q_tuning, {', '.join(NAMES)}.")

    def keys(self, mean_nll: Column, mean_entropy: Column, num_tokens: NDArray[np.integer[Any]], start: int) -> Column:
        """Return the keys (n,) of n samples from population index `start` on. The smallest are kept first."""
        drawn = uniform(self.seed, np.arange(start, start + len(mean_nll)))
        if self.strategy == "random":
            return drawn
        if self.strategy == "infobatch":
            return drawn + self.below_mean(mean_nll)
        by = {"longest": num_tokens.astype(np.float64), "perplexity": mean_nll, "entropy": mean_entropy}[self.strategy]
        ordered = by if self.order == "lowest" else -by
        return ordered + drawn if self.strategy == "longest" else ordered

    def below_mean(self, mean_nll: Column) -> NDArray[np.bool_]:
        """Return which samples (n,) have a loss below the mean."""
        return mean_nll < self.mean_loss

    def sides(self, mean_nll: Column, kept: NDArray[np.bool_]) -> WeightedSides | None:
        """Return the counts of n samples that the weights of `infobatch` need; None for other strategies."""
        if self.strategy != "infobatch":
            return None
        below = self.below_mean(mean_nll)
        counts = (below, ~below, below & kept, ~below & kept)
        return WeightedSides(*(int(np.count_nonzero(side)) for side in counts))


def priority_of(strategy: str, order: str, seed: int, mean_loss: Callable[[], float]) -> Priority | None:
    """Return a strategy by its name; None for the method. `mean_loss` is called only where the strategy needs it."""
    if strategy == "q_tuning":
        return None
    return Priority(strategy, order, seed, mean_loss() if strategy == "infobatch" else 0.0)


def loss_sum(mean_nll: Column) -> int:
    """Return the sum of samples' losses in units of 1 / FIXED_POINT nats. Sums of groups add up exactly."""
    return int(np.rint(np.minimum(mean_nll, MAX_LOSS_NATS) * FIXED_POINT).astype(np.int64).sum())


def mean_of(total: int, num_samples: int) -> float:
    """Return the mean loss in nats from a sum of `loss_sum`."""
    return total / num_samples / FIXED_POINT


@dataclass(frozen=True, slots=True)
class WeightedSides:
    """Number of samples below and at or above the mean loss, and how many of them are kept."""

    below: int
    above: int
    kept_below: int
    kept_above: int

    @classmethod
    def merged(cls, parts: Iterable[WeightedSides]) -> WeightedSides:
        """Add up the counts of all groups of a population."""
        columns = zip(*(astuple(part) for part in parts), strict=True)
        return cls(*(sum(column) for column in columns))

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of kept samples' losses: below the mean, and at or above it."""
        return self.below / max(self.kept_below, 1), self.above / max(self.kept_above, 1)

    @property
    def is_unbiased(self) -> bool:
        """Whether every sample could have been kept."""
        return (self.kept_below > 0 or self.below == 0) and (self.kept_above > 0 or self.above == 0)


@dataclass(frozen=True, slots=True)
class Weighing:
    """Weights of kept samples' losses: one below the mean loss, one at or above it."""

    mean_loss: float  # nats
    sides: WeightedSides

    def of(self, mean_nll: Column) -> Column:
        """Return the weights (n,) of kept samples by their losses (n,) in nats."""
        below, above = self.sides.weights
        return np.where(mean_nll < self.mean_loss, below, above)
