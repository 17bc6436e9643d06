"""Jobs from their outputs: a database that was lost, made again from what drivers left beside their results.

Of a finished output the manifest says all; of an unfinished one job.json and progress.json say what was asked for and
how far it came, so its job is taken in as failed and can be resumed. What no output knows is lost: names, owners, logs.

An output is not more trusted than a request: what its spec asks for must be what this server allows. Each job is one
short transaction that holds the queue, so that neither a second run nor two at once take an output in twice.
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

from qtune_service.config import JobSpec, parse_spec
from qtune_service.errors import DataError, OutputConflictError, QTuneError, SpecError
from qtune_service.job_states import JobError, JobStatus, Progress
from qtune_service.output.layout import Output
from qtune_service.server.jobs.database import jobs, queue_lock, writing
from qtune_service.server.jobs.dataset_uris import SCHEME, folder_of
from qtune_service.server.jobs.driver_status import DriverWord, read_word
from qtune_service.server.jobs.ids import id_of_time, is_id, new_id, time_ms_of
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.store import NewJob, now_us
from qtune_service.storage import file_io

MAX_DEPTH = 4
"""How far below a place outputs are looked for."""
AT_WORK_S = 60.0
"""A driver that wrote so lately may still be at work; clocks of machines that differ by more are wrong."""
CLOCKS_US = 24 * 3600 * 1_000_000
"""By which clocks may differ; what has the form of an id and is later than its end was not made as one."""
UNFINISHED = JobError(
    "unfinished", "the job had not ended when its database was lost", "Resume it: it goes on where it was."
)


class Fate(StrEnum):
    """What became of an output."""

    imported = "imported"
    known = "known"
    refused = "refused"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An output, its job, and for one that could not be used why."""

    output: str
    fate: Fate
    job_id: str = ""
    status: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """Takes outputs in as jobs."""

    engine: Engine
    policy: Policy
    launcher: str
    """Where jobs that are resumed run."""
    owner: str
    datasets_root: str

    def run(self, place: str) -> Iterator[Rebuilt]:
        """All outputs in a folder or below a URI, in order. Raises SpecError where there is no such place."""
        root = _plain(place)
        if not file_io.is_folder(root):
            raise SpecError(
                f"there is no folder {file_io.display(place)}", "Give the folder or URI that holds outputs."
            )
        with ThreadPoolExecutor(16) as pool:
            yield from pool.map(self._take_in, list(find_outputs(root)))

    def _take_in(self, output: str) -> Rebuilt:
        try:
            row = self._row(output)
            with writing(self.engine) as connection:
                return _insert(connection, row)
        except QTuneError as error:
            return Rebuilt(output, Fate.refused, why=" ".join(str(error).split()))
        except (AttributeError, KeyError, TypeError) as error:  # JSON of another shape, which only its reader meets
            return Rebuilt(output, Fate.refused, why=f"its files are not of the form that this version writes: {error}")

    def _row(self, output: str) -> dict[str, Any]:
        """The job as the database will have it. Raises QTuneError where the output cannot be used."""
        word = read_word(output, before=Progress())
        if word.damage is not None:
            raise DataError(word.damage.message, word.damage.hint)
        spec = self._spec(output, word)
        self.policy.check(spec)
        is_done = word.manifest is not None
        _require_end(word)
        plain = spec.model_dump(mode="json")
        ended_us = _ended_us(word)
        id_, created_us = _identity(output, ended_us)
        error = None if is_done else word.error or UNFINISHED
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
            "stage": "done" if is_done else word.stage,
            "progress": asdict(word.complete if is_done else word.progress),
            "counts": word.counts,
            "thresholds": word.thresholds,
            "error": None if error is None else asdict(error),
            "launcher": self.launcher,
            "reference": {},
            "attempts": 1,
            "cancel_requested": False,
            "idempotency_key": None,
            "request_digest": NewJob(name, plain, output, self.owner, self.launcher).digest,
        }

    def _spec(self, output: str, word: DriverWord) -> JobSpec:
        """What was asked for; its output is where it lies now."""
        folder = Output(output, may_be_link=False)
        where = folder.at("manifest.json" if word.manifest is not None else "_qtune/job.json")
        body = word.manifest if word.manifest is not None else folder.read_object("_qtune", "job.json")
        if body is None:
            raise DataError(f"there is no {where}", "Its job ended before it began; nothing is lost.")
        spec = body.get("spec") if isinstance(body, Mapping) else None
        if not isinstance(spec, Mapping):
            raise DataError(f"{where} holds no job", "It is not one that this package wrote.")
        spec = {**spec, "output": {"path": output}}
        return parse_spec(self._with_datasets(spec) if word.manifest is not None else spec, where=where)

    def _with_datasets(self, spec: dict[str, Any]) -> dict[str, Any]:
        """`dataset://ID` for folders of uploaded data: a finished job reads them no more, and can be pruned again."""

        def short(path: str) -> str:
            name = _last(path)
            return f"{SCHEME}{name}" if is_id(name) and path == folder_of(self.datasets_root, name) else path

        return {**spec, "input": {**spec["input"], "paths": [short(path) for path in spec["input"]["paths"]]}}


def find_outputs(place: str, depth: int = MAX_DEPTH) -> Iterator[str]:
    """Folders that jobs wrote; not what lies inside of these."""
    if file_io.is_folder(file_io.join(place, "_qtune")):
        yield place
    elif depth:
        for folder in file_io.list_folders(place):
            yield from find_outputs(folder.rstrip("/"), depth - 1)


def _insert(connection: Connection, row: Mapping[str, Any]) -> Rebuilt:
    """Unless the output is known. A number that another job has is not taken."""
    connection.execute(queue_lock.update().values(holder=new_id()))
    same = or_(jobs.c.output == row["output"], jobs.c.id == row["id"])
    found = connection.execute(select(jobs.c.id, jobs.c.output, jobs.c.status).where(same)).all()
    for known in found:
        if known.output == row["output"]:
            return Rebuilt(known.output, Fate.known, known.id, known.status)
    fresh = {**row, "id": new_id()} if found else dict(row)
    connection.execute(jobs.insert().values(fresh))
    return Rebuilt(fresh["output"], Fate.imported, fresh["id"], fresh["status"])


def _require_end(word: DriverWord) -> None:
    silent_s = time.time() - word.updated_at_s
    if word.manifest is None and word.error is None and silent_s < AT_WORK_S:
        raise OutputConflictError(
            f"its driver wrote {max(silent_s, 0):.0f} s ago and may be at work", "Import it again when it has ended."
        )


def _ended_us(word: DriverWord) -> int:
    """When the job ended, or was last heard of."""
    try:
        return int(datetime.fromisoformat((word.manifest or {})["created_at"]).timestamp() * 1e6)
    except (KeyError, TypeError, ValueError):
        return int(word.updated_at_s * 1e6) or now_us()


def _identity(output: str, ended_us: int) -> tuple[str, int]:
    """The job's id, and when it was made: by the output's record, by its folder's name, else by time and place."""
    for name in (Output(output, may_be_link=False).owning_job() or "", _last(output)):
        if is_id(name) and (made_us := time_ms_of(name) * 1000) <= ended_us + CLOCKS_US:
            return name, made_us
    return id_of_time(ended_us // 1000, output), ended_us


def _plain(place: str) -> str:
    """A path from the root, or a URI."""
    at = file_io.resolve(place)
    return at.path.rstrip("/") or "/" if at.is_local else place.rstrip("/")


def _last(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]
