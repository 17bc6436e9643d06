"""Reduce hidden states to partials: by blocks of logits, by the kernel, or by shards of the vocabulary.

A head is a callable from hidden rows (n, H) and labels (n,) to partials (n, 4) of statistics.py.

The kernel replaces a head only if that is exactly hidden @ weight.T + bias. Callers verify this: reference.py by the
module's class and a probe, vllm/model_logits.py by observing vLLM's logits processor. Then the kernel is measured once,
on the device and with the real weight. Each of a few tile shapes is checked against a float64 product and timed against
blocks. Tiles that fail to compile, differ, or are slower are excluded. The choice carries its reason for the log and
the manifest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qtune_service.scoring.statistics import Statistics, merge, nll_and_entropy

Head = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden rows (n, H), labels (n,) int64 -> partials (n, 4) float32."""
Project = Callable[[torch.Tensor], torch.Tensor | None]
"""Hidden rows (n, H) -> logits (n, V), or None in a process whose scores are unused."""

KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)
TRIAL_ROWS, TRIAL_REPEATS = 2048, 3
CHECKED_ROWS = 16
CHECK_TOLERANCE = 1e-3
"""Tolerance in nats. Float32 sums over wide heads stay below 1e-4, and a wrong kernel is off by far more."""
KERNEL_IS_OFF = "the kernel is switched off (head_kernel)"
_UNUSED = 1.0  # partials of an unused score: any value without NaN
_CHECK_BYTES = 64 << 20  # limit of the float64 weight in memory

GIB = 1 << 30

logger = logging.getLogger(__name__)


def default_logits_bytes(device_bytes: int) -> int:
    """Return the default of `logits_bytes` for a device with this much memory; 0 for a CPU.

    A block of 256 MiB has 440 rows of a vocabulary of 152,000, which is little work for a large GPU.
    """
    if device_bytes >= 120 * GIB:
        return 2 * GIB
    return GIB if device_bytes >= 70 * GIB else GIB // 4


@dataclass(frozen=True, slots=True)
class Matrix:
    """A head that is a single matrix."""

    weight: torch.Tensor  # (V, H)
    bias: torch.Tensor | None = None  # (V,)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (n, V). On CUDA they are float32, not rounded to the weight's type, as in the kernel."""
        if not hidden.is_cuda or self.weight.dtype == torch.float32:
            return torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
        return logits if self.bias is None else logits.add_(self.bias)


class BlockwiseHead:
    """Compute logits for one block of rows at a time."""

    def __init__(self, project: Project, block_rows: int, statistics: Statistics) -> None:
        self._project, self._block_rows, self._statistics = project, block_rows, statistics

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Reduce rows; see `Head`."""
        out = torch.empty(len(hidden), 4, dtype=torch.float32, device=hidden.device)
        for i in range(0, len(hidden), self._block_rows):
            block = slice(i, i + self._block_rows)
            logits = self._project(hidden[block])
            out[block] = _UNUSED if logits is None else self._statistics(logits, labels[block])
        return out


class ShardedHead:
    """Reduce the columns first .. first + width - 1 of a vocabulary that is sharded over processes.

    Each process reduces its own columns, and one collective call transfers 16 bytes a row and process. Gathering the
    logits would transfer 4 V bytes a row. All processes must call it with the same number of rows. A process without
    columns contributes empty partials.
    """

    def __init__(self, local: Head, first: int, width: int, all_gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._local, self._first, self._width, self._all_gather = local, first, width, all_gather

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Reduce rows; see `Head`. Every process receives the result."""
        if len(hidden) == 0:
            return torch.empty(0, 4, dtype=torch.float32, device=hidden.device)
        gathered = self._all_gather(self._own(hidden, labels - self._first))  # (k n, 4)
        return merge(gathered.view(-1, len(hidden), 4))

    def _own(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._width == 0:
            return torch.tensor([-torch.inf, 0, 0, -torch.inf], device=hidden.device).repeat(len(hidden), 1)
        mine = (labels >= 0) & (labels < self._width)
        partials = self._local(hidden, labels.clamp(0, self._width - 1))
        partials[:, 3].masked_fill_(~mine, -torch.inf)
        return partials


@dataclass(frozen=True, slots=True)
class Choice:
    """A head and the reason for choosing it."""

    head: Head
    description: str
    """`kernel ...` or `blockwise: REASON`."""


def choose_head(blockwise: Head, matrix: Matrix | str) -> Choice:
    """Choose between the kernel and `blockwise` by timing. matrix: a string is the reason for having none."""
    if isinstance(matrix, str):
        return Choice(blockwise, f"blockwise: {matrix}")
    if reason := _why_no_kernel(matrix):
        return Choice(blockwise, f"blockwise: {reason}")
    from qtune_service.scoring.kernel import KernelHead, tiles_for

    tiles = tiles_for(matrix.weight.dtype)
    return fastest(
        blockwise, {f"kernel {tile}": KernelHead(matrix.weight, matrix.bias, tile) for tile in tiles}, matrix
    )


def _why_no_kernel(matrix: Matrix) -> str:
    """Return the reason why the kernel does not support this matrix; empty if it does."""
    weight = matrix.weight
    if weight.device.type != "cuda":
        return f"the kernel needs a GPU, and the model is on {weight.device.type}"
    if weight.dtype not in KERNEL_TYPES:
        return f"the kernel does not support {weight.dtype}"
    if weight.stride(-1) != 1:
        return "the head's weight is stored by columns"
    try:
        import qtune_service.scoring.kernel  # noqa: F401 - check that Triton starts
    except ImportError as error:
        return f"Triton does not start: {error}"
    return ""


def fastest(blockwise: Head, candidates: Mapping[str, Head], matrix: Matrix, rows: int = TRIAL_ROWS) -> Choice:
    """Time all heads on random rows and return the fastest correct one. The times are logged."""
    hidden, labels = _trial_rows(matrix, rows)
    checked = torch.linspace(0, rows - 1, min(rows, CHECKED_ROWS), device=hidden.device).long()  # rows of all blocks
    exact = exact_scores(matrix, hidden[checked], labels[checked])
    seconds, problems = {"blockwise": _seconds(blockwise, hidden, labels)}, []
    for name, head in candidates.items():
        if problem := _problem(head, hidden, labels, checked, exact):
            problems.append(f"{name} {problem}")
        else:
            seconds[name] = _seconds(head, hidden, labels)
    times = [f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items()]
    logger.info("Head of %d logits, %d rows: %s", len(matrix.weight), rows, "; ".join([*times, *problems]))
    best = min(seconds, key=lambda name: seconds[name])
    if best in candidates:
        return Choice(candidates[best], best)
    why = "the kernel is not faster on this device" if len(seconds) > 1 else "; ".join(problems)
    return Choice(blockwise, f"blockwise: {why}")


def _problem(head: Head, hidden: torch.Tensor, labels: torch.Tensor, checked: torch.Tensor, exact: torch.Tensor) -> str:
    """Return the reason why a head is not usable on these rows; empty if its checked rows are correct."""
    try:
        off = float((nll_and_entropy(head(hidden, labels))[checked] - exact).abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - any compiler error excludes this tile
        return f"fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if off <= CHECK_TOLERANCE:  # False for NaN
        return ""
    logger.warning(
        "A head gives wrong scores on this device, off by %.1e nats, and is not used. Please report it.", off
    )
    return f"is off by {off:.1e} nats"


def _trial_rows(matrix: Matrix, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random hidden rows (n, H) at the scale of a final normalization, and labels (n,)."""
    num_columns, width = matrix.weight.shape
    device = matrix.weight.device
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, device=device).to(matrix.weight.dtype)
    return hidden, torch.randint(num_columns, (rows,), generator=generator, device=device)


def _seconds(head: Head, hidden: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the minimum time of a few calls, after a compiling call."""
    times = []
    for _ in range(TRIAL_REPEATS + 1):
        _finish(hidden.device)
        started_s = time.perf_counter()
        head(hidden, labels)
        _finish(hidden.device)
        times.append(time.perf_counter() - started_s)
    return min(times[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exact_scores(matrix: Matrix, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return NLL and entropy (n, 2) from float64 logits of the same matrix. The weight is converted in blocks."""
    wide = hidden.double()
    columns = max(1, _CHECK_BYTES // (8 * matrix.weight.shape[1]))
    logits = torch.cat([wide @ block.double().T for block in matrix.weight.split(columns)], 1)  # (n, V)
    if matrix.bias is not None:
        logits += matrix.bias.double()
    log_p = logits.log_softmax(-1)
    return torch.stack((-log_p.gather(1, labels[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)), -1)
