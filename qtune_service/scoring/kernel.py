"""Triton kernel that reduces hidden states to partials without storing logits.

A program processes a block of rows and one run of the vocabulary. It multiplies the rows with the head's weight block
by block and accumulates each block of logits, still in registers, into the partials of statistics.py, which it rescales
when a row's maximum grows. `statistics.merge` merges the partials of the runs. Splitting the vocabulary fills a GPU
even with few rows, and memory is 16 bytes a row and run instead of 4 V bytes a row.

Products are summed in float32, and float32 weights are multiplied as such (no TF32). The logits are never rounded to
the model's type, so scores are nearer to the exact ones than through a half-precision head.

Trade-off: a matrix multiplication in Triton competes with the vendor's library. It avoids writing and reading the
logits, so it is faster for narrow models and can be slower for wide ones. logits.py times both on the device. The
vocabulary-blocked online reduction follows Cut Cross-Entropy (arXiv:2411.09009), extended here to the entropy.

Programs of one run and different rows start together and read the same weights at about the same time, so that they
share the L2 cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from qtune_service.scoring.statistics import FLOOR, merge

PROGRAMS_PER_UNIT = 4
"""Programs per multiprocessor: enough that the last ones leave little of the device idle."""
_FLOOR = tl.constexpr(FLOOR)


@dataclass(frozen=True, slots=True)
class Tile:
    """Block sizes of one program."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.warps} warps"


HALF_TILES = (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3), Tile(64, 128, 64, 4, 3))
"""Tiles for 16-bit weights. The first needs a data-center GPU (144 KiB of shared memory), the others 96 KiB or less."""
FLOAT_TILES = (Tile(64, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""True if Triton interprets kernels in Python on a CPU. It reads the variable when the kernel is defined."""


def tiles_for(dtype: torch.dtype) -> tuple[Tile, ...]:
    """Return the candidate tiles for a weight type."""
    return FLOAT_TILES if dtype == torch.float32 else HALF_TILES


class KernelHead:
    """The kernel with a weight (V, H), an optional bias (V,), and a tile. It is a `logits.Head`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile) -> None:
        self._weight, self._bias, self._tile = weight, bias, tile

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return partials (n, 4) of hidden @ weight.T + bias for hidden (n, H) and labels (n,).

        A label outside of 0..V-1 belongs to another shard of the vocabulary, and its value is -inf.
        """
        num_rows, width = hidden.shape
        weight, bias, tile = self._weight, self._bias, self._tile
        if num_rows == 0:
            return torch.empty(0, 4, dtype=torch.float32, device=hidden.device)
        row_blocks = triton.cdiv(num_rows, tile.rows)
        run, num_runs = _runs(len(weight), row_blocks, tile.columns, _units(hidden.device))
        out = torch.empty(num_runs, num_rows, 4, dtype=torch.float32, device=hidden.device)
        hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
        _kernel[(row_blocks, num_runs)](
            hidden,
            weight,
            weight if bias is None else bias,
            labels,
            out,
            num_rows,
            len(weight),
            width,
            run,
            hidden.stride(0),
            weight.stride(0),
            has_bias=bias is not None,
            whole_depth=width % tile.depth == 0,
            widen=INTERPRETED,
            block_m=tile.rows,
            block_n=tile.columns,
            block_k=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return merge(out)


def _runs(num_columns: int, row_blocks: int, block: int, units: int) -> tuple[int, int]:
    """Return the columns of a run, in whole blocks, and the number of runs that fills the device."""
    blocks = triton.cdiv(num_columns, block)
    wanted = min(blocks, triton.cdiv(PROGRAMS_PER_UNIT * units, row_blocks))
    run = triton.cdiv(blocks, wanted) * block
    return run, triton.cdiv(num_columns, run)


def _units(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]  # Triton's types are not Python's
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    labels_ptr,
    out_ptr,
    num_rows,
    num_columns,
    width,
    run,
    hidden_stride,
    weight_stride,
    has_bias: tl.constexpr,
    whole_depth: tl.constexpr,
    widen: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
):
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    first = tl.program_id(1) * run
    last = tl.minimum(first + run, num_columns)
    depth = tl.arange(0, block_k)
    # Rows and columns beyond the edge repeat existing ones, which saves two masks in the inner loop.
    hidden_rows = hidden_ptr + (rows % num_rows).to(tl.int64)[:, None] * hidden_stride
    labels = tl.load(labels_ptr + rows % num_rows)

    m = tl.full((block_m,), float("-inf"), tl.float32)
    z = tl.zeros((block_m,), tl.float32)
    s = tl.zeros((block_m,), tl.float32)
    at_label = tl.full((block_m,), float("-inf"), tl.float32)
    for start in range(first, last, block_n):
        columns = start + tl.arange(0, block_n)
        weight_rows = weight_ptr + (columns % num_columns).to(tl.int64)[None, :] * weight_stride
        x = tl.zeros((block_m, block_n), tl.float32)
        for k in range(0, width, block_k):
            if whole_depth:
                h = tl.load(hidden_rows + (k + depth)[None, :])
                w = tl.load(weight_rows + (k + depth)[:, None])
            else:
                inside = k + depth < width
                h = tl.load(hidden_rows + (k + depth)[None, :], mask=inside[None, :], other=0.0)
                w = tl.load(weight_rows + (k + depth)[:, None], mask=inside[:, None], other=0.0)
            if widen:  # Triton's interpreter multiplies the bits of bfloat16 as integers
                h, w = h.to(tl.float32), w.to(tl.float32)
            x = tl.dot(h, w, acc=x, input_precision="ieee")
        if has_bias:
            x += tl.load(bias_ptr + columns % num_columns).to(tl.float32)[None, :]
        x = tl.where((columns < last)[None, :], x, float("-inf"))

        # Comparisons with NaN are false, so `where` propagates NaN. On a GPU, maximum and minimum would drop it.
        top = tl.maximum(m, tl.max(x, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        d = x - shift[:, None]
        d = tl.where(d < _FLOOR, _FLOOR, d)
        e = tl.exp(d)
        back = m - shift
        back = tl.where(back < _FLOOR, _FLOOR, back)
        weight = tl.exp(back)
        s = weight * (s + back * z) + tl.sum(e * d, 1)
        z = weight * z + tl.sum(e, 1)
        m = top
        is_label = columns[None, :] == labels[:, None]
        at_label = tl.maximum(at_label, tl.max(tl.where(is_label, x, float("-inf")), 1))

    out = out_ptr + (tl.program_id(1).to(tl.int64) * num_rows + rows) * 4
    inside = rows < num_rows
    tl.store(out, m, mask=inside)
    tl.store(out + 1, z, mask=inside)
    tl.store(out + 2, s, mask=inside)
    tl.store(out + 3, at_label, mask=inside)
