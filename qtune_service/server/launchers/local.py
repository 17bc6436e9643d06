"""Run drivers as child processes of this machine, each with its own Ray.

A child has its own session, so it survives its server. Its environment holds the job's id and attempt, and its first
action is to write its process id to a file that can be created only once. A server that was killed before it stored the
driver's reference finds the driver by these, running or ended, so that an attempt never has two drivers.
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

WRITE_PID_AND_EXEC = 'set -C && echo $$ > "$0" && exec "$@"'
"""Shell script: create the pid file, which fails where it exists, and become the driver under the same pid."""
PID_WAIT_S = 5.0
BLOCK_BYTES = 1 << 16
SAME_START_S = 1.0
"""Largest difference between the recorded and the real start time of a driver. Pids are used again."""


class LocalLauncher:
    """Runs `qtune run` in child processes, with logs and specs in a folder."""

    name = "local"

    def __init__(self, folder: Path, python: str = sys.executable, environment: Sequence[str] = ()) -> None:
        """Configure the launcher. environment: names of variables that drivers get in addition to the default ones."""
        self._folder, self._python, self._environment = folder, python, environment
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> Reference:
        """Start the driver, or return the one of the same attempt. Raise LaunchError."""
        attempt, pid_file = f"{job.id}:{job.attempts}", self._folder / f"{job.id}-{job.attempts}.pid"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (earlier := _find_driver(attempt, pid_file)) is not None:
                return earlier
            child = self._start_child(job, attempt, pid_file)
        except OSError as error:
            message = f"the driver of job {job.id} could not be started: {error}"
            raise LaunchError(message, "Check whether the disk is full.") from error
        self._children[child.pid] = child
        deadline_s = time.monotonic() + PID_WAIT_S
        while not _read_pid(pid_file) and child.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return _find_driver(attempt, pid_file) or _ended_driver(child.pid)

    def _start_child(self, job: Job, attempt: str, pid_file: Path) -> subprocess.Popen[bytes]:
        spec = self._folder / f"{job.id}.json"
        spec.write_text(json.dumps(dict(job.spec)), encoding="utf-8")
        driver = [self._python, "-m", "qtune_service.cli", "run", str(spec)]
        with self._log_path(job).open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", WRITE_PID_AND_EXEC, str(pid_file), *driver],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **child_environment("driver", self._environment),
                    **job.variables,
                    JOB_VARIABLE: attempt,
                    "COLUMNS": "120",
                },
                start_new_session=True,
                umask=driver_umask(),
            )

    def state(self, reference: Reference) -> DriverState:
        """Return the state of a driver by its pid and start time."""
        if reference.get("host") != socket.gethostname():
            return DriverState.elsewhere
        self._children = {pid: child for pid, child in self._children.items() if child.poll() is None}
        return DriverState.alive if _process(reference) is not None else DriverState.ended

    def stop(self, reference: Reference, *, force: bool) -> None:
        """Send SIGTERM to the driver, which saves its work and exits. With `force`, SIGKILL it and its children."""
        if (process := _process(reference)) is None:
            return
        for one in [process, *(process.children(recursive=True) if force else ())]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL if force else signal.SIGTERM)

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """Yield the log of all attempts from byte `start` on."""
        path = self._log_path(job)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                yield block

    def forget(self, job: Job) -> None:
        """Remove a job's log, spec and pid files."""
        pid_files = self._folder.glob(f"{job.id}-*.pid")
        for path in (self._log_path(job), self._folder / f"{job.id}.json", *pid_files):
            path.unlink(missing_ok=True)

    def _log_path(self, job: Job) -> Path:
        return self._folder / f"{job.id}.log"


def _reference(process: psutil.Process) -> Reference:
    return {"host": socket.gethostname(), "pid": process.pid, "started_s": process.create_time()}


def _process(reference: Reference) -> psutil.Process | None:
    """Return the running process of a driver, or None."""
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        process = psutil.Process(reference["pid"])
        is_same = abs(process.create_time() - reference["started_s"]) < SAME_START_S
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _ended_driver(pid: int) -> Reference:
    """Return the reference of an ended driver, with a start time that matches no process."""
    return {"host": socket.gethostname(), "pid": pid, "started_s": 0.0}


def _read_pid(path: Path) -> int:
    """Return the pid in a driver's file, or 0 where there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return 0


def _find_driver(attempt: str, pid_file: Path) -> Reference | None:
    """Return the running or ended driver of a job's attempt, or None where none was started."""
    if pid := _read_pid(pid_file):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() < pid_file.stat().st_mtime + SAME_START_S:  # not a later process of this pid
                return _reference(process)
        return _ended_driver(pid)
    for process in psutil.process_iter():  # a driver that has not written its pid yet
        with contextlib.suppress(psutil.Error):
            if process.environ().get(JOB_VARIABLE) == attempt and process.status() != psutil.STATUS_ZOMBIE:
                return _reference(process)
    return None
