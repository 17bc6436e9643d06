"""Stage 1: find the thresholds that keep a given share of the whole population.

keep(a), the samples in Q2's or Q4's corner (see plane.py), only grows with a and holds every sample at a = 1, so the
search for the smallest a with |keep(a)| >= ceil(ratio * N) always converges. Mid-ranks are multiples of 1/2N, so it
runs over the integers A = 2N a and is exact (see search.py). The four thresholds are order statistics of the data,
without interpolation. A target beyond what disjoint corners hold needs a > 1/2; that is allowed, and `Totals`
tells. Nothing is ever topped up with other samples: the count exceeds the target by ties at A only.

Here the population is in memory: the two float64 columns, plus 16 bytes a sample. One that is not, or not in one
process, goes through the same steps group by group: partition.py ranks it, search.py and placed.py are shared.

Source: Wang et al., arXiv:2509.23873. Known implementations search a in [0, 0.49] in the wrong direction and keep 99.9%
when asked for half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.samples import share_of
from qtune_service.selection.plane import Quadrant, QuadrantRule, Thresholds
from qtune_service.selection.ranked_samples import Column, Placed, check_finite, count_labels, count_within, kept_labels
from qtune_service.selection.ranks import DoubleRanks, double_midranks
from qtune_service.selection.search import smallest_bound, stopped_early

__all__ = ["Selection", "Thresholds", "Totals", "check_target", "select"]


@dataclass(frozen=True, slots=True)
class Totals:
    """The outcome of stage 1 for the population."""

    thresholds: Thresholds
    target: int  # ceil(sample_keep_ratio * N)
    kept: int  # by the method, those labelled Q2 or Q4; a user's rule or another strategy decides freely
    disjoint_capacity: int  # the most that corners without overlap (alpha <= 1/2) hold
    num_samples: int
    counts: dict[Quadrant, int]


@dataclass(frozen=True, slots=True, eq=False)
class Selection(Totals):
    """The outcome of stage 1, with that of each sample."""

    labels: NDArray[np.int8]  # (N,) Quadrant of each sample
    is_kept: NDArray[np.bool_]  # (N,)
    entry: DoubleRanks  # (N,) the bound at which each sample lies in a corner
    placed: Placed  # (N,) scores and ranks

    def p(self, span: slice) -> Column:
        """Mid-ranks of mean NLL in (0, 1) of some samples: how large their error is among all."""
        return self.placed.nll_ranks[span] / (2 * self.num_samples)

    def e(self, span: slice) -> Column:
        """Mid-ranks of mean entropy in (0, 1) of some samples: how large their uncertainty is among all."""
        return self.placed.entropy_ranks[span] / (2 * self.num_samples)


def select(
    mean_nll: ArrayLike,
    mean_entropy: ArrayLike,
    *,
    sample_keep_ratio: float,
    bisect_max_iter: int | None = None,
    rule: QuadrantRule | None = None,
    priority: ArrayLike | None = None,
) -> Selection:
    """Thresholds and labels of a population of scored samples: two (N,) columns in nats, finite, N >= 1.

    Without `bisect_max_iter` the bisection goes on until exact. With `priority` (N,), keys of another strategy
    (strategies.py), those with the smallest keys are kept, and labels only tell where a sample lies. Raises DataError
    for scores that cannot be ranked and SpecError for arguments out of range or a rule that returns something else
    than labels.
    """
    nll, entropy = _columns(mean_nll, mean_entropy)
    num_samples = len(nll)
    target = check_target(sample_keep_ratio, num_samples)
    placed = Placed(nll, entropy, double_midranks(nll), double_midranks(entropy), num_samples)
    entry = placed.entry()
    smallest = smallest_bound(num_samples, target, lambda window: window.count(entry))
    bound = stopped_early(smallest, num_samples, bisect_max_iter)
    thresholds = placed.edges(bound).thresholds(bound, num_samples)
    labels = placed.labels(entry, bound, thresholds, rule)
    counts = count_labels(labels)
    is_kept = kept_labels(labels) if priority is None else _first(np.asarray(priority, np.float64), target)
    return Selection(
        thresholds=thresholds,
        target=target,
        kept=int(np.count_nonzero(is_kept)),
        disjoint_capacity=count_within(entry, num_samples),
        num_samples=num_samples,
        counts=counts,
        labels=labels,
        is_kept=is_kept,
        entry=entry,
        placed=placed,
    )


def _first(priority: Column, target: int) -> NDArray[np.bool_]:
    """The samples (N,) with the smallest keys, as many as asked for, and those that tie with the last of them."""
    check_finite(priority=priority)
    entry = double_midranks(priority)
    kept: NDArray[np.bool_] = entry <= smallest_bound(len(entry), target, lambda window: window.count(entry))
    return kept


def check_target(sample_keep_ratio: float, num_samples: int) -> int:
    """How many samples a ratio asks for. Raises where it, or the population, cannot be used."""
    if not num_samples:
        raise DataError("no sample was scored, so there are no thresholds", "Look at the reasons of the rejected ones.")
    if not 0 < sample_keep_ratio <= 1:
        raise SpecError(f"sample_keep_ratio is {sample_keep_ratio}", "Choose a number above 0 and at most 1.")
    return share_of(sample_keep_ratio, num_samples)


def _columns(mean_nll: ArrayLike, mean_entropy: ArrayLike) -> tuple[Column, Column]:
    nll, entropy = np.asarray(mean_nll, dtype=np.float64), np.asarray(mean_entropy, dtype=np.float64)
    if nll.ndim != 1 or nll.shape != entropy.shape:
        raise DataError(
            f"mean_nll has shape {nll.shape} and mean_entropy {entropy.shape}",
            "Pass one number a sample in each, in the same order.",
        )
    check_finite(mean_nll=nll, mean_entropy=entropy)
    return nll, entropy
