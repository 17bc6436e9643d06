"""Drivers on Kubernetes: a RayJob for each, with a Ray cluster of its own that KubeRay starts and takes down.

What a cluster looks like says a RayCluster that is kept suspended: it runs nothing, is checked by its CRD when it is
applied, and is patched by the same tools as the rest. Its spec is copied when a job starts.

A RayJob's name is made of the job's id and attempt, and a name is taken once: whoever comes second finds the first
one's job. KubeRay submits by HTTP (no pod that submits, no shell that could change the spec) and, should the head be
lost, submits again: the driver goes on where it was.

Logs and stopping go through Ray's Jobs API of the job's cluster, as with a cluster that stays (ray_jobs.py): KubeRay
has no way to stop a driver and let it save. The RayJob is deleted, and its cluster with it, where a driver has not
begun, where its cluster does not answer, and where a driver has not stopped within its limit (stop_limit.py). The
cluster stays KEEP_S after its driver, for the log to be copied.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qtune_service.errors import LaunchError
from qtune_service.job_states import Job, JobStatus
from qtune_service.server.launchers.base import DriverState, Reference
from qtune_service.server.launchers.kube_api import KubeApi
from qtune_service.server.launchers.logs import COPY_EVERY_S, LogCopies
from qtune_service.server.launchers.ray_api import RayApi
from qtune_service.server.launchers.ray_driver import entrypoint, environment, submission_id, submission_ids

ENDED_JOB = ("SUCCEEDED", "FAILED", "STOPPED")
ENDED_DEPLOYMENT = ("Complete", "Failed", "ValidationFailed")
KEEP_S = 300
LABELS = {"app.kubernetes.io/managed-by": "qtune", "app.kubernetes.io/component": "job"}

_log = logging.getLogger(__name__)


class KubeRayLauncher:
    """Makes RayJobs after a RayCluster; copies of the logs are kept in a folder."""

    name = "kuberay"

    def __init__(
        self,
        api: KubeApi,
        folder: Path,
        *,
        cluster: str,
        token: Callable[[], str | None],
        command: str = "qtune",
        driver_cpus: float = 0,
        has_gpus: bool = False,
    ) -> None:
        self._api, self._copies, self._cluster, self._token = api, LogCopies(folder), cluster, token
        self._command, self._driver_cpus, self._has_gpus = command, driver_cpus, has_gpus
        self._rays: dict[str, RayApi] = {}

    def start(self, job: Job) -> Reference:
        """Make the RayJob; or find that it was."""
        name = submission_id(job.id, job.attempts)
        variables = environment(job, has_gpus=self._has_gpus)
        if self._api.job(name) is None:
            cluster = {k: v for k, v in self._api.cluster(self._cluster)["spec"].items() if k != "suspend"}
            self._api.create(self._rayjob(job, name, variables, cluster))
        return {"rayjob": name}

    def _rayjob(self, job: Job, name: str, variables: Mapping[str, str], cluster: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name, "labels": {**LABELS, "qtune/job": job.id}},
            "spec": {
                "entrypoint": entrypoint(self._command),
                **({"entrypointNumCpus": self._driver_cpus} if self._driver_cpus else {}),
                "jobId": name,
                "submissionMode": "HTTPMode",
                "runtimeEnvYAML": json.dumps({"env_vars": dict(variables)}),  # JSON is YAML
                "metadata": {"job_name": job.name, "qtune_job": job.id},
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": KEEP_S,
                "rayClusterSpec": dict(cluster),
            },
        }

    def state(self, reference: Reference) -> DriverState:
        """As KubeRay says, if it says anything. A cluster that is waited for, as in a queue, is one at work."""
        name = reference["rayjob"]
        try:
            found = self._api.job(name)
        except LaunchError as error:
            _log.warning("%s", error.message)
            return DriverState.elsewhere
        if found is None:  # deleted by somebody
            return DriverState.elsewhere
        if not _has_ended(found):
            self._copies.refresh(name, partial(self._whole_log, name, found), COPY_EVERY_S)
            return DriverState.alive
        self._copies.finish(name, partial(self._whole_log, name, found))
        self._rays.pop(name, None)
        return DriverState.ended

    def stop(self, reference: Reference, *, at_once: bool) -> None:
        """Ask Ray to stop the driver: SIGTERM, then SIGKILL. Where there is none, or at_once, delete the RayJob."""
        name = reference["rayjob"]
        found = self._api.job(name)
        if found is None or _has_ended(found):
            return
        if at_once:  # nothing of its cluster is asked first, which may be what hangs
            self._api.delete(name)
            return
        try:
            ray = self._ray(name, found)
            if ray is not None and ray.stop(name):
                return
        except LaunchError as error:
            _log.warning("%s is deleted, for its driver could not be asked to stop: %s", name, error.message)
        self._api.delete(name)

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """The logs of all attempts, from a byte on; from the cluster where a driver is at work, else from the copy."""
        names = submission_ids(job)
        for attempt, name in enumerate(names, 1):
            is_at_work = job.status is JobStatus.running and attempt == job.attempts
            if is_at_work or not self._copies.has(name):
                self._copies.refresh(name, partial(self._log_now, name), 1.0)
        yield from self._copies.read(names, start)

    def forget(self, job: Job) -> None:
        """Remove the RayJobs and the logs of a job."""
        for name in submission_ids(job):
            with contextlib.suppress(LaunchError):
                self._api.delete(name)
            self._copies.remove(name)
            self._rays.pop(name, None)

    # --- the job's own cluster

    def _ray(self, name: str, found: Mapping[str, Any]) -> RayApi | None:
        """Ray's Jobs API of a job; None while there is none."""
        address = _status(found).get("dashboardURL")
        if not address:
            return None
        if name not in self._rays:
            self._rays[name] = RayApi(address if "://" in address else f"http://{address}", self._token)
        return self._rays[name]

    def _log_now(self, name: str) -> Iterator[bytes]:
        found = self._api.job(name)
        if found is None:
            raise LaunchError(f"there is no RayJob {name}")
        yield from self._whole_log(name, found)

    def _whole_log(self, name: str, found: Mapping[str, Any]) -> Iterator[bytes]:
        """What the driver printed; and what KubeRay says of one that waits or did not get so far."""
        status = _status(found)
        ray = self._ray(name, found)
        if ray is not None and status.get("jobStatus"):
            yield from ray.log(name)
        else:
            yield f"[no driver yet: {status.get('jobDeploymentStatus') or 'not seen by KubeRay'}]\n".encode()
        if status.get("jobDeploymentStatus") in ("Failed", "ValidationFailed"):
            yield f"[KubeRay: {status.get('reason') or 'Failed'}: {status.get('message') or '-'}]\n".encode()


def _status(found: Mapping[str, Any]) -> Mapping[str, Any]:
    status: Mapping[str, Any] = found.get("status") or {}
    return status


def _has_ended(found: Mapping[str, Any]) -> bool:
    status = _status(found)
    return status.get("jobStatus") in ENDED_JOB or status.get("jobDeploymentStatus") in ENDED_DEPLOYMENT
