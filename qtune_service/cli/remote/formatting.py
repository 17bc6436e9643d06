"""Format jobs for people: tables, one line of progress, and the commands to use next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from qtune_service.jobs.models import JobStatus
from qtune_service.report.tokens import visible_text

if TYPE_CHECKING:
    from qtune_service.wire import JobListItem, JobView

STYLES = {
    JobStatus.queued: "default",
    JobStatus.running: "cyan",
    JobStatus.succeeded: "green",
    JobStatus.failed: "red",
    JobStatus.cancelled: "yellow",
}


def table_of(jobs: Iterable[JobListItem]) -> Table:
    """Return a table with a line per job. In a narrow terminal names are cut, and ids are not."""
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "status", "kept", "owner", "created"):
        table.add_column(column, no_wrap=True, min_width=26 if column == "id" else None)
    for job in jobs:
        status = plain(progress_of(job) if job.status is JobStatus.running else job.status)
        status.stylize(STYLES[job.status])
        share = kept_of(job).partition(" ")[0]
        table.add_row(job.id, plain(job.name), status, share, plain(job.owner), time_of(job.created_at))
    return table


def facts_of(job: JobView) -> Table:
    """Return all facts of a job."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(job):
        table.add_row(name, value)
    return table


def _facts(job: JobView) -> Iterator[tuple[str, Text]]:
    yield "id", Text(job.id)
    yield "name", plain(job.name)
    yield "status", Text(job.status, style=STYLES[job.status])
    if job.status is JobStatus.running:
        yield "progress", plain(progress_of(job))
    if job.error is not None:
        yield "error", plain("\n".join(filter(None, (f"{job.error.code}: {job.error.message}", job.error.hint))))
    for name in ("input", "model", "prune"):
        yield name, plain(_settings(job.spec.get(name)))
    if job.counts:
        yield "counts", plain(", ".join(f"{count:,} {name}" for name, count in job.counts.items()))
    yield "output", plain(job.output)
    yield "owner", plain(job.owner)
    for name, time in (("created", job.created_at), ("started", job.started_at), ("ended", job.finished_at)):
        if time is not None:
            yield name, Text(time_of(time))
    if job.attempts > 1:
        yield "attempts", Text(str(job.attempts))


def _settings(part: object) -> str:
    """Return the fields of a part of the spec that are set."""
    if not isinstance(part, dict):
        return "-"
    return ", ".join(f"{name} {value}" for name, value in part.items() if value not in (None, {}, False, "auto"))


def progress_of(job: JobListItem) -> str:
    """Return `score 300/1,200 · 1,234 tok/s · ETA 0:01:23`, or the status of a job that is not running."""
    if job.status is not JobStatus.running:
        return job.status
    done = job.progress
    total = "" if done.samples_total is None else f"/{done.samples_total:,}"
    parts = [(job.stage or "starting") + (f" {done.samples_done:,}{total}" if done.samples_done else "")]
    if done.tokens_per_s:
        parts.append(f"{done.tokens_per_s:,.0f} tok/s")
    if done.eta_s is not None:
        whole = math.ceil(done.eta_s)
        parts.append(f"ETA {whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}")
    return " · ".join(parts)


def kept_of(job: JobListItem) -> str:
    """Return `50% of 1,200`, or nothing while it is unknown."""
    kept, of = job.counts.get("kept"), job.counts.get("scored") or job.counts.get("read")
    return f"{kept / of:.0%} of {of:,}" if kept is not None and of else ""


def next_steps(job: JobView) -> list[str]:
    """Return commands that make sense in the job's status."""
    match job.status:
        case JobStatus.queued | JobStatus.running:
            return [f"qtune jobs watch {job.id}", f"qtune jobs logs {job.id} --follow", f"qtune jobs cancel {job.id}"]
        case JobStatus.succeeded:
            return [f"qtune jobs download {job.id} DIR", f"qtune jobs reprune {job.id} --sample-keep-ratio 0.25"]
        case _:
            return [
                f"qtune jobs logs {job.id} --tail 50",
                f"qtune jobs resume {job.id}",
                f"qtune jobs delete {job.id}",
            ]


def time_of(time: datetime) -> str:
    """Return a time in this machine's zone."""
    return f"{time.replace(tzinfo=time.tzinfo or UTC).astimezone():%Y-%m-%d %H:%M}"


def plain(text: str) -> Text:
    """Return other people's names and messages without markup and control codes."""
    return Text(visible_text(text))
