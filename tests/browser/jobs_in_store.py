"""Jobs that are in a database before its server starts: finished ones with real outputs."""

from __future__ import annotations

from pathlib import Path

from qtune_service.job_states import Job, JobStatus
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.jobs.database import jobs, open_database, upgrade, writing
from qtune_service.server.jobs.store import JobStore, NewJob, _new_row


def open_store(data_root: Path) -> JobStore:
    """The store of a server that is to come."""
    data_root.mkdir(parents=True, exist_ok=True)
    engine = open_database(f"sqlite:///{data_root}/qtune.db")
    upgrade(engine)
    return JobStore(engine)


def add_finished(store: JobStore, name: str, finished: FinishedOutput) -> Job:
    """A job that succeeded with this output; several may have it, which no server would let in."""
    row = _new_row(NewJob(name, finished.spec.model_dump(mode="json"), finished.root, "ann", "local"))
    with writing(store.engine) as connection:
        connection.execute(jobs.insert().values(row))
    job = store.get(row["id"])
    store.move(job.id, JobStatus.running, reference={"host": "none"})
    manifest = finished.manifest
    seen = {"counts": manifest["counts"], "thresholds": manifest.get("thresholds") or {}}
    return store.move(job.id, JobStatus.succeeded, stage="done", **seen)
