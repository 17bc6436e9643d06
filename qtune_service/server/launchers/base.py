"""Define the protocol of launchers, which start, watch and stop drivers, and the time limits for stopping.

A job requests `limits.stop_grace_s` to save its work. On a Ray cluster, Ray kills the driver RAY_MARGIN_S after that
time. The server kills a remaining driver SERVER_MARGIN_S after that time: later than Ray, so that it sees the end of a
driver that Ray has killed and can copy the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Protocol

from qtune_service.config import MAX_STOP_GRACE_S, LimitsSpec
from qtune_service.job_states import Job

Reference = Mapping[str, Any]
"""Identity of a driver for its launcher, as JSON."""
RAY_MARGIN_S = 30
SERVER_MARGIN_S = 45


class DriverState(StrEnum):
    """State of a driver as its launcher sees it."""

    alive = "alive"
    ended = "ended"
    elsewhere = "elsewhere"
    """The launcher cannot see the driver. Only the status files in its output are visible."""


class Launcher(Protocol):
    """A way to run drivers."""

    name: str

    def start(self, job: Job) -> Reference:
        """Start `qtune run` for a job, or find the driver that an earlier call started for the same attempt.

        Raise LaunchError, or LauncherAwayError where another try may help.
        """
        ...

    def state(self, reference: Reference) -> DriverState:
        """Return the state of a driver. Raise LaunchError where it cannot be determined."""
        ...

    def stop(self, reference: Reference, *, force: bool) -> None:
        """Ask a driver to save its work and end, or kill it if `force`. Do nothing where it has ended.

        Raise LaunchError where the request failed. The caller tries again.
        """
        ...

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """Yield the log of a job from byte `start` on."""
        ...

    def forget(self, job: Job) -> None:
        """Remove the files and records of a deleted job."""
        ...


def ray_stop_wait_s(spec: Mapping[str, Any]) -> int:
    """Return the seconds between SIGTERM and SIGKILL by Ray, for RAY_JOB_STOP_WAIT_TIME_S."""
    return math.ceil(_grace_s(spec)) + RAY_MARGIN_S


def server_stop_limit_s(spec: Mapping[str, Any]) -> float:
    """Return the seconds from the first stop request until the server kills the driver."""
    return _grace_s(spec) + SERVER_MARGIN_S


def _grace_s(spec: Mapping[str, Any]) -> float:
    """Return the job's grace time in seconds, within the present limits: stored specs may be older than these."""
    given = (spec.get("limits") or {}).get("stop_grace_s", LimitsSpec().stop_grace_s)
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or (isinstance(given, float) and math.isnan(given)):
        return LimitsSpec().stop_grace_s
    return float(min(max(given, 0), MAX_STOP_GRACE_S))
