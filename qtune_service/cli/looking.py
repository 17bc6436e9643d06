"""Commands that look: `qtune inspect` at an output, `qtune doctor` at the machine."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes, quiet, show

SELECTION, VIEW = "Which samples", "What of them"


def inspect(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    sample: Annotated[
        str | None, typer.Option(metavar="ID", help="All about one sample.", rich_help_panel=SELECTION)
    ] = None,
    quadrant: Annotated[
        Literal["Q1", "Q2", "Q3", "Q4"] | None, typer.Option(help="Samples of a quadrant.", rich_help_panel=SELECTION)
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
            help="borderline, typical, perplexity, entropy, length, or any column; with - before it, highest first.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="How many; 0: all. Default: 5 samples, 20 rows.", rich_help_panel=SELECTION),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="These columns, in a table.", rich_help_panel=VIEW)
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Quadrants of each of its values.", rich_help_panel=VIEW)
    ] = None,
    list_columns: Annotated[
        bool, typer.Option("--list-columns", help="What columns there are.", rich_help_panel=VIEW)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line; without a selection, the manifest.")
    ] = False,
) -> None:
    """Show what a job found and kept; or samples of it, chosen by quadrant, order and SQL."""
    with exit_codes():
        from qtune_service.cli.inspect import Request, answer
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
            answer(output, request)
        elif as_json:
            typer.echo(json.dumps(manifest, indent=1))
        else:
            show(manifest, output)


def doctor() -> None:
    """Say what this machine can do, and what to fix."""
    with exit_codes():
        from qtune_service.doctor import examine

        console = Console()
        with quiet() as _:
            findings, healthy = examine()
        console.print(findings)
        if not healthy:
            raise typer.Exit(4)
