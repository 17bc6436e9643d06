"""NLL and exact entropy of logits rows, in float32, without probabilities.

For a row x of logits with maximum m, and d = x - m:

    z = sum exp(d)        s = sum exp(d) d
    NLL = log z - d[label]        entropy = log z - s / z

Both are differences of small numbers (d <= 0, log z <= log V), so nothing overflows and float32 is enough: against a
float64 softmax the error stays under 2e-5 for V = 152k. A masked-out token (logit -inf) has probability 0 and adds
nothing to the entropy. A row whose logits are NaN or +inf yields NaN: a score is never made up.

All that a row needs are four numbers, its partials (m, z, s, x[label]). Those of two parts of a vocabulary make those
of the whole (`merge`): with M the larger maximum and D = m - M,

    z -> exp(D) z        s -> exp(D) (s + D z)

and then they add. So a vocabulary may be cut: into blocks by a kernel (kernel.py), into shards by tensor parallelism.
This is the online softmax of Milakov and Gimelshein (arXiv:1805.02867), carried on to the entropy.

Rows are handled in blocks. On a CPU a block's temporaries then stay in the cache; on a GPU they stay a small part of
the logits themselves. One fused kernel (torch.compile) reads the row twice in place of eight times. That pays on a
GPU, where eager statistics cost several times the head of a small model; on a CPU it won 3-8% end to end for half a
minute of compilation, so there it is off unless asked for.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable

import torch

CPU_BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: temporaries stay in L2; with 4 MiB it takes 4.6 times as long
GPU_BLOCK_ELEMENTS = 1 << 24  # 64 MiB of float32: enough rows to fill a GPU
FLOOR = -1e4
"""Least d that is looked at: exp(-1e4) is 0 in float32, and 0 * -inf stays out of the entropy."""

Statistics = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (n, V) of any float type and labels (n,) int64 to partials (n, 4) float32."""


def row_partials(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Partials of logits rows: (n, V) of any float type, labels (n,) int64 -> (n, 4) float32."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    d = (x - _shift(m)).clamp(min=FLOOR)  # (n, V), at most 0; clamp keeps NaN
    e = d.exp()
    return torch.stack((m[:, 0], e.sum(-1), (e * d).sum(-1), x.gather(-1, labels[:, None])[:, 0]), -1)


def merge(parts: torch.Tensor) -> torch.Tensor:
    """Partials of k parts of a vocabulary, (k, n, 4), to those of all of it, (n, 4).

    A part that does not hold a row's label has -inf in its place; an empty part has (-inf, 0, 0, -inf).
    """
    m, z, s, label = parts.unbind(-1)  # (k, n) each
    top = m.amax(0)
    d = (m - _shift(top)).clamp(min=FLOOR)
    weight = d.exp()
    return torch.stack((top, (weight * z).sum(0), (weight * (s + d * z)).sum(0), label.amax(0)), -1)


def nll_and_entropy(partials: torch.Tensor) -> torch.Tensor:
    """Scores of rows in nats: (n, 4) -> (n, 2) float32."""
    m, z, s, label = partials.unbind(-1)
    log_z = z.log()
    return torch.stack((log_z - (label - m), log_z - s / z), -1)


def _shift(m: torch.Tensor) -> torch.Tensor:
    """Maximum to subtract: 0 for a part without any finite logit, whose differences would be NaN."""
    return m.masked_fill(m == -math.inf, 0.0)


def eager_partials(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`row_partials` in blocks of rows that bound the float32 temporaries: (n, 4) float32."""
    elements = CPU_BLOCK_ELEMENTS if logits.device.type == "cpu" else GPU_BLOCK_ELEMENTS
    rows = max(1, elements // logits.shape[-1])
    out = torch.empty(logits.shape[0], 4, dtype=torch.float32, device=logits.device)
    for i in range(0, logits.shape[0], rows):
        out[i : i + rows] = _block_in_place(logits[i : i + rows], labels[i : i + rows])
    return out


def _block_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`row_partials` with two temporaries in place of five."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    label = x.gather(-1, labels[:, None])
    d = (x - _shift(m)).clamp_(min=FLOOR)
    e = d.exp()
    return torch.stack((m[:, 0], e.sum(-1), torch.linalg.vecdot(e, d), label[:, 0]), -1)


class CompiledPartials:
    """`row_partials` as one fused kernel; says so and goes on eagerly where the compiler fails."""

    def __init__(self) -> None:
        self._fused: Statistics | None = torch.compile(row_partials, dynamic=True)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Reduce rows: (n, V), (n,) -> (n, 4) float32."""
        if self._fused is not None:
            try:
                return self._fused(logits, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ImportError) as error:  # what Dynamo, Inductor and a missing compiler raise
                self._fused = None
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"torch.compile failed, token statistics run eagerly: {reason}", stacklevel=2)
        return eager_partials(logits, labels)


def statistics_for(device: torch.device, mode: str = "auto") -> Statistics:
    """Pick `eager` or `compiled`; `auto` compiles on a GPU that has Triton and nowhere else."""
    if mode not in ("auto", "eager", "compiled"):
        raise ValueError(f"statistics mode must be auto, eager or compiled, got {mode!r}")
    fused_pays = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return CompiledPartials() if mode == "compiled" or (mode == "auto" and fused_pays) else eager_partials
