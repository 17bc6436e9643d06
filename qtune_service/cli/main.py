"""The `qtune` command: its list of commands. A command's module is imported when the command is used.

So `qtune --help` starts quickly: it imports typer alone. A test compares each line of the list with the help text of
its command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import typer

from qtune_service import __version__
from qtune_service.cli.commands import CONTEXT, LazyCommand, LazyGroup

PREPARE, PRUNE, RESULT, SERVER, SERVICE = (
    "Before a job",
    "Run a job on this machine or cluster",
    "Use the result",
    "Use a server",
    "Run a server",
)


def _at(module: str, summary: str, section: str, group: str = "") -> LazyCommand:
    return LazyCommand(f"qtune_service.cli.{module}", summary, section, group)


class Commands(LazyGroup):
    """All commands, in the order of their use."""

    lazy: ClassVar[Mapping[str, LazyCommand]] = {
        "preview": _at("preview", "Show the first samples as the model will see them.", PREPARE),
        "estimate": _at("estimate", "Estimate time, cost, disk and memory of a job.", PREPARE),
        "doctor": _at("inspect", "Check what this machine can do, and say what to fix.", PREPARE),
        "prune": _at("prune", "Score a dataset, find the thresholds, and write the pruned dataset.", PRUNE),
        "score": _at("prune", "Score a dataset without pruning it.", PRUNE),
        "run": _at("prune", "Run a job file.", PRUNE),
        "inspect": _at("inspect", "Show what a job found and kept, or samples of it.", RESULT),
        "compare": _at("compare_export", "Compare what strategies would keep, or outputs of the same data.", RESULT),
        "export": _at("compare_export", "Write the pruned data for a trainer, the hub or an analysis.", RESULT),
        "jobs": _at("server_jobs", "Submit, follow and download jobs of a server.", SERVER, "jobs_app"),
        "datasets": _at("server_jobs", "Upload, list and delete datasets of a server.", SERVER, "datasets_app"),
        "serve": _at("serve", "Start the service.", SERVICE),
        "migrate": _at("serve", "Upgrade the database of the service to this version's schema.", SERVICE),
        "token": _at("serve", "Create, list and revoke API tokens of the service.", SERVICE, "token_app"),
    }


app = typer.Typer(
    name="qtune",
    cls=Commands,
    help="Prune fine-tuning data with Q-Tuning: exact perplexity and entropy by vLLM, under Ray Data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


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
    """Run the console script."""
    app(prog_name="qtune")
