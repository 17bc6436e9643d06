"""`qtune jobs import`: jobs for a lost database, from their outputs. It works on the database, as `qtune token`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qtune_service.cli.console import exit_codes
from qtune_service.errors import DataError

if TYPE_CHECKING:
    from qtune_service.server.jobs.rebuild import Rebuilt

STOPPED = "stopped. What was taken in stays: run the same command again."


def import_jobs(
    places: Annotated[
        list[str] | None, typer.Argument(help="Folders or URIs that hold outputs. [default: the server's own]")
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="Whose the jobs are: a token's name.")] = "imported",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the server. [QTUNE_DATA_ROOT]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an output.")] = False,
) -> None:
    """On the server: make jobs again from their outputs, after its database was lost. Twice does no harm."""
    with exit_codes(STOPPED):
        fates: Counter[str] = Counter()
        for found in _rebuilt(places, owner, data_root):
            fates[found.fate] += 1
            _tell(found, as_json=as_json)
        known = f"{fates['known']} known before, " if fates["known"] else ""
        Console(stderr=True).print(
            f"{fates['imported']} imported, {known}{fates['refused']} not usable", highlight=False
        )
        if fates["refused"]:
            raise DataError(f"{fates['refused']} outputs could not be used", "The lines above say why.")


def _rebuilt(places: list[str] | None, owner: str, data_root: Path | None) -> Iterator[Rebuilt]:
    from qtune_service.server.jobs.database import open_database, upgrade
    from qtune_service.server.jobs.permissions import keep_private
    from qtune_service.server.jobs.rebuild import Rebuilder
    from qtune_service.server.owner_policy import owner_policy
    from qtune_service.server.settings import load_settings

    settings = load_settings(data_root=data_root)
    keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
    database = open_database(settings.database)
    upgrade(database)
    policy = owner_policy(settings)
    rebuilder = Rebuilder(database, policy, settings.launcher, owner, settings.datasets)
    for place in places or [settings.outputs]:
        yield from rebuilder.run(place)


def _tell(found: Rebuilt, *, as_json: bool) -> None:
    from qtune_service.report.tokens import visible_text

    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    what = f"{found.job_id}  {found.status:9}" if found.job_id else "-"
    typer.echo(visible_text(f"{found.fate:8}  {what}  {found.output}{'  ' if found.why else ''}{found.why}"))
