"""Run the real command in a process of its own, and watch the memory of it and of each of its workers from outside.

Resident memory (RSS) counts a page that several processes share in each of them, and Ray's workers share a lot: the
interpreter they were forked from and the object store. Unique memory (USS) is what would be freed if the process
ended; reading it walks the page tables, so it is looked at less often. Both are kept as peaks by process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

REPO = Path(__file__).resolve().parents[2]
EVERY_S, UNIQUE_EVERY = 0.25, 8  # unique memory at each eighth look
LOG_TAIL_LINES = 15


@dataclass(slots=True)
class Peaks:
    """Peaks of one process."""

    role: str
    rss_bytes: int = 0
    unique_bytes: int = 0


@dataclass(slots=True)
class Watch:
    """The processes of a running command; use as a context."""

    process: psutil.Process
    by_pid: dict[int, Peaks] = field(default_factory=dict)
    total_unique_bytes: int = 0
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    def worst(self, role: str) -> Peaks:
        """Return the highest peaks among the processes of a role."""
        of = [peaks for peaks in self.by_pid.values() if peaks.role == role]
        return Peaks(role, max((p.rss_bytes for p in of), default=0), max((p.unique_bytes for p in of), default=0))

    def count(self, role: str) -> int:
        """Return how many processes a role had."""
        return sum(peaks.role == role for peaks in self.by_pid.values())

    def _run(self) -> None:
        looks = 0
        while not self._done.wait(EVERY_S):
            self._look(with_unique=looks % UNIQUE_EVERY == 0)
            looks += 1

    def _look(self, *, with_unique: bool) -> None:
        try:
            members = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        total = sum(self._note(member, with_unique=with_unique) for member in members)
        self.total_unique_bytes = max(self.total_unique_bytes, total)

    def _note(self, member: psutil.Process, *, with_unique: bool) -> int:
        try:
            role = "driver" if member.pid == self.process.pid else _role(member)
            unique = int(member.memory_full_info().uss) if with_unique else 0
            resident = int(member.memory_info().rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0
        peaks = self.by_pid.setdefault(member.pid, Peaks(role))
        peaks.role = role if peaks.role in ("other", "worker") else peaks.role  # a worker is named after its work
        peaks.rss_bytes, peaks.unique_bytes = max(peaks.rss_bytes, resident), max(peaks.unique_bytes, unique)
        return unique


def _role(member: psutil.Process) -> str:
    title = " ".join(member.cmdline())
    return "worker" if title.startswith("ray::") or "default_worker.py" in title else "other"


def run(arguments: Sequence[object], log: Path, until: Callable[[], bool] | None = None) -> tuple[Watch, int]:
    """Run `qtune` to its end, or stop it when `until` returns true. Return the memory peaks and the exit status."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-m", "qtune_service.cli", *map(str, arguments)]
    with log.open("w") as out:
        started = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**kept, "PYTHONPATH": str(REPO), "COLUMNS": "160"}
        )
        with Watch(psutil.Process(started.pid)) as watch:
            while True:
                try:
                    return watch, started.wait(1.0)
                except subprocess.TimeoutExpired:
                    if until is not None and until():
                        started.terminate()
                        until = None


def tail(log: Path) -> str:
    """Return the end of a log, for an error."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
