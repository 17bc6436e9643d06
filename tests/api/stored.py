"""Jobs put into a server's store as they are wanted, without running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.database import jobs, open_database, writing
from qtune_service.server.jobs.store import NewJob, _new_row


def _allowed(engine: Engine) -> dict[str, Any]:
    """A spec that a server of `servers.settings` allows."""
    inputs = Path(str(engine.url.database)).parent / "inputs"
    return {"input": {"paths": [f"{inputs}/a.jsonl"]}, "model": {"name": "succeed"}, "output": {"path": ""}}


def database_of(folder: Path) -> Engine:
    """Of the server with this data root."""
    return open_database(f"sqlite:///{folder}/qtune.db")


def store_job(engine: Engine, output: str, status: JobStatus, spec: Mapping[str, Any] | None = None) -> str:
    """A job in some status, at once, so that no server takes it before; its id."""
    whole = {**(spec or _allowed(engine)), "output": {"path": output}}
    row = _new_row(NewJob("done", whole, output, "ann", "local"))
    with writing(engine) as connection:
        connection.execute(jobs.insert().values({**row, "status": str(status), "reference": {"host": "none"}}))
    return str(row["id"])
