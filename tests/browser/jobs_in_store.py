"""Jobs that are in a database before its server starts: finished ones with real outputs."""

from __future__ import annotations

from pathlib import Path

from qtune_service.job_states import Job, JobStatus
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.jobs.store import JobStore, NewJob
from tests.api.stored import NOWHERE, insert_job


def open_store(data_root: Path) -> JobStore:
    """Open the store of a server that starts later."""
    data_root.mkdir(parents=True, exist_ok=True)
    engine = open_database(f"sqlite:///{data_root}/qtune.db")
    upgrade(engine)
    return JobStore(engine)


def add_finished(store: JobStore, name: str, finished: FinishedOutput) -> Job:
    """Add a job that succeeded with this output. Several jobs may have it, which no server would allow."""
    new = NewJob(name, finished.spec.model_dump(mode="json"), finished.root, "ann", "local")
    job = store.get(insert_job(store.engine, new))
    store.move(job.id, JobStatus.running, reference=NOWHERE)
    manifest = finished.manifest
    seen = {"counts": manifest["counts"], "thresholds": manifest.get("thresholds") or {}}
    return store.move(job.id, JobStatus.succeeded, stage="done", **seen)
