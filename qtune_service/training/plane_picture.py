"""Draw the error-uncertainty plane of a training step as a PNG, with the report's chart.

    plot_eu_plane(step.choice, "step-100.png")

A Choice holds the rows of its rank and the thresholds of the global batch, so each rank can draw its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.report.chart_layers import LIGHT, Palette, sample_rows
from qtune_service.report.data import QuadrantName
from qtune_service.report.plane import plane_of
from qtune_service.selection.distributions import even_sample
from qtune_service.selection.plane import Thresholds
from qtune_service.selection.ranked_samples import RankedSamples, kept_labels
from qtune_service.selection.ranks import double_midranks

FATES: dict[QuadrantName, str] = {"Q1": "dropped", "Q2": "kept", "Q3": "dropped", "Q4": "kept"}


class Chosen(Protocol):
    """Data of a plane: a Choice, or user scores (ScoredPlane)."""

    @property
    def mean_nll(self) -> NDArray[np.float64]:
        """Return mean NLL, (S,) nats."""
        ...

    @property
    def mean_entropy(self) -> NDArray[np.float64]:
        """Return mean entropy, (S,) nats."""
        ...

    @property
    def quadrants(self) -> NDArray[np.int8]:
        """Return quadrants, (S,) 1..4; 0 is not drawn."""
        ...

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Return the kept flags, (S,)."""
        ...

    @property
    def thresholds(self) -> Thresholds:
        """Return the thresholds of the population."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPlane:
    """Samples with scores, quadrants and thresholds."""

    mean_nll: NDArray[np.float64]  # (S,) nats
    mean_entropy: NDArray[np.float64]  # (S,) nats
    quadrants: NDArray[np.int8]  # (S,) 1..4; 0 is not drawn
    is_kept: NDArray[np.bool_]  # (S,)
    thresholds: Thresholds


def plot_eu_plane(chosen: Chosen, path: str | Path, *, palette: Palette = LIGHT, scale: float = 2.0) -> Path:
    """Draw samples and thresholds to a PNG file and return its path. Raises DataError without scored samples."""
    import vl_convert

    shown = np.flatnonzero(np.asarray(chosen.quadrants) > 0)
    if not len(shown):
        raise DataError("no sample has a quadrant to draw", "Draw a step that scored samples: warm-up scores none.")
    nll, entropy = (np.asarray(values, np.float64)[shown] for values in (chosen.mean_nll, chosen.mean_entropy))
    labels, is_kept = np.asarray(chosen.quadrants, np.int8)[shown], np.asarray(chosen.is_kept, np.bool_)[shown]
    ranked = RankedSamples(nll, entropy, double_midranks(nll), double_midranks(entropy), len(nll))
    sample = even_sample(ranked, labels=labels, kept=is_kept, num_tokens=np.zeros(len(nll), np.int32))
    points = sample.points()
    rows = sample_rows(points, [str(place) for place in shown[points.index]])
    is_by_quadrant = np.array_equal(is_kept, kept_labels(labels))  # otherwise quadrants do not determine the selection
    fates = FATES if is_by_quadrant else {}
    spec = plane_of(sample, chosen.thresholds, rows, fates, palette=palette)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png(spec, scale=scale))
    return path
