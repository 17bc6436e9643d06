"""Read the status that a driver writes in its output, and measure how long a driver has been silent.

A finished output has a manifest. A running driver rewrites progress.json every few seconds, and a driver that fails
leaves its error there. So server and driver need no connection and need not run at the same time.

Silence is measured by the server's own clock, because clocks of other machines may be wrong. The time in a heartbeat
serves only to see that it differs from the one before. The measurement is kept in memory, so a new server starts it
from zero.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtune_service.errors import DamagedFileError, OutputConflictError
from qtune_service.job_states import JobError, Progress
from qtune_service.output.layout import Output


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """The last heartbeat of each driver, and the time at which this server first saw it."""

    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def silence_s(self, driver: str, heartbeat_s: float) -> float:
        """Store a driver's last heartbeat and return the seconds since this server first saw it."""
        now = time.monotonic()
        last_s, seen_s = self._seen.get(driver, (None, now))
        if last_s != heartbeat_s:
            seen_s = now
        self._seen[driver] = heartbeat_s, seen_s
        return now - seen_s

    def keep_only(self, drivers: Collection[str]) -> None:
        """Forget all other drivers."""
        for gone in self._seen.keys() - drivers:
            del self._seen[gone]


MAX_STATUS_BYTES = 16 << 20
"""Largest accepted size of progress.json. Its history is bounded to far less."""
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Number = Annotated[float, Field(ge=0)]


class _Checked(BaseModel):
    """Base of the untrusted content of an output's status files. See `read_driver_status`."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Error(_Checked):
    code: Annotated[str, Field(max_length=100)]
    message: Annotated[str, Field(max_length=1 << 20)]
    hint: Annotated[str, Field(max_length=1 << 20)] = ""


class _Status(_Checked):
    """The fields of progress.json that the server uses."""

    stage: Annotated[str, Field(max_length=32)] = ""
    done: Count = 0
    total: Count | None = None
    tokens_done: Count = 0
    tokens_per_s: Number = 0.0
    eta_s: Number | None = None
    waiting: Annotated[str, Field(max_length=2000)] = ""
    waiting_for: Annotated[str, Field(max_length=32)] = ""
    waiting_s: Number = 0.0
    actors: Count = 0
    actors_wanted: Count = 0
    phases: Annotated[dict[Annotated[str, Field(max_length=32)], Count], Field(max_length=32)] = {}
    problems: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=100)] = []
    attempt: Annotated[str, Field(max_length=200)] = ""
    updated_at_s: Number = 0.0
    error: _Error | None = None


class _Scoring(_Checked):
    tokens: Count = 0


class _Manifest(_Checked):
    """The fields of manifest.json that every page shows."""

    counts: Annotated[dict[str, Count], Field(max_length=100)] = {}
    thresholds: Annotated[dict[str, float | Annotated[str, Field(max_length=100)] | None], Field(max_length=100)] = {}
    scoring: _Scoring = _Scoring()


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The last status that a driver wrote."""

    stage: str = ""
    progress: Progress = field(default_factory=Progress)
    updated_at_s: float = 0.0
    attempt: str = ""
    """The job and attempt that wrote it, as JOB:ATTEMPT. Empty for earlier versions, and for drivers of commands."""
    error: JobError | None = None
    manifest: Mapping[str, Any] | None = None
    """Manifest of a finished output. Only `counts`, `thresholds` and `scoring` are checked."""
    damage: JobError | None = None
    """Reason why the status files cannot be used, or None."""

    def is_by(self, attempt: str, started_s: float) -> bool:
        """Return whether the driver of an attempt wrote it, which started at `started_s`.

        Clocks are compared only for drivers of earlier versions, which wrote no name: a node's clock may be wrong.
        """
        return self.attempt == attempt if self.attempt else self.updated_at_s >= started_s

    @property
    def counts(self) -> dict[str, int]:
        """Return the counts of a finished output, or an empty dictionary."""
        return dict((self.manifest or {}).get("counts") or {})

    @property
    def thresholds(self) -> dict[str, Any]:
        """Return the thresholds of a finished output, or an empty dictionary."""
        return dict((self.manifest or {}).get("thresholds") or {})

    @property
    def complete(self) -> Progress:
        """Return the progress of a finished job by its manifest: the last progress.json may have been missed."""
        read = self.counts.get("read", self.progress.samples_done)
        tokens = ((self.manifest or {}).get("scoring") or {}).get("tokens", self.progress.tokens_done)
        return Progress(samples_done=read, samples_total=read, tokens_done=tokens)


def read_driver_status(output: str, *, before: Progress, attempt: str = "") -> DriverStatus:
    """Return the status in an output. before: the known progress, kept by stages that count no samples.

    attempt: the driver that runs now. What an earlier one waited for is left out.
    Anybody with write access to the output can change these files, so they are checked. A problem is returned as
    `damage`. Raise StorageError where the storage does not answer.
    """
    folder = Output(output, may_be_link=False)
    try:
        manifest = folder.manifest
        if manifest is not None:
            _Manifest.model_validate({name: manifest[name] for name in _Manifest.model_fields if manifest.get(name)})
        status = _Status.model_validate(folder.read_object("_qtune", "progress.json", max_bytes=MAX_STATUS_BYTES) or {})
    except (DamagedFileError, OutputConflictError) as error:
        return DriverStatus(progress=before, damage=JobError("damaged_output", error.message, error.hint))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        message = f"the output's own files are damaged: {problem}"
        damage = JobError("damaged_output", message, "Another program has changed them.")
        return DriverStatus(progress=before, damage=damage)
    return DriverStatus(
        stage=status.stage,
        progress=_progress(status, before, is_present=status.attempt in ("", attempt)),
        updated_at_s=status.updated_at_s,
        attempt=status.attempt,
        error=None if status.error is None else JobError(**status.error.model_dump()),
        manifest=manifest,
    )


def _progress(status: _Status, before: Progress, *, is_present: bool) -> Progress:
    names = ("waiting", "waiting_for", "actors", "actors_wanted", "phases", "problems")
    workers: dict[str, Any] = {name: getattr(status, name) for name in names} if is_present else {}
    if is_present:
        workers["waiting_s"] = round(status.waiting_s)
    if status.stage != "score":
        return Progress(before.samples_done, before.samples_total, before.tokens_done, 0.0, status.eta_s, **workers)
    return Progress(
        samples_done=status.done,
        samples_total=status.total,
        tokens_done=status.tokens_done,
        tokens_per_s=round(status.tokens_per_s, 1),
        eta_s=None if status.eta_s is None else round(status.eta_s, 1),
        **workers,
    )
