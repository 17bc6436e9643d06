"""Exchange between ranks: statistics for the thresholds, balanced rows, and long work on the first rank.

One process without torch.distributed is a group of one. Each rank makes every decision from the same numbers, so all
ranks decide the same.

Long work on the first rank, such as a whole job, runs in a thread, while the first rank reports to the others every few
seconds that it is running. A barrier would time out, and a rank that waits for a file would not learn of a failure. No
collective takes longer than the heartbeat, all ranks learn the outcome, and if a rank dies, the next collective of the
others fails. It uses gloo, because waiting with NCCL would occupy the GPUs that the work may need.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from qtune_service.errors import QTuneError, SpecError
from qtune_service.training.batch_layout import Rows

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks that share a global batch: a process group, or this process alone."""

    group: Any = None  # dist.ProcessGroup
    device: str | torch.device = "cpu"

    @classmethod
    def of(cls, group: Any, device: torch.device) -> Ranks:
        """Return the ranks of a group (by default all). device: one that its backend can send from."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        is_gpu_only = dist.get_backend(group) == "nccl"
        return cls(group, device if is_gpu_only else torch.device("cpu"))

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return dist.get_world_size(self.group) if self._is_many else 1

    @property
    def rank(self) -> int:
        """Return the index of this rank."""
        return dist.get_rank(self.group) if self._is_many else 0

    @property
    def _is_many(self) -> bool:
        return bool(dist.is_available() and dist.is_initialized())

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the arrays (n_r, ...) of all ranks in rank order. n_r may differ."""
        if self.size == 1:
            return [values]
        mine = torch.as_tensor(values, device=self.device)
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(mine)], device=self.device), group=self.group)
        sizes = [int(count) for count in counts]
        most = max(sizes)
        padded = mine.new_zeros((most, *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return [part[:size].cpu().numpy() for part, size in zip(parts, sizes, strict=True)]

    def pool(self, values: NDArray[Any]) -> tuple[NDArray[Any], slice]:
        """Return the concatenated arrays of all ranks, and the slice of this rank."""
        every = self.gather(values)
        start = sum(len(part) for part in every[: self.rank])
        return np.concatenate(every), slice(start, start + len(values))

    def from_first(self, value: T) -> T:
        """Broadcast the first rank's value."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, group=self.group, group_src=0, device=torch.device(self.device))
        return held[0]

    def all_objects(self, value: T) -> list[T]:
        """Return the values of all ranks in rank order."""
        held = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(held, value, group=self.group)
        return held


def balanced(rows: Rows, ranks: Ranks) -> Rows:
    """Rebalance the rows of all ranks: equal numbers of rows up to one, and similar numbers of tokens."""
    if ranks.size == 1:
        return rows
    lengths = ranks.gather(rows.lengths)
    tokens = ranks.gather(np.stack((rows.input_ids, rows.loss_mask.astype(np.int64)), 1))
    flat = np.concatenate(tokens)
    every = Rows.of(flat[:, 0], flat[:, 1], np.concatenate(lengths))
    return every.take(partition_balanced(every.lengths, ranks.size)[ranks.rank])


def partition_balanced(lengths: NDArray[np.int64], num_parts: int) -> list[NDArray[np.int64]]:
    """Partition rows (S,) into balanced parts: longest first, to the part with the fewest rows, then tokens.

    Numbers of rows differ by at most one. Each part is in ascending order.
    """
    queue = [(0, 0, part) for part in range(num_parts)]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        count, tokens, part = heapq.heappop(queue)
        parts[part].append(row)
        heapq.heappush(queue, (count + 1, tokens + int(lengths[row]), part))
    return [np.sort(np.array(part, np.int64)) for part in parts]


HEARTBEAT_S = 2.0


@contextlib.contextmanager
def all_ranks() -> Iterator[Ranks]:
    """Return all ranks of the run, which call this together. Raises SpecError before torch.distributed is set up."""
    if dist.is_available() and dist.is_initialized():
        group = dist.new_group(backend="gloo")
        try:
            yield Ranks(group)
        finally:
            dist.destroy_process_group(group)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SpecError(
            "this is one of several processes, and torch.distributed is not initialized",
            "Create TrainingArguments (or accelerate's PartialState) first, which initializes it.",
        )
    else:
        yield Ranks()


def run_on_first_rank(work: Callable[[], None], ranks: Ranks, *, heartbeat_s: float = HEARTBEAT_S) -> None:
    """Run work on the first rank while the others wait. A failure is raised on all ranks."""
    if ranks.size == 1:
        work()
        return
    done = _started(work) if ranks.rank == 0 else None
    is_done, error = False, None
    while not is_done:
        is_done, error = ranks.from_first((False, None) if done is None else _state(done, heartbeat_s))
    if done is not None:
        done.result()
    elif error is not None:
        raise error


def run_on_all_ranks(do: Callable[[], T], ranks: Ranks) -> T:
    """Run a function on each rank and return its own result. A failure is raised on all ranks."""
    made: Future[T] = Future()
    _run(do, made)
    errors = ranks.all_objects(_sendable_error(made))
    if made.exception() is None and (others := [error for error in errors if error is not None]):
        raise others[0]
    return made.result()


def _started(work: Callable[[], None]) -> Future[None]:
    """Start work in a daemon thread."""
    done: Future[None] = Future()
    threading.Thread(target=_run, args=(work, done), daemon=True).start()
    return done


def _run(work: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised when the result is requested
        done.set_exception(error)


def _state(done: Future[None], heartbeat_s: float) -> tuple[bool, QTuneError | None]:
    """Return whether the work ends before the next heartbeat, and its error."""
    wait([done], timeout=heartbeat_s)
    return (True, _sendable_error(done)) if done.done() else (False, None)


def _sendable_error(done: Future[Any]) -> QTuneError | None:
    """Convert an error to one that can be sent to other ranks."""
    error = done.exception()
    if error is None or isinstance(error, QTuneError):
        return error
    return QTuneError(f"{type(error).__name__}: {error}")
