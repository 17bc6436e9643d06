"""Store the records of uploaded datasets in the database. uploads.py stores their files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, Text, cast, select

from qtune_service.errors import DatasetInUseError, NotFoundError
from qtune_service.server.jobs.database import datasets, jobs, reading, writing
from qtune_service.server.jobs.dataset_uris import SCHEME, read_by
from qtune_service.server.jobs.ids import cursor_after, id_of_cursor
from qtune_service.server.jobs.store import now_us, time_of


@dataclass(frozen=True, slots=True)
class NewDataset:
    """An uploaded file that is not yet in the database."""

    id: str
    name: str
    owner: str
    size_bytes: int
    sha256: str
    format: str
    rows: int | None
    """Number of records, or None where counting them would take too long."""
    num_bad_rows: int | None
    """Records that are no JSON object and that a job will reject, or None where this was not checked."""
    first_problem: str
    """Position of the first bad record and the reason."""


@dataclass(frozen=True, slots=True)
class Dataset(NewDataset):
    """A dataset that jobs can reference."""

    created_at: datetime

    @property
    def uri(self) -> str:
        """Return the `dataset://` URI that jobs use as input."""
        return f"{SCHEME}{self.id}"


@dataclass(frozen=True, slots=True)
class DatasetPage:
    """A page of datasets, newest first, with the cursor of the next page."""

    datasets: tuple[Dataset, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class DatasetStore:
    """Datasets in a database."""

    engine: Engine

    def create(self, new: NewDataset) -> Dataset:
        """Store a dataset and return it. Jobs can reference it from then on."""
        with writing(self.engine) as connection:
            connection.execute(datasets.insert().values({**asdict(new), "created_at": now_us()}))
            return _dataset(_row(connection, new.id))

    def get(self, dataset_id: str) -> Dataset:
        """Return a dataset. Raise NotFoundError."""
        with reading(self.engine) as connection:
            return _dataset(_row(connection, dataset_id))

    def find(self, *, limit: int = 50, cursor: str | None = None) -> DatasetPage:
        """Return a page of datasets, newest first. Raise SpecError for a bad cursor."""
        statement = select(datasets).order_by(datasets.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            statement = statement.where(datasets.c.id < id_of_cursor(cursor))
        with reading(self.engine) as connection:
            found = [_dataset(row) for row in connection.execute(statement)]
        more = len(found) > limit
        return DatasetPage(tuple(found[:limit]), cursor_after(found[limit - 1].id) if more else None)

    def known(self, ids: Collection[str]) -> set[str]:
        """Return the ids that belong to datasets."""
        with reading(self.engine) as connection:
            return set(connection.execute(select(datasets.c.id).where(datasets.c.id.in_(ids))).scalars())

    def delete(self, dataset_id: str) -> Dataset:
        """Remove a dataset from the database and return it.

        Raise DatasetInUseError while a queued or running job reads it, and NotFoundError.
        """
        with writing(self.engine) as connection:
            row = _row(connection, dataset_id, lock=True)  # serialises with submissions of jobs that read it
            if (reader := _reader(connection, dataset_id)) is not None:
                raise DatasetInUseError(
                    f"job {reader} reads dataset {dataset_id}", "Wait until the job has ended, or cancel it."
                )
            connection.execute(datasets.delete().where(datasets.c.id == dataset_id))
            return _dataset(row)


def _reader(connection: Connection, dataset_id: str) -> str | None:
    """Return the id of a queued or running job that reads the dataset, or None."""
    names_it = cast(jobs.c.spec, Text).contains(f"{SCHEME}{dataset_id}")
    found = connection.execute(select(jobs.c.id, jobs.c.spec).where(jobs.c.status.in_(["queued", "running"]), names_it))
    return next((row.id for row in found if dataset_id in read_by(row.spec)), None)


def _row(connection: Connection, dataset_id: str, *, lock: bool = False) -> Row[Any]:
    statement = select(datasets).where(datasets.c.id == dataset_id)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", "GET /api/v1/datasets lists all datasets.")
    return row


def _dataset(row: Row[Any]) -> Dataset:
    created_at = time_of(row.created_at)
    assert created_at is not None
    return Dataset(**{field.name: getattr(row, field.name) for field in fields(NewDataset)}, created_at=created_at)
