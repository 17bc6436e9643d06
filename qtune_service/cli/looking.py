"""Commands that look: `qtune inspect` at an output, `qtune doctor` at the machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.running import exit_codes, quiet, show


def inspect(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Show what a job found and kept."""
    with exit_codes():
        from qtune_service.outputs.folder import Output

        manifest = Output(output).require_manifest()
        if as_json:
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
