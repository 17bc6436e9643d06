"""`qtune jobs download`: the product of a job, and how to go on with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.server_connection import JobArg, Server, asks_server, remote
from qtune_service.cli.transferring import bar


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
        f"other trainers  qtune export {shlex.quote(str(folder))} --to axolotl DIR   (see docs/exports.md)"
    )
