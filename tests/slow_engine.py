"""The reference engine, slowed down: a job on it lasts until a test has seen what it waits for.

Once the file exists that QTUNE_TEST_HURRY names, it is as fast as the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.reference import ReferenceScorer
from qtune_service.scoring.scorer import EngineInfo

PAUSE_S = float(os.environ.get("QTUNE_TEST_PAUSE_S", "1.5"))
"""Before each shard."""
HURRY = "QTUNE_TEST_HURRY"


def pause(share: float = 1.0) -> None:
    """Wait for a share of a shard's pause, unless it is time to hurry."""
    if not Path(os.environ.get(HURRY, "/nowhere")).exists():
        time.sleep(share * PAUSE_S)


def build(model: ModelSpec, engine: EngineSpec) -> SlowScorer:
    """Build the slow engine, for `engine.name`."""
    return SlowScorer(ReferenceScorer(model, engine))


class SlowScorer:
    """Scores as the other one does, after a pause."""

    def __init__(self, inner: ReferenceScorer) -> None:
        self._inner = inner

    @property
    def info(self) -> EngineInfo:
        """Return the information of the engine behind."""
        return self._inner.info

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Wait, and score."""
        pause()
        return self._inner.score(samples)

    def close(self) -> None:
        """Free the model."""
        self._inner.close()
