"""`dataset://ID` in a job's spec: what it stands for, and that it is there while the job needs it.

The stored spec keeps the short form; the driver is given the folder, which the id alone tells. So a job that takes its
scores from an earlier output still names its input as that one did when the dataset is gone.
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
    """The id that a path names; None for paths of another kind, and for what has not the form of an id."""
    named = path.removeprefix(SCHEME)
    return named if path.startswith(SCHEME) and is_id(named) else None


def folder_of(root: str, dataset_id: str) -> str:
    """Where a dataset's file lies."""
    return file_io.join(root, dataset_id)


def resolved(spec: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A spec for a driver: folders in place of `dataset://ID`."""
    if not read_by({**spec, "from_scores": None}):
        return dict(spec)
    paths = [path if (one := id_of_uri(path)) is None else folder_of(root, one) for path in spec["input"]["paths"]]
    return {**spec, "input": {**spec["input"], "paths": paths}}


def read_by(spec: Mapping[str, Any]) -> list[str]:
    """Ids of the datasets that a job of this spec reads; one that has its scores already reads none."""
    if spec.get("from_scores") is not None:
        return []
    paths = spec.get("input", {}).get("paths", ())
    return [one for path in paths if (one := id_of_uri(path)) is not None]


def require_datasets(connection: Connection, spec: Mapping[str, Any]) -> None:
    """Hold the datasets that a job is going to read until the transaction ends. Raises UnknownDatasetError.

    One query, however many there are. Rows are locked in the order of their ids, so that two jobs cannot block each
    other.
    """
    if not (named := sorted(set(read_by(spec)))):
        return
    wanted = select(datasets.c.id).where(datasets.c.id.in_(named)).order_by(datasets.c.id)
    found = set(connection.execute(wanted.with_for_update(read=True)).scalars())
    if (missing := next((one for one in named if one not in found), None)) is not None:
        raise UnknownDatasetError(
            f"input.paths: there is no dataset {missing}", "GET /api/v1/datasets lists those that there are."
        )
