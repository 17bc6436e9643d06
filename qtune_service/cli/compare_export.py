"""`qtune compare`: compare strategies and ratios. `qtune export`: write an output for a trainer."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from qtune_service.cli.commands import HelpCommand, command
from qtune_service.cli.console import exit_codes
from qtune_service.config import PruneSpec, SampleStrategy, StrategyOrder
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.export.push import Pushed
    from qtune_service.export.run import Exported
    from qtune_service.output.compare import Candidate


STRATEGIES: tuple[str, ...] = get_args(SampleStrategy)
ORDERS: tuple[str, ...] = get_args(StrategyOrder)
COMPARE_EXAMPLES = """\
qtune compare out --ratios 0.125 0.25 --strategies q_tuning perplexity:lowest
qtune compare out --by category --plot comparison.png
qtune compare out-base out-step-1000 --plot moves.html"""
CHART_SUFFIXES = (".png", ".svg", ".html")


app = typer.Typer()


class ListsOfValues(HelpCommand):
    """A command whose repeatable options also take several values: `--ratios 0.125 0.25`."""

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


@command(app, "compare", examples=COMPARE_EXAMPLES, cls=ListsOfValues)
def compare_outputs(
    outputs: Annotated[
        list[str],
        typer.Argument(
            metavar="OUTPUT...",
            help="A finished output, pruned or only scored; or several pruned ones of the same data, each of which is "
            "compared with the first.",
        ),
    ],
    ratios: Annotated[
        list[float] | None, typer.Option(metavar="RATIO...", help="Sample keep ratios. [default: 0.125 0.25 0.5]")
    ] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STRATEGY...",
            help=f"{', '.join(STRATEGIES)}; an order after a colon, such as perplexity:lowest; or module:function, a "
            "quadrant rule of your own. [default: all six]",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column to count by. [default: the job's category]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Seed of the random strategies.")] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", min=0, max=10_000, help="Of several outputs: samples that moved most to show.")
    ] = 10,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a chart: .png, .svg or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare what strategies would keep, or outputs of the same data. No model runs. Of one output, the overlap of
    strategies, tokens and the balance of categories are shown. Of several, the quadrants between which samples moved,
    rank correlations, and the samples that moved most."""
    from qtune_service.output.compare import compare, read_columns
    from qtune_service.output.reader import FinishedOutput
    from qtune_service.report.comparison import comparison_chart, comparison_json, describe_comparison

    with exit_codes():
        if plot is not None and plot.suffix not in CHART_SUFFIXES:
            raise SpecError(
                f"--plot {plot}: charts cannot be written as {plot.suffix!r}", f"Use {', '.join(CHART_SUFFIXES)}."
            )
        if len(outputs) > 1:
            given = {"--ratios": ratios, "--strategies": strategies, "--by": by, "--seed": seed}
            if unused := [name for name, value in given.items() if value]:
                raise SpecError(f"{unused[0]} belongs to the comparison of strategies", "Give one output with it.")
            _compare_several(outputs, rows, plot, as_json=as_json)
            return
        finished, seed = FinishedOutput(outputs[0]), seed or 0
        candidates = [_candidate(name, finished.spec.prune or PruneSpec(), seed) for name in strategies or STRATEGIES]
        columns = read_columns(finished, by)
        comparisons = compare(columns, candidates, ratios or (0.125, 0.25, 0.5))
        label = by or finished.own_columns.get(finished.category_column or "")
        if plot is not None:
            _draw(plot, comparison_chart(columns, comparisons, label))
        if as_json:
            typer.echo(json.dumps(comparison_json(columns, comparisons, label), indent=1))
            return
        console = Console()
        for part in describe_comparison(columns, comparisons, label):
            console.print(part)
        if plot is not None:
            console.print(f"\n[bold]chart[/]  {plot}", highlight=False, soft_wrap=True)


def _candidate(name: str, prune: PruneSpec, seed: int) -> Candidate:
    """Return the strategy NAME, NAME:ORDER or MODULE:FUNCTION. It prunes tokens as the output's job did."""
    from qtune_service.output.compare import Candidate

    strategy, _, rest = name.partition(":")
    common = {**prune.model_dump(), "seed": seed, "quadrant_rule": None, "strategy_order": "highest"}
    if strategy in STRATEGIES and (not rest or rest in ORDERS):
        order = {"strategy_order": rest} if rest else {}
        return Candidate(name, PruneSpec.model_validate({**common, "strategy": strategy, **order}))
    if not rest:
        raise SpecError(
            f"--strategies: {name!r} is not a strategy", f"Use one of {', '.join(STRATEGIES)}, or MODULE:FUNCTION."
        )
    from qtune_service.importing import import_named

    rule: Any = import_named(name, "quadrant rule")
    return Candidate(name, PruneSpec.model_validate({**common, "strategy": "q_tuning"}), rule)


def _compare_several(outputs: list[str], num_rows: int, plot: Path | None, *, as_json: bool) -> None:
    from qtune_service.output.reader import FinishedOutput
    from qtune_service.report.moves import ComparedOutputs, describe_outputs, outputs_chart, outputs_json

    first, *others = (FinishedOutput(output) for output in outputs)
    compared = [ComparedOutputs.of(first, other, num_rows) for other in others]
    if plot is not None:
        _draw(plot, outputs_chart(compared))
    if as_json:
        typer.echo(json.dumps(outputs_json(compared), indent=1))
        return
    console = Console()
    for part in describe_outputs(compared):
        console.print(part, highlight=False)
    if plot is not None:
        console.print(f"\n[bold]chart[/]  {plot}", highlight=False, soft_wrap=True)


def _draw(path: Path, spec: dict[str, Any]) -> None:
    import altair as alt

    chart = alt.Chart.from_dict(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(path, inline=True) if path.suffix == ".html" else chart.save(path, scale_factor=2)


class To(StrEnum):
    """Formats of exports. A test compares them with export/trainers.py."""

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


EXPORT_EXAMPLES = """\
qtune export out data/trl --to trl
qtune export out data/bridge --to megatron-bridge --pack-length 4096
qtune export out --to hub --push ORG/NAME --license apache-2.0"""


@command(app, usage="--to FORMAT [OPTIONS]", examples=EXPORT_EXAMPLES)
def export(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    folder: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="New or empty folder or URI to write to; can be left out with --push."),
    ] = None,
    *,
    to: Annotated[
        To, typer.Option("--to", metavar="FORMAT", help=f"Format: {', '.join(To)}; see docs/guides/exports.md.")
    ],
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
        int,
        typer.Option(
            "--max-samples", metavar="N", min=1, help="Maximum number of scored samples in the files, for analysis."
        ),
    ] = 10_000,
    repository: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Push to this dataset of the hub, private if new. For hub."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new dataset public, for --push.")] = False,
    message: Annotated[
        str | None, typer.Option("--commit-message", metavar="TEXT", help="Message of the commit, for --push.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in DIR, and in the dataset of --push.")
    ] = False,
) -> None:
    """Write the pruned data for a trainer, the hub or an analysis. A trainer gets the files that it reads."""
    with exit_codes():
        from qtune_service.export import push as pushing
        from qtune_service.export import run
        from qtune_service.export.writers import Options

        options = Options(
            rows_per_file=rows_per_file,
            pack_length=pack_length,
            license=license_name,
            repository=repository,
            max_samples=max_samples,
        )
        push = None
        if repository is not None:
            push = pushing.Push(repository, public=public, message=message or "", overwrite=overwrite)
        elif public or message is not None:
            raise SpecError(f"{'--public' if public else '--commit-message'} needs --push", "Add --push ORG/NAME.")
        with pushing.local_folder(folder, push) as written:
            run.check_options(to.value, options)
            if push is not None:
                pushing.check(push)
            done = run.export(output, to.value, written, options, overwrite=overwrite)
            pushed = pushing.upload(push, written) if push is not None else None
        _show(done, pushed)


def _show(done: Exported, pushed: Pushed | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]wrote[/]  {done.num_rows:,} rows, {len(done.files)} files, {done.num_bytes:,} bytes")
    for note in (*done.notes, *(pushed.notes if pushed else ())):
        console.print(f"[yellow]! {note}[/]")
    if pushed is not None:
        visibility = "private" if pushed.is_private else "public"
        console.print(f"[bold]pushed[/] {pushed.url} ({visibility}), commit {pushed.commit[:12]}")
    console.print("[bold]load it[/]")
    console.print(done.usage if pushed is None else done.usage.partition("\n")[2], markup=False)
