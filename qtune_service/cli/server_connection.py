"""Connect commands to a server: its options, the client, transfers with a progress bar, and `login`.

There is no flag for the token itself: every user of the machine sees arguments, and the shell stores them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qtune_service.cli.commands import replace_parameter
from qtune_service.cli.console import exit_codes
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.client import Client, Transfer
    from qtune_service.client.transfer import Watcher


SERVER = "Server"
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
UrlOpt = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server. By default QTUNE_URL, else the profile's, else http://127.0.0.1:8420.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
TokenFileOpt = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File that holds an API token. By default QTUNE_TOKEN.",
        rich_help_panel=SERVER,
    ),
]
ProfileOpt = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Server and token of a name given to `qtune jobs login`.",
        rich_help_panel=SERVER,
    ),
]
PlainHttpOpt = Annotated[
    bool,
    typer.Option(
        "--plain-http",
        help="Send the token to another machine without TLS.",
        rich_help_panel=SERVER,
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")]


@dataclass(frozen=True, slots=True)
class Server:
    """The server to ask."""

    url: str | None
    token_file: Path | None
    profile: str | None
    plain_http: bool


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "url": (UrlOpt, None),
    "token_file": (TokenFileOpt, None),
    "profile": (ProfileOpt, None),
    "plain_http": (PlainHttpOpt, False),
}


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which server to ask, in place of its parameter `server`."""
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        server = Server(**{name: given.pop(name) for name in _OPTIONS})
        command(server=server, **given)

    replace_parameter(run, inspect.signature(command, eval_str=True), "server", options)
    return run


@contextlib.contextmanager
def remote(server: Server, *, interrupted: str = "stopped.") -> Iterator[Client]:
    """Yield a client, and turn errors into exit codes."""
    with exit_codes(interrupted):
        import stamina.instrumentation

        from qtune_service.client import Client

        stamina.instrumentation.set_on_retry_hooks([])  # do not print retries
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = Client(
                server.url, read_token(server.token_file), profile=server.profile, plain_http=server.plain_http
            )
        for warning in caught:
            say(f"! {warning.message}")
        with client:
            yield client


def read_token(path: Path | None) -> str | None:
    """Return the token in a file. Raises SpecError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"--token-file {path} cannot be read: {error}", "The file holds the token and nothing else."
        ) from error


def say(text: str) -> None:
    """Print a line for people on standard error. Programs read standard output."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bar(name: str) -> Iterator[Watcher]:
    """Yield a watcher that draws a bar on standard error, if that is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def show(transfer: Transfer) -> None:
            progress.update(task, total=transfer.bytes_total, completed=transfer.bytes_done)

        yield show


def upload_all(client: Client, files: Sequence[Path]) -> list[str]:
    """Send files to the server and return their URIs."""
    uris = []
    for file in files:
        with bar(file.name) as watcher:
            uris.append(client.upload(file, watcher=watcher).uri)
    return uris


def login(
    url: Annotated[str, typer.Argument(help="The server, such as https://qtune.example.org.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the profile, for --profile NAME.")
    ] = "default",
    token_file: TokenFileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Store a server and a token in ~/.config/qtune/config.toml, which only you can read, and make it the default.

    The token is typed, or read from standard input or a file. It is stored only if the server accepts it.
    """
    with exit_codes(interrupted="stopped; nothing is stored."):
        from qtune_service.client import Client
        from qtune_service.client.profiles import Profile, config_path, save_profile

        token = read_token(token_file) or _typed()
        with Client(url, token, plain_http=plain_http) as client:
            next(client.list(), None)
            stored = Profile(url=client.url, token=token, plain_http=plain_http)
        save_profile(name, stored, Path(config_path()))
        say(f"stored as {name!r} in {config_path()}; commands without --url and --profile now ask {stored.url}")


def _typed() -> str | None:
    """Return the token, typed without echo or piped. None for an empty one, as some servers need no token."""
    if sys.stdin.isatty():
        text: str = typer.prompt(
            "API token (empty for none)", default="", hide_input=True, show_default=False, err=True
        )
    else:
        text = sys.stdin.read()
    return text.strip() or None
