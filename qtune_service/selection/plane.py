"""The error-uncertainty plane: the corner rule, quadrants, labels, and a user's rule in place of the method's.

A sample is a point (p, e): its mid-ranks of mean NLL and of mean entropy, in (0, 1). For an alpha a, Q2's corner is
p >= 1 - a and e <= a, and Q4's corner is p <= a and e >= 1 - a. So a sample is kept from its entry alpha on,
min(max(1 - p, e), max(p, 1 - e)), and alpha is an order statistic of the entry alphas (thresholds.py).
`entry_alpha` is the only statement of this rule: SQL, Vega and JavaScript use text that `entry_alpha_text` renders
from it. Ranks are doubled integers (ranks.py), so P = 2N p, E = 2N e, and the scaled alpha is A = 2N a.

Source: Wang et al., Winning the Pruning Gamble, arXiv:2509.23873. The paper does not say how to label a removed sample,
nor a sample in both corners (a > 1/2). Here removed samples are divided by p + e > 1, and a sample in both corners
belongs to the nearer one.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Label of a sample. Q2 and Q4 are kept; Q1 and Q3 are removed."""

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
    """Edges of the kept corners in the units of the data, as order statistics.

    Where no sample is beyond an edge, an entropy is -inf or +inf and a perplexity is exp of these: 0 or inf.
    """

    alpha: float
    ppl_low: float
    ppl_high: float
    ent_low: float  # nats
    ent_high: float  # nats


# --- the corner rule


def entry_alpha(
    p: Any,
    e: Any,
    *,
    one: int = 1,
    minimum: Callable[[Any, Any], Any] = np.minimum,
    maximum: Callable[[Any, Any], Any] = np.maximum,
) -> Any:
    """Return the smallest alpha at which samples at the ranks (p, e) are in a kept corner.

    p and e are mid-ranks in (0, 1), numbers or arrays (n,). For doubled ranks pass `one` = 2N: the result is then the
    scaled entry alpha.
    """
    return minimum(maximum(one - p, e), maximum(p, one - e))


class _Operand(str):
    """Name of a rank in generated text."""

    __slots__ = ()

    def __rsub__(self, other: object) -> str:
        return f"{other} - {self}"


def entry_alpha_text(p: str, e: str, *, one: int = 1, minimum: str = "min", maximum: str = "max") -> str:
    """Return the corner rule as an expression of another language.

    p and e are the names of the ranks there, `minimum` and `maximum` the names of its functions: `least` and
    `greatest` for SQL, `Math.min` and `Math.max` for JavaScript, the defaults for Vega. `one` is that of `entry_alpha`.
    """
    text: str = entry_alpha(
        _Operand(p),
        _Operand(e),
        one=one,
        minimum=lambda a, b: f"{minimum}({a}, {b})",
        maximum=lambda a, b: f"{maximum}({a}, {b})",
    )
    return text


def scaled_entry_alphas(nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks, num_samples: int) -> DoubleRanks:
    """Return the scaled entry alphas (n,), from 1 to 2N - 1, of samples by their doubled ranks (n,)."""
    scaled = np.empty_like(nll_ranks)
    for block in blocks(len(nll_ranks)):
        scaled[block] = entry_alpha(nll_ranks[block], entropy_ranks[block], one=2 * num_samples)
    return scaled


# --- labels


def classify(
    nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks, entry: DoubleRanks, scaled_alpha: int, num_samples: int
) -> NDArray[np.int8]:
    """Return one label per sample (n,), from doubled ranks (n,) and scaled entry alphas (n,).

    A kept sample (entry <= scaled_alpha) is Q2 if p >= e, else Q4. A removed sample is Q1 if p + e > 1, else Q3.
    """
    labels = np.empty(len(entry), dtype=np.int8)
    q1, q2, q3, q4 = (np.int8(quadrant) for quadrant in Quadrant)
    for block in blocks(len(entry)):
        p, e = nll_ranks[block], entropy_ranks[block]
        kept = np.where(is_misconception(p, e), q2, q4)
        removed = np.where(is_noise(p, e, num_samples), q1, q3)
        labels[block] = np.where(entry[block] <= scaled_alpha, kept, removed)
    return labels


def is_misconception(nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks) -> NDArray[np.bool_]:
    """Return whether samples (n,) are Q2 when kept: p >= e."""
    higher: NDArray[np.bool_] = nll_ranks >= entropy_ranks
    return higher


def is_noise(nll_ranks: DoubleRanks, entropy_ranks: DoubleRanks, num_samples: int) -> NDArray[np.bool_]:
    """Return whether samples (n,) are Q1 when removed: p + e > 1."""
    noise: NDArray[np.bool_] = nll_ranks > 2 * num_samples - entropy_ranks  # p + e could overflow
    return noise


# --- a user's rule


@dataclass(frozen=True, slots=True, eq=False)
class PlaneView:
    """The population as a user's rule sees it. Arrays are (N,), in sample order, and read-only.

    A job of more than MAX_IN_MEMORY_SAMPLES (selection/distributed.py) calls the rule once for each group of
    consecutive samples. The arrays are then (n,), of the group, while `p`, `e`, `thresholds` and `num_samples` are
    still those of the whole population. So a rule should decide on each sample by these.
    """

    mean_nll: NDArray[np.float64]  # nats
    mean_entropy: NDArray[np.float64]  # nats
    perplexity: NDArray[np.float64]
    p: NDArray[np.float64]  # mid-rank of mean_nll in (0, 1)
    e: NDArray[np.float64]  # mid-rank of mean_entropy in (0, 1)
    thresholds: Thresholds
    labels: NDArray[np.int8]  # labels of the method, 1..4; copy them to change some
    num_samples: int  # N


class QuadrantRule(Protocol):
    """A user's function in place of the method's labels.

    For example, remove as noise only the samples far beyond the threshold and keep the rest of Q1 as calibration data:

        def lenient(plane: PlaneView) -> NDArray[np.int8]:
            labels = plane.labels.copy()
            near = plane.perplexity <= 1.5 * plane.thresholds.ppl_high
            labels[(labels == Quadrant.Q1) & near] = Quadrant.Q4
            return labels
    """

    def __call__(self, plane: PlaneView, /) -> NDArray[np.integer[Any]]:
        """Return one label from 1 to 4 for each sample, (N,)."""
        ...


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
    """Return the view of the population, or of a group of it, that a rule gets."""
    double_n = 2 * num_samples
    floats = (mean_nll, mean_entropy, perplexity(mean_nll), nll_ranks / double_n, entropy_ranks / double_n)
    nll, entropy, ppl, p, e = (_read_only(array) for array in floats)
    return PlaneView(nll, entropy, ppl, p, e, thresholds, _read_only(labels), num_samples)


def apply_rule(rule: QuadrantRule, plane: PlaneView) -> NDArray[np.int8]:
    """Return the labels (N,) of a user's rule. Raise SpecError unless they are one label from 1 to 4 a sample."""
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
