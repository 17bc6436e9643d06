"""Define a job of the service, its states and the transitions between them.

    queued -> running -> succeeded
      |          |-----> failed ----> queued      (resume)
      |          '-----> cancelled -> queued      (resume)
      '---------------> cancelled

A job's row is the server's record. The driver writes its status into the output, from which the server reads changes
that it missed while it was down (server/jobs/service.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from qtune_service.errors import IllegalMoveError


class JobStatus(StrEnum):
    """Status of a job."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """Return whether the job has ended."""
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
    """Progress of a running job, as its driver last reported it."""

    samples_done: int = 0
    samples_total: int | None = None
    tokens_done: int = 0
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    waiting: str = ""
    """What it waits for, with the duration, such as `waiting for 8 GPUs (0 of 8), 41 min`. Empty: it makes progress."""
    waiting_for: str = ""
    """The kind of waiting: resources, loading, shards, scoring, hanging, reading or steps."""
    waiting_s: float = 0.0
    actors: int = 0
    """Scoring actors that there are."""
    actors_wanted: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    """Phase -> scoring actors in it."""
    problems: list[str] = field(default_factory=list)
    """Actors that failed, were retired or hang, a sentence each."""


@dataclass(frozen=True, slots=True)
class JobError:
    """The error that ended a job."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class JobItem:
    """A job in a list, without its spec, which may be large. Times are UTC."""

    id: str
    name: str
    status: JobStatus
    output: str
    """Folder or URI of its result."""
    owner: str
    created_at: datetime
    updated_at: datetime
    version: int
    """Number that grows with every change, used as the id of the change's event."""
    stage: str = ""
    progress: Progress = field(default_factory=Progress)
    counts: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    error: JobError | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    launcher: str = ""
    attempts: int = 0
    """Number of times that it was started."""
    cancel_requested: bool = False
    model: str = ""
    """Name of the model, as in the spec."""


@dataclass(frozen=True, slots=True)
class Job(JobItem):
    """A job with the data to run it."""

    spec: Mapping[str, Any] = field(kw_only=True)
    reference: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """The launcher's reference of it: a process, or a submission."""
    variables: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Environment variables of its driver. They are not stored."""
