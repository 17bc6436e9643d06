"""`qtune jobs cancel`, `resume` and `delete`: each takes several jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from qtune_service.cli.remote.connecting import PlainHttpOpt, ProfileOpt, TokenFileOpt, UrlOpt, remote, say

JobsArg = Annotated[list[str], typer.Argument(metavar="JOB...", help="Their ids.")]


def cancel(
    jobs: JobsArg,
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Stop jobs, saving what is in hand."""
    with remote(url, token_file, profile, plain_http) as client:
        for job in jobs:
            client.cancel(job)
            say(f"{job} is being stopped; go on later: qtune jobs resume {job}")


def resume(
    jobs: JobsArg,
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Let failed or cancelled jobs go on where they were."""
    with remote(url, token_file, profile, plain_http) as client:
        for job in jobs:
            say(f"{job} is {client.resume(job).status}; follow it: qtune jobs watch {job}")


def delete(
    jobs: JobsArg,
    keep_output: Annotated[bool, typer.Option("--keep-output", help="Forget the jobs only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Forget jobs that have ended, and remove their output."""
    with remote(url, token_file, profile, plain_http) as client:
        if not keep_output and not yes:
            typer.confirm(f"Remove the output of {len(jobs)} job(s) for good?", abort=True, err=True)
        for job in jobs:
            client.delete(job, keep_output=keep_output)
            say(f"{job} is deleted" + (", its output is kept" if keep_output else ""))
