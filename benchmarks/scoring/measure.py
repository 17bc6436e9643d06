"""Yardsticks: this machine's matrix-multiplication peak, the arithmetic that scoring needs, memory of a process tree.

The arithmetic counted is what the method needs and no more: matrices once a token, the output head for trained tokens
only, causal attention once a pair. A route that does more of it (the head for prompts, padding) gets a lower share of
the peak, as it should. Peak memory is the sum of resident memory over a process and its descendants, looked at twice a
second; pages that processes share count in each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import psutil

from benchmarks.scoring.material import Shape
from qtune_service.samples import Sample
from qtune_service.scoring.scorer import scored_positions

PEAK_SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (2048, 896, 4864), (2048, 4864, 896))
MIN_TRIES, MIN_SECONDS = 3, 0.5  # of each size


@dataclass(frozen=True, slots=True)
class Peak:
    """The fastest multiplication seen."""

    flops_per_s: float
    size: tuple[int, int, int]


def measure_peak(dtype: str, sizes: Sequence[tuple[int, int, int]] = PEAK_SIZES) -> Peak:
    """Multiply (m, k) by (k, n) in many sizes, with this process's threads, and keep the fastest run."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = Peak(0.0, sizes[0])
    for m, k, n in sizes:
        a, b = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in ((m, k), (n, k)))
        out, right = torch.mm(a, b.T), b.T  # stored (n, k), as the weights of a linear layer are
        begun_s, tries = time.perf_counter(), 0
        while tries < MIN_TRIES or time.perf_counter() - begun_s < MIN_SECONDS:
            started_s = time.perf_counter()
            torch.mm(a, right, out=out)
            if device == "cuda":
                torch.cuda.synchronize()
            flops_per_s = 2 * m * k * n / (time.perf_counter() - started_s)
            best = max(best, Peak(flops_per_s, (m, k, n)), key=lambda peak: peak.flops_per_s)
            tries += 1
    return best


def flops_needed(shape: Shape, samples: Sequence[Sample]) -> float:
    """Return the floating-point operations that score the samples once."""
    head_dim = shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv_heads * head_dim  # weights of a layer
    body = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    lengths = np.array([len(sample.input_ids) for sample in samples], np.float64)
    trained = sum(len(scored_positions(sample)) for sample in samples)
    # T^2 / 2 pairs of tokens; each costs 2 head_dim for its weight and 2 head_dim for its value, in every head.
    pairs = 2 * shape.layers * shape.hidden * np.square(lengths).sum()
    return float(2 * body * lengths.sum() + 2 * shape.hidden * shape.vocab * trained + pairs)


class MemorySampler:
    """The most resident memory that a process and its descendants held at one moment; use as a context."""

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._process, self._every_s = psutil.Process(pid), every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes(self._process))
            if self._done.wait(self._every_s):
                return


def tree_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants; what has ended meanwhile counts 0."""
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_resident_bytes, members))


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
