"""Compute NLL and exact entropy of logits rows in float32, without probabilities.

For a row x of logits with maximum m, and d = x - m:

    z = sum exp(d)        s = sum exp(d) d
    NLL = log z - d[label]        entropy = log z - s / z

Both are differences of small numbers (d <= 0, log z <= log V), so nothing overflows and float32 is enough: against a
float64 softmax the error stays below 2e-5 for V = 152k. A masked-out token (logit -inf) has probability 0 and adds
nothing to the entropy. A row with NaN or +inf logits yields NaN: a score is never invented.

Each row is described by four numbers, its partials (m, z, s, x[label]). The partials of two parts of a vocabulary are
merged (`merge`): with M the larger maximum and D = m - M,

    z -> exp(D) z        s -> exp(D) (s + D z)

and then they are added. So a vocabulary can be split into blocks by a kernel (kernel.py) or into shards by tensor
parallelism. This is the online softmax of Milakov and Gimelshein (arXiv:1805.02867), extended to the entropy.

Rows are processed in blocks. On a CPU the temporaries of a block stay in the cache. On a GPU they stay small compared
with the logits. A fused kernel (torch.compile) reads a row twice instead of eight times. It is used on a GPU, where
eager statistics cost several times the head of a small model. On a CPU it gains 3-8% end to end for half a minute of
compilation, so there it is off by default.
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
"""Lower limit of d: exp(-1e4) is 0 in float32, and the limit keeps 0 * -inf out of the entropy."""

Statistics = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (n, V) of any float type and labels (n,) int64 to partials (n, 4) float32."""


def row_partials(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the partials of logits rows: (n, V) of any float type, labels (n,) int64 -> (n, 4) float32."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    d = (x - _shift(m)).clamp(min=FLOOR)  # (n, V), at most 0; clamp keeps NaN
    e = d.exp()
    return torch.stack((m[:, 0], e.sum(-1), (e * d).sum(-1), x.gather(-1, labels[:, None])[:, 0]), -1)


def merge(parts: torch.Tensor) -> torch.Tensor:
    """Merge the partials of k parts of a vocabulary: (k, n, 4) -> (n, 4).

    A part without a row's label has -inf as its value. An empty part has (-inf, 0, 0, -inf).
    """
    m, z, s, label = parts.unbind(-1)  # (k, n) each
    top = m.amax(0)
    d = (m - _shift(top)).clamp(min=FLOOR)
    weight = d.exp()
    return torch.stack((top, (weight * z).sum(0), (weight * (s + d * z)).sum(0), label.amax(0)), -1)


def nll_and_entropy(partials: torch.Tensor) -> torch.Tensor:
    """Compute the scores of rows in nats: (n, 4) -> (n, 2) float32."""
    m, z, s, label = partials.unbind(-1)
    log_z = z.log()
    return torch.stack((log_z - (label - m), log_z - s / z), -1)


def _shift(m: torch.Tensor) -> torch.Tensor:
    """Return the maximum to subtract: 0 for a part without a finite logit, whose differences would be NaN."""
    return m.masked_fill(m == -math.inf, 0.0)


def eager_partials(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute `row_partials` in blocks of rows that bound the float32 temporaries: (n, 4) float32."""
    elements = CPU_BLOCK_ELEMENTS if logits.device.type == "cpu" else GPU_BLOCK_ELEMENTS
    rows = max(1, elements // logits.shape[-1])
    out = torch.empty(logits.shape[0], 4, dtype=torch.float32, device=logits.device)
    for i in range(0, logits.shape[0], rows):
        out[i : i + rows] = _block_in_place(logits[i : i + rows], labels[i : i + rows])
    return out


def _block_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute `row_partials` with two temporaries instead of five."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    label = x.gather(-1, labels[:, None])
    d = (x - _shift(m)).clamp_(min=FLOOR)
    e = d.exp()
    return torch.stack((m[:, 0], e.sum(-1), torch.linalg.vecdot(e, d), label[:, 0]), -1)


class CompiledPartials:
    """`row_partials` as one fused kernel. If the compiler fails, it warns and runs eagerly."""

    def __init__(self) -> None:
        self._fused: Statistics | None = torch.compile(row_partials, dynamic=True)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Reduce rows: (n, V), (n,) -> (n, 4) float32."""
        if self._fused is not None:
            try:
                return self._fused(logits, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ImportError) as error:  # errors of Dynamo, Inductor and a missing compiler
                self._fused = None
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"torch.compile failed, token statistics run eagerly: {reason}", stacklevel=2)
        return eager_partials(logits, labels)


def statistics_for(device: torch.device, mode: str = "auto") -> Statistics:
    """Return `eager` or `compiled` statistics. `auto` compiles only on a GPU with Triton."""
    if mode not in ("auto", "eager", "compiled"):
        raise ValueError(f"statistics mode must be auto, eager or compiled, got {mode!r}")
    fused_pays = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return CompiledPartials() if mode == "compiled" or (mode == "auto" and fused_pays) else eager_partials
