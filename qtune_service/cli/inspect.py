"""`qtune inspect`: show an output, or samples of it. `qtune doctor`: check this machine."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console

from qtune_service.cli.commands import command
from qtune_service.cli.console import exit_codes, quiet, show

SELECTION, VIEW = "Which samples", "What to show"
EXAMPLES = """\
qtune inspect out
qtune inspect out --quadrant Q2 --sort=-perplexity --limit 10
qtune inspect out --where "entropy < 0.1" --columns sample_id,entropy --json"""
app = typer.Typer()


@command(app, examples=EXAMPLES)
def inspect(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    sample: Annotated[
        str | None, typer.Option(metavar="ID", help="Everything about one sample.", rich_help_panel=SELECTION)
    ] = None,
    quadrant: Annotated[
        Literal["Q1", "Q2", "Q3", "Q4"] | None,
        typer.Option(metavar="Q1|Q2|Q3|Q4", help="Samples of a quadrant.", rich_help_panel=SELECTION),
    ] = None,
    kept: Annotated[
        bool | None,
        typer.Option("--kept/--dropped", help="Samples that are trained on, or not.", rich_help_panel=SELECTION),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Samples that meet a condition on any column.", rich_help_panel=SELECTION),
    ] = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Records that could not be used.", rich_help_panel=SELECTION)
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="borderline, typical, perplexity, entropy, length, or any column; after a minus sign, highest first.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Maximum number of samples to show; 0 shows all. [default: 5 samples, 20 rows]",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Show these columns in a table.", rich_help_panel=VIEW)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Count the quadrants of each value of a column.", rich_help_panel=VIEW),
    ] = None,
    list_columns: Annotated[
        bool, typer.Option("--list-columns", help="List the columns.", rich_help_panel=VIEW)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a JSON object per line; without a selection, the manifest.", rich_help_panel=VIEW
        ),
    ] = False,
) -> None:
    """Show what a job found and kept, or samples of it. Samples are chosen by quadrant, order and SQL."""
    with exit_codes():
        from qtune_service.cli.inspect_views import Request, show_samples
        from qtune_service.output.layout import Output

        request = Request(
            sample=sample,
            quadrant=quadrant,
            kept=kept,
            where=where,
            rejected=rejected,
            sort=sort,
            limit=limit,
            columns=columns,
            by=by,
            list_columns=list_columns,
            as_json=as_json,
        )
        request.check()
        manifest = Output(output).require_manifest()
        if not request.is_of_manifest:
            show_samples(output, request)
        elif as_json:
            typer.echo(json.dumps(manifest, indent=1))
        else:
            show(manifest, output)


@command(app)
def doctor() -> None:
    """Check what this machine can do, and say what to fix."""
    with exit_codes():
        from qtune_service.doctor import examine

        console = Console()
        with quiet() as _:
            findings, healthy = examine()
        console.print(findings)
        if not healthy:
            raise typer.Exit(4)
