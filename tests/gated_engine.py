"""The reference engine behind gates: it loads, and scores, once the files exist that two variables name.

A variable that is not set is an open gate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.reference import ReferenceScorer
from tests.slow_engine import SlowScorer

LOAD_GATE, SCORE_GATE = "QTUNE_TEST_LOAD_GATE", "QTUNE_TEST_SCORE_GATE"


def build(model: ModelSpec, engine: EngineSpec) -> GatedScorer:
    """Build the engine, for `engine.name`, once the gate of loading is open."""
    _wait_for(LOAD_GATE)
    return GatedScorer(ReferenceScorer(model, engine))


def _wait_for(gate: str) -> None:
    while gate in os.environ and not Path(os.environ[gate]).exists():
        time.sleep(0.05)


class GatedScorer(SlowScorer):
    """Scores as the reference does, once the gate of scoring is open."""

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Wait for the gate, and score."""
        _wait_for(SCORE_GATE)
        return self._inner.score(samples)
