"""Choose example samples: the most typical and the most borderline of each quadrant.

Typical samples are nearest to the quadrant's median in (log perplexity, entropy), each divided by its spread.
Borderline samples are those that a slightly different alpha would keep or remove: their entry alpha (plane.py) is
nearest to alpha.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.plane import entry_alpha

ExampleKind = Literal["typical", "borderline"]
Rows = NDArray[np.int64]
"""(k,) rows of an even sample, nearest first; ties in order of position."""


def typical_samples(sample: EvenSample, per_quadrant: int) -> dict[int, Rows]:
    """Return the most typical samples of each quadrant (1..4)."""
    return {
        label: members[np.argsort(_from_median(sample, members), kind="stable")[:per_quadrant]]
        for label, members in _members(sample).items()
    }


def borderline_samples(sample: EvenSample, alpha: float, per_quadrant: int) -> dict[int, Rows]:
    """Return the samples of each quadrant (1..4) whose entry alphas are nearest to alpha."""
    distance = np.abs(entry_alpha(sample.error_rank, sample.entropy_rank) - alpha)
    return {
        label: members[np.argsort(distance[members], kind="stable")[:per_quadrant]]
        for label, members in _members(sample).items()
    }


def _members(sample: EvenSample) -> dict[int, Rows]:
    return {label: np.flatnonzero(sample.quadrant == label) for label in (1, 2, 3, 4)}


def _from_median(sample: EvenSample, members: Rows) -> NDArray[np.float64]:
    return _spread(sample.mean_nll[members]) + _spread(sample.mean_entropy[members])


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances from the median (n,) in units of the mean distance."""
    if len(values) == 0:
        return values
    distance = np.abs(values - np.median(values))
    spread = float(distance.mean())
    return distance / spread if spread > 0 else distance
