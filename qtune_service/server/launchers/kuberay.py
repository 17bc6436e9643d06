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

The Kubernetes API over HTTP, as far as Ray jobs of one namespace need it; no Kubernetes client.

A pod has what it takes in its service account's folder: a token (exchanged every hour, so it is read for each request),
the API's certificate, and the namespace. What may be better in a moment is tried again, and after that the API is left
alone for some seconds, as server/launchers/ray_api.py does with Ray's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import stamina

from qtune_service.errors import LauncherAwayError, LaunchError
from qtune_service.job_states import Job, JobStatus
from qtune_service.server.launchers.base import DriverState, Reference
from qtune_service.server.launchers.logs import COPY_EVERY_S, LogCopies
from qtune_service.server.launchers.ray import entrypoint, environment, submission_id, submission_ids
from qtune_service.server.launchers.ray_api import RayApi

GROUP = "/apis/ray.io/v1"
TIMEOUT = httpx.Timeout(10, connect=3)
ATTEMPTS = 3
PAUSE_S = 5.0
"""So long an API that did not answer is not asked again."""


@dataclass(frozen=True, slots=True)
class Account:
    """A service account's folder, as Kubernetes mounts it."""

    folder: Path

    def read(self, name: str) -> str:
        """`token` or `namespace`, as they are now. Raises LaunchError."""
        try:
            return (self.folder / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise LaunchError(
                f"the service account cannot be read: {error}",
                "The pod needs automountServiceAccountToken, or QTUNE_KUBE_ACCOUNT names where it is mounted.",
            ) from error

    def certificates(self) -> ssl.SSLContext:
        """Those of the API's own authority, or the system's where the folder has none. Raises LaunchError."""
        path = self.folder / "ca.crt"
        try:
            return ssl.create_default_context(cafile=str(path) if path.exists() else None)
        except (OSError, ssl.SSLError) as error:
            raise LaunchError(f"{path} holds no certificates: {error}", "It is the Kubernetes API's own.") from error


class KubeApi:
    """Ray's resources in one namespace. Every method raises LaunchError; LauncherAwayError where that may pass."""

    def __init__(self, address: str, account: Account) -> None:
        self.address, self._account = address.rstrip("/"), account
        self.namespace = account.read("namespace")
        is_tls = self.address.startswith("https:")
        self._client = httpx.Client(
            timeout=TIMEOUT, verify=account.certificates() if is_tls else False, trust_env=False
        )
        self._away_until_s, self._why_away = 0.0, ""

    def cluster(self, name: str) -> Mapping[str, Any]:
        """A RayCluster."""
        found = self._ask("GET", f"rayclusters/{name}")
        if found is None:
            raise LaunchError(
                f"there is no RayCluster {name!r} in namespace {self.namespace!r}",
                "QTUNE_KUBE_CLUSTER names the one whose spec jobs get; see docs/operations/kubernetes.md.",
            )
        return found

    def job(self, name: str) -> Mapping[str, Any] | None:
        """A RayJob; None where there is none of that name."""
        return self._ask("GET", f"rayjobs/{name}")

    def create(self, job: Mapping[str, Any]) -> None:
        """Make a RayJob. One that is there under the same name, as after an answer that was lost, is that job."""
        self._ask("POST", "rayjobs", job)

    def delete(self, name: str) -> None:
        """Remove a RayJob, and with it its cluster. Nothing where it is gone."""
        self._ask("DELETE", f"rayjobs/{name}")

    # --- asking

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
        """Ask, some times where it fails; not at all where all of them failed a moment ago."""
        if self._why_away and time.monotonic() < self._away_until_s:
            raise LauncherAwayError(self._why_away)
        try:
            for attempt in stamina.retry_context(
                on=LauncherAwayError, attempts=ATTEMPTS, wait_initial=0.1, wait_max=1.0, wait_jitter=0.1, timeout=15
            ):
                with attempt:
                    found = self._once(method, path, body)
        except LauncherAwayError as error:
            self._away_until_s, self._why_away = time.monotonic() + PAUSE_S, error.message
            raise
        self._why_away = ""
        return found

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        url = f"{self.address}{GROUP}/namespaces/{self.namespace}/{path}"
        headers = {"Authorization": f"Bearer {self._account.read('token')}"}
        try:
            answer = self._client.request(method, url, json=body, headers=headers)
        except httpx.RequestError as error:
            told = f"the Kubernetes API does not answer at {self.address}: {error or type(error).__name__}"
            raise LauncherAwayError(told, "Do the network policies let the server reach it?") from error
        found = _body(answer)
        if answer.is_success and found is not None:
            return found
        if _is_absent(answer, found) or _is_there_already(answer, found):
            return None
        raise self._refusal(answer, found, f"{method} {path}")

    def _refusal(self, answer: httpx.Response, found: Mapping[str, Any] | None, what: str) -> LaunchError:
        told = (found or {}).get("message") or answer.text.strip()[:500] or answer.reason_phrase
        message = f"the Kubernetes API answered {answer.status_code} to {what}: {told}"
        if answer.status_code == 429 or answer.is_server_error:
            return LauncherAwayError(message)
        hints = {
            401: "The service account's token is not valid; was the account made anew? Restart the pod.",
            403: "The service account needs the Role of k8s/components/kuberay.",
            404: "Is KubeRay installed, in a version that docs/operations/kubernetes.md names?",
        }
        return LaunchError(message, hints.get(answer.status_code, "See docs/operations/kubernetes.md."))


def _body(answer: httpx.Response) -> Mapping[str, Any] | None:
    try:
        found = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, Mapping) else None


def _is_absent(answer: httpx.Response, found: Mapping[str, Any] | None) -> bool:
    """An object, not its kind: where KubeRay is not installed, no name is told."""
    return answer.status_code == 404 and bool((found or {}).get("details", {}).get("name"))


def _is_there_already(answer: httpx.Response, found: Mapping[str, Any] | None) -> bool:
    return answer.status_code == 409 and (found or {}).get("reason") == "AlreadyExists"


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
