"""The `qtune` command: a module for each kind of command, and one for what they share.

Heavy libraries are imported by the commands that need them, so that `qtune --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from qtune_service import __version__
from qtune_service.cli import compare_export, inspect, preview_estimate, prune, serve
from qtune_service.cli.server_jobs import datasets_app, jobs_app

app = typer.Typer(
    name="qtune",
    help="Prune fine-tuning data with Q-Tuning: exact perplexity and entropy by vLLM, under Ray Data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    preview_estimate.preview,
    preview_estimate.estimate,
    prune.prune,
    prune.score,
    prune.run,
    inspect.inspect,
    compare_export.export,
    inspect.doctor,
):
    app.command()(command)
app.command("compare", cls=compare_export.ListsOfValues)(compare_export.compare_outputs)
app.command()(serve.serve)
app.command()(serve.migrate)
app.add_typer(serve.token_app, name="token")
jobs_app.command("import")(serve.import_jobs)  # the one of them that works on the server's database
app.add_typer(jobs_app, name="jobs")
app.add_typer(datasets_app, name="datasets")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"qtune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="qtune")
