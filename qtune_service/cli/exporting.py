"""`qtune export`: a finished output in the form that a trainer, the hub or an analysis reads."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes

if TYPE_CHECKING:
    from qtune_service.export.run import Exported


class To(StrEnum):
    """What can be written; see export/trainers.py."""

    analysis = "analysis"
    trl = "trl"
    axolotl = "axolotl"
    llama_factory = "llama-factory"
    torchtune = "torchtune"
    verl = "verl"
    skyrl = "skyrl"
    megatron_bridge = "megatron-bridge"
    nemo_automodel = "nemo-automodel"
    ms_swift = "ms-swift"
    slime = "slime"
    parquet = "parquet"
    jsonl = "jsonl"
    hub = "hub"


def export(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to write: a folder or URI, new or empty.")],
    to: Annotated[To, typer.Option("--to", help="Who is to read it; see docs/exports.md.")],
    rows_per_file: Annotated[
        int | None,
        typer.Option(
            "--rows-per-file", min=1, help="Rows of each file. [default: as the output's]", show_default=False
        ),
    ] = None,
    pack_length: Annotated[
        int | None,
        typer.Option("--pack-length", min=1, help="Tokens of a packed row, for megatron-bridge.", show_default=False),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the data on the card, for hub. [default: unknown]"),
    ] = None,
    max_samples: Annotated[
        int, typer.Option("--max-samples", min=1, help="Most scored samples to make analysis files of.")
    ] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in DIR.")] = False,
) -> None:
    """Write the pruned data as a trainer reads them, as a repository for the hub, or as files to look through."""
    with exit_codes():
        from qtune_service.export import run
        from qtune_service.export.export import Options

        options = Options(
            rows_per_file=rows_per_file, pack_length=pack_length, license=license_name, max_samples=max_samples
        )
        _show(run.export(output, to.value, folder, options, overwrite=overwrite))


def _show(done: Exported) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]wrote[/]  {done.num_rows:,} rows, {len(done.files)} files, {done.num_bytes:,} bytes")
    for note in done.notes:
        console.print(f"[yellow]! {note}[/]")
    console.print("[bold]load it[/]")
    console.print(done.usage, markup=False)
