"""`qtune jobs import`: recreate the jobs of a lost database from their outputs. It works on the database itself."""

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
from qtune_service.cli.serve import RootOpt
from qtune_service.errors import DataError

if TYPE_CHECKING:
    from qtune_service.jobs.rebuild import Rebuilt

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
    """On the server, recreate jobs from their outputs after its database was lost. It is safe to repeat."""
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
    from qtune_service.jobs.database import open_database, upgrade
    from qtune_service.jobs.permissions import keep_private
    from qtune_service.jobs.rebuild import Rebuilder
    from qtune_service.settings import load_settings
    from qtune_service.web.owner_policy import owner_policy

    settings = load_settings(data_root=data_root)
    keep_private(settings.data_root, settings.database, may_be_shared=settings.shared_data_root)
    database = open_database(settings.database)
    upgrade(database)
    policy = owner_policy(settings)
    rebuilder = Rebuilder(database, policy, settings.launcher, owner, settings.datasets)
    for place in places or [settings.outputs]:
        yield from rebuilder.run(place)


def _print(found: Rebuilt, *, as_json: bool) -> None:
    from qtune_service.report.tokens import visible_text

    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    what = f"{found.job_id}  {found.status:9}" if found.job_id else "-"
    typer.echo(visible_text(f"{found.fate:8}  {what}  {found.output}{'  ' if found.why else ''}{found.why}"))
