"""`qtune export`: write a finished output in the form that a trainer, the hub or an analysis reads."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes
from qtune_service.cli.help import command

if TYPE_CHECKING:
    from qtune_service.exports.run import Exported


class To(StrEnum):
    """Formats of exports, as in exports/trainers.py; a test compares them."""

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


EXAMPLES = """\
qtune export out data/trl --to trl
qtune export out data/bridge --to megatron-bridge --pack-length 4096
qtune export out repository --to hub --license apache-2.0"""
app = typer.Typer()


@command(app, usage="--to FORMAT [OPTIONS]", examples=EXAMPLES)
def export(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New or empty folder or URI to write to.")],
    to: Annotated[To, typer.Option("--to", metavar="FORMAT", help=f"Format: {', '.join(To)}; see docs/exports.md.")],
    rows_per_file: Annotated[
        int | None,
        typer.Option("--rows-per-file", metavar="N", min=1, help="Rows per file. By default as in the output."),
    ] = None,
    pack_length: Annotated[
        int | None,
        typer.Option("--pack-length", metavar="N", min=1, help="Tokens of a packed row, for megatron-bridge."),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="Licence of the data on the card, for hub. [default: unknown]"),
    ] = None,
    max_samples: Annotated[
        int, typer.Option("--max-samples", metavar="N", min=1, help="Most scored samples in the files, for analysis.")
    ] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in DIR.")] = False,
) -> None:
    """Write the pruned data for a trainer, the hub or an analysis. A trainer gets the files that it reads."""
    with exit_codes():
        from qtune_service.exports import run
        from qtune_service.exports.export import Options

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
