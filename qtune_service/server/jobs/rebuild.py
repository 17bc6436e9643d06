"""Import jobs from their outputs, to rebuild a database that was lost.

A finished output is imported from its manifest. An unfinished one is imported from job.json and progress.json as a
failed job that can be resumed. Names, owners and logs are not in outputs and stay lost.

An output is trusted no more than a request, so the policy must allow its spec. Each job is imported in one short
transaction that holds the queue, so that repeated and concurrent runs import an output once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, or_, select

from qtune_service.config import JobSpec
from qtune_service.errors import DataError, OutputConflictError, QTuneError, SpecError
from qtune_service.job_states import JobError, JobStatus, Progress
from qtune_service.output.layout import Output
from qtune_service.server.jobs.database import jobs, queue_lock, writing
from qtune_service.server.jobs.dataset_uris import SCHEME, folder_of
from qtune_service.server.jobs.driver_status import DriverStatus, read_driver_status
from qtune_service.server.jobs.ids import id_of_time, is_id, new_id, time_ms_of
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.store import NewJob, now_us
from qtune_service.spec_files import parse_spec
from qtune_service.storage import file_io

MAX_DEPTH = 4
"""Depth below the folder or URI at which outputs are searched."""
RECENT_S = 60.0
"""A driver that wrote within this time may still run. Clocks of machines must differ by less."""
CLOCK_SKEW_US = 24 * 3600 * 1_000_000
"""Tolerated difference of clocks. A text in the form of an id with a later time than the job's end is not an id."""
UNFINISHED = JobError(
    "unfinished", "the job had not ended when its database was lost", "Resume it to continue from the finished shards."
)


class Fate(StrEnum):
    """Result of the import of one output."""

    imported = "imported"
    known = "known"
    refused = "refused"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An output, its job, and the reason where it was refused."""

    output: str
    fate: Fate
    job_id: str = ""
    status: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """Imports outputs as jobs."""

    engine: Engine
    policy: Policy
    launcher: str
    """Name of the launcher of jobs that are resumed."""
    owner: str
    datasets_root: str

    def run(self, path: str) -> Iterator[Rebuilt]:
        """Import all outputs below a folder or URI, and yield the results in order.

        Raise SpecError where the folder does not exist.
        """
        root = _absolute(path)
        if not file_io.is_folder(root):
            raise SpecError(f"there is no folder {file_io.display(path)}", "Give the folder or URI that holds outputs.")
        with ThreadPoolExecutor(16) as pool:
            yield from pool.map(self._import, list(find_outputs(root)))

    def _import(self, output: str) -> Rebuilt:
        try:
            row = self._row(output)
            with writing(self.engine) as connection:
                return _insert(connection, row)
        except QTuneError as error:
            return Rebuilt(output, Fate.refused, why=" ".join(str(error).split()))
        except (AttributeError, KeyError, TypeError) as error:  # JSON of another shape, which only its reader detects
            return Rebuilt(output, Fate.refused, why=f"its files have an unknown format: {error}")

    def _row(self, output: str) -> dict[str, Any]:
        """Return the database row of an output's job. Raise QTuneError where the output cannot be imported."""
        status = read_driver_status(output, before=Progress())
        if status.damage is not None:
            raise DataError(status.damage.message, status.damage.hint)
        spec = self._spec(output, status)
        self.policy.check(spec)
        is_done = status.manifest is not None
        _require_stopped(status)
        plain = spec.model_dump(mode="json")
        ended_us = _ended_us(status)
        id_, created_us = _identity(output, ended_us)
        error = None if is_done else status.error or UNFINISHED
        name = Path(spec.input.paths[0]).name if is_id(_last(output)) else _last(output)
        return {
            "id": id_,
            "name": name[:200],
            "status": str(JobStatus.succeeded if is_done else JobStatus.failed),
            "spec": plain,
            "output": output,
            "owner": self.owner,
            "created_at": created_us,
            "updated_at": now_us(),
            "started_at": created_us,
            "finished_at": max(ended_us, created_us),
            "version": 1,
            "stage": "done" if is_done else status.stage,
            "progress": asdict(status.complete if is_done else status.progress),
            "counts": status.counts,
            "thresholds": status.thresholds,
            "error": None if error is None else asdict(error),
            "launcher": self.launcher,
            "reference": {},
            "attempts": 1,
            "cancel_requested": False,
            "idempotency_key": None,
            "request_digest": NewJob(name, plain, output, self.owner, self.launcher).digest,
        }

    def _spec(self, output: str, status: DriverStatus) -> JobSpec:
        """Return the job's spec with the present path of its output. Raise DataError and SpecError."""
        folder = Output(output, may_be_link=False)
        where = folder.at("manifest.json" if status.manifest is not None else "_qtune/job.json")
        body = status.manifest if status.manifest is not None else folder.read_object("_qtune", "job.json")
        if body is None:
            raise DataError(f"there is no {where}", "Its job ended before it wrote anything, so nothing is lost.")
        spec = body.get("spec") if isinstance(body, Mapping) else None
        if not isinstance(spec, Mapping):
            raise DataError(f"{where} holds no job", "This package did not write it.")
        spec = {**spec, "output": {"path": output}}
        return parse_spec(self._with_datasets(spec) if status.manifest is not None else spec, where=where)

    def _with_datasets(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the spec with `dataset://ID` for folders of uploaded data, as in the spec of the lost database."""

        def short(path: str) -> str:
            name = _last(path)
            return f"{SCHEME}{name}" if is_id(name) and path == folder_of(self.datasets_root, name) else path

        return {**spec, "input": {**spec["input"], "paths": [short(path) for path in spec["input"]["paths"]]}}


def find_outputs(path: str, depth: int = MAX_DEPTH) -> Iterator[str]:
    """Yield the folders of outputs below a path or URI, without searching inside of outputs."""
    if file_io.is_folder(file_io.join(path, "_qtune")):
        yield path
    elif depth:
        for folder in file_io.list_folders(path):
            yield from find_outputs(folder.rstrip("/"), depth - 1)


def _insert(connection: Connection, row: Mapping[str, Any]) -> Rebuilt:
    """Insert a job unless its output is known. Give it a new id where another job has its id."""
    connection.execute(queue_lock.update().values(holder=new_id()))
    same = or_(jobs.c.output == row["output"], jobs.c.id == row["id"])
    found = connection.execute(select(jobs.c.id, jobs.c.output, jobs.c.status).where(same)).all()
    for known in found:
        if known.output == row["output"]:
            return Rebuilt(known.output, Fate.known, known.id, known.status)
    fresh = {**row, "id": new_id()} if found else dict(row)
    connection.execute(jobs.insert().values(fresh))
    return Rebuilt(fresh["output"], Fate.imported, fresh["id"], fresh["status"])


def _require_stopped(status: DriverStatus) -> None:
    """Raise OutputConflictError where an unfinished output was written to recently."""
    silent_s = time.time() - status.updated_at_s
    if status.manifest is None and status.error is None and silent_s < RECENT_S:
        raise OutputConflictError(
            f"its driver wrote {max(silent_s, 0):.0f} s ago and may still run",
            "Import it again when the driver has ended.",
        )


def _ended_us(status: DriverStatus) -> int:
    """Return the end of the job, or else its last sign of life, in microseconds since 1970."""
    try:
        return int(datetime.fromisoformat((status.manifest or {})["created_at"]).timestamp() * 1e6)
    except (KeyError, TypeError, ValueError):
        return int(status.updated_at_s * 1e6) or now_us()


def _identity(output: str, ended_us: int) -> tuple[str, int]:
    """Return the job's id and its creation time in microseconds since 1970.

    The id is the one in the output's record, or the name of its folder, or one derived from the job's end and output.
    """
    for name in (Output(output, may_be_link=False).owning_job() or "", _last(output)):
        if is_id(name) and (created_us := time_ms_of(name) * 1000) <= ended_us + CLOCK_SKEW_US:
            return name, created_us
    return id_of_time(ended_us // 1000, output), ended_us


def _absolute(path: str) -> str:
    """Return an absolute path or a URI, without slashes at its end."""
    at = file_io.resolve(path)
    return at.path.rstrip("/") or "/" if at.is_local else path.rstrip("/")


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
