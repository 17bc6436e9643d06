"""`qtune jobs submit` and `reprune`: create jobs. The id is printed on standard output, all else on standard error.

A request is a job file, changed by flags; `--set` sets fields that have no flag here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from qtune_service.cli.formatting import follow_to_end
from qtune_service.cli.job_flags import Given, takes_job_fields
from qtune_service.cli.server_connection import JobArg, Server, asks_server, remote, say, upload_all
from qtune_service.config import FlagGroup
from qtune_service.errors import SpecError
from qtune_service.spec_files import read_job_file

if TYPE_CHECKING:
    from qtune_service.client import Client
    from qtune_service.wire import JobView

RATIOS = ["prune.sample_keep_ratio", "prune.token_keep_ratio"]
JOB = FlagGroup.job.value
SUBMIT = "The job"
SUBMIT_EXAMPLES = """\
qtune jobs submit job.toml --sample-keep-ratio 0.25
qtune jobs submit --upload chats.jsonl --model org/base --watch
qtune jobs submit --data /data/chats.jsonl --model org/base --set prune.seed=7"""
REPRUNE_EXAMPLES = """\
qtune jobs reprune JOB --sample-keep-ratio 0.25
qtune jobs reprune JOB --set prune.strategy=random --name random-half
qtune jobs reprune JOB --token-keep-ratio 0.5 --watch"""
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set any field of docs/reference/job-file.md, such as limits.max_failed_shards=2. Repeatable.",
        show_default=False,
        rich_help_panel=SUBMIT,
    ),
]
NameOpt = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the job.", rich_help_panel=SUBMIT)]
KeyOpt = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Idempotency key: repeated with the same key, the command returns the job that it created.",
        rich_help_panel=SUBMIT,
    ),
]
WatchOpt = Annotated[bool, typer.Option("--watch", help="Follow the job to its end.", rich_help_panel=SUBMIT)]


@asks_server
@takes_job_fields(
    ["model.name", "output.path", *RATIOS],
    helps={
        "model.name": "Model that you are about to train: a folder or hub id, as the server sees it.",
        "output.path": "Folder or URI of the result, as the server sees it. By default the server chooses.",
    },
    has_defaults=False,
)
def submit(
    *,
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB_FILE",
            help="Job file, .toml or .json. Its `output` may be left out.",
            show_default=False,
            rich_help_panel=JOB,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="File, glob pattern or folder as the server sees it; or a URI. Repeatable.",
            rich_help_panel=JOB,
        ),
    ] = None,
    upload: Annotated[
        list[Path] | None,
        typer.Option(
            "--upload",
            metavar="FILE",
            help="File of this machine, sent to the server first. Repeatable.",
            rich_help_panel=JOB,
        ),
    ] = None,
    given: Given,
    setting: SetOpt = None,
    name: NameOpt = None,
    key: KeyOpt = None,
    watch: WatchOpt = False,
    server: Server,
) -> None:
    """Submit a job by a job file, flags, or both. Only the files of --upload are sent from this machine."""
    with remote(server) as client:
        body = _request(spec, {**given, "input.paths": data, "name": name}, setting or ())
        paths = list(body.get("input", {}).get("paths", ()))
        if not paths and not upload:
            raise SpecError("no data given", "Name a job file, --data PATH of the server, or --upload FILE of yours.")
        if "model" not in body:
            raise SpecError(
                "no model given", "Add --model, a folder or hub id of the model that you are about to train."
            )
        _check_paths(paths)
        body.setdefault("input", {})["paths"] = [*paths, *upload_all(client, upload or ())]
        body.setdefault("name", _default_name(body["input"]["paths"], upload or ()))
        _print_job(client, client.submit(body, idempotency_key=key), watch=watch)


@asks_server
@takes_job_fields(RATIOS, has_defaults=False)
def reprune(
    *,
    job: JobArg,
    given: Given,
    setting: SetOpt = None,
    name: NameOpt = None,
    key: KeyOpt = None,
    watch: WatchOpt = False,
    server: Server,
) -> None:
    """Prune again from the scores of a finished job, in seconds. Fields that are not given stay as they were."""
    with remote(server) as client:
        changes = _request(None, given, setting or ())
        if set(changes) - {"prune"}:
            raise SpecError(
                "--set: only fields of prune can differ from the finished job", "For example prune.strategy=random."
            )
        prune = {**(client.get(job).spec.get("prune") or {}), **changes.get("prune", {})}
        _print_job(client, client.reprune(job, prune, name=name, idempotency_key=key), watch=watch)


def _request(file: Path | None, given: Given, settings: Sequence[str]) -> dict[str, Any]:
    """Return the plain data of a request: a file's, changed by flags and `--set`. Raises SpecError."""
    body = read_job_file(file) if file is not None else {}
    if not isinstance(body, dict):
        raise SpecError(
            f"{file} is not a job file",
            "A job file has the parts input, model and prune; see docs/reference/job-file.md.",
        )
    flags = [(field, value) for field, value in given.items() if value not in (None, [])]
    for field, value in (*flags, *map(_setting, settings)):
        _put(body, field, value)
    return body


def _check_paths(paths: Sequence[str]) -> None:
    """Refuse relative paths: the server does not know this folder. Raises SpecError."""
    for path in paths:
        if "://" not in path and not Path(path).is_absolute():
            raise SpecError(
                f"{path!r} is relative to this folder, which the server does not know",
                f"Send it with --upload {path}; or give its absolute path, if the server has the same file there.",
            )


def _setting(text: str) -> tuple[str, Any]:
    """Return field and value of `limits.max_failed_shards=2`. A value is JSON, else text."""
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise SpecError(f"--set needs FIELD=VALUE, got {text!r}", "For example --set prune.strategy=random.")
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
            raise SpecError(
                f"--set {field}: {part} has no fields", "docs/reference/job-file.md lists the fields of a job."
            )
        body = inner
    body[last] = value


def _print_job(client: Client, job: JobView, *, watch: bool) -> None:
    Console().print(job.id, markup=False, highlight=False)
    if watch:
        raise typer.Exit(follow_to_end(client, job.id))
    say(f"{job.status}; follow it with: qtune jobs watch {job.id}")


def _default_name(paths: list[str], uploads: Sequence[Path]) -> str:
    """Return the name of the first file."""
    first = uploads[0].name if uploads else paths[0].rstrip("/").rpartition("/")[2]
    return first[:200] or "job"
