"""Drivers on a Ray cluster, through its Jobs API: no shared disk, no import of ray.

The spec travels in the driver's environment. A submission's id is made of the job's id and attempt, and Ray takes an id
once: a submission whose answer was lost, or that two servers made, is one driver. A cluster that does not answer, or
that has lost its memory, fails no job: the driver's own beat beside its output then says whether it lives (service.py).

Ray stops a driver by SIGTERM and, after `RAY_JOB_STOP_WAIT_TIME_S` (3 by default), by SIGKILL; the time is set to more
than a driver needs to save, and is bounded whatever a spec requests (stop_limit.py). The Jobs API has no other way to
end a driver: it deletes only jobs that have ended, and a second stop changes nothing where the first one arrived. Logs
live as long as the cluster's head does, so they are copied here from time to time and when a driver has ended.

What a driver on a Ray cluster is given, whoever submits it: its name, command and environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qtune_service.config import pack_spec
from qtune_service.errors import LaunchError, SpecError
from qtune_service.job_states import Job, JobStatus
from qtune_service.output.layout import JOB_VARIABLE
from qtune_service.server.launchers.base import DriverState, Reference, ray_stop_wait_s
from qtune_service.server.launchers.logs import COPY_EVERY_S, LogCopies
from qtune_service.server.launchers.ray_api import RayApi

SPEC_VARIABLE = "QTUNE_SPEC"


def submission_id(job_id: str, attempt: int) -> str:
    """Of a driver: a cluster takes an id once."""
    return f"qtune-{job_id}-{attempt}"


def submission_ids(job: Job) -> list[str]:
    """Of all its attempts."""
    return [submission_id(job.id, attempt) for attempt in range(1, job.attempts + 1)]


def entrypoint(command: str) -> str:
    """What a shell of the cluster runs."""
    return f"exec {command} run env:{SPEC_VARIABLE}"


def environment(job: Job, *, has_gpus: bool) -> dict[str, str]:
    """The spec, and how long Ray waits after SIGTERM. has_gpus: see `_asking_for_gpus`. Raises LaunchError."""
    try:
        spec = pack_spec(_asking_for_gpus(job.spec) if has_gpus else job.spec)
    except SpecError as error:
        raise LaunchError(error.message, error.hint) from error
    wait_s = str(ray_stop_wait_s(job.spec))
    mark = f"{job.id}:{job.attempts}"
    own = {JOB_VARIABLE: mark, SPEC_VARIABLE: spec, "RAY_JOB_STOP_WAIT_TIME_S": wait_s, "COLUMNS": "120"}
    return {**job.variables, **own}


def _asking_for_gpus(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec with GPUs where it leaves them open.

    A driver takes those that its cluster has, and one whose GPU nodes come when they are asked for has none at first.
    """
    engine = spec.get("engine") or {}
    if engine.get("gpus_per_actor") is not None or spec.get("from_scores") is not None:
        return spec
    return {**spec, "engine": {**engine, "gpus_per_actor": engine.get("tensor_parallel_size", 1)}}


AT_WORK = ("PENDING", "RUNNING")


class RayLauncher:
    """Submits `qtune run` to a cluster; copies of the logs are kept in a folder."""

    name = "ray"

    def __init__(
        self, api: RayApi, folder: Path, *, command: str = "qtune", driver_cpus: float = 0, has_gpus: bool = False
    ) -> None:
        self._api, self._copies = api, LogCopies(folder)
        self._command, self._driver_cpus, self._has_gpus = command, driver_cpus, has_gpus

    def start(self, job: Job) -> Reference:
        """Submit the job; or find that it was."""
        name = submission_id(job.id, job.attempts)
        variables = environment(job, has_gpus=self._has_gpus)
        self._api.check()
        self._api.submit(
            {
                "submission_id": name,
                "entrypoint": entrypoint(self._command),
                "runtime_env": {"env_vars": variables},
                "metadata": {"job_name": job.name, "qtune_job": job.id},
                **({"entrypoint_num_cpus": self._driver_cpus} if self._driver_cpus else {}),
            }
        )
        return {"submission_id": name}

    def state(self, reference: Reference) -> DriverState:
        """As the cluster says, if it says anything."""
        name = reference["submission_id"]
        try:
            found = self._api.job(name)
        except LaunchError:  # logged where it began
            return DriverState.elsewhere
        if found is None:  # the cluster was made anew
            return DriverState.elsewhere
        if found["status"] in AT_WORK:
            self._copies.refresh(name, partial(self._api.log, name), COPY_EVERY_S)
            return DriverState.alive
        self._copies.finish(name, partial(self._api.log, name))
        return DriverState.ended

    def stop(self, reference: Reference, *, at_once: bool) -> None:  # noqa: ARG002 - Ray has one way to stop a driver
        """Ask Ray to stop the driver: SIGTERM, and SIGKILL after its bounded wait.

        at_once: that wait is over. Ray is asked again, which helps where the first request was lost. Raises LaunchError
        where there is no driver to ask yet.
        """
        name = reference["submission_id"]
        if self._api.stop(name):
            return
        found = self._api.job(name)
        if found is not None and found["status"] in AT_WORK:
            raise LaunchError(f"{name} cannot be stopped yet: its driver has not begun", "It is asked again.")

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """The logs of all attempts, from a byte on; from the cluster where a driver is at work, else from the copy."""
        names = submission_ids(job)
        for attempt, name in enumerate(names, 1):
            is_at_work = job.status is JobStatus.running and attempt == job.attempts
            if is_at_work or not self._copies.has(name):
                self._copies.refresh(name, partial(self._api.log, name), 1.0)
        yield from self._copies.read(names, start)

    def forget(self, job: Job) -> None:
        """Remove what the cluster and the folder hold of a job. What a cluster keeps that is away goes with it."""
        for name in submission_ids(job):
            with contextlib.suppress(LaunchError):
                self._api.delete(name)
            self._copies.remove(name)
