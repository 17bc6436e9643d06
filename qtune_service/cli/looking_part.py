"""`qtune jobs list`, `show` and `logs`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.formatting import facts_of, next_steps, table_of
from qtune_service.cli.server_connection import JobArg, JsonOpt, Server, asks_server, remote, say
from qtune_service.job_states import JobStatus
from qtune_service.report.tokens import visible_text


@asks_server
def list_jobs(
    server: Server,
    status: Annotated[list[JobStatus] | None, typer.Option("--status", help="Only these. Repeatable.")] = None,
    query: Annotated[str, typer.Option("--query", "-q", help="A part of the name, or the beginning of the id.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 20,
    as_json: JsonOpt = False,
) -> None:
    """List jobs, the newest first."""
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
    server: Server,
    job: JobArg,
    as_json: JsonOpt = False,
) -> None:
    """Show all about a job, and what to do next."""
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
    server: Server,
    job: JobArg,
    tail: Annotated[int | None, typer.Option("--tail", min=1, help="The last lines only.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Show what the job's driver printed."""
    again = f"stopped; the job goes on. Again: qtune jobs logs {job}"
    with remote(server, interrupted=again) as client:
        for line in client.logs(job, tail=tail, follow=follow):
            typer.echo(visible_text(line))
