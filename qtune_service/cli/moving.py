"""`qtune jobs cancel`, `resume` and `delete`: each takes several jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from qtune_service.cli.server_connection import Server, asks_server, remote, say

JobsArg = Annotated[list[str], typer.Argument(metavar="JOB...", help="Their ids.")]


@asks_server
def cancel(
    server: Server,
    jobs: JobsArg,
) -> None:
    """Stop jobs, saving what is in hand."""
    with remote(server) as client:
        for job in jobs:
            client.cancel(job)
            say(f"{job} is being stopped; go on later: qtune jobs resume {job}")


@asks_server
def resume(
    server: Server,
    jobs: JobsArg,
) -> None:
    """Let failed or cancelled jobs go on where they were."""
    with remote(server) as client:
        for job in jobs:
            say(f"{job} is {client.resume(job).status}; follow it: qtune jobs watch {job}")


@asks_server
def delete(
    server: Server,
    jobs: JobsArg,
    keep_output: Annotated[bool, typer.Option("--keep-output", help="Forget the jobs only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget jobs that have ended, and remove their output."""
    with remote(server) as client:
        if not keep_output and not yes:
            typer.confirm(f"Remove the output of {len(jobs)} job(s) for good?", abort=True, err=True)
        for job in jobs:
            why_kept = client.delete(job, keep_output=keep_output)
            say(f"{job} is deleted" + (f", its output is kept: {why_kept}" if why_kept else ""))
