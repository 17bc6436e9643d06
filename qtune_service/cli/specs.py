"""Job requests from a file and flags: a flag sets the field of its name over what the file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qtune_service.config import read_job_file
from qtune_service.errors import SpecError

RatioOpt = Annotated[float | None, typer.Option("--sample-keep-ratio", help="Share of samples to keep, (0, 1].")]
TokenRatioOpt = Annotated[
    float | None, typer.Option("--token-keep-ratio", help="Share of tokens to keep in Q2 samples, (0, 1].")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of docs/reference.md, as `limits.max_failed_shards=2`. Repeatable.",
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
        raise SpecError(f"{file} holds no job", "A job file has the parts input, model, prune; see docs/reference.md.")
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
            raise SpecError(f"{field}: {part} has no fields", "See docs/reference.md for the fields of a job.")
        body = inner
    body[last] = value
