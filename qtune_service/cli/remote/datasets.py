"""`qtune datasets`: data that lie with a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.remote.connecting import (
    JsonOpt,
    PlainHttpOpt,
    ProfileOpt,
    TokenFileOpt,
    UrlOpt,
    remote,
    say,
)
from qtune_service.cli.remote.shown import plain, time_of
from qtune_service.cli.remote.transferring import upload_all


def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Of this machine.")],
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Send files to the server. Prints `dataset://ID` of each, for the input of jobs."""
    with remote(url, token_file, profile, plain_http) as client:
        for uri in upload_all(client, files):
            typer.echo(uri)


def list_datasets(
    as_json: JsonOpt = False,
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """List datasets, the newest first."""
    with remote(url, token_file, profile, plain_http) as client:
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


def delete(
    datasets: Annotated[list[str], typer.Argument(metavar="ID...", help="As listed, with or without dataset://.")],
    url: UrlOpt = None,
    token_file: TokenFileOpt = None,
    profile: ProfileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Remove datasets; refused for those that a queued or running job reads."""
    with remote(url, token_file, profile, plain_http) as client:
        for one in datasets:
            client.delete_dataset(one)
            say(f"{one} is deleted")
