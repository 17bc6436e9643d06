"""NLL and exact entropy of logits rows, in float32, without probabilities.

For a row x of logits with maximum m, and d = x - m:

    z = sum exp(d)        s = sum exp(d) d
    NLL = log z - d[label]        entropy = log z - s / z

Both are differences of small numbers (d <= 0, log z <= log V), so nothing overflows and float32 is enough: against a
float64 softmax the error stays under 2e-5 for V = 152k. A masked-out token (logit -inf) has probability 0 and adds
nothing to the entropy. A row whose logits are NaN or +inf yields NaN: a score is never made up.

Rows are handled in blocks. On a CPU a block's temporaries then stay in the cache; on a GPU they stay a small part of
the logits themselves. One fused kernel (torch.compile) reads the row twice in place of eight times. That pays on a
GPU, where eager statistics cost several times the head of a small model; on a CPU it won 3-8% end to end for half a
minute of compilation, so there it is off unless asked for.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch

CPU_BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: temporaries stay in L2; with 4 MiB it takes 4.6 times as long
GPU_BLOCK_ELEMENTS = 1 << 24  # 64 MiB of float32: enough rows to fill a GPU
_FLOOR = -1e4  # exp(-1e4) is 0 in float32; keeps 0 * -inf out of the entropy

Statistics = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def row_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score rows of logits (n, V) of any float type for labels (n,) int64: (n, 2) float32, NLL and entropy in nats."""
    x = logits.float()
    d = x - x.amax(-1, keepdim=True)  # (n, V), at most 0
    d_label = d.gather(-1, labels[:, None]).squeeze(-1)  # (n,), before the floor: an impossible label costs inf
    d = d.clamp(min=_FLOOR)
    e = d.exp()
    z = e.sum(-1)
    log_z = z.log()
    return torch.stack((log_z - d_label, log_z - (e * d).sum(-1) / z), -1)


def eager_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`row_statistics` in blocks of rows that bound the float32 temporaries: (n, 2) float32."""
    elements = CPU_BLOCK_ELEMENTS if logits.device.type == "cpu" else GPU_BLOCK_ELEMENTS
    rows = max(1, elements // logits.shape[-1])
    out = torch.empty(logits.shape[0], 2, dtype=torch.float32, device=logits.device)
    for i in range(0, logits.shape[0], rows):
        out[i : i + rows] = _block_in_place(logits[i : i + rows], labels[i : i + rows])
    return out


def _block_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`row_statistics` with two temporaries in place of five."""
    x = logits.float()
    d = x - x.amax(-1, keepdim=True)
    d_label = d.gather(-1, labels[:, None]).squeeze(-1)
    e = d.clamp_(min=_FLOOR).exp()
    z = e.sum(-1)
    log_z = z.log()
    return torch.stack((log_z - d_label, log_z - torch.linalg.vecdot(e, d) / z), -1)


class CompiledStatistics:
    """`row_statistics` as one fused kernel; says so and goes on eagerly where the compiler fails."""

    def __init__(self) -> None:
        self._fused: Statistics | None = torch.compile(row_statistics, dynamic=True)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Score rows: (n, V), (n,) -> (n, 2) float32."""
        if self._fused is not None:
            try:
                return self._fused(logits, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ImportError) as error:  # what Dynamo, Inductor and a missing compiler raise
                self._fused = None
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"torch.compile failed, token statistics run eagerly: {reason}", stacklevel=2)
        return eager_statistics(logits, labels)


def statistics_for(device: torch.device, mode: str = "auto") -> Statistics:
    """Pick `eager` or `compiled`; `auto` compiles on a GPU that has Triton and nowhere else."""
    if mode not in ("auto", "eager", "compiled"):
        raise ValueError(f"statistics mode must be auto, eager or compiled, got {mode!r}")
    fused_pays = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return CompiledStatistics() if mode == "compiled" or (mode == "auto" and fused_pays) else eager_statistics
