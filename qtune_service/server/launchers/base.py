"""How a job's driver is started, watched and stopped: one protocol, a launcher for each kind of place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Protocol

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
