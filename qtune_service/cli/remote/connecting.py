"""What commands that ask a server share: which one, with which token, and how errors end.

There is no flag for the token itself: arguments are seen by every user of the machine, and kept by the shell.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qtune_service.cli.running import exit_codes
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.client import Client

SERVER = "Server"
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="Its id.")]
UrlOpt = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The server. [QTUNE_URL, or the profile's, or http://127.0.0.1:8420]",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
TokenFileOpt = Annotated[
    Path | None,
    typer.Option("--token-file", help="File that holds an API token. [QTUNE_TOKEN]", rich_help_panel=SERVER),
]
ProfileOpt = Annotated[
    str | None, typer.Option("--profile", help="Server and token by a name of `login`.", rich_help_panel=SERVER)
]
PlainHttpOpt = Annotated[
    bool,
    typer.Option(
        "--plain-http",
        help="Let the token go to another machine without TLS.",
        rich_help_panel=SERVER,
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="For programs: one JSON object a line.")]


@contextlib.contextmanager
def remote(
    url: str | None,
    token_file: Path | None,
    profile: str | None,
    plain_http: bool,
    *,
    interrupted: str = "stopped.",
) -> Iterator[Client]:
    """A client, and errors as exit codes."""
    with exit_codes(interrupted):
        import stamina.instrumentation

        from qtune_service.client import Client

        stamina.instrumentation.set_on_retry_hooks([])  # that a request is sent again is no news for people
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            client = Client(url, read_token(token_file), profile=profile, plain_http=plain_http)
        for warning in told:
            say(f"! {warning.message}")
        with client:
            yield client


def read_token(path: Path | None) -> str | None:
    """The token in a file. Raises SpecError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--token-file {path} cannot be read: {error}", "It holds the token alone.") from error


def say(text: str) -> None:
    """A line for people, beside what a program may read from standard output."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
