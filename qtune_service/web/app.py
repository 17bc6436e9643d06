"""The application: routes, errors, and the round that starts and follows jobs, in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping

from fastapi import APIRouter, FastAPI
from sqlalchemy import text

from qtune_service import __version__
from qtune_service.errors import QTuneError, SettingsError
from qtune_service.jobs.access import TokenStore
from qtune_service.jobs.database import open_database, reading, upgrade
from qtune_service.jobs.launch import Launcher
from qtune_service.jobs.policy import Policy
from qtune_service.jobs.service import JobService
from qtune_service.jobs.store import JobStore
from qtune_service.settings import Settings
from qtune_service.web import job_routes, output_routes, problems
from qtune_service.web.deps import Server, TheServer
from qtune_service.web.launchers import make_launchers

ROUND_EVERY_S = 0.5
_log = logging.getLogger(__name__)


def create_app(settings: Settings, launchers: Mapping[str, Launcher] | None = None) -> FastAPI:
    """A server; by default with the launchers that there are. Raises SettingsError and DatabaseError."""
    app = FastAPI(
        title="Q-Tuning service",
        version=__version__,
        summary="Prune fine-tuning data by exact perplexity and predictive entropy.",
        lifespan=_life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.state.server = make_server(settings, launchers)
    problems.install(app)
    api = APIRouter(prefix="/api/v1")
    api.include_router(job_routes.router)
    api.include_router(output_routes.router)
    app.include_router(api)
    app.include_router(_operations())
    return app


def make_server(settings: Settings, launchers: Mapping[str, Launcher] | None = None) -> Server:
    """Its parts."""
    database = open_database(settings.database)
    upgrade(database)
    tokens = TokenStore(database)
    if settings.needs_tokens and not any(token.is_valid for token in tokens.all()):
        raise SettingsError(
            f"{settings.host} can be reached by others, and there is no API token",
            "Make one: qtune token create --name NAME --scope admin. Or, at your own risk: --insecure.",
        )
    root = str(settings.data_root)
    launchers = launchers or make_launchers(settings)
    return Server(
        settings=settings,
        database=database,
        jobs=JobService(JobStore(database), launchers, settings.max_running_jobs),
        tokens=tokens,
        policy=Policy(
            inputs=settings.allowed_inputs,
            outputs=tuple(dict.fromkeys((settings.outputs, f"{root}/outputs", *settings.allowed_outputs))),
            models=settings.allowed_models,
            remote_code=settings.allow_remote_code,
        ),
    )


@contextlib.asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    """Go round while the server runs. Drivers go on when it ends."""
    server: Server = app.state.server
    ended = threading.Event()
    thread = threading.Thread(target=_go_round, args=(server.jobs, ended), name="jobs", daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()
    server.database.dispose()


def _go_round(jobs: JobService, ended: threading.Event) -> None:
    while not ended.wait(ROUND_EVERY_S):
        try:
            jobs.tick()
        except QTuneError as error:  # a database that is away comes back, or somebody is told by /readyz
            _log.error("jobs are not followed now: %s", error)


def _operations() -> APIRouter:
    """Probes."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", responses={503: {"model": problems.Problem}})
    def readyz(server: TheServer) -> dict[str, str]:
        """Whether the database does, too."""
        with reading(server.database) as connection:
            connection.execute(text("SELECT 1"))
        return {"status": "ok"}

    return router
