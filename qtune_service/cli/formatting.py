"""Format jobs for people: tables, a line of progress, the commands to use next, and `qtune jobs watch`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from qtune_service.cli.console import INTERRUPTED
from qtune_service.cli.server_connection import JobArg, JsonOpt, Server, asks_server, remote, say
from qtune_service.job_states import JobStatus

if TYPE_CHECKING:
    from qtune_service.client import Client
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
        if job.progress.problems:
            yield "problems", plain("\n".join(job.progress.problems))
    if job.error is not None:
        yield "error", plain("\n".join(filter(None, (f"{job.error.code}: {job.error.message}", job.error.hint))))
    for name in ("input", "model", "prune"):
        yield name, plain(_settings(job.spec.get(name)))
    if job.counts:
        yield "counts", plain(", ".join(f"{count:,} {name}" for name, count in job.counts.items()))
    yield "output", plain(job.output)
    yield "owner", plain(job.owner)
    for name, at in (("created", job.created_at), ("started", job.started_at), ("ended", job.finished_at)):
        if at is not None:
            yield name, Text(time_of(at))
    if job.attempts > 1:
        yield "attempts", Text(str(job.attempts))


def _settings(part: object) -> str:
    """Return the fields of a part of the spec that are set."""
    if not isinstance(part, dict):
        return "-"
    return ", ".join(f"{name} {value}" for name, value in part.items() if value not in (None, {}, False, "auto"))


def progress_of(job: JobListItem) -> str:
    """Return `score 300/1,200 · 1,234 tok/s · ETA 0:01:23 · 2 of 8 actors`. Return the status of other jobs."""
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
    if job.stage == "score" and done.actors < done.actors_wanted:
        parts.append(f"{done.actors:,} of {done.actors_wanted:,} actor{'s' if done.actors_wanted > 1 else ''}")
    if done.waiting:
        parts.append(done.waiting)
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
    from qtune_service.report.token_view import visible_text

    return Text(visible_text(text))


ENDS = {JobStatus.succeeded: 0, JobStatus.failed: 1, JobStatus.cancelled: 5}
LINE_EVERY_S = 5.0


@asks_server
def watch(
    *,
    job: JobArg,
    as_json: JsonOpt = False,
    server: Server,
) -> None:
    """Follow a job to its end. Exit code: 0 succeeded, 1 failed, 5 cancelled. Ctrl-C does not stop the job."""
    with remote(server) as client:
        raise typer.Exit(follow_to_end(client, job, as_json=as_json))


def follow_to_end(client: Client, job_id: str, *, as_json: bool = False) -> int:
    """Show a job until it has ended, and return the exit code."""
    console = Console()
    view: View = _Json() if as_json else _Live(console) if console.is_terminal else _Lines(console)
    try:
        with contextlib.closing(view):
            for job in client.watch(job_id, lost=view.lost):
                view.show(job)
    except KeyboardInterrupt:
        say(f"stopped watching; the job continues. Watch it again with: qtune jobs watch {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        _show_end(console, job)
    return ENDS[job.status]


class View(Protocol):
    """A display of a job's changes."""

    def show(self, job: JobView) -> None:
        """Show a change."""

    def lost(self) -> None:
        """Show that the server cannot be reached."""

    def close(self) -> None:
        """End the display."""


class _Live:
    """A bar, redrawn in place."""

    def __init__(self, console: Console) -> None:
        line = TextColumn("{task.description}", markup=False)
        self._progress = Progress(SpinnerColumn(), BarColumn(bar_width=28), line, console=console, transient=True)
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, job: JobView) -> None:
        self._progress.update(
            self._task,
            total=job.progress.samples_total or None,
            completed=job.progress.samples_done,
            description=plain(progress_of(job)).plain,
        )

    def lost(self) -> None:
        self._progress.update(self._task, description="connection lost, trying again")

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """A line at each change of status, stage and kind of waiting, and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last, self._next_s = ("", "", ""), 0.0

    def show(self, job: JobView) -> None:
        now, at = time.monotonic(), (str(job.status), job.stage, job.progress.waiting_for)
        if job.status.is_final or (at == self._last and now < self._next_s):
            return
        self._last, self._next_s = at, now + LINE_EVERY_S
        self._console.print(plain(progress_of(job)), soft_wrap=True)

    def lost(self) -> None:
        say("connection lost, trying again")

    def close(self) -> None:
        """Do nothing: no resource is held."""


class _Json:
    """Each change as the server sends it."""

    def show(self, job: JobView) -> None:
        typer.echo(job.model_dump_json())

    def lost(self) -> None:
        say("connection lost, trying again")

    def close(self) -> None:
        """Do nothing: no resource is held."""


def _show_end(console: Console, job: JobView) -> None:
    console.print(f"[{STYLES[job.status]}]{job.status}[/]", kept_of(job) and f"kept {kept_of(job)}", highlight=False)
    if job.error is not None:
        console.print(plain("\n".join(filter(None, (job.error.message, job.error.hint)))), soft_wrap=True)
    for step in next_steps(job):
        console.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)
