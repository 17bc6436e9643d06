"""Store jobs in the database, which several servers may share.

Every change is one short transaction. A change of status is checked against the legal moves in the same transaction.
The claim of the next queued job locks the row of `queue_lock`, so that two servers neither take the same job nor exceed
the limit of running jobs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, case, func, or_, select
from sqlalchemy.exc import IntegrityError

from qtune_service.errors import IdempotencyConflictError, IllegalMoveError, NotFoundError, OutputConflictError
from qtune_service.job_states import Job, JobError, JobItem, JobStatus, Progress, check_move
from qtune_service.server.jobs.database import jobs, queue_lock, reading, writing
from qtune_service.server.jobs.dataset_uris import require_datasets
from qtune_service.server.jobs.ids import cursor_after, id_of_cursor, new_id

TIMES = ("created_at", "updated_at", "started_at", "finished_at")
ITEM_COLUMNS = tuple(jobs.c[one.name] for one in fields(JobItem))
"""Columns of job lists. They leave out the spec, which may have a MiB."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A submission."""

    name: str
    spec: Mapping[str, Any]
    output: str
    owner: str
    launcher: str
    idempotency_key: str | None = None
    requested: Mapping[str, Any] | None = None
    """The spec as requested, without values that the server chose. None: equal to `spec`."""
    id: str = field(default_factory=new_id)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the name and the requested spec, which a repeated submission must have in common."""
        requested = self.spec if self.requested is None else self.requested
        return hashlib.sha256(json.dumps([self.name, requested], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs, newest first, with the cursor of the next page."""

    jobs: tuple[JobItem, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of jobs by status, and the state of the queue."""

    jobs: Mapping[str, int]
    """Number of jobs by status."""
    oldest_queued_us: int | None
    """Time since which the first queued job waits, in microseconds since 1970, or None for an empty queue."""
    running: tuple[Progress, ...]
    """Progress of the running jobs."""

    @property
    def tokens_per_s(self) -> float:
        """Return the sum over the running jobs."""
        return sum(progress.tokens_per_s for progress in self.running)


@dataclass(frozen=True, slots=True)
class JobStore:
    """Jobs in a database."""

    engine: Engine

    def create(self, new: NewJob) -> tuple[Job, bool]:
        """Queue a job and return it with True, or the earlier job of the same key and request with False.

        Raise IdempotencyConflictError where the key was used for another request, OutputConflictError where another job
        has the output, and UnknownDatasetError.
        """
        try:
            with writing(self.engine) as connection:
                if (known := self._known(connection, new)) is not None:
                    return known, False
                require_datasets(connection, new.spec)
                _require_free_output(connection, new)
                row = _new_row(new)
                connection.execute(jobs.insert().values(row))
                return _job(connection.execute(select(jobs).where(jobs.c.id == row["id"])).one()), True
        except IntegrityError:  # another server has stored the same key in between
            with reading(self.engine) as connection:
                if (known := self._known(connection, new)) is None:
                    raise
                return known, False

    def _known(self, connection: Connection, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        same = (jobs.c.owner == new.owner) & (jobs.c.idempotency_key == new.idempotency_key)
        row = connection.execute(select(jobs).where(same)).one_or_none()
        if row is not None and row.request_digest != new.digest:
            raise IdempotencyConflictError(
                f"Idempotency-Key {new.idempotency_key!r} was used for another request, job {row.id}",
                "Use a new key for a new request.",
            )
        return None if row is None else _job(row)

    def get(self, job_id: str) -> Job:
        """Return a job. Raise NotFoundError."""
        with reading(self.engine) as connection:
            return _job(_row(connection, job_id))

    def find(
        self,
        *,
        statuses: Sequence[JobStatus] = (),
        query: str = "",
        owner: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of jobs, newest first, filtered by status, by owner, and by a part of the name or id.

        Raise SpecError for a bad cursor.
        """
        statement = select(*ITEM_COLUMNS).order_by(jobs.c.id.desc()).limit(limit + 1)
        if statuses:
            statement = statement.where(jobs.c.status.in_([str(s) for s in statuses]))
        if query:
            statement = statement.where(
                or_(jobs.c.name.icontains(query, autoescape=True), jobs.c.id.startswith(query, autoescape=True))
            )
        if owner is not None:
            statement = statement.where(jobs.c.owner == owner)
        if cursor is not None:
            statement = statement.where(jobs.c.id < id_of_cursor(cursor))
        with reading(self.engine) as connection:
            found = [JobItem(**_item_fields(row)) for row in connection.execute(statement)]
        more = len(found) > limit
        return Page(tuple(found[:limit]), cursor_after(found[limit - 1].id) if more else None)

    def item(self, job_id: str) -> JobItem:
        """Return a job without its spec. Raise NotFoundError."""
        found = self.items([job_id])
        if not found:
            raise _unknown(job_id)
        return found[job_id]

    def items(self, job_ids: Sequence[str]) -> dict[str, JobItem]:
        """Return the existing jobs of a list of ids, by id, without their specs."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(*ITEM_COLUMNS).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: JobItem(**_item_fields(row)) for row in rows}

    def running(self) -> list[Job]:
        """Return all running jobs, oldest first."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status == "running").order_by(jobs.c.id))
            return [_job(row) for row in rows]

    def sharing_output(self, output: str, *, other_than: str) -> list[str]:
        """Return the ids of other jobs with the same output, an outer or an inner one."""
        with reading(self.engine) as connection:
            return [row.id for row in _sharing_output(connection, output) if row.id != other_than]

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Return the versions of the existing jobs of a list of ids, by id."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: row.version for row in rows}

    def count(self) -> dict[str, int]:
        """Return the number of jobs by status."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)).all()
        return {str(status): 0 for status in JobStatus} | {row.status: row.number for row in rows}

    def figures(self) -> Figures:
        """Return the figures of the queue. The queries are cheap for any number of jobs."""
        counts = self.count()
        with reading(self.engine) as connection:
            oldest = connection.execute(select(func.min(jobs.c.updated_at)).where(jobs.c.status == "queued"))
            running = connection.execute(select(jobs.c.progress).where(jobs.c.status == "running"))
            return Figures(counts, oldest.scalar_one(), tuple(Progress(**row.progress) for row in running))

    # --- changes

    def claim(self, max_running: int) -> Job | None:
        """Mark the next queued job as running and return it, or None where no job waits or the limit is reached.

        Owners take turns. The one with the fewest running jobs comes first, then the one with the oldest last start.
        The oldest job of that owner is taken.
        """
        with writing(self.engine) as connection:
            connection.execute(queue_lock.update().values(holder=new_id()))
            running = connection.execute(select(func.count()).where(jobs.c.status == "running")).scalar_one()
            if running >= max_running:
                return None
            row = connection.execute(_next_queued()).one_or_none()
            return None if row is None else _move(connection, row, JobStatus.running)

    def move(self, job_id: str, status: JobStatus, *, error: JobError | None = None, **columns: Any) -> Job:
        """Change a job's status and return the job. columns: further columns to update.

        Raise IllegalMoveError, NotFoundError, and UnknownDatasetError on the way back to the queue.
        """
        with writing(self.engine) as connection:
            return _move(connection, _row(connection, job_id, lock=True), status, error=error, **columns)

    def note(self, job_id: str, **columns: Any) -> Job:
        """Update columns of a job, such as its stage. Its version changes only with a value. Raise NotFoundError."""
        with writing(self.engine) as connection:
            return _note(connection, _row(connection, job_id, lock=True), columns)

    def note_progress(self, job_id: str, progress: Progress, **columns: Any) -> Progress:
        """Update a job's progress and return the progress before, so that one server alone sees each step."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            _note(connection, row, {**columns, "progress": progress})
            return Progress(**row.progress)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job, or request the end of a running one. Raise IllegalMoveError for others."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            status = JobStatus(row.status)
            check_move(job_id, status, JobStatus.cancelled)
            if status is JobStatus.queued:
                return _move(connection, row, JobStatus.cancelled)
            return _changed(connection, row, {"cancel_requested": True})

    def delete(self, job_id: str) -> Job:
        """Delete a job that is neither queued nor running, and return it. Raise IllegalMoveError, NotFoundError."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            if not JobStatus(row.status).is_final:
                raise IllegalMoveError(f"job {job_id} is {row.status}", "Cancel it before you delete it.")
            connection.execute(jobs.delete().where(jobs.c.id == job_id))
            return _job(row)


def _require_free_output(connection: Connection, new: NewJob) -> None:
    """Raise OutputConflictError where another job has the same output, an outer or an inner one."""
    connection.execute(queue_lock.update().values(holder=new_id()))  # serialises submissions
    output, has_own_name = new.output, new.output.rpartition("/")[2] == new.id
    if known := next(iter(_sharing_output(connection, output, may_have_inner=not has_own_name)), None):
        is_same = known.output.rstrip("/") == output.rstrip("/")
        raise OutputConflictError(
            f"{output} {'is' if is_same else f'would share folders with {known.output},'} the output of job {known.id}",
            "Choose another output, resume that job, or delete it (with or without its output).",
        )


def _sharing_output(connection: Connection, output: str, *, may_have_inner: bool = True) -> list[Row[Any]]:
    """Return jobs with the same output, an outer or an inner one.

    may_have_inner: False where no job can be inside, as in a new job's own folder. Inner outputs are found by a scan of
    all jobs, the others by an index.
    """
    path = output.rstrip("/")
    outer = [path[:at] for at, sign in enumerate(path) if sign == "/" and not path[:at].endswith((":", ":/"))]
    same = [form for one in (path, *outer) if one for form in (one, f"{one}/")]
    inner = [jobs.c.output.startswith(f"{path}/", autoescape=True)] if may_have_inner else []
    condition = or_(jobs.c.output.in_(same), *inner)
    return list(connection.execute(select(jobs.c.id, jobs.c.output).where(condition).order_by(jobs.c.id)))


def _next_queued() -> Select[Any]:
    """Return the query of `claim` for the next job."""
    is_running = case((jobs.c.status == "running", 1), else_=0)
    waiting = select(jobs.c.owner).where(jobs.c.status == "queued")
    owners = (
        select(
            jobs.c.owner,
            func.sum(is_running).label("running"),
            func.coalesce(func.max(jobs.c.started_at), 0).label("started_at"),
        )
        .where(jobs.c.owner.in_(waiting))
        .group_by(jobs.c.owner)
        .subquery()
    )
    return (
        select(jobs)
        .join(owners, owners.c.owner == jobs.c.owner)
        .where(jobs.c.status == "queued")
        .order_by(owners.c.running, owners.c.started_at, jobs.c.id)
        .limit(1)
    )


def _move(
    connection: Connection, row: Row[Any], status: JobStatus, *, error: JobError | None = None, **columns: Any
) -> Job:
    check_move(row.id, JobStatus(row.status), status)
    now = now_us()
    values = {**_values(columns), "status": str(status), "error": None if error is None else asdict(error)}
    if status is JobStatus.running:
        values |= {"started_at": now, "finished_at": None, "attempts": row.attempts + 1}
    elif status is JobStatus.queued:
        require_datasets(connection, row.spec)
        values |= {"started_at": None, "finished_at": None, "stage": "", "reference": {}, "cancel_requested": False}
    else:
        values |= {"finished_at": now}
    return _changed(connection, row, values)


def _note(connection: Connection, row: Row[Any], columns: Mapping[str, Any]) -> Job:
    values = _values(columns)
    is_news = any(getattr(row, name) != value for name, value in values.items())
    return _changed(connection, row, values) if is_news else _job(row)


def _changed(connection: Connection, row: Row[Any], values: Mapping[str, Any]) -> Job:
    stamp = {"version": row.version + 1, "updated_at": now_us()}
    connection.execute(jobs.update().where(jobs.c.id == row.id).values({**values, **stamp}))
    return _job(_row(connection, row.id))


def _row(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
    statement = select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise _unknown(job_id)
    return row


def _unknown(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}", "Run `qtune jobs list` to see all jobs.")


def _values(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, Progress) else value for name, value in columns.items()}


def _new_row(new: NewJob) -> dict[str, Any]:
    now = now_us()
    return {
        "id": new.id,
        "name": new.name,
        "status": "queued",
        "spec": dict(new.spec),
        "output": new.output,
        "owner": new.owner,
        "created_at": now,
        "updated_at": now,
        "version": 1,
        "stage": "",
        "progress": asdict(Progress()),
        "counts": {},
        "thresholds": {},
        "error": None,
        "launcher": new.launcher,
        "reference": {},
        "attempts": 0,
        "cancel_requested": False,
        "idempotency_key": new.idempotency_key,
        "request_digest": new.digest,
    }


def _job(row: Row[Any]) -> Job:
    return Job(**_item_fields(row), spec=row.spec, reference=row.reference)


def _item_fields(row: Row[Any]) -> dict[str, Any]:
    found = {one.name: getattr(row, one.name) for one in fields(JobItem)}
    return {
        **found,
        **{name: time_of(found[name]) for name in TIMES},
        "status": JobStatus(row.status),
        "progress": Progress(**row.progress),
        "error": None if row.error is None else JobError(**row.error),
    }


def now_us() -> int:
    """Return the time now, in microseconds since 1970."""
    return time.time_ns() // 1000


def time_of(value: int | None) -> datetime | None:
    """Return the UTC time of a value in microseconds since 1970, or None for None."""
    return None if value is None else datetime.fromtimestamp(value / 1e6, UTC)
