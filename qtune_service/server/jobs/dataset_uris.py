"""Resolve `dataset://ID` in job specs to folders, and lock the datasets that a new job reads.

The stored spec keeps the URI. The driver gets the folder, whose path follows from the id alone. So a job that takes its
scores from an earlier output can name the same input after the dataset was deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from qtune_service.errors import UnknownDatasetError
from qtune_service.server.jobs.database import datasets
from qtune_service.server.jobs.ids import is_id
from qtune_service.storage import file_io

SCHEME = "dataset://"


def id_of_uri(path: str) -> str | None:
    """Return the id in a `dataset://` path, or None for another path or a text that is not an id."""
    named = path.removeprefix(SCHEME)
    return named if path.startswith(SCHEME) and is_id(named) else None


def folder_of(root: str, dataset_id: str) -> str:
    """Return the folder or URI that holds a dataset's file."""
    return file_io.join(root, dataset_id)


def resolved(spec: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Return the spec for a driver, with folders in place of `dataset://ID`."""
    if not read_by({**spec, "from_scores": None}):
        return dict(spec)
    paths = [path if (one := id_of_uri(path)) is None else folder_of(root, one) for path in spec["input"]["paths"]]
    return {**spec, "input": {**spec["input"], "paths": paths}}


def read_by(spec: Mapping[str, Any]) -> list[str]:
    """Return the ids of the datasets that a job of this spec reads: none where it takes existing scores."""
    if spec.get("from_scores") is not None:
        return []
    paths = spec.get("input", {}).get("paths", ())
    return [one for path in paths if (one := id_of_uri(path)) is not None]


def require_datasets(connection: Connection, spec: Mapping[str, Any]) -> None:
    """Lock the datasets that a job will read until the transaction ends. Raise UnknownDatasetError.

    One query locks all rows in the order of their ids, so that two jobs cannot deadlock.
    """
    if not (named := sorted(set(read_by(spec)))):
        return
    statement = select(datasets.c.id).where(datasets.c.id.in_(named)).order_by(datasets.c.id)
    found = set(connection.execute(statement.with_for_update(read=True)).scalars())
    if (missing := next((one for one in named if one not in found), None)) is not None:
        raise UnknownDatasetError(
            f"input.paths: there is no dataset {missing}", "GET /api/v1/datasets lists all datasets."
        )
