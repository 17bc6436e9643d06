"""`qtune jobs submit` and `reprune`: new jobs. Their id goes to standard output, all else to standard error.

Job requests from a file and flags: a flag sets the field of its name over what the file says.

`qtune jobs list`, `show` and `logs`.

`qtune jobs cancel`, `resume` and `delete`: each takes several jobs.

`qtune jobs download`: the product of a job, and how to go on with it.

`qtune datasets`: data that lie with a server.

Commands that ask a server: `qtune jobs` and `qtune datasets`. What runs here instead is in cli/prune.py.

Exit codes are those of cli/console.py, and of a job that was watched to its end: 0 succeeded, 1 failed, 5 cancelled.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli import formatting, server_connection
from qtune_service.cli.formatting import facts_of, follow_to_end, next_steps, plain, table_of, time_of
from qtune_service.cli.server_connection import JobArg, JsonOpt, Server, asks_server, bar, remote, say, upload_all
from qtune_service.config import read_job_file
from qtune_service.errors import SpecError
from qtune_service.job_states import JobStatus
from qtune_service.report.token_view import visible_text

if TYPE_CHECKING:
    from qtune_service.client import Client
    from qtune_service.wire import JobView

RatioOpt = Annotated[float | None, typer.Option("--sample-keep-ratio", help="Share of samples to keep, (0, 1].")]
TokenRatioOpt = Annotated[
    float | None, typer.Option("--token-keep-ratio", help="Share of tokens to keep in Q2 samples, (0, 1].")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of docs/reference/job-file.md, as `limits.max_failed_shards=2`. Repeatable.",
        show_default=False,
    ),
]
NameOpt = Annotated[str | None, typer.Option("--name", help="What it is called.")]
KeyOpt = Annotated[
    str | None, typer.Option("--key", help="Run again with the same key, the command finds the job it made.")
]
WatchOpt = Annotated[bool, typer.Option("--watch", help="Follow it to its end.")]


def request_of(file: Path | None, changes: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The plain data of a request. changes: field -> value, None for what is not given. Raises SpecError."""
    body = read_job_file(file) if file is not None else {}
    if not isinstance(body, dict):
        hint = "A job file has the parts input, model, prune; see docs/reference/job-file.md."
        raise SpecError(f"{file} holds no job", hint)
    given = {field: value for field, value in changes.items() if value not in (None, [])}
    for field, value in (*given.items(), *map(_setting, settings)):
        _put(body, field, value)
    return body


def check_paths(paths: Sequence[str]) -> None:
    """Refuse relative ones: the server, which may be elsewhere, does not know this folder. Raises SpecError."""
    for path in paths:
        if "://" not in path and not Path(path).is_absolute():
            raise SpecError(
                f"{path!r} is relative to this folder, which the server does not know",
                f"Send it with --upload {path}; or, where the server has the file too, give its whole path there.",
            )


def _setting(text: str) -> tuple[str, Any]:
    """`limits.max_failed_shards=2`: values are JSON, else text."""
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise SpecError(f"--set wants FIELD=VALUE, got {text!r}", "For example --set prune.strategy=random.")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def _put(body: dict[str, Any], field: str, value: Any) -> None:
    *parts, last = field.split(".")
    for part in parts:
        inner = body.setdefault(part, {})
        if inner is None:
            inner = body[part] = {}
        if not isinstance(inner, dict):
            raise SpecError(f"{field}: {part} has no fields", "See docs/reference/job-file.md for the fields of a job.")
        body = inner
    body[last] = value


@asks_server
def submit(
    server: Server,
    spec: Annotated[
        Path | None,
        typer.Argument(help="A job file, .toml or .json, whose `output` may be left out.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Files, globs or folders as the server sees them; URIs. Repeatable."),
    ] = None,
    upload: Annotated[
        list[Path] | None,
        typer.Option("--upload", metavar="FILE", help="A file of this machine, sent to the server first. Repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Folder or hub id, as the server sees it.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder or URI. [default: the server chooses]")
    ] = None,
    sample_keep_ratio: RatioOpt = None,
    token_keep_ratio: TokenRatioOpt = None,
    setting: SetOpt = None,
    name: NameOpt = None,
    key: KeyOpt = None,
    watch: WatchOpt = False,
) -> None:
    """Submit a job, by a job file, flags, or both. Nothing of this machine is sent but what --upload names."""
    with remote(server) as client:
        changes = {
            "input.paths": data,
            "model.name": model,
            "output.path": output,
            "prune.sample_keep_ratio": sample_keep_ratio,
            "prune.token_keep_ratio": token_keep_ratio,
            "name": name,
        }
        body = request_of(spec, changes, setting or ())
        paths = list(body.get("input", {}).get("paths", ()))
        if not paths and not upload:
            raise SpecError("no data given", "Name a job file, --data PATH of the server, or --upload FILE of yours.")
        if "model" not in body:
            raise SpecError("no model given", "Add --model, a folder or hub id of the model about to be trained.")
        check_paths(paths)
        body.setdefault("input", {})["paths"] = [*paths, *upload_all(client, upload or ())]
        body.setdefault("name", _name(body["input"]["paths"], upload or ()))
        _made(client, client.submit(body, idempotency_key=key), watch=watch)


@asks_server
def reprune(
    server: Server,
    job: JobArg,
    sample_keep_ratio: RatioOpt = None,
    token_keep_ratio: TokenRatioOpt = None,
    setting: SetOpt = None,
    name: NameOpt = None,
    key: KeyOpt = None,
    watch: WatchOpt = False,
) -> None:
    """Prune again from the scores of a finished job, in seconds. What is not given stays as it was there."""
    with remote(server) as client:
        changes = {"prune.sample_keep_ratio": sample_keep_ratio, "prune.token_keep_ratio": token_keep_ratio}
        asked = request_of(None, changes, setting or ())
        if set(asked) - {"prune"}:
            raise SpecError("--set: only fields of prune can be other than they were", "As prune.strategy=random.")
        prune = {**(client.get(job).spec.get("prune") or {}), **asked.get("prune", {})}
        _made(client, client.reprune(job, prune, name=name, idempotency_key=key), watch=watch)


def _made(client: Client, job: JobView, *, watch: bool) -> None:
    Console().print(job.id, markup=False, highlight=False)
    if watch:
        raise typer.Exit(follow_to_end(client, job.id))
    say(f"{job.status}; follow it: qtune jobs watch {job.id}")


def _name(paths: list[str], uploads: list[Path] | tuple[()]) -> str:
    """After its first file."""
    first = uploads[0].name if uploads else paths[0].rstrip("/").rpartition("/")[2]
    return first[:200] or "job"


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


@asks_server
def download(
    server: Server,
    job: JobArg,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to. [default: a folder named as the job's id]")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--files", metavar="GLOB", help="Only these, as `pruned/*`. Repeatable.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Scores, quadrants and rejected records too.")] = False,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Files at a time.")] = 8,
) -> None:
    """Download what a trainer reads, and what explains it. Done again, it goes on, and fetches nothing twice."""
    from qtune_service.client.transfer import PRODUCT

    folder = folder or Path(job)
    with remote(server, interrupted=f"stopped; the same command goes on in {folder}") as client:
        patterns = None if everything else files or PRODUCT
        with bar(str(folder)) as watcher:
            places = client.download(job, folder, patterns, parallel=parallel, watcher=watcher)
        console = Console(highlight=False, soft_wrap=True)
        size = sum(place.stat().st_size for place in places)
        console.print(f"{len(places)} files, {size:,} bytes, in {folder}", markup=False)
        if any(place.parent == folder / "pruned" for place in places):
            console.print(_how_to_go_on(folder), markup=False)


def _how_to_go_on(folder: Path) -> str:
    pattern = f"{folder}/pruned/*.parquet"
    return (
        f'TRL, datasets   load_dataset("parquet", data_files={pattern!r}, split="train")\n'
        f"other trainers  qtune export {shlex.quote(str(folder))} --to axolotl DIR   (see docs/guides/exports.md)"
    )


@asks_server
def upload(
    server: Server,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Of this machine.")],
) -> None:
    """Send files to the server. Prints `dataset://ID` of each, for the input of jobs."""
    with remote(server) as client:
        for uri in upload_all(client, files):
            typer.echo(uri)


@asks_server
def list_datasets(
    server: Server,
    as_json: JsonOpt = False,
) -> None:
    """List datasets, the newest first."""
    with remote(server) as client:
        found = list(client.datasets())
        if as_json:
            for one in found:
                typer.echo(one.model_dump_json())
            return
        table = Table(box=None, pad_edge=False)
        for column in ("uri", "name", "format", "rows", "bytes", "owner", "made"):
            table.add_column(column, justify="right" if column in ("rows", "bytes") else "left")
        for one in found:
            rows = "" if one.rows is None else f"{one.rows:,}"
            made = time_of(one.created_at)
            table.add_row(one.uri, plain(one.name), one.format, rows, f"{one.size_bytes:,}", plain(one.owner), made)
        if found:
            Console().print(table)
        else:
            say("no datasets yet: qtune datasets upload FILE")


@asks_server
def delete_datasets(
    server: Server,
    datasets: Annotated[list[str], typer.Argument(metavar="ID...", help="As listed, with or without dataset://.")],
) -> None:
    """Remove datasets; refused for those that a queued or running job reads."""
    with remote(server) as client:
        for one in datasets:
            client.delete_dataset(one)
            say(f"{one} is deleted")


jobs_app = typer.Typer(help="Jobs of a server: `qtune serve`, here or elsewhere.", no_args_is_help=True)
jobs_app.command("submit")(submit)
jobs_app.command("list")(list_jobs)
jobs_app.command("show")(show_job)
jobs_app.command("watch")(formatting.watch)
jobs_app.command("logs")(logs)
jobs_app.command("download")(download)
jobs_app.command("reprune")(reprune)
jobs_app.command("cancel")(cancel)
jobs_app.command("resume")(resume)
jobs_app.command("delete")(delete)
jobs_app.command("login")(server_connection.login)

datasets_app = typer.Typer(help="Data that lie with a server: `dataset://ID` in jobs.", no_args_is_help=True)
datasets_app.command("upload")(upload)
datasets_app.command("list")(list_datasets)
datasets_app.command("delete")(delete_datasets)
