"""Drivers on a Ray cluster, through its Jobs API: no shared disk, no import of ray.

The spec travels in the driver's environment. A submission's id is made of the job's id and attempt, and Ray takes an id
once: a submission whose answer was lost, or that two servers made, is one driver. A cluster that does not answer, or
that has lost its memory, fails no job: the driver's own beat beside its output then says whether it lives (service.py).

Ray stops a driver by SIGTERM and, after `RAY_JOB_STOP_WAIT_TIME_S` (3 by default), by SIGKILL; the time is set to more
than a driver needs to save. Logs live as long as the cluster's head does, so they are copied here from time to time and
when a driver has ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

from qtune_service.config import LimitsSpec
from qtune_service.errors import LaunchError, SpecError
from qtune_service.jobs.launch import DriverState, Reference
from qtune_service.jobs.models import Job, JobStatus
from qtune_service.jobs.ray_api import RayApi
from qtune_service.jobs.spec_text import pack_spec

SPEC_VARIABLE = "QTUNE_SPEC"
AT_WORK = ("PENDING", "RUNNING")
BLOCK_BYTES = 1 << 16
STOP_MORE_S = 30
"""Beside a job's own `stop_grace_s`, until Ray kills its driver."""
COPY_EVERY_S = 60.0
"""How old the copy of a log may be while its driver is at work."""

_log = logging.getLogger(__name__)


class RayLauncher:
    """Submits `qtune run` to a cluster; copies of the logs are kept in a folder."""

    name = "ray"

    def __init__(self, api: RayApi, folder: Path, *, command: str = "qtune", driver_cpus: float = 0) -> None:
        self._api, self._folder = api, folder
        self._command, self._driver_cpus = command, driver_cpus
        self._copied_s: dict[str, float] = {}

    def start(self, job: Job) -> Reference:
        """Submit the job; or find that it was."""
        submission_id = _submission_id(job.id, job.attempts)
        grace_s = LimitsSpec.model_validate(job.spec.get("limits", {})).stop_grace_s
        try:
            spec = pack_spec(job.spec)
        except SpecError as error:
            raise LaunchError(error.message, error.hint) from error
        environment = {
            SPEC_VARIABLE: spec,
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(grace_s) + STOP_MORE_S),
            "COLUMNS": "120",
        }
        self._api.check()
        self._api.submit(
            {
                "submission_id": submission_id,
                "entrypoint": f"exec {self._command} run env:{SPEC_VARIABLE}",
                "runtime_env": {"env_vars": environment},
                "metadata": {"job_name": job.name, "qtune_job": job.id},
                **({"entrypoint_num_cpus": self._driver_cpus} if self._driver_cpus else {}),
            }
        )
        return {"submission_id": submission_id}

    def state(self, reference: Reference) -> DriverState:
        """As the cluster says, if it says anything."""
        submission_id = reference["submission_id"]
        try:
            found = self._api.job(submission_id)
        except LaunchError:  # logged where it began
            return DriverState.elsewhere
        if found is None:  # the cluster was made anew
            return DriverState.elsewhere
        if found["status"] in AT_WORK:
            self._copy_log(submission_id, COPY_EVERY_S)
            return DriverState.alive
        self._copy_log(submission_id, 0.0)
        self._copied_s.pop(submission_id, None)
        return DriverState.ended

    def stop(self, reference: Reference, *, at_once: bool) -> None:  # noqa: ARG002 - Ray insists by itself
        """SIGTERM by Ray, which sees to it that the driver ends: being asked again changes nothing."""
        submission_id = reference["submission_id"]
        if self._api.stop(submission_id):
            return
        found = self._api.job(submission_id)
        if found is not None and found["status"] in AT_WORK:
            raise LaunchError(f"{submission_id} cannot be stopped yet: its driver has not begun", "It is asked again.")

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """The logs of all attempts, from a byte on; from the cluster where a driver is at work, else from the copy."""
        for attempt in range(1, job.attempts + 1):
            submission_id = _submission_id(job.id, attempt)
            is_at_work = job.status is JobStatus.running and attempt == job.attempts
            if is_at_work or not self._copy(submission_id).exists():
                self._copy_log(submission_id, 1.0)
            copy = self._copy(submission_id)
            size = copy.stat().st_size if copy.exists() else 0
            if start <= size:
                yield from self._read_copy(submission_id, start)
            start = max(start - size, 0)

    def forget(self, job: Job) -> None:
        """Remove what the cluster and the folder hold of a job. What a cluster keeps that is away goes with it."""
        for attempt in range(1, job.attempts + 1):
            submission_id = _submission_id(job.id, attempt)
            with contextlib.suppress(LaunchError):
                self._api.delete(submission_id)
            self._copy(submission_id).unlink(missing_ok=True)

    # --- copies of logs

    def _copy(self, submission_id: str) -> Path:
        return self._folder / f"{submission_id}.log"

    def _copy_log(self, submission_id: str, max_age_s: float) -> None:
        """Copy a log unless there is a copy that is new enough. A failure costs the log, and no job."""
        if time.monotonic() - self._copied_s.get(submission_id, -math.inf) < max_age_s:
            return
        self._copied_s[submission_id] = time.monotonic()
        path = self._copy(submission_id)
        fresh = path.with_suffix(f".{time.monotonic_ns()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                for block in self._api.log(submission_id):
                    file.write(block)
            fresh.replace(path)
        except (LaunchError, OSError) as error:
            _log.warning("the log of %s could not be copied: %s", submission_id, error)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _read_copy(self, submission_id: str, start: int) -> Iterator[bytes]:
        try:
            with self._copy(submission_id).open("rb") as file:
                file.seek(start)
                while block := file.read(BLOCK_BYTES):
                    yield block
        except FileNotFoundError:
            yield f"[the cluster does not have the log of {submission_id} now]\n".encode()


def _submission_id(job_id: str, attempt: int) -> str:
    return f"qtune-{job_id}-{attempt}"
