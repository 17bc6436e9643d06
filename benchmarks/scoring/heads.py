"""Measure ways from hidden states to scores on one device: time, memory, and error against float64.

Hidden states and weight are random, of the size that makes logits of standard deviation LOGIT_SPREAD. Memory is the
most that was allocated during a call, beyond what was there before it; on a CPU it is not measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.scoring.material import LOGIT_SPREAD, Shape
from qtune_service.scoring.kernel import KernelHead, Tile, tiles_for
from qtune_service.scoring.logits import BlockwiseHead, Head, Matrix, default_logits_bytes, exact_scores
from qtune_service.scoring.statistics import CompiledPartials, eager_partials, nll_and_entropy

CHECKED_ROWS, REPEATS = 64, 5
CPU_TILES = (Tile(16, 64, 32, 4, 2),)
"""Tiles that Triton's interpreter runs in seconds."""


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One way's figures. `error` is empty for a way that ran."""

    model: str
    way: str
    rows: int
    seconds: float = 0.0
    flops_per_s: float = 0.0
    peak_bytes: int | None = None
    max_error_nll: float = 0.0
    max_error_entropy: float = 0.0
    error: str = ""


def measure_heads(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, rows: int) -> list[HeadRow]:
    """Measure all ways over random rows of one shape."""
    torch.manual_seed(0)
    weight = (torch.randn(shape.vocab, shape.hidden, device=device) * LOGIT_SPREAD / shape.hidden**0.5).to(dtype)
    matrix = Matrix(weight, None)
    hidden = torch.randn(rows, shape.hidden, device=device).to(dtype)
    labels = torch.randint(shape.vocab, (rows,), device=device)
    exact = exact_scores(matrix, hidden[:CHECKED_ROWS], labels[:CHECKED_ROWS])
    return [_measure(name, way, head, hidden, labels, exact, shape) for way, head in _ways(matrix, device)]


def _ways(matrix: Matrix, device: torch.device) -> Iterator[tuple[str, Head]]:
    block_rows = max(1, default_logits_bytes(0) // (4 * len(matrix.weight)))
    yield "blocks, eager", BlockwiseHead(matrix.project, block_rows, eager_partials)
    if device.type == "cuda":
        yield "blocks, compiled", BlockwiseHead(matrix.project, block_rows, CompiledPartials())
    for tile in tiles_for(matrix.weight.dtype) if device.type == "cuda" else CPU_TILES:
        yield f"kernel {tile}", KernelHead(matrix.weight, None, tile)


def _measure(
    name: str, way: str, head: Head, hidden: torch.Tensor, labels: torch.Tensor, exact: torch.Tensor, shape: Shape
) -> HeadRow:
    try:
        scores = nll_and_entropy(head(hidden, labels))  # compiles
    except Exception as error:  # noqa: BLE001 - a tile that this device cannot run is a row of the table
        reason = str(error).strip().partition("\n")[0]
        return HeadRow(name, way, len(hidden), error=f"{type(error).__name__}: {reason}")
    errors = (scores[:CHECKED_ROWS] - exact).abs().amax(0).tolist()
    seconds, peak_bytes = _time(head, hidden, labels)
    flops = 2 * len(hidden) * shape.hidden * shape.vocab
    return HeadRow(name, way, len(hidden), seconds, flops / seconds, peak_bytes, errors[0], errors[1])


def _time(head: Head, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[float, int | None]:
    """Return the least seconds of a call, and the most bytes that it held."""
    on_gpu = hidden.is_cuda
    times, before_bytes = [], 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
    for _ in range(REPEATS if on_gpu else 1):
        started_s = time.perf_counter()
        head(hidden, labels)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started_s)
    return min(times), torch.cuda.max_memory_allocated() - before_bytes if on_gpu else None


def render_heads(rows: list[HeadRow], peak_flops_per_s: float) -> str:
    """Return the table."""
    lines = [
        "| head of | way | rows | ms | TFLOP/s | of GEMM peak | memory MiB | max error NLL | max error entropy |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.model} | {row.way} | {row.rows:,} | {row.error} | | | | | |")
            continue
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"
        lines.append(
            f"| {row.model} | {row.way} | {row.rows:,} | {1e3 * row.seconds:.2f} | {row.flops_per_s / 1e12:.3g} "
            f"| {row.flops_per_s / peak_flops_per_s:.0%} | {memory} | {row.max_error_nll:.1e} "
            f"| {row.max_error_entropy:.1e} |"
        )
    return "\n".join(lines)
