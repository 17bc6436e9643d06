"""Run drivers on a Ray cluster through its Jobs API, without a shared disk and without importing ray.

The spec is passed in the driver's environment. A submission's id consists of the job's id and attempt, and Ray accepts
an id once. So a submission whose response was lost, or that two servers sent, starts one driver. A cluster that does
not answer, or that was restarted, fails no job: the heartbeat in the output then shows whether the driver runs
(server/jobs/service.py).

Ray stops a driver by SIGTERM and, after `RAY_JOB_STOP_WAIT_TIME_S` (3 by default), by SIGKILL. This time is set to more
than a driver needs to save, and is bounded for every spec (base.py). The Jobs API has no other way to end a driver: it
deletes only ended jobs, and a second stop has no effect where the first one arrived. A cluster loses its logs with its
head, so logs are copied from time to time and when a driver has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qtune_service.config import EngineSpec
from qtune_service.errors import LaunchError, SpecError
from qtune_service.job_states import Job, JobStatus
from qtune_service.output.layout import JOB_VARIABLE
from qtune_service.server.launchers.base import DriverState, Reference, ray_stop_wait_s
from qtune_service.server.launchers.logs import COPY_EVERY_S, LogCopies
from qtune_service.server.launchers.ray_api import RayApi
from qtune_service.spec_files import pack_spec

SPEC_VARIABLE = "QTUNE_SPEC"
ACTIVE = ("PENDING", "RUNNING")
"""States in which Ray's job has not ended."""


def submission_id(job_id: str, attempt: int) -> str:
    """Return the id of a driver on its cluster, which accepts an id once."""
    return f"qtune-{job_id}-{attempt}"


def submission_ids(job: Job) -> list[str]:
    """Return the ids of the drivers of all attempts of a job."""
    return [submission_id(job.id, attempt) for attempt in range(1, job.attempts + 1)]


def entrypoint(command: str) -> str:
    """Return the shell command of a driver."""
    return f"exec {command} run env:{SPEC_VARIABLE}"


def environment(job: Job, *, has_gpus: bool) -> dict[str, str]:
    """Return the environment of a driver. has_gpus: request GPUs, see `_with_gpus`. Raise LaunchError."""
    try:
        spec = pack_spec(_with_gpus(job.spec) if has_gpus else job.spec)
    except SpecError as error:
        raise LaunchError(error.message, error.hint) from error
    wait_s = str(ray_stop_wait_s(job.spec))
    attempt = f"{job.id}:{job.attempts}"
    own = {JOB_VARIABLE: attempt, SPEC_VARIABLE: spec, "RAY_JOB_STOP_WAIT_TIME_S": wait_s, "COLUMNS": "120"}
    return {**job.variables, **own}


def _with_gpus(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the spec with GPUs for each actor where it does not set them.

    By default a driver uses the GPUs that its cluster has at the start. A cluster that scales up from 0 has none then.
    """
    engine = spec.get("engine") or {}
    if engine.get("gpus_per_actor") is not None or spec.get("from_scores") is not None:
        return spec
    return {**spec, "engine": {**engine, "gpus_per_actor": EngineSpec.model_validate(engine).gpus_per_engine}}


class RayLauncher:
    """Submits `qtune run` to a cluster, and keeps copies of the logs in a folder."""

    name = "ray"

    def __init__(
        self, api: RayApi, folder: Path, *, command: str = "qtune", driver_cpus: float = 0, has_gpus: bool = False
    ) -> None:
        self._api, self._copies = api, LogCopies(folder)
        self._command, self._driver_cpus, self._has_gpus = command, driver_cpus, has_gpus

    def start(self, job: Job) -> Reference:
        """Submit the job unless this attempt was submitted. Raise LaunchError and LauncherAwayError."""
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
        """Return the state by the cluster, or `elsewhere` where the cluster does not answer or know the driver."""
        name = reference["submission_id"]
        try:
            found = self._api.job(name)
        except LaunchError:  # logged by RayApi
            return DriverState.elsewhere
        if found is None:  # the cluster was restarted
            return DriverState.elsewhere
        if found["status"] in ACTIVE:
            self._copies.refresh(name, partial(self._api.log, name), COPY_EVERY_S)
            return DriverState.alive
        self._copies.finish(name, partial(self._api.log, name))
        return DriverState.ended

    def stop(self, reference: Reference, *, force: bool) -> None:  # noqa: ARG002 - Ray has one way to stop a driver
        """Ask Ray to stop the driver by SIGTERM, and by SIGKILL after a bounded time.

        With `force` this time is over, and the request is repeated in case that the first one was lost. Raise
        LaunchError where the driver has not started yet.
        """
        name = reference["submission_id"]
        if self._api.stop(name):
            return
        found = self._api.job(name)
        if found is not None and found["status"] in ACTIVE:
            raise LaunchError(f"{name} cannot be stopped yet: the driver has not started", "The server tries again.")

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """Yield the logs of all attempts from byte `start` on, and first refresh the copy of a running driver."""
        names = submission_ids(job)
        for attempt, name in enumerate(names, 1):
            is_at_work = job.status is JobStatus.running and attempt == job.attempts
            if is_at_work or not self._copies.has(name):
                self._copies.refresh(name, partial(self._api.log, name), 1.0)
        yield from self._copies.read(names, start)

    def forget(self, job: Job) -> None:
        """Remove a job's logs, and its submissions from the cluster if that answers."""
        for name in submission_ids(job):
            with contextlib.suppress(LaunchError):
                self._api.delete(name)
            self._copies.remove(name)
