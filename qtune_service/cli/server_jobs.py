"""`qtune jobs` and `qtune datasets`: list, show, stop, resume, delete and download on a server.

Exit codes are those of cli/console.py, and of a job that was watched to its end: 0 succeeded, 1 failed, 5 cancelled.
"""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.commands import Group, command
from qtune_service.cli.formatting import facts_of, next_steps, plain, table_of, time_of, watch
from qtune_service.cli.serve import import_jobs
from qtune_service.cli.server_connection import (
    JobArg,
    JsonOpt,
    Server,
    asks_server,
    bar,
    login,
    remote,
    say,
    upload_all,
)
from qtune_service.cli.submit import REPRUNE_EXAMPLES, SUBMIT_EXAMPLES, reprune, submit
from qtune_service.job_states import JobStatus


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
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Maximum number of jobs to list.")] = 20,
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
    from qtune_service.report.token_view import visible_text

    stopped = f"stopped; the job continues. Show its log with: qtune jobs logs {job}"
    with remote(server, interrupted=stopped) as client:
        for line in client.logs(job, tail=tail, follow=follow):
            typer.echo(visible_text(line))


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


DOWNLOAD_EXAMPLES = """\
qtune jobs download JOB
qtune jobs download JOB pruned-data --all
qtune jobs download JOB scores --files 'scores/*'"""


@asks_server
def download(
    *,
    job: JobArg,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder to write to. [default: a folder named as the job's id]")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--files", metavar="GLOB", help="Only these files, such as `pruned/*`. Repeatable.", show_default=False
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also scores, quadrants and rejected records.")] = False,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", min=1, max=64, help="Files at the same time.")
    ] = 8,
    server: Server,
) -> None:
    """Download the pruned data and the report. Repeated, the command continues and fetches no file twice."""
    from qtune_service.client.transfer import PRODUCT

    folder = folder or Path(job)
    with remote(server, interrupted=f"stopped; the same command continues in {folder}") as client:
        patterns = None if everything else files or PRODUCT
        with bar(str(folder)) as watcher:
            places = client.download(job, folder, patterns, parallel=parallel, watcher=watcher)
        console = Console(highlight=False, soft_wrap=True)
        size = sum(place.stat().st_size for place in places)
        console.print(f"{len(places)} files, {size:,} bytes, in {folder}", markup=False)
        if any(place.parent == folder / "pruned" for place in places):
            console.print(_next_steps(folder), markup=False)


def _next_steps(folder: Path) -> str:
    pattern = f"{folder}/pruned/*.parquet"
    return (
        f'TRL, datasets   load_dataset("parquet", data_files={pattern!r}, split="train")\n'
        f"other trainers  qtune export {shlex.quote(str(folder))} --to axolotl DIR   (see docs/guides/exports.md)"
    )


DATASET_EXAMPLES = """\
qtune datasets upload chats.jsonl
qtune datasets upload data/*.parquet --profile lab
qtune datasets list"""
datasets_app = typer.Typer(
    cls=Group,
    help="Upload, list and delete datasets of a server. Jobs read them as `dataset://ID`.",
    no_args_is_help=True,
)


@command(datasets_app, examples=DATASET_EXAMPLES)
@asks_server
def upload(
    *,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of this machine.")],
    server: Server,
) -> None:
    """Upload files to the server. The `dataset://ID` of each is printed, for the input of jobs."""
    with remote(server) as client:
        for uri in upload_all(client, files):
            typer.echo(uri)


@command(datasets_app, "list")
@asks_server
def list_datasets(
    *,
    as_json: JsonOpt = False,
    server: Server,
) -> None:
    """List datasets, newest first."""
    with remote(server) as client:
        found = list(client.datasets())
        if as_json:
            for one in found:
                typer.echo(one.model_dump_json())
            return
        table = Table(box=None, pad_edge=False)
        for column in ("uri", "name", "format", "rows", "bytes", "owner", "created"):
            table.add_column(column, justify="right" if column in ("rows", "bytes") else "left")
        for one in found:
            rows = "" if one.rows is None else f"{one.rows:,}"
            created = time_of(one.created_at)
            table.add_row(one.uri, plain(one.name), one.format, rows, f"{one.size_bytes:,}", plain(one.owner), created)
        if found:
            Console().print(table)
        else:
            say("no datasets yet: qtune datasets upload FILE")


@command(datasets_app, "delete")
@asks_server
def delete_datasets(
    *,
    datasets: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Id of a dataset, with or without the prefix dataset://.")
    ],
    server: Server,
) -> None:
    """Delete datasets. Those that a queued or running job reads are refused."""
    with remote(server) as client:
        for one in datasets:
            client.delete_dataset(one)
            say(f"{one} is deleted")


jobs_app = typer.Typer(
    cls=Group, help="Submit, follow and download jobs of a server. Start one with `qtune serve`.", no_args_is_help=True
)
command(jobs_app, "submit", examples=SUBMIT_EXAMPLES)(submit)
command(jobs_app, "list")(list_jobs)
command(jobs_app, "show")(show_job)
command(jobs_app, "watch")(watch)
command(jobs_app, "logs")(logs)
command(jobs_app, "download", examples=DOWNLOAD_EXAMPLES)(download)
command(jobs_app, "reprune", examples=REPRUNE_EXAMPLES)(reprune)
command(jobs_app, "cancel")(cancel)
command(jobs_app, "resume")(resume)
command(jobs_app, "delete")(delete)
command(jobs_app, "login")(login)
command(jobs_app, "import")(import_jobs)
