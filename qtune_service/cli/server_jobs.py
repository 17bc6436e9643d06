"""`qtune jobs submit` and `reprune`: new jobs. Their id goes to standard output, all else to standard error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qtune_service.cli.server_connection import JobArg, Server, asks_server, remote, say
from qtune_service.cli.specs import KeyOpt, NameOpt, RatioOpt, SetOpt, TokenRatioOpt, WatchOpt, check_paths, request_of
from qtune_service.cli.transferring import upload_all
from qtune_service.cli.watching import follow_to_end
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.client import Client
    from qtune_service.wire import JobView


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
