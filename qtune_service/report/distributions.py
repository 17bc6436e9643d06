"""Quantiles, ties and correlation of the scores, from the arrays of a whole job.

Quantiles are order statistics (no interpolation, like the method's thresholds), so perplexity's are those of mean NLL
exponentiated. One sorted copy of a column exists at a time: 0.8 GB at 1e8 samples. Rank correlation needs two orders at
once and gains nothing from more, so it is taken over at most a million evenly spread samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.metrics import perplexity
from qtune_service.core.ranks import double_midranks
from qtune_service.report.contents import Distributions
from qtune_service.report.plane import pick_points

QUANTILES = {
    "min": 0.0, "p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0,
}  # fmt: skip
CORRELATION_SAMPLES = 1_000_000


def describe(
    mean_nll: NDArray[np.float64],  # (N,) nats
    mean_entropy: NDArray[np.float64],  # (N,) nats
    num_tokens: NDArray[np.integer[Any]],  # (N,) trained tokens
    quadrant: NDArray[np.integer[Any]],  # (N,) 1..4
) -> Distributions:
    """Describe all scored samples of a job."""
    ordered_nll = np.sort(mean_nll)
    nll = _quantiles(ordered_nll)
    q2_tokens = num_tokens[quadrant == 2]
    return Distributions(
        perplexity={name: float(perplexity(value)) for name, value in nll.items()},
        entropy=_quantiles(np.sort(mean_entropy)),
        num_tokens=_quantiles(np.sort(num_tokens)),
        median_q2_tokens=float(np.median(q2_tokens)) if len(q2_tokens) else None,
        rank_correlation=rank_correlation(mean_nll, mean_entropy),
        largest_tie=_longest_run(ordered_nll),
    )


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation with mid-ranks; None where either side is constant."""
    picks = pick_points(len(x), CORRELATION_SAMPLES)
    if len(picks) == 0 or np.ptp(x[picks]) == 0 or np.ptp(y[picks]) == 0:
        return None
    ranks = [double_midranks(side[picks]).astype(np.float64) for side in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _quantiles(ordered: NDArray[Any]) -> dict[str, float]:
    if len(ordered) == 0:
        return {}
    # The smallest value with at least a share q of the samples at or below it.
    places = {name: max(int(np.ceil(q * len(ordered))) - 1, 0) for name, q in QUANTILES.items()}
    return {name: float(ordered[place]) for name, place in places.items()}


def _longest_run(ordered: NDArray[np.float64]) -> int:
    if len(ordered) == 0:
        return 0
    starts = np.flatnonzero(np.diff(ordered)) + 1
    edges = np.concatenate([[0], starts, [len(ordered)]])
    return int(np.diff(edges).max())
