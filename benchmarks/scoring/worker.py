"""Run one route, or the peak, in a process of its own. processes.py starts it with the task as an argument.

A route is built, called once with a few samples to warm up, and then timed over all of them. What it found goes to
RESULT.json, its scores to RESULT.npz.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.scoring import routes
from benchmarks.scoring.material import load_samples
from benchmarks.scoring.measure import measure_peak
from qtune_service.config import ModelSpec
from qtune_service.samples import TokenScores

WARM_UP_SAMPLES = 3
PEAK = "peak"
BUILDERS: dict[str, Callable[[ModelSpec], routes.ScoreAll]] = {
    "engine": routes.build_engine,
    "reference": routes.build_reference,
    "script": routes.build_script,
    "batched": routes.build_batched,
    "prompt-logprobs": routes.build_prompt_logprobs,
}


@dataclass(frozen=True, slots=True)
class Task:
    """A worker's task."""

    route: str
    model: str
    dtype: str
    samples: str
    result: str
    """Path without suffix."""


def save_scores(path: Path, scores: Sequence[TokenScores]) -> None:
    """Write scores flat: nll and entropy (all trained tokens,)."""
    nll, entropy = (np.concatenate([getattr(s, name) for s in scores]) for name in ("nll", "entropy"))
    np.savez(path, nll=nll, entropy=entropy)


def run(task: Task) -> dict[str, float | list[int]]:
    """Do the task. Times are in seconds, `ready_at_s` since the epoch."""
    if task.route == PEAK:
        peak = measure_peak(task.dtype)
        return {"flops_per_s": peak.flops_per_s, "size": list(peak.size)}
    model = ModelSpec.model_validate({"name": task.model, "dtype": task.dtype})
    samples = load_samples(Path(task.samples))
    score = BUILDERS[task.route](model)
    ready_at_s = time.time()
    score(samples[:WARM_UP_SAMPLES])
    started_s = time.perf_counter()
    scores = score(samples)
    score_s = time.perf_counter() - started_s
    save_scores(Path(f"{task.result}.npz"), scores)
    return {"ready_at_s": ready_at_s, "score_s": score_s}


def main() -> None:
    """Run the task given as JSON."""
    task = Task(**json.loads(sys.argv[1]))
    Path(f"{task.result}.json").write_text(json.dumps(run(task)), encoding="utf-8")


def command(task: Task) -> list[str]:
    """Start a worker with the task."""
    return [sys.executable, "-m", "benchmarks.scoring.worker", json.dumps(asdict(task))]


if __name__ == "__main__":
    main()
