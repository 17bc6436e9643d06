"""How a job's driver is started, watched and stopped: one protocol, a launcher for each kind of place.

How long a driver that was asked to stop may take, whoever ends it: one place for Ray's limit and the server's.

A job asks for `limits.stop_grace_s` to save its work. Where drivers run on Ray, Ray kills the driver after that and
RAY_MARGIN_S. The server removes by force what is still there after SERVER_MARGIN_S: later than Ray, so that a driver
that Ray has killed is seen to have ended and its log is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Protocol

from qtune_service.config import MAX_STOP_GRACE_S, LimitsSpec
from qtune_service.job_states import Job

Reference = Mapping[str, Any]
"""What a launcher knows a driver by. JSON."""


class DriverState(StrEnum):
    """What a launcher knows of a driver."""

    alive = "alive"
    ended = "ended"
    elsewhere = "elsewhere"
    """Another server's: only what it writes beside its output can be seen."""


class Launcher(Protocol):
    """A place where drivers run."""

    name: str

    def start(self, job: Job) -> Reference:
        """Start `qtune run` for a job; or find the driver that an earlier call started for the same attempt.

        Raises LaunchError.
        """
        ...

    def state(self, reference: Reference) -> DriverState:
        """Whether a driver is there. Raises LaunchError where that cannot be known now."""
        ...

    def stop(self, reference: Reference, *, at_once: bool) -> None:
        """Ask a driver to save its work and end; or, at_once, remove it by force. Do nothing where it is gone.

        Raises LaunchError where it could not be asked; the caller tries again.
        """
        ...

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """What the driver printed, from a byte on: who follows a log asks for what came since."""
        ...

    def forget(self, job: Job) -> None:
        """Remove what is kept of a job that is deleted."""
        ...


RAY_MARGIN_S = 30
SERVER_MARGIN_S = 45


def ray_stop_wait_s(spec: Mapping[str, Any]) -> int:
    """Return the seconds between SIGTERM and SIGKILL by Ray: its RAY_JOB_STOP_WAIT_TIME_S."""
    return math.ceil(_grace_s(spec)) + RAY_MARGIN_S


def server_stop_limit_s(spec: Mapping[str, Any]) -> float:
    """Return the seconds from the first request to stop until the server removes the driver by force."""
    return _grace_s(spec) + SERVER_MARGIN_S


def _grace_s(spec: Mapping[str, Any]) -> float:
    """Return the job's own grace, within the bounds of today: specs in the database may be older than these."""
    given = (spec.get("limits") or {}).get("stop_grace_s", LimitsSpec().stop_grace_s)
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or (isinstance(given, float) and math.isnan(given)):
        return LimitsSpec().stop_grace_s
    return float(min(max(given, 0), MAX_STOP_GRACE_S))
