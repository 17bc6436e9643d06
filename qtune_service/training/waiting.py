"""Work of one rank that takes long, such as a whole job, while the others wait.

A barrier would time out, and a rank that waits for a file never hears that the work has failed. So the work is done in
a thread, and the first rank tells the others every few seconds that it is not done yet. No collective takes longer than
that; how the work ends is known to all; and where a rank dies, the others' next one fails. It goes by gloo: to wait by
NCCL would keep the very GPUs busy that the work may need.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch.distributed as dist

from qtune_service.errors import QTuneError, SpecError
from qtune_service.training.distributed import Ranks

BEAT_S = 2.0

T = TypeVar("T")


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
