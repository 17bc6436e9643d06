"""Run each driver on Kubernetes as a RayJob, with its own Ray cluster that KubeRay starts and removes.

The template of the clusters is a RayCluster that is kept suspended. It runs nothing, is validated by its CRD when it is
applied, and is patched by the same tools as other resources. Its spec is copied when a job starts.

A RayJob's name consists of the job's id and attempt. Kubernetes accepts a name once, so a second start finds the first
one's job. KubeRay submits by HTTP, without a submitting pod and without a shell that could change the spec. After the
loss of a head it submits again, and the driver continues with the unfinished shards.

Logs and stop requests go through the Jobs API of the job's cluster, as in ray.py, because KubeRay cannot stop a driver
and let it save. The RayJob and its cluster are deleted where a driver has not started, where its cluster does not
answer, and where a driver has not stopped within its limit (base.py). The cluster stays KEEP_S seconds after its
driver, so that the log can be copied.

`KubeApi` calls the Kubernetes API over HTTP, without a Kubernetes client. The service account's folder in the pod holds
the token (rotated every hour, so it is read for each request), the API's certificate and the namespace. Failures are
retried, and then all calls fail immediately for PAUSE_S, as in ray_api.py.
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
"""Seconds for which no request is sent to an API that did not answer."""
ENDED_JOB = ("SUCCEEDED", "FAILED", "STOPPED")
ENDED_DEPLOYMENT = ("Complete", "Failed", "ValidationFailed")
KEEP_S = 300
LABELS = {"app.kubernetes.io/managed-by": "qtune", "app.kubernetes.io/component": "job"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """A service account's folder, as Kubernetes mounts it."""

    folder: Path

    def read(self, name: str) -> str:
        """Read the present `token` or `namespace`. Raise LaunchError."""
        try:
            return (self.folder / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise LaunchError(
                f"the service account cannot be read: {error}",
                "Set automountServiceAccountToken for the pod, or QTUNE_KUBE_ACCOUNT to the mounted folder.",
            ) from error

    def certificates(self) -> ssl.SSLContext:
        """Return the certificates of the API's authority, or the system's without ca.crt. Raise LaunchError."""
        path = self.folder / "ca.crt"
        try:
            return ssl.create_default_context(cafile=str(path) if path.exists() else None)
        except (OSError, ssl.SSLError) as error:
            raise LaunchError(
                f"{path} holds no certificates: {error}", "It must be the certificate of the Kubernetes API."
            ) from error


class KubeApi:
    """Ray's resources in one namespace. Methods raise LaunchError, or LauncherAwayError for a temporary failure."""

    def __init__(self, address: str, account: Account) -> None:
        self.address, self._account = address.rstrip("/"), account
        self.namespace = account.read("namespace")
        is_tls = self.address.startswith("https:")
        self._client = httpx.Client(
            timeout=TIMEOUT, verify=account.certificates() if is_tls else False, trust_env=False
        )
        self._away_until_s, self._why_away = 0.0, ""

    def cluster(self, name: str) -> Mapping[str, Any]:
        """Return a RayCluster."""
        found = self._ask("GET", f"rayclusters/{name}")
        if found is None:
            raise LaunchError(
                f"there is no RayCluster {name!r} in namespace {self.namespace!r}",
                "QTUNE_KUBE_CLUSTER names the template of the jobs' clusters. See docs/operations/kubernetes.md.",
            )
        return found

    def job(self, name: str) -> Mapping[str, Any] | None:
        """Return a RayJob, or None where there is none of that name."""
        return self._ask("GET", f"rayjobs/{name}")

    def create(self, job: Mapping[str, Any]) -> None:
        """Create a RayJob. Accept an existing one of the same name, as after a lost response."""
        self._ask("POST", "rayjobs", job)

    def delete(self, name: str) -> None:
        """Delete a RayJob and its cluster if they exist."""
        self._ask("DELETE", f"rayjobs/{name}")

    # --- requests

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
        """Send a request with retries. Fail immediately for PAUSE_S after they were used up."""
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
            message = f"the Kubernetes API does not answer at {self.address}: {error or type(error).__name__}"
            raise LauncherAwayError(message, "Check that the network policies let the server reach it.") from error
        found = _body(answer)
        if answer.is_success and found is not None:
            return found
        is_there_already = answer.status_code == 409 and (found or {}).get("reason") == "AlreadyExists"
        if is_there_already or _is_absent(answer, found):
            return None
        raise self._refusal(answer, found, f"{method} {path}")

    def _refusal(self, answer: httpx.Response, found: Mapping[str, Any] | None, request: str) -> LaunchError:
        reason = (found or {}).get("message") or answer.text.strip()[:500] or answer.reason_phrase
        message = f"the Kubernetes API answered {answer.status_code} to {request}: {reason}"
        if answer.status_code == 429 or answer.is_server_error:
            return LauncherAwayError(message)
        hints = {
            401: "The service account's token is not valid. Restart the pod if the account was created again.",
            403: "The service account needs the Role of k8s/components/kuberay.",
            404: "Check that KubeRay is installed, in one of the versions in docs/operations/kubernetes.md.",
        }
        return LaunchError(message, hints.get(answer.status_code, "See docs/operations/kubernetes.md."))


def _body(answer: httpx.Response) -> Mapping[str, Any] | None:
    try:
        found = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, Mapping) else None


def _is_absent(answer: httpx.Response, found: Mapping[str, Any] | None) -> bool:
    """Return whether an object is missing. Without KubeRay the kind is missing, and the response has no name."""
    return answer.status_code == 404 and bool((found or {}).get("details", {}).get("name"))


class KubeRayLauncher:
    """Creates RayJobs from a template RayCluster, and keeps copies of the logs in a folder."""

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
        """Create the RayJob unless it exists. Raise LaunchError and LauncherAwayError."""
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
        """Return the state by KubeRay, or `elsewhere` without one. A driver that waits for a cluster is alive."""
        name = reference["rayjob"]
        try:
            found = self._api.job(name)
        except LaunchError as error:
            _log.warning("%s", error.message)
            return DriverState.elsewhere
        if found is None:  # somebody has deleted it
            return DriverState.elsewhere
        if not _has_ended(found):
            self._copies.refresh(name, partial(self._whole_log, name, found), COPY_EVERY_S)
            return DriverState.alive
        self._copies.finish(name, partial(self._whole_log, name, found))
        self._rays.pop(name, None)
        return DriverState.ended

    def stop(self, reference: Reference, *, force: bool) -> None:
        """Ask Ray to stop the driver by SIGTERM, then SIGKILL. Delete the RayJob if `force` or without a driver."""
        name = reference["rayjob"]
        found = self._api.job(name)
        if found is None or _has_ended(found):
            return
        if force:  # without a request to its cluster, which may hang
            self._api.delete(name)
            return
        try:
            ray = self._ray(name, found)
            if ray is not None and ray.stop(name):
                return
        except LaunchError as error:
            _log.warning("%s is deleted because the request to stop its driver failed: %s", name, error.message)
        self._api.delete(name)

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """Yield the logs of all attempts from byte `start` on, and first refresh the copy of a running driver."""
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
        """Return the Jobs API of a job's cluster, or None before the cluster runs."""
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
        """Yield the driver's log, and KubeRay's state of a driver that waits or could not start."""
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
