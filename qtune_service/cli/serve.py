"""`qtune serve`: start the service. `migrate`, `token` and `jobs import`: work on its database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qtune_service.cli.commands import Group, command
from qtune_service.cli.console import exit_codes
from qtune_service.errors import DataError, SpecError

if TYPE_CHECKING:
    from qtune_service.server.jobs.access import TokenStore
    from qtune_service.server.jobs.rebuild import Rebuilt


app = typer.Typer()
RootOpt = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="Folder of the server. [env: QTUNE_DATA_ROOT]")
]
SERVE_EXAMPLES = """\
qtune serve
qtune serve --data-root /srv/qtune --host 0.0.0.0 --port 8420
QTUNE_ALLOWED_MODELS='["org/*"]' qtune serve"""


@command(app, examples=SERVE_EXAMPLES)
def serve(
    data_root: RootOpt = None,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Address to listen on. [env: QTUNE_HOST] [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port to listen on. [env: QTUNE_PORT] [default: 8420]")
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Admit everybody who reaches the address. [env: QTUNE_INSECURE]"),
    ] = None,
) -> None:
    """Start the service. Its other settings are environment variables: docs/reference/settings.md."""
    with exit_codes():
        from qtune_service.server.app import create_app
        from qtune_service.server.http_server import serve as serve_http
        from qtune_service.server.middleware import write_logs
        from qtune_service.server.permissions import keep_private
        from qtune_service.server.settings import load_settings

        settings = load_settings(data_root=data_root, host=host, port=port, insecure=insecure)
        write_logs()
        keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
        app = create_app(settings)
        Console(stderr=True).print(f"serving on http://{settings.host}:{settings.port}", highlight=False)
        serve_http(app, settings)


@command(app)
def migrate(data_root: RootOpt = None) -> None:
    """Upgrade the database of the service to this version's schema. It is safe to run several at the same time."""
    from qtune_service.server.jobs.database import head, open_database, revision, upgrade
    from qtune_service.server.permissions import keep_private
    from qtune_service.server.settings import load_settings

    with exit_codes():
        settings = load_settings(data_root=data_root)
        keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
        database = open_database(settings.database)
        before = revision(database)
        upgrade(database)
        typer.echo(f"schema {head()}" + (", as before" if before == head() else f", was {before or 'none'}"))


token_app = typer.Typer(cls=Group, help="Create, list and revoke API tokens of the service.", no_args_is_help=True)


@command(token_app, "create")
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
    from qtune_service.server.jobs.access import Scope

    with exit_codes():
        if scope not in list(Scope):
            raise SpecError(f"--scope: {scope!r} is not a scope", f"Use one of {', '.join(Scope)}.")
        _, text = _tokens(data_root).create(name, Scope(scope), _expiry(expires))
        typer.echo(text)
        Console(stderr=True).print("Keep it: it is not shown again.")


@command(token_app, "list")
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


@command(token_app, "revoke")
def revoke_token(name: Annotated[str, typer.Argument(help="Name of the token.")], data_root: RootOpt = None) -> None:
    """Revoke a token: it no longer gives access."""
    with exit_codes():
        _tokens(data_root).revoke(name)
        typer.echo(f"revoked {name}")


def _tokens(data_root: Path | None) -> TokenStore:
    from qtune_service.server.jobs.access import TokenStore
    from qtune_service.server.jobs.database import open_database, prepare
    from qtune_service.server.permissions import keep_private
    from qtune_service.server.settings import load_settings

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


STOPPED = "stopped. Imported jobs are kept: run the same command again to continue."


def import_jobs(
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="PLACE...", help="Folders or URIs that hold outputs. [default: the server's own]"),
    ] = None,
    owner: Annotated[
        str, typer.Option("--owner", metavar="NAME", help="Owner of the jobs: a token's name.")
    ] = "imported",
    data_root: RootOpt = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per output.")] = False,
) -> None:
    """Recreate the jobs of a lost database from their outputs, on the server itself. It is safe to repeat."""
    with exit_codes(STOPPED):
        fates: Counter[str] = Counter()
        for found in _rebuilt(places, owner, data_root):
            fates[found.fate] += 1
            _print(found, as_json=as_json)
        known = f"{fates['known']} already known, " if fates["known"] else ""
        Console(stderr=True).print(
            f"{fates['imported']} imported, {known}{fates['refused']} not usable", highlight=False
        )
        if fates["refused"]:
            raise DataError(f"{fates['refused']} outputs could not be used", "The lines above say why.")


def _rebuilt(places: list[str] | None, owner: str, data_root: Path | None) -> Iterator[Rebuilt]:
    from qtune_service.server.dependencies import policy_of
    from qtune_service.server.jobs.database import open_database, upgrade
    from qtune_service.server.jobs.rebuild import Rebuilder
    from qtune_service.server.permissions import keep_private
    from qtune_service.server.settings import load_settings

    settings = load_settings(data_root=data_root)
    keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
    database = open_database(settings.database)
    upgrade(database)
    policy = policy_of(settings)
    rebuilder = Rebuilder(database, policy, settings.launcher, owner, settings.datasets)
    for place in places or [settings.outputs]:
        yield from rebuilder.run(place)


def _print(found: Rebuilt, *, as_json: bool) -> None:
    from qtune_service.report.token_view import visible_text

    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    what = f"{found.job_id}  {found.status:9}" if found.job_id else "-"
    typer.echo(visible_text(f"{found.fate:8}  {what}  {found.output}{'  ' if found.why else ''}{found.why}"))
