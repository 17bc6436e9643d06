"""`qtune jobs login`: keep a server's address and a token in the user's own config file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qtune_service.cli.console import exit_codes
from qtune_service.cli.server_connection import PlainHttpOpt, TokenFileOpt, read_token, say


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
