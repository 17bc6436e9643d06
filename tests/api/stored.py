"""Jobs put into a server's store as they are wanted, without running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.database import jobs, open_database, writing
from qtune_service.server.jobs.store import NewJob, _new_row

NOWHERE = {"host": "none"}
"""The reference of a driver that no launcher finds."""


def _allowed(engine: Engine) -> dict[str, Any]:
    """Return a spec that a server of `servers.settings` allows."""
    inputs = Path(str(engine.url.database)).parent / "inputs"
    return {"input": {"paths": [f"{inputs}/a.jsonl"]}, "model": {"name": "succeed"}, "output": {"path": ""}}


def database_of(folder: Path) -> Engine:
    """Open the database of the server with this data root."""
    return open_database(f"sqlite:///{folder}/qtune.db")


def store_job(engine: Engine, output: str, status: JobStatus, spec: Mapping[str, Any] | None = None) -> str:
    """Store a job that already has a status, so that no server takes it before, and return its id."""
    whole = {**(spec or _allowed(engine)), "output": {"path": output}}
    return insert_job(engine, NewJob("done", whole, output, "ann", "local"), status=str(status), reference=NOWHERE)


def insert_job(engine: Engine, new: NewJob, **fields: Any) -> str:
    """Insert a job without the checks of a submission and return its id."""
    row = _new_row(new)
    with writing(engine) as connection:
        connection.execute(jobs.insert().values({**row, **fields}))
    return str(row["id"])
