"""Axes of the scores: the range of the data that a chart shows, its scale and its ticks.

Perplexity and lengths have log scales. Entropy has a linear scale, unless most samples would then be in the first
twentieth of the axis. In that case it has a square-root scale, which also holds zero. A few far outliers must not
squeeze the other samples either: if the outermost 0.1% at each end would take a third of an axis, the axis ends a
little beyond the others, and outliers are drawn at its edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import perplexity
from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.plane import Thresholds

Column = NDArray[np.float64]
Scale = Literal["linear", "sqrt", "log"]

MAX_DRAWN = 1e300  # Vega's log scale requires finite perplexities
MAX_WARPED = 705.0  # exp of a larger number is infinite; entropies are far below
OUTERMOST = 0.001
MAX_SHARE_OF_OUTERMOST = 1 / 3
MARGIN = 0.03
SQUEEZED = 0.05
FEW_INTEGERS = 10

_WARP: Mapping[Scale, Callable[[Column], Column]] = {"linear": np.asarray, "sqrt": np.sqrt, "log": np.log}
_UNWARP: Mapping[Scale, Callable[[Column], Column]] = {"linear": np.asarray, "sqrt": np.square, "log": np.exp}


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values on a scale. `low` and `high` are on that scale: logarithms, square roots or the values."""

    title: str
    scale: Scale
    low: float
    high: float
    tick_format: str = ".3~g"
    num_beyond: int = 0
    """Number of values that are drawn at the edge."""
    is_whole: bool = False
    """Whether values are integers. Bins then end at the middle between two of them."""

    @property
    def domain(self) -> list[float]:
        """Return both ends as values."""
        return [float(end) for end in _UNWARP[self.scale](np.array([self.low, self.high]))]

    def edges(self, num_bins: int) -> Column:
        """Return the edges of at most num_bins bins of equal width on the page, as values (num_bins + 1,)."""
        edges = _UNWARP[self.scale](np.linspace(self.low, self.high, num_bins + 1))
        return np.unique(np.floor(edges) + 0.5) if self.is_whole else edges

    def bins(self, values: Column, num_bins: int) -> NDArray[np.int64]:
        """Return the bin of each value (n,). Values beyond an end are in the bin there."""
        edges = self.edges(num_bins)
        return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)

    def share(self, value: float) -> float:
        """Return the position of a value between the ends, from 0 to 1."""
        warped = float(_WARP[self.scale](np.array([value]))[0])
        return min(max((warped - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Return round values, or none if Vega's own ticks are better."""
        low, high = self.domain
        if self.is_whole and high - low < FEW_INTEGERS:
            return [float(tick) for tick in range(math.ceil(low), math.floor(high) + 1)]
        return _log_ticks(low, high) if self.scale == "log" else _root_ticks(high) if self.scale == "sqrt" else []

    def encoding(self) -> dict[str, Any]:
        """Return scale, axis and title of an Altair channel."""
        scale = {"type": self.scale, "domain": self.domain, "nice": False, "clamp": True}
        if self.scale != "log":
            scale["zero"] = False
        ticks = self.ticks()
        axis = {"format": self.tick_format, **({"values": ticks} if ticks else {})}
        return {"title": self.title, "scale": scale, "axis": axis}


def perplexity_axis(sample: EvenSample, thresholds: Thresholds | None) -> Axis:
    """Return the axis of every sample and threshold. No perplexity is below 1."""
    lines = (thresholds.ppl_low, thresholds.ppl_high) if thresholds else ()
    return replace(_fitted("log", shown_perplexity(sample), lines), title="Perplexity, log scale", tick_format=".3~s")


def entropy_axis(sample: EvenSample, thresholds: Thresholds | None) -> Axis:
    """Return the axis of every sample and threshold."""
    lines = (thresholds.ent_low, thresholds.ent_high) if thresholds else ()
    values = sample.mean_entropy
    if len(values) and np.median(values) < SQUEEZED * values.max():
        return replace(_fitted("sqrt", values, lines), title="Entropy, nats (square-root scale)")
    return replace(_fitted("linear", values, lines), title="Entropy, nats")


def length_axis(sample: EvenSample) -> Axis:
    """Return the axis of every sample, with room for the bins of the shortest and the longest."""
    values = np.maximum(sample.num_tokens.astype(np.float64), 1.0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    ends = math.log(low - 0.5), math.log(high + 0.5)
    return Axis("Trained tokens, log scale", "log", *ends, tick_format=".3~s", is_whole=True)


def rank_axis(title: str) -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(title, "linear", 0.0, 1.0, tick_format=".2~f")


def shown_perplexity(sample: EvenSample) -> Column:
    """Return the perplexities that charts draw, (S,) finite."""
    return np.minimum(perplexity(sample.mean_nll), MAX_DRAWN)


def _fitted(scale: Scale, values: Column, lines: Iterable[float]) -> Axis:
    """Return an axis without a title. Neither entropy nor the logarithm of a perplexity is below 0."""
    drawn = np.array([line for line in lines if math.isfinite(line) and (line > 0 or scale != "log")])
    warped = _WARP[scale](values)
    low, high = _span(warped)
    beyond = int(np.count_nonzero((warped < low) | (warped > high)))
    ends = np.array([low, high, *_WARP[scale](drawn).tolist()])
    low, high = float(ends.min()), float(ends.max())
    margin = MARGIN * (high - low) or 0.5
    begins_at_zero = scale != "log" and low < 0.25 * high
    low = 0.0 if begins_at_zero else max(low - margin, 0.0)
    return Axis("", scale, low, min(high + margin, MAX_WARPED), num_beyond=beyond)


def _span(warped: Column) -> tuple[float, float]:
    """Return both ends of the values, or of all except far outliers."""
    if not len(warped):
        return 0.0, 1.0
    least, most = float(warped.min()), float(warped.max())
    low, high = (float(edge) for edge in np.quantile(warped, [OUTERMOST, 1 - OUTERMOST], method="lower"))
    room = 0.1 * (high - low)
    are_many = len(warped) * OUTERMOST >= 1
    if are_many and 0 < high - low < (1 - MAX_SHARE_OF_OUTERMOST) * (most - least):
        return max(least, low - room), min(most, high + room)
    return least, most


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each decade, or fewer for many decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = max(1, len(decades) // 8)
    digits = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 6 else (1,)
    ticks = [digit * 10.0**decade for decade in decades[::step] for digit in digits]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= 3 else []


def _root_ticks(high: float) -> list[float]:
    """Return 0, and 1, 2 and 5 of three decades: roughly even on a square-root scale."""
    top = 10.0 ** math.floor(math.log10(high))
    ticks = [digit * top / size for size in (100, 10, 1) for digit in (1, 2, 5)]
    return [0.0, *(tick for tick in ticks if tick <= high)]
