"""`qtune jobs watch`: follow a job by a live bar in a terminal, or by lines, to an exit code for its end."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from qtune_service.cli.console import INTERRUPTED
from qtune_service.cli.remote.connection import JobArg, JsonOpt, Server, asks_server, remote, say
from qtune_service.cli.remote.formatting import STYLES, kept_of, next_steps, plain, progress_of
from qtune_service.jobs.models import JobStatus

if TYPE_CHECKING:
    from qtune_service.client import Client
    from qtune_service.wire import JobView

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
    """A line at each change of status and stage, and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last, self._next_s = ("", ""), 0.0

    def show(self, job: JobView) -> None:
        now, at = time.monotonic(), (str(job.status), job.stage)
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
