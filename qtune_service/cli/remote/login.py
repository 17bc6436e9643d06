"""`qtune jobs login`: store a server's address and a token in the user's own config file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qtune_service.cli.console import exit_codes
from qtune_service.cli.remote.connection import PlainHttpOpt, TokenFileOpt, read_token, say


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
    """Return the token, typed without echo or piped; None for an empty one, as some servers need no token."""
    if sys.stdin.isatty():
        text: str = typer.prompt(
            "API token (empty for none)", default="", hide_input=True, show_default=False, err=True
        )
    else:
        text = sys.stdin.read()
    return text.strip() or None
