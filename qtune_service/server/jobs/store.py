"""The store of jobs: every change is one short transaction, so servers may share a database.

A change of status is checked against the legal moves in the transaction that makes it. Claiming the next queued job
holds the queue's one row, so that two servers neither take the same job nor start more than the limit together.
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
"""All that a list shows. Reading a spec for it would cost up to a MiB a job."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a submission says."""

    name: str
    spec: Mapping[str, Any]
    output: str
    owner: str
    launcher: str
    idempotency_key: str | None = None
    asked: Mapping[str, Any] | None = None
    """The spec as it was asked for, without what the server chose; by default all of it."""
    id: str = field(default_factory=new_id)

    @property
    def digest(self) -> str:
        """SHA-256 of what a repeated submission must repeat."""
        asked = self.spec if self.asked is None else self.asked
        return hashlib.sha256(json.dumps([self.name, asked], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, the newest first, and where the next ones begin."""

    jobs: tuple[JobItem, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers of all jobs."""

    jobs: Mapping[str, int]
    """By status."""
    oldest_queued_us: int | None
    """Since when the first job in the queue waits."""
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class JobStore:
    """Jobs in a database."""

    engine: Engine

    def create(self, new: NewJob) -> tuple[Job, bool]:
        """Queue a job; or find the one that the same key and request made: (job, whether it is new).

        Raises IdempotencyConflictError where the key was used for another request, and UnknownDatasetError.
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
        except IntegrityError:  # another server was faster with the same key
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
        """Raises NotFoundError."""
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
        """Return jobs by status, by a part of their name or id, by owner; the newest first."""
        wanted = select(*ITEM_COLUMNS).order_by(jobs.c.id.desc()).limit(limit + 1)
        if statuses:
            wanted = wanted.where(jobs.c.status.in_([str(s) for s in statuses]))
        if query:
            wanted = wanted.where(
                or_(jobs.c.name.icontains(query, autoescape=True), jobs.c.id.startswith(query, autoescape=True))
            )
        if owner is not None:
            wanted = wanted.where(jobs.c.owner == owner)
        if cursor is not None:
            wanted = wanted.where(jobs.c.id < id_of_cursor(cursor))
        with reading(self.engine) as connection:
            found = [JobItem(**_item_fields(row)) for row in connection.execute(wanted)]
        more = len(found) > limit
        return Page(tuple(found[:limit]), cursor_after(found[limit - 1].id) if more else None)

    def item(self, job_id: str) -> JobItem:
        """Return a job without its spec. Raises NotFoundError."""
        found = self.items([job_id])
        if not found:
            raise _unknown(job_id)
        return found[job_id]

    def items(self, job_ids: Sequence[str]) -> dict[str, JobItem]:
        """Return those of some jobs that exist, by id, without their specs."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(*ITEM_COLUMNS).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: JobItem(**_item_fields(row)) for row in rows}

    def running(self) -> list[Job]:
        """All running jobs, the oldest first."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status == "running").order_by(jobs.c.id))
            return [_job(row) for row in rows]

    def naming(self, output: str, *, other_than: str) -> list[str]:
        """Ids of other jobs whose output is this one, around it or inside it."""
        with reading(self.engine) as connection:
            return [row.id for row in _naming(connection, output) if row.id != other_than]

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Versions of those of some jobs that there are."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: row.version for row in rows}

    def count(self) -> dict[str, int]:
        """Jobs by status."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)).all()
        return {str(status): 0 for status in JobStatus} | {row.status: row.number for row in rows}

    def figures(self) -> Figures:
        """Numbers of all jobs; cheap, however many there are."""
        counts = self.count()
        with reading(self.engine) as connection:
            oldest = connection.execute(select(func.min(jobs.c.updated_at)).where(jobs.c.status == "queued"))
            running = connection.execute(select(jobs.c.progress).where(jobs.c.status == "running"))
            tokens_per_s = sum(row.progress["tokens_per_s"] for row in running)
            return Figures(counts, oldest.scalar_one(), tokens_per_s)

    # --- changes

    def claim(self, max_running: int) -> Job | None:
        """Take the next job to start, if there is one and room for it: it is running from here on.

        Owners take turns: first the one with the fewest running jobs, then the one whose last start is the longest
        ago. Of an owner's jobs the oldest comes first.
        """
        with writing(self.engine) as connection:
            connection.execute(queue_lock.update().values(holder=new_id()))
            if _count_running(connection) >= max_running:
                return None
            row = connection.execute(_next_in_line()).one_or_none()
            return None if row is None else _move(connection, row, JobStatus.running)

    def move(self, job_id: str, status: JobStatus, *, error: JobError | None = None, **seen: Any) -> Job:
        """Change a job's status. Raises IllegalMoveError and NotFoundError, and UnknownDatasetError on the way back."""
        with writing(self.engine) as connection:
            return _move(connection, _row(connection, job_id, lock=True), status, error=error, **seen)

    def note(self, job_id: str, **seen: Any) -> Job:
        """Write down what is seen of a job, such as its stage and progress; where nothing is new there is no event."""
        with writing(self.engine) as connection:
            return _note(connection, _row(connection, job_id, lock=True), seen)

    def note_progress(self, job_id: str, progress: Progress, **seen: Any) -> Progress:
        """The same for progress; what it was before. Of several servers one alone is told of each step."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            _note(connection, row, {**seen, "progress": progress})
            return Progress(**row.progress)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, and ask for the end of a running one. Raises IllegalMoveError for others."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            status = JobStatus(row.status)
            check_move(job_id, status, JobStatus.cancelled)
            if status is JobStatus.queued:
                return _move(connection, row, JobStatus.cancelled)
            return _changed(connection, row, {"cancel_requested": True})

    def delete(self, job_id: str) -> Job:
        """Forget a job that is neither queued nor running. Raises IllegalMoveError."""
        with writing(self.engine) as connection:
            row = _row(connection, job_id, lock=True)
            if not JobStatus(row.status).is_final:
                raise IllegalMoveError(f"job {job_id} is {row.status}", "Cancel it before it is deleted.")
            connection.execute(jobs.delete().where(jobs.c.id == job_id))
            return _job(row)


def _require_free_output(connection: Connection, new: NewJob) -> None:
    """Raise OutputConflictError where another job has this output, one around it or one inside it."""
    connection.execute(queue_lock.update().values(holder=new_id()))  # of two submissions one comes first
    output, has_own_name = new.output, new.output.rpartition("/")[2] == new.id
    if known := next(iter(_naming(connection, output, may_have_inner=not has_own_name)), None):
        same = known.output.rstrip("/") == output.rstrip("/")
        raise OutputConflictError(
            f"job {known.id} has {'this output' if same else f'the output {known.output}'}, which {output} "
            f"{'is' if same else 'would share folders with'}",
            "Choose another output, resume that job, or delete it (with its output, or keeping that).",
        )


def _naming(connection: Connection, output: str, *, may_have_inner: bool = True) -> list[Row[Any]]:
    """Return jobs whose output is this one, around it or inside it.

    may_have_inner: False where no job can be inside, as in a new job's own folder: inner ones are found by a scan of
    all jobs, the others by an index.
    """
    place = output.rstrip("/")
    around = [place[:at] for at, sign in enumerate(place) if sign == "/" and not place[:at].endswith((":", ":/"))]
    same = [form for one in (place, *around) if one for form in (one, f"{one}/")]
    inner = [jobs.c.output.startswith(f"{place}/", autoescape=True)] if may_have_inner else []
    wanted = or_(jobs.c.output.in_(same), *inner)
    return list(connection.execute(select(jobs.c.id, jobs.c.output).where(wanted).order_by(jobs.c.id)))


def _next_in_line() -> Select[Any]:
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


def _count_running(connection: Connection) -> int:
    return connection.execute(select(func.count()).where(jobs.c.status == "running")).scalar_one()


def _move(
    connection: Connection, row: Row[Any], status: JobStatus, *, error: JobError | None = None, **seen: Any
) -> Job:
    check_move(row.id, JobStatus(row.status), status)
    now = now_us()
    values = {**_values(seen), "status": str(status), "error": None if error is None else asdict(error)}
    if status is JobStatus.running:
        values |= {"started_at": now, "finished_at": None, "attempts": row.attempts + 1}
    elif status is JobStatus.queued:
        require_datasets(connection, row.spec)
        values |= {"started_at": None, "finished_at": None, "stage": "", "reference": {}, "cancel_requested": False}
    else:
        values |= {"finished_at": now}
    return _changed(connection, row, values)


def _note(connection: Connection, row: Row[Any], seen: Mapping[str, Any]) -> Job:
    values = _values(seen)
    is_news = any(getattr(row, name) != value for name, value in values.items())
    return _changed(connection, row, values) if is_news else _job(row)


def _changed(connection: Connection, row: Row[Any], values: Mapping[str, Any]) -> Job:
    stamp = {"version": row.version + 1, "updated_at": now_us()}
    connection.execute(jobs.update().where(jobs.c.id == row.id).values({**values, **stamp}))
    return _job(_row(connection, row.id))


def _row(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
    wanted = select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    if row is None:
        raise _unknown(job_id)
    return row


def _unknown(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}", "`qtune jobs list` shows those that there are.")


def _values(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, Progress) else value for name, value in seen.items()}


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
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def time_of(value: int | None) -> datetime | None:
    """The time that so many microseconds stand for, in UTC."""
    return None if value is None else datetime.fromtimestamp(value / 1e6, UTC)
