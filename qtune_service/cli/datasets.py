"""`qtune datasets`: data that lie with a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.formatting import plain, time_of
from qtune_service.cli.server_connection import JsonOpt, Server, asks_server, remote, say
from qtune_service.cli.transferring import upload_all


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
def delete(
    server: Server,
    datasets: Annotated[list[str], typer.Argument(metavar="ID...", help="As listed, with or without dataset://.")],
) -> None:
    """Remove datasets; refused for those that a queued or running job reads."""
    with remote(server) as client:
        for one in datasets:
            client.delete_dataset(one)
            say(f"{one} is deleted")
