"""`qtune jobs list`, `show` and `logs`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.remote.connection import JobArg, JsonOpt, Server, asks_server, remote, say
from qtune_service.cli.remote.formatting import facts_of, next_steps, table_of
from qtune_service.jobs.models import JobStatus
from qtune_service.report.tokens import visible_text


@asks_server
def list_jobs(
    *,
    status: Annotated[
        list[JobStatus] | None,
        typer.Option("--status", metavar="STATUS", help=f"Only jobs that are {', '.join(JobStatus)}. Repeatable."),
    ] = None,
    query: Annotated[
        str, typer.Option("--query", "-q", metavar="TEXT", help="Part of the name, or beginning of the id.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Most jobs to list.")] = 20,
    as_json: JsonOpt = False,
    server: Server,
) -> None:
    """List jobs, newest first."""
    with remote(server) as client:
        jobs = list(islice(client.list(status or (), query), limit))
        if as_json:
            for job in jobs:
                typer.echo(job.model_dump_json())
        elif jobs:
            Console().print(table_of(jobs))
        else:
            say("no such jobs" if status or query else "no jobs yet: qtune jobs submit")


@asks_server
def show_job(
    *,
    job: JobArg,
    as_json: JsonOpt = False,
    server: Server,
) -> None:
    """Show a job, and the commands to use next."""
    with remote(server) as client:
        found = client.get(job)
        if as_json:
            typer.echo(found.model_dump_json())
            return
        console = Console()
        console.print(facts_of(found))
        for step in next_steps(found):
            console.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)


@asks_server
def logs(
    *,
    job: JobArg,
    tail: Annotated[int | None, typer.Option("--tail", metavar="N", min=1, help="Only the last N lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
    server: Server,
) -> None:
    """Show the log of a job."""
    stopped = f"stopped; the job continues. Show its log with: qtune jobs logs {job}"
    with remote(server, interrupted=stopped) as client:
        for line in client.logs(job, tail=tail, follow=follow):
            typer.echo(visible_text(line))
