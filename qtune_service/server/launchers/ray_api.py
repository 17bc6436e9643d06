"""Call Ray's Jobs API over HTTP, without importing ray.

Temporary failures (no response, a 5xx of a proxy or of the head) are retried. After that all calls fail immediately for
PAUSE_S, so that a cluster that is down does not slow down requests about its jobs. The token is read for each request,
because token files are rotated, and appears in no message.
Source: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import stamina

from qtune_service.errors import LauncherAwayError, LaunchError, QTuneError
from qtune_service.server.launchers.logs import unescaped

API_VERSION = "4"
"""Version of the Jobs API. Ray's own clients refuse others."""
TIMEOUT = httpx.Timeout(10, connect=3)
LOG_TIMEOUT = httpx.Timeout(60, connect=3)
ATTEMPTS = 3
PAUSE_S = 5.0
"""Seconds for which no request is sent to a cluster that did not answer."""

_log = logging.getLogger(__name__)


class RayApi:
    """The jobs of one cluster. Every method raises LaunchError, or LauncherAwayError for a temporary failure."""

    def __init__(self, address: str, token: Callable[[], str | None]) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._client = httpx.Client(timeout=TIMEOUT)
        self._away_until_s, self._why_away = 0.0, ""

    def check(self) -> None:
        """Check that the cluster answers, has this version of the API, and accepts the token."""
        body = _json(self._ask("GET", "/api/version"), self._foreign())
        if body.get("version") != API_VERSION:
            raise LaunchError(
                f"Ray {body.get('ray_version')} at {self.address} has version {body.get('version')} of the Jobs API",
                f"This server supports version {API_VERSION}. Run a Ray version of docs/operations/service.md.",
            )

    def submit(self, submission: Mapping[str, Any]) -> None:
        """Start a job unless the cluster has one with its id, as after a lost response."""
        path = f"/api/jobs/{submission['submission_id']}"
        if self.job(submission["submission_id"]) is not None:
            return
        try:
            answer = self._once("POST", "/api/jobs/", submission)
        except LauncherAwayError:  # the cluster may have the job all the same: Ray responds 500 to an id that is in use
            if self._once("GET", path).status_code == 200:
                return
            raise
        if answer.status_code == 400 and self._once("GET", path).status_code != 200:
            hint = "Its version may differ from the one that this server supports."
            raise LaunchError(f"the Ray cluster at {self.address} refuses the job: {_last_line(answer)}", hint)
        if answer.status_code not in (200, 400):
            raise self._foreign()

    def job(self, submission_id: str) -> Mapping[str, Any] | None:
        """Return the cluster's record of a job, or None where the id is unknown."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}")
        return None if answer.status_code == 404 else _json(answer, self._foreign())

    def stop(self, submission_id: str) -> bool:
        """Request the end of a job, and return whether it has a driver that got the request."""
        answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        return answer.status_code != 404 and bool(_json(answer, self._foreign()).get("stopped"))

    def delete(self, submission_id: str) -> None:
        """Delete an ended job."""
        self._ask("DELETE", f"/api/jobs/{submission_id}")

    def log(self, submission_id: str) -> Iterator[bytes]:
        """Yield the log of a driver until now, as it is received. Raise LaunchError, also between blocks."""
        self._check_pause()
        with self._translated():
            url = f"{self.address}/api/jobs/{submission_id}/logs"
            with self._client.stream("GET", url, headers=self._headers(), timeout=LOG_TIMEOUT) as answer:
                self._check(answer)
                if answer.status_code != 200:
                    raise LaunchError(f"the Ray cluster at {self.address} has no log of {submission_id}")
                yield from unescaped(answer.iter_bytes())

    # --- requests

    def _ask(self, method: str, path: str) -> httpx.Response:
        """Send a request with retries. Fail immediately for PAUSE_S after they were used up."""
        self._check_pause()
        try:
            for attempt in stamina.retry_context(
                on=LauncherAwayError, attempts=ATTEMPTS, wait_initial=0.1, wait_max=1.0, wait_jitter=0.1, timeout=15
            ):
                with attempt:
                    answer = self._once(method, path)
        except LauncherAwayError as error:
            if not self._why_away:
                _log.warning("%s", error.message)
            self._away_until_s, self._why_away = time.monotonic() + PAUSE_S, error.message
            raise
        if self._why_away:
            _log.warning("the Ray cluster at %s answers again", self.address)
            self._why_away = ""
        return answer

    def _check_pause(self) -> None:
        if self._why_away and time.monotonic() < self._away_until_s:
            raise LauncherAwayError(self._why_away, self._away_hint())

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        with self._translated():
            answer = self._client.request(method, f"{self.address}{path}", json=body, headers=self._headers())
            self._check(answer)
        return answer

    def _headers(self) -> dict[str, str]:
        try:
            token = self._token()
        except QTuneError as error:
            raise LaunchError(error.message, error.hint) from error
        if token is None:
            return {}
        if not re.fullmatch(r"[!-~]+", token):  # the error of httpx would show the token
            raise LaunchError(
                "the cluster's token must be printable ASCII without spaces", "Its file must contain the token alone."
            )
        return {"Authorization": f"Bearer {token}"}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.RequestError as error:
            message = f"no Ray cluster answers at {self.address}: {error or type(error).__name__}"
            raise LauncherAwayError(message, self._away_hint()) from error

    def _check(self, answer: httpx.Response) -> None:
        """Raise LaunchError for a refused token, or LauncherAwayError for a failure of the server."""
        if answer.status_code in (401, 403):
            problem = "refuses the token" if answer.status_code == 403 else "requires a token"
            hint = "Set QTUNE_RAY_TOKEN_PATH to the file with the cluster's token (or RAY_AUTH_TOKEN_PATH)."
            raise LaunchError(f"the Ray cluster at {self.address} {problem}", hint)
        if answer.is_server_error:
            answer.read()
            message = f"the Ray cluster at {self.address} answered {answer.status_code}: {_last_line(answer)}"
            raise LauncherAwayError(message, self._away_hint())

    def _away_hint(self) -> str:
        return "Check that the cluster runs and that QTUNE_RAY_ADDRESS is its dashboard (http://HEAD:8265)."

    def _foreign(self) -> LaunchError:
        return LaunchError(
            f"the service at {self.address} is not Ray's Jobs API",
            "Set QTUNE_RAY_ADDRESS to the cluster's dashboard (http://HEAD:8265), which requires ray[default].",
        )


def _json(answer: httpx.Response, otherwise: LaunchError) -> Mapping[str, Any]:
    try:
        body = answer.json() if answer.is_success else None
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    if not isinstance(body, Mapping):
        raise otherwise
    return body


def _last_line(answer: httpx.Response) -> str:
    """Return the last line of a response: of a traceback, the error. At most 500 characters."""
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else answer.reason_phrase
