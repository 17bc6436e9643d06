"""`qtune doctor`: check this machine."""

from __future__ import annotations

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes, quiet
from qtune_service.cli.help import command

app = typer.Typer()


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
