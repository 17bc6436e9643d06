"""What ranks tell each other: two numbers a sample for the thresholds, and rows, so that all have as many to train on.

One process without torch.distributed is a group of one. Everything that is decided is decided by each rank from the
same numbers, so all decide the same.

Work of one rank that takes long, such as a whole job, while the others wait.

A barrier would time out, and a rank that waits for a file never hears that the work has failed. So the work is done in
a thread, and the first rank tells the others every few seconds that it is not done yet. No collective takes longer than
that; how the work ends is known to all; and where a rank dies, the others' next one fails. It goes by gloo: to wait by
NCCL would keep the very GPUs busy that the work may need.
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
    """The ranks that share a global batch: those of a process group, or this process alone."""

    group: Any = None  # dist.ProcessGroup
    device: str | torch.device = "cpu"

    @classmethod
    def of(cls, group: Any, device: torch.device) -> Ranks:
        """The ranks of a group (by default all), with a device that its backend can send from."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        is_gpu_only = dist.get_backend(group) == "nccl"
        return cls(group, device if is_gpu_only else torch.device("cpu"))

    @property
    def size(self) -> int:
        """How many."""
        return dist.get_world_size(self.group) if self._is_many else 1

    @property
    def rank(self) -> int:
        """Which one this is."""
        return dist.get_rank(self.group) if self._is_many else 0

    @property
    def _is_many(self) -> bool:
        return bool(dist.is_available() and dist.is_initialized())

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays (n_r, ...) of all ranks, in their order; n_r may differ."""
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
        """The arrays of all ranks end to end, and where this rank's own lie."""
        every = self.gather(values)
        start = sum(len(part) for part in every[: self.rank])
        return np.concatenate(every), slice(start, start + len(values))

    def from_first(self, value: T) -> T:
        """The first rank's value, on all."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, group=self.group, group_src=0, device=torch.device(self.device))
        return held[0]

    def all_objects(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        held = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(held, value, group=self.group)
        return held


def balanced(rows: Rows, ranks: Ranks) -> Rows:
    """Rows of all ranks, dealt out: each rank gets as many, give or take one, with about as many tokens."""
    if ranks.size == 1:
        return rows
    lengths = ranks.gather(rows.lengths)
    tokens = ranks.gather(np.stack((rows.input_ids, rows.loss_mask.astype(np.int64)), 1))
    flat = np.concatenate(tokens)
    every = Rows.of(flat[:, 0], flat[:, 1], np.concatenate(lengths))
    return every.take(deal(every.lengths, ranks.size)[ranks.rank])


def deal(lengths: NDArray[np.int64], hands: int) -> list[NDArray[np.int64]]:
    """Places of rows (S,) in each of some hands: the longest first, to the hand with the fewest rows, then tokens.

    Numbers of rows differ by one at most. Each hand is in order.
    """
    queue = [(0, 0, hand) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for place in np.argsort(-lengths, kind="stable").tolist():
        count, tokens, hand = heapq.heappop(queue)
        dealt[hand].append(place)
        heapq.heappush(queue, (count + 1, tokens + int(lengths[place]), hand))
    return [np.sort(np.array(hand, np.int64)) for hand in dealt]


BEAT_S = 2.0


@contextlib.contextmanager
def all_ranks() -> Iterator[Ranks]:
    """All ranks of the run, which enter together. Raises SpecError where they do not know each other yet."""
    if dist.is_available() and dist.is_initialized():
        group = dist.new_group(backend="gloo")
        try:
            yield Ranks(group)
        finally:
            dist.destroy_process_group(group)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SpecError(
            "this is one of several processes, which do not know each other yet",
            "Make TrainingArguments (or accelerate's PartialState) first: that connects them.",
        )
    else:
        yield Ranks()


def by_first(work: Callable[[], None], ranks: Ranks, *, beat_s: float = BEAT_S) -> None:
    """Do some work on the first rank, while the others wait. Where it fails, all raise what it says."""
    if ranks.size == 1:
        work()
        return
    done = _started(work) if ranks.rank == 0 else None
    is_done, error = False, None
    while not is_done:
        is_done, error = ranks.from_first((False, None) if done is None else _state(done, beat_s))
    if done is not None:
        done.result()
    elif error is not None:
        raise error


def on_all(do: Callable[[], T], ranks: Ranks) -> T:
    """What each rank makes for itself. Where one fails, all raise what it says."""
    made: Future[T] = Future()
    _run(do, made)
    errors = ranks.all_objects(_to_tell(made))
    if made.exception() is None and (others := [error for error in errors if error is not None]):
        raise others[0]
    return made.result()


def _started(work: Callable[[], None]) -> Future[None]:
    """In a thread that ends with its process, whether it is done or not."""
    done: Future[None] = Future()
    threading.Thread(target=_run, args=(work, done), daemon=True).start()
    return done


def _run(work: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        done.set_exception(error)


def _state(done: Future[None], beat_s: float) -> tuple[bool, QTuneError | None]:
    """Whether work is done by the next beat, and its error."""
    wait([done], timeout=beat_s)
    return (True, _to_tell(done)) if done.done() else (False, None)


def _to_tell(done: Future[Any]) -> QTuneError | None:
    """An error as one that can be sent."""
    error = done.exception()
    if error is None or isinstance(error, QTuneError):
        return error
    return QTuneError(f"{type(error).__name__}: {error}")
