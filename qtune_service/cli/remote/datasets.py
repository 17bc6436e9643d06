"""`qtune datasets`: datasets that a server stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.help import Group, command
from qtune_service.cli.remote.connection import JsonOpt, Server, asks_server, remote, say
from qtune_service.cli.remote.formatting import plain, time_of
from qtune_service.cli.remote.transfer import upload_all

EXAMPLES = """\
qtune datasets upload chats.jsonl
qtune datasets upload data/*.parquet --profile lab
qtune datasets list"""
app = typer.Typer(
    cls=Group, help="Upload, list and delete datasets of a server: `dataset://ID` in jobs.", no_args_is_help=True
)


@command(app, examples=EXAMPLES)
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


@command(app, "list")
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


@command(app)
@asks_server
def delete(
    *,
    datasets: Annotated[list[str], typer.Argument(metavar="ID...", help="As listed, with or without dataset://.")],
    server: Server,
) -> None:
    """Delete datasets. Those that a queued or running job reads are refused."""
    with remote(server) as client:
        for one in datasets:
            client.delete_dataset(one)
            say(f"{one} is deleted")
