"""Drivers as child processes of this machine, with a Ray of their own.

A child has its own session, so it outlives its server. It carries the job's id and attempt in its environment, and the
first thing that it does is to leave its number in a file, which can be done once: a server that was killed between
starting a driver and writing that down finds it by these, at work or ended, and nobody starts a second one.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from qtune_service.errors import LaunchError
from qtune_service.job_states import Job
from qtune_service.output.layout import JOB_VARIABLE
from qtune_service.server.isolation.processes import child_environment
from qtune_service.server.launchers.base import DriverState, Reference
from qtune_service.server.permissions import driver_umask

NOTE_AND_BECOME = 'set -C && echo $$ > "$0" && exec "$@"'
"""For a shell: leave the number where none is yet, and be the driver under it. Of two there is one that can."""
NOTE_S = 5.0
BLOCK_BYTES = 1 << 16
SAME_START_S = 1.0
"""A process is the one that was started if their starts differ by less; a number may be given to another process."""


class LocalLauncher:
    """Starts `qtune run` in child processes; their logs and specs are kept in a folder."""

    name = "local"

    def __init__(self, folder: Path, python: str = sys.executable, environment: Sequence[str] = ()) -> None:
        """environment: names of variables that drivers get beside the usual; see server/isolation/processes.py."""
        self._folder, self._python, self._environment = folder, python, environment
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> Reference:
        """Start the driver, or find it."""
        mark, number = f"{job.id}:{job.attempts}", self._folder / f"{job.id}-{job.attempts}.pid"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (earlier := _earlier(mark, number)) is not None:
                return earlier
            child = self._start_child(job, mark, number)
        except OSError as error:
            raise LaunchError(
                f"the driver of job {job.id} could not be started: {error}", "Is the disk full?"
            ) from error
        self._children[child.pid] = child
        deadline_s = time.monotonic() + NOTE_S
        while not _number(number) and child.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return _earlier(mark, number) or _gone(child.pid)

    def _start_child(self, job: Job, mark: str, number: Path) -> subprocess.Popen[bytes]:
        spec = self._folder / f"{job.id}.json"
        spec.write_text(json.dumps(dict(job.spec)), encoding="utf-8")
        driver = [self._python, "-m", "qtune_service.cli", "run", str(spec)]
        with self._log_path(job).open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", NOTE_AND_BECOME, str(number), *driver],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **child_environment("driver", self._environment),
                    **job.variables,
                    JOB_VARIABLE: mark,
                    "COLUMNS": "120",
                },
                start_new_session=True,
                umask=driver_umask(),
            )

    def state(self, reference: Reference) -> DriverState:
        """By number and time of start."""
        if reference.get("host") != socket.gethostname():
            return DriverState.elsewhere
        self._reap()
        return DriverState.alive if _process(reference) is not None else DriverState.ended

    def stop(self, reference: Reference, *, at_once: bool) -> None:
        """SIGTERM to the driver, which saves and ends; or SIGKILL to it and all its children."""
        if (process := _process(reference)) is None:
            return
        doomed = [process, *(process.children(recursive=True) if at_once else ())]
        for one in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """The log of all attempts."""
        path = self._log_path(job)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                yield block

    def forget(self, job: Job) -> None:
        """Remove a job's log and spec."""
        numbers = self._folder.glob(f"{job.id}-*.pid")
        for path in (self._log_path(job), self._folder / f"{job.id}.json", *numbers):
            path.unlink(missing_ok=True)

    def _log_path(self, job: Job) -> Path:
        return self._folder / f"{job.id}.log"

    def _reap(self) -> None:
        self._children = {pid: child for pid, child in self._children.items() if child.poll() is None}


def _reference(process: psutil.Process) -> Reference:
    return {"host": socket.gethostname(), "pid": process.pid, "started_s": process.create_time()}


def _process(reference: Reference) -> psutil.Process | None:
    """The driver, if it is still there."""
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        process = psutil.Process(reference["pid"])
        is_same = abs(process.create_time() - reference["started_s"]) < SAME_START_S
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _gone(pid: int) -> Reference:
    """A driver that has ended: no process ever started then."""
    return {"host": socket.gethostname(), "pid": pid, "started_s": 0.0}


def _number(path: Path) -> int:
    """A driver's, or 0 where none left one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return 0


def _earlier(mark: str, number: Path) -> Reference | None:
    """The driver that was started for a job's attempt, if one was: at work, or one that has ended."""
    if pid := _number(number):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() < number.stat().st_mtime + SAME_START_S:  # not one that got the number later
                return _reference(process)
        return _gone(pid)
    for process in psutil.process_iter():  # one that was about to leave its number
        with contextlib.suppress(psutil.Error):
            if process.environ().get(JOB_VARIABLE) == mark and process.status() != psutil.STATUS_ZOMBIE:
                return _reference(process)
    return None
