"""An engine that records when it does what, and fails where a shard asks for it.

The first token of a sample names its shard. The second one is an order: see the constants. Events are appended to the
file that QTUNE_TEST_EVENTS names, as lines of "event shard process".
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo, FlatScores, InterruptedScoring, PreparedSamples, Watch, never

SCORE, BREAK, DIE_RUNNING, DIE_PREPARING, WAIT = range(10, 15)
"""Score as usual. Fail as a broken engine does. Kill the process. Run until the job stops."""
STEP_S, STEPS = 0.05, 12


def events(path: Path) -> list[tuple[str, int, int]]:
    """Return (event, shard, process) in order."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(name, int(shard), int(process)) for name, shard, process in (line.split() for line in lines)]


def build(_model: ModelSpec, _engine: EngineSpec) -> InstrumentedScorer:
    """Build the engine, for `engine.name`."""
    return InstrumentedScorer()


class InstrumentedScorer:
    """Scores are the tokens themselves."""

    info = EngineInfo("instrumented", "1", "cpu", "float32", "None", 64, 1000)

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score in one step."""
        prepared = self.prepare(samples)
        return self.finish(prepared, self.run(prepared, watch)).rows()

    def prepare(self, samples: Sequence[Sample]) -> PreparedSamples:
        """Sort."""
        self._note("prepare", samples)
        if samples[0].input_ids[1] == DIE_PREPARING:
            os.kill(os.getpid(), signal.SIGKILL)
        prepared = PreparedSamples.of(samples, self.info)
        self._note("prepared", samples)
        return prepared

    def run(self, prepared: PreparedSamples, watch: Watch = never) -> dict[int, Any]:
        """Take some steps."""
        self._note("run", prepared.samples)
        order = int(prepared.samples[0].input_ids[1])
        scores = {
            i: np.repeat(p.input_ids[p.positions, None], 2, 1).astype(np.float32)
            for i, p in enumerate(prepared.prompts)
        }
        for step in range(STEPS) if order != WAIT else iter(int, 1):
            time.sleep(STEP_S)
            if watch(step):
                raise InterruptedScoring(prepared.finished({0: scores[0]}))
        if order == BREAK:
            raise EngineError("the device is broken")
        if order == DIE_RUNNING:
            os.kill(os.getpid(), signal.SIGKILL)
        self._note("ran", prepared.samples)
        return scores

    def finish(self, prepared: PreparedSamples, result: dict[int, Any]) -> FlatScores:
        """Select."""
        scores = prepared.select(np.concatenate([result[i] for i in range(len(prepared.prompts))]))
        self._note("finished", prepared.samples)
        return scores

    def _note(self, event: str, samples: Sequence[Sample]) -> None:
        with Path(os.environ["QTUNE_TEST_EVENTS"]).open("a") as file:
            file.write(f"{event} {samples[0].input_ids[0]} {os.getpid()}\n")

    def close(self) -> None:
        """Do nothing: nothing is held."""
