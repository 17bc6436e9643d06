"""The reference engine, slowed down: a job on it lasts until each of its actors has had a share.

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
        if not Path(os.environ.get("QTUNE_TEST_HURRY", "/nowhere")).exists():
            time.sleep(PAUSE_S)
        return self._inner.score(samples)

    def close(self) -> None:
        """Free the model."""
        self._inner.close()
