"""`qtune token`: API tokens of the service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.console import exit_codes
from qtune_service.cli.help import Group, command
from qtune_service.cli.serve import RootOpt
from qtune_service.errors import SpecError

if TYPE_CHECKING:
    from qtune_service.jobs.access import TokenStore

app = typer.Typer(cls=Group, help="Create, list and revoke API tokens of the service.", no_args_is_help=True)


@command(app, "create")
def create_token(
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of its owner.")],
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="read, submit or admin.")] = "submit",
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Days, such as 30d, or a date, such as 2027-01-31. [default: never]"),
    ] = None,
    data_root: RootOpt = None,
) -> None:
    """Create a token. It is shown once."""
    from qtune_service.jobs.access import Scope

    with exit_codes():
        if scope not in list(Scope):
            raise SpecError(f"--scope: {scope!r} is not a scope", f"Use one of {', '.join(Scope)}.")
        _, text = _tokens(data_root).create(name, Scope(scope), _expiry(expires))
        typer.echo(text)
        Console(stderr=True).print("Keep it: it is not shown again.")


@command(app, "list")
def list_tokens(data_root: RootOpt = None) -> None:
    """Show all tokens, without their secrets."""
    with exit_codes():
        table = Table(box=None, pad_edge=False)
        for column in ("name", "scope", "created", "expires", "last used", ""):
            table.add_column(column)
        for token in _tokens(data_root).all():
            times = (token.created_at, token.expires_at, token.last_used_at)
            shown = ["-" if time is None else f"{time:%Y-%m-%d %H:%M}" for time in times]
            table.add_row(token.name, token.scope, *shown, "" if token.is_valid else "not valid")
        Console().print(table)


@command(app, "revoke")
def revoke_token(name: Annotated[str, typer.Argument(help="Name of the token.")], data_root: RootOpt = None) -> None:
    """Revoke a token: it no longer gives access."""
    with exit_codes():
        _tokens(data_root).revoke(name)
        typer.echo(f"revoked {name}")


def _tokens(data_root: Path | None) -> TokenStore:
    from qtune_service.jobs.access import TokenStore
    from qtune_service.jobs.database import open_database, prepare
    from qtune_service.jobs.permissions import keep_private
    from qtune_service.settings import load_settings

    settings = load_settings(data_root=data_root)
    keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
    database = open_database(settings.database)
    prepare(database, may_upgrade=settings.migrate_at_start)
    return TokenStore(database)


def _expiry(text: str | None) -> datetime | None:
    """Return the time of `30d` or of a date. Raises SpecError."""
    if text is None:
        return None
    try:
        in_days = text.endswith("d")
        found = datetime.now(UTC) + timedelta(days=int(text[:-1])) if in_days else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise SpecError(
            f"--expires: {text!r} is not a time", "Give days, such as 30d, or a date, such as 2027-01-31."
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
