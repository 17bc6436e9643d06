"""Shared by all commands: errors become a message and an exit code, and libraries log to a file.

Exit codes: 0 done, 2 usage (wrong flags, spec or output), 3 data, 4 runtime, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from qtune_service.errors import QTuneError

INTERRUPTED, TERMINATED = 130, 143
CONTINUE = "stopped. Finished shards are safe: run the same command again to continue."


@contextlib.contextmanager
def exit_codes(interrupted: str = CONTINUE) -> Iterator[None]:
    """Turn errors into one message and an exit code. interrupted: the message after Ctrl-C."""
    console = Console(stderr=True)
    try:
        yield
    except QTuneError as error:
        console.print(f"[bold red]error:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(_plain(error.hint), highlight=False, soft_wrap=True)
        _exit_if_cluster_lost(error.exit_code)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        console.print(interrupted, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except SystemExit as leaving:
        if leaving.code == TERMINATED:
            console.print(
                "terminated. Finished shards are safe: run the same command again to continue.", soft_wrap=True
            )
        raise


def _exit_if_cluster_lost(exit_code: int) -> None:
    """Exit immediately if the Ray cluster is gone: Ray's own shutdown would wait for its head node."""
    cluster = sys.modules.get("qtune_service.pipeline.ray_connection")
    if cluster is not None and cluster.is_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _plain(text: str) -> str:
    """Return a message without markup and control codes, as messages may quote data."""
    from rich.markup import escape

    from qtune_service.report.token_view import visible_text

    return escape(visible_text(text))


def show(manifest: dict[str, Any], output: str) -> None:
    """Print the result of a finished job."""
    from qtune_service.report.terminal import describe_job

    console = Console()
    console.print(describe_job(manifest))
    console.print(f"[bold]output[/]  {output}", highlight=False, soft_wrap=True)
    if manifest.get("thresholds"):
        console.print(f"[bold]report[/]  {output.rstrip('/')}/report.html", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def quiet() -> Iterator[Console]:
    """Send the output of libraries to a log file, QTUNE_LOG if that is set."""
    from qtune_service.logs import quiet_libraries

    log = Path(os.environ.get("QTUNE_LOG") or Path(tempfile.gettempdir()) / f"qtune-{os.getpid()}.log")
    with quiet_libraries(log) as console:
        yield console
