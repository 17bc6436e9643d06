"""Measure time and memory of stage 1 over populations of growing size, both ways, as a Markdown table.

`memory` is selection.thresholds.select over two arrays in one process. `distributed` is the way of a job above
selection.distributed.MAX_IN_MEMORY_SAMPLES: workers go through groups of samples, and the driver reads none of them.
Here the workers are processes of this machine instead of Ray tasks, with files in a folder. Each row runs in a process
of its own, so its peak resident memory is its own. Where a size runs both ways, thresholds and counts must be equal.

The data are correlated log-normal scores, as perplexity and entropy are, and heavily tied ones. Each group is generated
from its own seed whenever it is read, so `distributed` never holds them all. The time for that is part of its seconds
and is in a column of its own (CPU seconds over the number of workers). `memory` has its arrays before the clock starts,
and they are part of its peak.

    python -m benchmarks.selection.thresholds --sizes 1e5 1e6 1e7 1e8 --large 1e9
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.pipeline import distributed_selection
from qtune_service.pipeline.distributed_selection import DistributedSelection
from qtune_service.pipeline.population import Group
from qtune_service.pipeline.selection_stage import CURVE_RATIOS
from qtune_service.pipeline.selection_tasks import SelectionContext
from qtune_service.selection.distributed import MAX_IN_MEMORY_SAMPLES
from qtune_service.selection.thresholds import SelectionSummary, select

CORRELATION = 0.8
DISK_BYTES = 45
"""Most bytes of the rounds' files for a sample."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A source that generates each group from its own seed. `tied` rounds both scores to tenths."""

    tied: bool

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Return scores in nats, or lengths of 1 to 400 tokens, one of which is protected."""
        if "num_tokens" in names:
            lengths = np.random.default_rng([1, group.index]).integers(1, 401, group.num_samples, dtype=np.int32)
            return [lengths if name == "num_tokens" else np.ones_like(lengths) for name in names]
        rng = np.random.Generator(np.random.SFC64([0, group.index]))
        nll, entropy = rng.standard_normal(group.num_samples), rng.standard_normal(group.num_samples)
        entropy *= (1 - CORRELATION**2) ** 0.5
        entropy += CORRELATION * nll
        nll *= 0.6
        entropy *= 0.5
        for scores in (nll, entropy):
            np.exp(scores, out=scores)
            if self.tied:
                scores.round(1, out=scores)
        return [nll, entropy]


@dataclass(frozen=True, slots=True)
class Clocked:
    """A source that measures its CPU time in this process."""

    source: MadeUp

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Read, and add up the CPU time."""
        start_s = time.thread_time()
        columns = self.source.read(group, *names)
        SPENT["read_s"] += time.thread_time() - start_s
        return columns


SPENT = {"read_s": 0.0}


def work(index: int, payload: bytes, context: SelectionContext) -> tuple[bytes, float, int]:
    """Run a task. Return its result, the CPU seconds that its data took and this process's peak memory in bytes."""
    SPENT["read_s"] = 0.0
    return distributed_selection.work(index, payload, context), SPENT["read_s"], peak_bytes()


class Processes:
    """Worker processes of this machine."""

    def __init__(self, count: int) -> None:
        self.count, self.read_s, self.peak_bytes = count, 0.0, 0
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))

    def __call__(self, items: Sequence[tuple[int, bytes]], context: SelectionContext, /) -> Iterator[tuple[int, bytes]]:
        """Run the tasks of a round."""
        futures = {self._pool.submit(work, index, payload, context): index for index, payload in items}
        for future in as_completed(list(futures)):
            result, read_s, peak = future.result()
            self.read_s += read_s
            self.peak_bytes = max(self.peak_bytes, peak)
            yield futures.pop(future), result

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def groups_of(size: int, group_samples: int) -> tuple[Group, ...]:
    """Return a population in groups of one shard each."""
    starts = range(0, size, group_samples)
    return tuple(Group(i, lo, {i: min(group_samples, size - lo)}) for i, lo in enumerate(starts))


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of a row."""

    size: int
    way: str
    tied: bool
    ratio: float
    group_samples: int
    workers: int
    folder: str


def measure(setting: Setting) -> dict[str, Any]:
    """Measure one selection, in this process and its workers."""
    measured = _in_memory(setting) if setting.way == "memory" else _distributed(setting)
    summary: SelectionSummary = measured.pop("summary")
    outcome = {
        "alpha": summary.thresholds.alpha,
        "over": summary.kept - summary.target,
        "thresholds": repr(summary.thresholds),
        "counts": list(summary.counts.values()),
        "disjoint_capacity": summary.disjoint_capacity,
    }
    return measured | {"outcome": outcome, "driver_bytes": peak_bytes()}


def _in_memory(setting: Setting) -> dict[str, Any]:
    source, start = MadeUp(setting.tied), 0
    nll, entropy = np.empty(setting.size), np.empty(setting.size)
    for group in groups_of(setting.size, setting.group_samples):
        here = slice(start, start := start + group.num_samples)
        nll[here], entropy[here] = source.read(group, "mean_nll", "mean_entropy")
    start_s, cpu_start_s = time.perf_counter(), cpu_s()
    summary = select(nll, entropy, sample_keep_ratio=setting.ratio)
    return {"seconds": time.perf_counter() - start_s, "cpu_seconds": cpu_s() - cpu_start_s, "summary": summary}


def _distributed(setting: Setting) -> dict[str, Any]:
    free = shutil.disk_usage(setting.folder).free
    if free < DISK_BYTES * setting.size:
        sys.exit(
            f"{setting.size:,} samples need {DISK_BYTES * setting.size / 1e9:.0f} GB below {setting.folder}; "
            f"{free / 1e9:.0f} GB are free. Give another --folder."
        )
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        workers = Processes(setting.workers)
        context = SelectionContext(Clocked(MadeUp(setting.tied)), f"{folder}/ranks", setting.size, PruneSpec())
        start_s, cpu_start_s = time.perf_counter(), cpu_s()
        found = DistributedSelection(groups_of(setting.size, setting.group_samples), workers, context).select(
            sample_keep_ratio=setting.ratio,
            bisect_max_iter=None,
            rule=None,
            curve_ratios=CURVE_RATIOS,
            advance=lambda _samples: None,
        )
        seconds = time.perf_counter() - start_s
        workers.close()
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_s() - cpu_start_s,
            "making_s": workers.read_s / setting.workers,
            "worker_bytes": workers.peak_bytes,
            "summary": found.summary,
        }


def measure_apart(setting: Setting) -> dict[str, Any]:
    """Measure one selection in a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.selection.thresholds",
        "--one",
        json.dumps([getattr(setting, n) for n in Setting.__slots__]),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


HEAD = (
    "| samples | data | way | seconds | of it making data | CPU s | ns a sample | growth "
    "| driver GiB | worker GiB | alpha | over target |\n|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(settings: Sequence[Setting]) -> None:
    """Print one row a setting, and compare the ways."""
    print(
        f"numpy {np.__version__}, {settings[0].workers} workers of {os.cpu_count()} cores, "
        f"groups of {settings[0].group_samples:,}, sample_keep_ratio {settings[0].ratio}\n\n{HEAD}",
        flush=True,
    )
    before: dict[tuple[str, bool], float] = {}
    outcomes: dict[tuple[int, bool], Any] = {}
    for s in settings:
        row = measure_apart(s)
        previous_s = before.get((s.way, s.tied))
        growth = f"{row['seconds'] / previous_s:.1f} x" if previous_s else ""
        making = f"{row['making_s']:.1f}" if "making_s" in row else ""
        worker = f"{row['worker_bytes'] / 2**30:.2f}" if "worker_bytes" in row else ""
        print(
            f"| {s.size:,} | {'tied' if s.tied else 'log-normal'} | {s.way} | {row['seconds']:.3f} | {making} "
            f"| {row['cpu_seconds']:.2f} | {row['seconds'] / s.size * 1e9:.0f} | {growth} "
            f"| {row['driver_bytes'] / 2**30:.2f} | {worker} | {row['outcome']['alpha']:.4f} "
            f"| {row['outcome']['over']:,} |",
            flush=True,
        )
        before[s.way, s.tied] = row["seconds"]
        if outcomes.setdefault((s.size, s.tied), row["outcome"]) != row["outcome"]:
            sys.exit(f"the two ways differ at {s.size:,} samples: {outcomes[s.size, s.tied]} and {row['outcome']}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e5, 1e6, 1e7, 1e8], help="samples, both ways")
    parser.add_argument("--large", nargs="*", type=float, default=[], help="samples, distributed only")
    parser.add_argument("--ratio", type=float, default=0.5, help="sample_keep_ratio")
    parser.add_argument("--group", type=float, default=MAX_IN_MEMORY_SAMPLES, help="samples of a group")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help=f"for files, {DISK_BYTES} bytes a sample")
    parser.add_argument("--one", help="measure one setting here and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Setting(*json.loads(arguments.one)))))
        return
    common = Setting(0, "", False, arguments.ratio, int(arguments.group), arguments.workers, arguments.folder)
    sizes, large = [[int(size) for size in given] for given in (arguments.sizes, arguments.large)]
    settings = [replace(common, size=size, way=way) for way in ("memory", "distributed") for size in sizes]
    settings += [replace(common, size=max(sizes), way=way, tied=True) for way in ("memory", "distributed")]
    settings += [replace(common, size=size, way="distributed") for size in large]
    table(settings)


if __name__ == "__main__":
    main()
