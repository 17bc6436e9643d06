"""`qtune serve`: start the service. `qtune migrate`: upgrade its database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes
from qtune_service.cli.help import command

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
    """Start the service. Its other settings are environment variables, QTUNE_...; see docs/service.md."""
    with exit_codes():
        from qtune_service.jobs.permissions import keep_private
        from qtune_service.settings import load_settings
        from qtune_service.web.app import create_app
        from qtune_service.web.observing import write_logs
        from qtune_service.web.serving import serve as serve_http

        settings = load_settings(data_root=data_root, host=host, port=port, insecure=insecure)
        write_logs()
        keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
        app = create_app(settings)
        Console(stderr=True).print(f"serving on http://{settings.host}:{settings.port}", highlight=False)
        serve_http(app, settings)


@command(app)
def migrate(data_root: RootOpt = None) -> None:
    """Upgrade the database of the service to this version's schema. It is safe to run several at the same time."""
    from qtune_service.jobs.database import head, open_database, revision, upgrade
    from qtune_service.jobs.permissions import keep_private
    from qtune_service.settings import load_settings

    with exit_codes():
        settings = load_settings(data_root=data_root)
        keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
        database = open_database(settings.database)
        before = revision(database)
        upgrade(database)
        typer.echo(f"schema {head()}" + (", as before" if before == head() else f", was {before or 'none'}"))
