"""Keep a pool of warm children that answer requests of the server, and replace those that die.

Children start when they are first needed and serve one request at a time. They are not trusted: a child whose answer is
too long or too late is killed. worker_loop.py is the child's side.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from qtune_service.server.isolation import worker_loop
from qtune_service.server.isolation.limits import ProcessLimits
from qtune_service.server.isolation.processes import kill_session
from qtune_service.server.isolation.worker_loop import LAST_ANSWER

START_S = 60.0
LOGGED_BYTES = 500
"""Length of the output of a dead child in the log."""
_log = logging.getLogger(__name__)


class WorkerDiedError(Exception):
    """The child ended without an answer. `signal_name` is empty where no signal ended it."""

    def __init__(self, signal_name: str, returncode: int) -> None:
        super().__init__(signal_name, returncode)
        self.signal_name, self.returncode = signal_name, returncode


class WorkerLateError(Exception):
    """There was no answer in time, and the child was killed."""


class WorkersBusyError(Exception):
    """No child was free in time."""


class AnswerTooLargeError(Exception):
    """The answer has more bytes than the server accepts, and the child was killed."""


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """Command, limits and environment of the children of a pool."""

    command: Sequence[str]
    limits: ProcessLimits
    environment: Mapping[str, str]
    max_answer_bytes: int


class WorkerPool:
    """A thread-safe pool of at most `size` children."""

    def __init__(self, kind: WorkerKind, size: int) -> None:
        self._kind = kind
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._is_closed = False

    def ask(self, request: bytes, *, within_s: float, wait_s: float) -> bytes:
        """Return a child's answer. within_s: time for the answer. wait_s: time for a free child.

        Raise WorkerDiedError, WorkerLateError, WorkersBusyError and AnswerTooLargeError.
        """
        if not self._free.acquire(timeout=wait_s):
            raise WorkersBusyError
        try:
            worker = self._take()
            is_fit = False
            try:
                answer, is_fit = worker.ask(request, within_s)
                return answer
            finally:
                self._give_back(worker, is_fit=is_fit)
        finally:
            self._free.release()

    def pids(self) -> list[int]:
        """Return the process ids of the idle children."""
        with self._lock:
            return [worker.process.pid for worker in self._idle]

    def close(self) -> None:
        """End all idle children, and each busy one after its answer."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _Worker.start(self._kind)
            if worker.process.poll() is None:
                return worker
            worker.kill()  # it died while idle, which affects no request

    def _give_back(self, worker: _Worker, *, is_fit: bool) -> None:
        with self._lock:
            is_kept = is_fit and not self._is_closed
            if is_kept:
                self._idle.append(worker)
        if not is_kept:
            worker.kill()


@dataclass(slots=True)
class _Worker:
    """One child and its pipes."""

    process: subprocess.Popen[bytes]
    max_answer_bytes: int
    printed: IO[bytes]
    """File of its standard error, with a size within its limits. A pipe would need a reader."""

    @classmethod
    def start(cls, kind: WorkerKind) -> _Worker:
        """Start a child and wait until it accepts requests. Raise WorkerDiedError and WorkerLateError."""
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        process = subprocess.Popen(
            kind.limits.command(kind.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=dict(kind.environment),
            start_new_session=True,
        )
        worker = cls(process, kind.max_answer_bytes, printed)
        for pipe in (worker.requests, worker.answers):
            os.set_blocking(pipe, False)
        try:
            worker.receive(START_S)
        except BaseException:
            worker.kill()
            raise
        return worker

    @property
    def requests(self) -> int:
        """Return the descriptor for requests."""
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def answers(self) -> int:
        """Return the descriptor for answers."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def ask(self, request: bytes, within_s: float) -> tuple[bytes, bool]:
        """Return the answer, and whether the child accepts another request."""
        started_s = time.monotonic()
        try:
            worker_loop.send(self.requests, request, within_s=within_s)
        except worker_loop.BrokenFrameError:
            raise self._death() from None
        except worker_loop.FrameLateError:
            raise WorkerLateError from None
        answer, flags = self.receive(within_s - (time.monotonic() - started_s))
        return answer, not flags & LAST_ANSWER

    def receive(self, within_s: float) -> tuple[bytes, int]:
        """Return the next message of the child and its flags."""
        try:
            body, flags = worker_loop.receive(self.answers, self.max_answer_bytes, within_s=within_s)
        except worker_loop.BrokenFrameError:
            raise self._death() from None
        except worker_loop.FrameTooLargeError:
            raise AnswerTooLargeError from None
        except worker_loop.FrameLateError:
            raise WorkerLateError from None
        return bytes(body), flags

    def _death(self) -> WorkerDiedError:
        """Determine how the child ended, log it, and return the error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # its pipes close before it can be waited for
        kill_session(self.process)
        code = self.process.returncode
        name = signal.Signals(-code).name if -code in signal.valid_signals() else ""
        self.printed.seek(0, os.SEEK_END)
        self.printed.seek(max(self.printed.tell() - LOGGED_BYTES, 0))
        _log.warning("a child process ended: %s; it printed %r", name or f"status {code}", self.printed.read())
        return WorkerDiedError(name, code)

    def kill(self) -> None:
        """Kill the child and close its files."""
        kill_session(self.process)
        for file in (self.process.stdin, self.process.stdout, self.printed):
            assert file is not None
            with contextlib.suppress(OSError):
                file.close()
