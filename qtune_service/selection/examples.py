"""Which samples to show with their tokens: the most typical of each quadrant, and the most borderline.

Typical are those nearest to the quadrant's median in (log perplexity, entropy), each divided by its spread. Borderline
are those whose fate a slightly different alpha would change: by how much is known from their ranks alone (plane.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.even_sample import EvenSample

ExampleKind = Literal["typical", "borderline"]
Rows = NDArray[np.int64]
"""(k,) rows of an even sample, nearest first; equals in order of position."""


def typical_samples(sample: EvenSample, per_quadrant: int) -> dict[int, Rows]:
    """Each quadrant's (1..4) most typical samples."""
    return {
        label: members[np.argsort(_from_median(sample, members), kind="stable")[:per_quadrant]]
        for label, members in _members(sample).items()
    }


def borderline_samples(sample: EvenSample, alpha: float, per_quadrant: int) -> dict[int, Rows]:
    """Each quadrant's (1..4) samples that come nearest to being decided otherwise."""
    distance = np.abs(entry_alpha(sample) - alpha)
    return {
        label: members[np.argsort(distance[members], kind="stable")[:per_quadrant]]
        for label, members in _members(sample).items()
    }


def entry_alpha(sample: EvenSample) -> NDArray[np.float64]:
    """The smallest alpha at which each sample is kept, (S,)."""
    p, e = sample.error_rank, sample.entropy_rank
    entry: NDArray[np.float64] = np.minimum(np.maximum(1 - p, e), np.maximum(p, 1 - e))
    return entry


def _members(sample: EvenSample) -> dict[int, Rows]:
    return {label: np.flatnonzero(sample.quadrant == label) for label in (1, 2, 3, 4)}


def _from_median(sample: EvenSample, members: Rows) -> NDArray[np.float64]:
    return _spread(sample.mean_nll[members]) + _spread(sample.mean_entropy[members])


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in units of the mean distance."""
    if len(values) == 0:
        return values
    distance = np.abs(values - np.median(values))
    spread = float(distance.mean())
    return distance / spread if spread > 0 else distance
