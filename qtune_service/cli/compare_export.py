"""`qtune compare`: what other strategies and ratios would keep, from scores that are there.

`qtune export`: a finished output in the form that a trainer, the hub or an analysis reads.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from qtune_service.cli.console import exit_codes
from qtune_service.config import PruneSpec
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.export.run import Exported
    from qtune_service.output.compare import Candidate

STRATEGIES = ("q_tuning", "random", "longest", "perplexity", "entropy", "infobatch")
ORDERS = ("highest", "lowest")
PICTURES = (".png", ".svg", ".html")


class ListsOfValues(TyperCommand):
    """Options that may be repeated also take several values at once: `--ratios 0.125 0.25`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        names = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spread: list[str] = []
        current: str | None = None
        for arg in args:
            if arg.startswith("-"):
                current = arg if arg in names else None
                spread += [] if current else [arg]
            else:
                spread += [current, arg] if current else [arg]
        return super().parse_args(ctx, spread)


def compare_outputs(
    output: Annotated[str, typer.Argument(help="A finished output, pruned or only scored.")],
    ratios: Annotated[list[float] | None, typer.Option(help="Sample keep ratios. [default: 0.125 0.25 0.5]")] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            help="q_tuning, random, longest, perplexity, entropy, infobatch; perplexity:lowest and the like; or "
            "module:function, a quadrant rule of your own. [default: all six]",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Column of the records to count by. [default: the job's category]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the strategies that draw.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture: .png, .svg or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures for scripts.")] = False,
) -> None:
    """Compare what strategies would keep, at no cost: overlap, tokens, balance of categories."""
    from qtune_service.output.compare import compare, read_columns
    from qtune_service.output.reader import FinishedOutput
    from qtune_service.report.comparison import comparison_json, describe_comparison

    with exit_codes():
        finished = FinishedOutput(output)
        if plot is not None and plot.suffix not in PICTURES:
            raise SpecError(f"--plot {plot}: no picture is written as {plot.suffix!r}", f"Use {', '.join(PICTURES)}.")
        candidates = [_candidate(name, finished.spec.prune or PruneSpec(), seed) for name in strategies or STRATEGIES]
        columns = read_columns(finished, by)
        comparisons = compare(columns, candidates, ratios or (0.125, 0.25, 0.5))
        label = by or finished.own_columns.get(finished.category_column or "")
        if plot is not None:
            _draw(plot, columns, comparisons, label)
        if as_json:
            typer.echo(json.dumps(comparison_json(columns, comparisons, label), indent=1))
            return
        console = Console()
        for part in describe_comparison(columns, comparisons, label):
            console.print(part)
        if plot is not None:
            console.print(f"\n[bold]picture[/]  {plot}", highlight=False, soft_wrap=True)


def _candidate(name: str, prune: PruneSpec, seed: int) -> Candidate:
    """A strategy by its name: NAME, NAME:ORDER or MODULE:FUNCTION. Tokens are pruned as the output's job did."""
    from qtune_service.output.compare import Candidate

    strategy, _, rest = name.partition(":")
    common = {**prune.model_dump(), "seed": seed, "quadrant_rule": None, "strategy_order": "highest"}
    if strategy in STRATEGIES and (not rest or rest in ORDERS):
        order = {"strategy_order": rest} if rest else {}
        return Candidate(name, PruneSpec.model_validate({**common, "strategy": strategy, **order}))
    if not rest:
        raise SpecError(
            f"--strategies {name!r} is none that there is", f"Choose of {', '.join(STRATEGIES)}, or MODULE:FUNCTION."
        )
    from qtune_service.importing import import_named

    rule: Any = import_named(name, "quadrant rule")
    return Candidate(name, PruneSpec.model_validate({**common, "strategy": "q_tuning"}), rule)


def _draw(path: Path, columns: Any, comparisons: Any, by: str | None) -> None:
    import altair as alt

    from qtune_service.report.comparison import comparison_chart

    chart = alt.Chart.from_dict(comparison_chart(columns, comparisons, by))
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(path, inline=True) if path.suffix == ".html" else chart.save(path, scale_factor=2)


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
    to: Annotated[To, typer.Option("--to", help="Who is to read it; see docs/guides/exports.md.")],
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
        from qtune_service.export.writers import Options

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
