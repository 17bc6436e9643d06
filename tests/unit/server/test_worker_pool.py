"""A pool of children, with children that do wrong."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtune_service.server.isolation.limits import ProcessLimits
from qtune_service.server.isolation.worker_pool import (
    AnswerTooLargeError,
    WorkerDiedError,
    WorkerKind,
    WorkerLateError,
    WorkerPool,
    WorkersBusyError,
)

CODE = """
import os, signal, time
from qtune_service.server.isolation.worker_loop import serve
held = []
def handle(request):
    act, _, argument = request.decode().partition(" ")
    if act == "die": os.kill(os.getpid(), int(argument))
    if act == "leave": os._exit(int(argument))
    if act == "sleep": time.sleep(float(argument))
    if act == "long": return b"x" * int(argument)
    if act == "spin":
        while True: pass
    if act == "hold": held.append(b"x" * int(argument))
    if act == "print": print("x" * int(argument), flush=True)
    if act == "lie": os.write(int(argument), b"no frame at all, but some text of a child")
    return str(os.getpid()).encode()
serve(handle, cpu_s=1)
"""
REPO = Path(__file__).parents[3]


@contextmanager
def pool(size: int = 1, max_answer_bytes: int = 1 << 20) -> Iterator[WorkerPool]:
    """Children that do what they are asked for."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    kind = WorkerKind((sys.executable, "-c", CODE), ProcessLimits(400 << 20), environment, max_answer_bytes)
    made = WorkerPool(kind, size)
    yield made
    made.close()


def ask(workers: WorkerPool, request: str = "", within_s: float = 10, wait_s: float = 10) -> bytes:
    """Ask a child."""
    return workers.ask(request.encode(), within_s=within_s, wait_s=wait_s)


def test_a_child_is_used_again() -> None:
    """It starts with the first request."""
    with pool() as workers:
        assert workers.pids() == []
        first = ask(workers)
        assert [ask(workers), ask(workers)] == [first, first]
        assert workers.pids() == [int(first)]


@pytest.mark.parametrize(
    ("request_text", "within_s", "error"),
    [
        ("die 11", 20, WorkerDiedError),
        ("leave 0", 20, WorkerDiedError),
        ("spin", 30, WorkerDiedError),  # a second of processor time, on a machine that may be busy
        ("sleep 30", 1, WorkerLateError),
        ("long 2000000", 20, AnswerTooLargeError),
        ("lie 4", 2, (AnswerTooLargeError, WorkerLateError)),
    ],
)
def test_what_does_wrong_is_replaced(
    request_text: str, within_s: float, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """The error says what happened; the next request has another child."""
    with pool() as workers:
        first = ask(workers)
        with pytest.raises(error):
            ask(workers, request_text, within_s=within_s)
        assert ask(workers) != first
        assert not Path(f"/proc/{int(first)}").exists(), "it was killed and waited for"


def test_how_a_child_died() -> None:
    """By name of the signal, or by status."""
    with pool() as workers:
        for request, told in (("die 11", ("SIGSEGV", -11)), ("spin", ("SIGXCPU", -24)), ("leave 3", ("", 3))):
            with pytest.raises(WorkerDiedError) as caught:
                ask(workers, request, within_s=30)
            assert (caught.value.signal_name, caught.value.returncode) == told


def test_processor_time_is_counted_for_each_request() -> None:
    """A child that has worked for long in all is no worse than a new one."""
    with pool() as workers:
        first = ask(workers)
        for _ in range(3):
            started = time.process_time()
            while time.process_time() - started < 0.1:
                ask(workers)
        assert ask(workers) == first


def test_a_child_that_holds_much_memory_is_replaced() -> None:
    """After its answer, which is given."""
    with pool() as workers:
        first = ask(workers)
        assert ask(workers, "hold 250000000") == first
        assert workers.pids() == []
        assert ask(workers) != first


def test_what_a_child_prints_is_no_answer() -> None:
    """However much it is."""
    with pool() as workers:
        first = ask(workers)
        assert ask(workers, "print 10000") == first


def test_requests_wait_for_a_child_and_not_for_ever() -> None:
    """At most `size` at a time."""
    with pool(size=2) as workers, ThreadPoolExecutor(4) as threads:
        pids = set(threads.map(lambda _: ask(workers, "sleep 0.3"), range(4)))
        assert len(pids) == 2
        busy = [threading.Thread(target=ask, args=(workers, "sleep 1.5")) for _ in range(2)]
        for one in busy:
            one.start()
        time.sleep(0.3)
        with pytest.raises(WorkersBusyError):
            ask(workers, wait_s=0.2)
        for one in busy:
            one.join()


def test_a_closed_pool_leaves_no_child() -> None:
    """Those that wait end at once, others after their answer."""
    with pool(size=2) as workers, ThreadPoolExecutor(1) as threads:
        late = threads.submit(ask, workers, "sleep 1")
        time.sleep(0.5)
        idle = ask(workers)
        workers.close()
        assert not Path(f"/proc/{int(idle)}").exists()
        pid = int(late.result())
        assert workers.pids() == []
        assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_cannot_start_is_an_error() -> None:
    """With its status."""
    kind = WorkerKind((sys.executable, "-c", "import sys; sys.exit(7)"), ProcessLimits(400 << 20), os.environ, 100)
    with pytest.raises(WorkerDiedError) as caught:
        ask(WorkerPool(kind, 1))
    assert caught.value.returncode == 7
