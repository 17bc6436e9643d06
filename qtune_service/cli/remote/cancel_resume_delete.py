"""`qtune jobs cancel`, `resume` and `delete`. Each takes several jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from qtune_service.cli.remote.connection import Server, asks_server, remote, say

JobsArg = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of the jobs.")]


@asks_server
def cancel(
    *,
    jobs: JobsArg,
    server: Server,
) -> None:
    """Stop jobs. Work in progress is saved."""
    with remote(server) as client:
        for job in jobs:
            client.cancel(job)
            say(f"{job} is being stopped; continue it later with: qtune jobs resume {job}")


@asks_server
def resume(
    *,
    jobs: JobsArg,
    server: Server,
) -> None:
    """Continue failed or cancelled jobs."""
    with remote(server) as client:
        for job in jobs:
            say(f"{job} is {client.resume(job).status}; follow it with: qtune jobs watch {job}")


@asks_server
def delete(
    *,
    jobs: JobsArg,
    keep_output: Annotated[bool, typer.Option("--keep-output", help="Delete the jobs only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    server: Server,
) -> None:
    """Delete jobs that have ended, and their output."""
    with remote(server) as client:
        if not keep_output and not yes:
            typer.confirm(
                f"Delete the output of {len(jobs)} job{'s' * (len(jobs) > 1)} permanently?", abort=True, err=True
            )
        for job in jobs:
            why_kept = client.delete(job, keep_output=keep_output)
            say(f"{job} is deleted" + (f", its output is kept: {why_kept}" if why_kept else ""))
