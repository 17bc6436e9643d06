"""A job of the service, its states and the moves between them.

    queued -> running -> succeeded
      |          |-----> failed ----> queued      (resume)
      |          '-----> cancelled -> queued      (resume)
      '---------------> cancelled

A job's row is the server's knowledge; the driver's own word is beside its output. Whatever the server missed while it
was away is read from there (service.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from qtune_service.errors import IllegalMoveError


class JobStatus(StrEnum):
    """Where a job stands."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens to it by itself any more."""
        return self not in (JobStatus.queued, JobStatus.running)


MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: frozenset({JobStatus.running, JobStatus.cancelled}),
    JobStatus.running: frozenset({JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled}),
    JobStatus.succeeded: frozenset(),
    JobStatus.failed: frozenset({JobStatus.queued}),
    JobStatus.cancelled: frozenset({JobStatus.queued}),
}


def check_move(job_id: str, old: JobStatus, new: JobStatus) -> None:
    """Raise IllegalMoveError where a job in `old` cannot become `new`."""
    if new not in MOVES[old]:
        allowed = ", ".join(sorted(MOVES[old])) or "nothing: it is done"
        raise IllegalMoveError(f"job {job_id} is {old} and cannot become {new}", f"From {old} it can become {allowed}.")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is, as its driver last told."""

    samples_done: int = 0
    samples_total: int | None = None
    tokens_done: int = 0
    tokens_per_s: float = 0.0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class JobItem:
    """A job in a list: all but its spec, which may be large. Times are UTC."""

    id: str
    name: str
    status: JobStatus
    output: str
    """Folder or URI of its result."""
    owner: str
    created_at: datetime
    updated_at: datetime
    version: int
    """Grows with every change; the id of its event."""
    stage: str = ""
    progress: Progress = field(default_factory=Progress)
    counts: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    error: JobError | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    launcher: str = ""
    attempts: int = 0
    """How often it was started."""
    cancel_requested: bool = False
    model: str = ""
    """Name of the model, as in the spec."""


@dataclass(frozen=True, slots=True)
class Job(JobItem):
    """A job with what it needs to run."""

    spec: Mapping[str, Any] = field(kw_only=True)
    reference: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """What the launcher knows it by: a process, or a submission."""
    variables: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Environment variables that its driver gets; not stored."""
