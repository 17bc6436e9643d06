"""The Kubernetes API over HTTP, as far as Ray jobs of one namespace need it; no Kubernetes client.

A pod has what it takes in its service account's folder: a token (exchanged every hour, so it is read for each request),
the API's certificate, and the namespace. What may be better in a moment is tried again, and after that the API is left
alone for some seconds, as server/launchers/ray_api.py does with Ray's.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import stamina

from qtune_service.errors import LauncherAwayError, LaunchError

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
                "QTUNE_KUBE_CLUSTER names the one whose spec jobs get; see docs/kubernetes.md.",
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
            404: "Is KubeRay installed, in a version that docs/kubernetes.md names?",
        }
        return LaunchError(message, hints.get(answer.status_code, "See docs/kubernetes.md."))


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
