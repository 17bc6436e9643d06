"""The reference engine on nodes that are broken: it does not start, or fails after some shards, where a node says so.

A node is broken by a file `broken.json` in the working folder of its `ray start`, so that it can be broken while it
runs: {"start": MESSAGE} or {"after": SHARDS}. The processes of a node find it through their parents.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.reference import ReferenceScorer
from qtune_service.scoring.scorer import EngineInfo, InterruptedScoring, Watch, never
from tests.slow_engine import pause

FILE = "broken.json"


def break_node(folder: Path, **how: object) -> None:
    """Break the node with this working folder from now on."""
    (folder / FILE).write_text(json.dumps(how))


def mend_node(folder: Path) -> None:
    """Mend the node with this working folder."""
    (folder / FILE).unlink(missing_ok=True)


def build(model: ModelSpec, engine: EngineSpec) -> BreakableScorer:
    """Build the engine, for `engine.name`."""
    how = damage()
    if message := how.get("start"):
        raise (ModelError if how.get("fatal") else EngineError)(message, "Look at this node.")
    return BreakableScorer(ReferenceScorer(model, engine))


def damage() -> dict[str, Any]:
    """Return how this process's node is broken."""
    for process in [psutil.Process(), *psutil.Process().parents()]:
        with contextlib.suppress(psutil.Error):
            if (path := Path(process.cwd()) / FILE).exists():
                body: dict[str, Any] = json.loads(path.read_text())
                return body
    return {}


def note(sample: Sample) -> None:
    """Append a line for each scored sample to the file that QTUNE_TEST_SAMPLES names."""
    if name := os.environ.get("QTUNE_TEST_SAMPLES"):
        with Path(name).open("a") as file:
            file.write(f"{hashlib.sha256(sample.input_ids.tobytes()).hexdigest()}\n")


class BreakableScorer:
    """Scores as the reference engine does, slowly, until its node breaks."""

    def __init__(self, inner: ReferenceScorer) -> None:
        self._inner = inner
        self._shards = 0

    @property
    def info(self) -> EngineInfo:
        """Return the information of the engine behind."""
        return self._inner.info

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score in steps, so that a watch can interrupt."""
        after = damage().get("after")
        if after is not None and self._shards >= after:
            raise EngineError("CUDA error: uncorrectable ECC error encountered")
        found: list[TokenScores] = []
        for sample in samples:
            pause(1 / len(samples))
            found += self._inner.score([sample])
            note(sample)
            if watch(sum(len(one.input_ids) for one in samples[: len(found)])):
                raise InterruptedScoring(dict(enumerate(found)))
        self._shards += 1
        return found

    def close(self) -> None:
        """Free the model."""
        self._inner.close()
