"""The error-uncertainty plane: quadrants, corners, labels, and a user's rule in place of the method's.

Each sample is a point (p, e), its mid-ranks of mean NLL and of mean entropy in (0, 1). For a number a, Q2's corner is
p >= 1 - a and e <= a, Q4's is p <= a and e >= 1 - a. A sample therefore enters the kept set at
min(max(1 - p, e), max(p, 1 - e)), which turns the search for a into counting (see thresholds.py). Ranks are doubled
integers (see ranks.py), so P = 2N p, E = 2N e, and the bound is the integer A = 2N a.

Source: Wang et al., Winning the Pruning Gamble, arXiv:2509.23873. The paper leaves open what a removed sample is
called, and where a sample belongs that lies in both corners (a > 1/2): here it is the nearer corner, and
the removed are parted by p + e > 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.samples import perplexity
from qtune_service.selection.ranks import DoubleRanks, blocks

_Scalar = TypeVar("_Scalar", bound=np.generic)


class Quadrant(IntEnum):
    """Q2 and Q4 are kept, Q1 and Q3 are removed, always."""

    Q1 = 1  # harmful noise: high error, high uncertainty
    Q2 = 2  # valuable misconception: high error, low uncertainty
    Q3 = 3  # redundant knowledge: low error, low uncertainty
    Q4 = 4  # calibration data: low error, high uncertainty

    @property
    def kept(self) -> bool:
        """Whether samples of this quadrant are trained on."""
        return self in (Quadrant.Q2, Quadrant.Q4)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The corners' edges in the data's own units: order statistics of the data.

    Where no sample lies beyond an edge, entropies have -inf or +inf, and perplexities exp of these: 0 or inf.
    """

    alpha: float
    ppl_low: float
    ppl_high: float
    ent_low: float  # nats
    ent_high: float  # nats


@dataclass(frozen=True, slots=True, eq=False)
class PlaneView:
    """What a user's rule sees of the population. Arrays are (N,), in sample order, and read-only.

    A job of more samples than one process should hold (pipeline/population.py: GROUP_SAMPLES) calls the rule once for
    each group of consecutive samples: arrays are (n,) then, of the group, while `p`, `e`, `thresholds` and
    `num_samples` are always those of the whole population. So a rule should decide on each sample by these.
    """

    mean_nll: NDArray[np.float64]  # nats
    mean_entropy: NDArray[np.float64]  # nats
    perplexity: NDArray[np.float64]
    p: NDArray[np.float64]  # mid-rank of mean_nll in (0, 1)
    e: NDArray[np.float64]  # mid-rank of mean_entropy in (0, 1)
    thresholds: Thresholds
    labels: NDArray[np.int8]  # the method's own labels, 1..4; copy them to change some
    num_samples: int  # N


class QuadrantRule(Protocol):
    """A user's function in place of the method's labels.

    For example, remove as noise only what lies far out and keep the rest of Q1 as calibration data:

        def lenient(plane: PlaneView) -> NDArray[np.int8]:
            labels = plane.labels.copy()
            near = plane.perplexity <= 1.5 * plane.thresholds.ppl_high
            labels[(labels == Quadrant.Q1) & near] = Quadrant.Q4
            return labels
    """

    def __call__(self, plane: PlaneView, /) -> NDArray[np.integer[Any]]:
        """One label from 1 to 4 for each sample, (N,)."""
        ...


def corner_entry(nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks, num_samples: int) -> DoubleRanks:
    """The smallest A = 2N a at which each of some samples lies in a corner: (n,), from 1 to 2N - 1."""
    entry = np.empty_like(nll_ranks)
    double_n = 2 * num_samples
    for block in blocks(len(nll_ranks)):
        p, e = nll_ranks[block], entropy_ranks[block]
        entry[block] = np.minimum(np.maximum(double_n - p, e), np.maximum(p, double_n - e))
    return entry


def classify(
    nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks, entry: DoubleRanks, bound: int, num_samples: int
) -> NDArray[np.int8]:
    """One label a sample (n,): kept (entry <= bound) is Q2 if p >= e else Q4; removed is Q1 if p + e > 1 else Q3."""
    labels = np.empty(len(entry), dtype=np.int8)
    double_n = 2 * num_samples
    q1, q2, q3, q4 = (np.int8(quadrant) for quadrant in Quadrant)
    for block in blocks(len(entry)):
        p, e = nll_ranks[block], entropy_ranks[block]
        kept = np.where(p >= e, q2, q4)
        removed = np.where(p > double_n - e, q1, q3)  # not p + e, which could overflow
        labels[block] = np.where(entry[block] <= bound, kept, removed)
    return labels


def plane_view(
    *,
    mean_nll: NDArray[np.float64],
    mean_entropy: NDArray[np.float64],
    nll_ranks: DoubleRanks,
    entropy_ranks: DoubleRanks,
    thresholds: Thresholds,
    labels: NDArray[np.int8],
    num_samples: int,
) -> PlaneView:
    """The population, or a group of it, as a rule sees it."""
    double_n = 2 * num_samples
    floats = (mean_nll, mean_entropy, perplexity(mean_nll), nll_ranks / double_n, entropy_ranks / double_n)
    nll, entropy, ppl, p, e = (_read_only(array) for array in floats)
    return PlaneView(nll, entropy, ppl, p, e, thresholds, _read_only(labels), num_samples)


def apply_rule(rule: QuadrantRule, plane: PlaneView) -> NDArray[np.int8]:
    """The rule's labels (N,), checked. Raises SpecError where they are not one label from 1 to 4 a sample."""
    name = getattr(rule, "__qualname__", type(rule).__name__)
    labels = np.asarray(rule(plane))
    hint = f"It must return an array of {len(plane.labels)} integers from 1 (Q1) to 4 (Q4), in sample order."
    if labels.shape != plane.labels.shape:
        raise SpecError(f"quadrant rule {name!r} returned shape {labels.shape} for {len(plane.labels)} samples", hint)
    if not np.issubdtype(labels.dtype, np.integer):
        raise SpecError(f"quadrant rule {name!r} returned {labels.dtype} values", hint)
    wrong = np.flatnonzero((labels < Quadrant.Q1) | (labels > Quadrant.Q4))
    if len(wrong):
        raise SpecError(
            f"quadrant rule {name!r} gave {len(wrong)} sample(s) no quadrant, the first is sample {wrong[0]} "
            f"with label {labels[wrong[0]]}",
            hint,
        )
    return labels.astype(np.int8)


def _read_only(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    view = array.view()
    view.flags.writeable = False
    return view
