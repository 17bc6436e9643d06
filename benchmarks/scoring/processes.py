"""Run each route in a process of its own, one after the other, and watch its time and memory from outside.

`qtune` is the real command: its process starts, starts Ray, reads and tokenises the records, scores, writes and
prunes; its speed is that of its manifest, from the first engine's first shard to the last shard written. It gets the
same records as the others got tokens from, and the tokens in its output are checked to be theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.scoring.measure import MemorySampler
from benchmarks.scoring.worker import PEAK, Task, command
from qtune_service.samples import Sample
from qtune_service.scoring.process_environment import allocator_environment

MAX_SHARD_BYTES, SHARDS_WANTED = 256 << 10, 8
LOG_TAIL_LINES = 12
OWN_ENGINES = ("engine", "reference")
REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Setting:
    """Inputs and settings that the routes of one model share."""

    model: Path
    dtype: str
    threads: int
    data: Path
    samples: Path
    folder: Path
    """For results, outputs and logs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one route. `error` is empty for a route that ran."""

    route: str
    startup_s: float = 0.0
    score_s: float = 0.0
    whole_s: float = 0.0
    peak_bytes: int = 0
    busy_share: float | None = None
    """Of the scoring actors' time, the share in which they scored; of `qtune` only."""
    error: str = ""


class RouteFailedError(RuntimeError):
    """A process ended with an error; the message is the end of its log."""


def measure_peak_apart(setting: Setting) -> float:
    """Return this machine's FLOP/s at the dtype and threads of the setting."""
    _run_worker(PEAK, setting)
    return float(_result(PEAK, setting)["flops_per_s"])


def run_route(route: str, setting: Setting, samples: Sequence[Sample]) -> Outcome:
    """Run a route. A failure is part of the outcome, so the other routes still run."""
    try:
        return _run_qtune(setting, samples) if route == "qtune" else _run_in_worker(route, setting)
    except RouteFailedError as error:
        return Outcome(route, error=str(error))


def scores_of(route: str, setting: Setting) -> dict[str, np.ndarray[Any, Any]]:
    """Return a finished route's nll and entropy, both (all trained tokens,), in the order of the samples."""
    with np.load(setting.folder / f"{route}.npz") as arrays:
        return {name: arrays[name] for name in ("nll", "entropy")}


# --- workers


def _run_in_worker(route: str, setting: Setting) -> Outcome:
    began_at_s, whole_s, peak_bytes = _run_worker(route, setting)
    result = _result(route, setting)
    return Outcome(route, result["ready_at_s"] - began_at_s, result["score_s"], whole_s, peak_bytes)


def _run_worker(route: str, setting: Setting) -> tuple[float, float, int]:
    paths = (os.fspath(p) for p in (setting.model, setting.samples, setting.folder / route))
    model, samples, result = paths
    task = Task(route, model, setting.dtype, samples, result)
    path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
    environment = {"OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": path}
    if route in OWN_ENGINES:  # as the pipeline starts them
        environment |= allocator_environment()
    return _watch(route, command(task), setting, environment)


def _result(route: str, setting: Setting) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((setting.folder / f"{route}.json").read_text(encoding="utf-8"))
    return result


def _watch(
    route: str, arguments: Sequence[str], setting: Setting, environment: Mapping[str, str]
) -> tuple[float, float, int]:
    """Run a process to its end. Return its start (epoch), its seconds and its tree's peak resident bytes."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    log = setting.folder / f"{route}.log"
    began_at_s, began_s = time.time(), time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(arguments, env={**own, **environment}, stdout=output, stderr=subprocess.STDOUT)
        try:
            with MemorySampler(process.pid) as memory:
                status = process.wait()
        finally:
            process.terminate()  # where this process was told to stop meanwhile; else it has ended
    whole_s = time.perf_counter() - began_s
    if status:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise RouteFailedError("\n".join([f"{route} ended with status {status}; {log} ends with:", *tail]))
    return began_at_s, whole_s, memory.peak_bytes


# --- the real command


def _run_qtune(setting: Setting, samples: Sequence[Sample]) -> Outcome:
    output = setting.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    # Small benchmarks get small shards: as in a large job, the engine scores one while another is being prepared.
    shard_bytes = min(MAX_SHARD_BYTES, setting.data.stat().st_size // SHARDS_WANTED)
    arguments = [os.fspath(Path(sys.executable).with_name("qtune")), "prune", os.fspath(setting.data)]
    arguments += ["--model", os.fspath(setting.model), "--output", os.fspath(output), "--dtype", setting.dtype]
    arguments += ["--engine", "vllm", "--shard-bytes", str(shard_bytes)]
    _, whole_s, peak_bytes = _watch("qtune", arguments, setting, {})
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    _take_scores(output, setting, samples)
    performance = manifest["performance"]
    num_tokens = sum(len(sample.input_ids) for sample in samples)
    if performance["tokens"] != num_tokens:
        raise RouteFailedError(f"the manifest counts {performance['tokens']:,} tokens, the samples have {num_tokens:,}")
    return Outcome(
        "qtune",
        performance["startup_s"],
        performance["score_s"],
        whole_s,
        peak_bytes,
        busy_share=performance["engine_busy_share"],
    )


def _take_scores(output: Path, setting: Setting, samples: Sequence[Sample]) -> None:
    """Save the job's scores, once its tokens are known to be the samples' own."""
    columns = ["input_ids", "loss_mask", "nll", "entropy"]
    parts = sorted((output / "scores").glob("part-*.parquet"))
    tables: list[Any] = [pq.read_table(part, columns=columns) for part in parts]
    flat = {
        name: np.concatenate([t[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for t in tables])
        for name in columns
    }
    for name in ("input_ids", "loss_mask"):
        if not np.array_equal(flat[name], np.concatenate([getattr(sample, name) for sample in samples])):
            raise RouteFailedError(f"{output}: {name} are not those of the other routes")
    np.savez(setting.folder / "qtune.npz", nll=flat["nll"], entropy=flat["entropy"])
