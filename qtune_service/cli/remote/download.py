"""`qtune jobs download`: fetch the product of a job, and print how to load it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.remote.connection import JobArg, Server, asks_server, remote
from qtune_service.cli.remote.transfer import bar

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
    from qtune_service.client.downloads import PRODUCT

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
        f"other trainers  qtune export {shlex.quote(str(folder))} --to axolotl DIR   (see docs/exports.md)"
    )
