"""Uploads and downloads with a progress bar in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from qtune_service.client import Client, Transfer
    from qtune_service.client.transfers import Watcher


@contextlib.contextmanager
def bar(name: str) -> Iterator[Watcher]:
    """Yield a watcher that draws a bar on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def show(transfer: Transfer) -> None:
            progress.update(task, total=transfer.bytes_total, completed=transfer.bytes_done)

        yield show


def upload_all(client: Client, files: Sequence[Path]) -> list[str]:
    """Send files to the server and return their URIs."""
    uris = []
    for file in files:
        with bar(file.name) as watcher:
            uris.append(client.upload(file, watcher=watcher).uri)
    return uris
