"""What commands that ask a server share: which one, with which token, and how errors end.

There is no flag for the token itself: arguments are seen by every user of the machine, and kept by the shell.

Uploads and downloads with a bar, where there is a terminal.

`qtune jobs login`: keep a server's address and a token in the user's own config file.
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

from qtune_service.cli.console import exit_codes
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.client import Client, Transfer
    from qtune_service.client.transfer import Watcher

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


@dataclass(frozen=True, slots=True)
class Server:
    """What the options say of the server to ask."""

    url: str | None
    token_file: Path | None
    profile: str | None
    plain_http: bool


_OPTIONS = {"url": UrlOpt, "token_file": TokenFileOpt, "profile": ProfileOpt, "plain_http": PlainHttpOpt}


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which server, in place of its first parameter, a `Server`."""
    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = [
        inspect.Parameter(name, kind, default=False if name == "plain_http" else None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        server = Server(**{name: given.pop(name) for name in _OPTIONS})
        command(server, **given)

    parameters = [*list(signature.parameters.values())[1:], *options]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextlib.contextmanager
def remote(server: Server, *, interrupted: str = "stopped.") -> Iterator[Client]:
    """A client, and errors as exit codes."""
    with exit_codes(interrupted):
        import stamina.instrumentation

        from qtune_service.client import Client

        stamina.instrumentation.set_on_retry_hooks([])  # that a request is sent again is no news for people
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            client = Client(
                server.url, read_token(server.token_file), profile=server.profile, plain_http=server.plain_http
            )
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


@contextlib.contextmanager
def bar(name: str) -> Iterator[Watcher]:
    """A bar on standard error; nothing is drawn where that is no terminal."""
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
    """Send files to the server: their URIs."""
    uris = []
    for file in files:
        with bar(file.name) as watcher:
            uris.append(client.upload(file, watcher=watcher).uri)
    return uris


def login(
    url: Annotated[str, typer.Argument(help="The server, as https://qtune.example.org.")],
    name: Annotated[str, typer.Option("--name", help="What to call it: --profile NAME.")] = "default",
    token_file: TokenFileOpt = None,
    plain_http: PlainHttpOpt = False,
) -> None:
    """Keep a server and a token in ~/.config/qtune/config.toml, which only you can read, and make it the default.

    The token is asked for, or read from standard input or a file; nothing is kept unless the server takes it.
    """
    with exit_codes(interrupted="stopped; nothing is kept."):
        from qtune_service.client import Client
        from qtune_service.client.profiles import Profile, config_path, save_profile

        token = read_token(token_file) or _asked()
        with Client(url, token, plain_http=plain_http) as client:
            next(client.list(), None)
            kept = Profile(url=client.url, token=token, plain_http=plain_http)
        save_profile(name, kept, Path(config_path()))
        say(f"kept as {name!r} in {config_path()}; commands without --url and --profile now ask {kept.url}")


def _asked() -> str | None:
    """Typed unseen, or from a pipe; None where nothing is given: some servers need no token."""
    if sys.stdin.isatty():
        text: str = typer.prompt(
            "API token (empty for none)", default="", hide_input=True, show_default=False, err=True
        )
    else:
        text = sys.stdin.read()
    return text.strip() or None
