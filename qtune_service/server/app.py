"""Build the FastAPI application: routes, pages, errors, and the thread that starts and monitors jobs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import quote

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import Engine

from qtune_service import __version__
from qtune_service.errors import QTuneError, SettingsError
from qtune_service.server import errors, openapi
from qtune_service.server.auth import OwnOrigin, Sessions
from qtune_service.server.dependencies import Reader, Server, SignInNeededError, TheServer, policy_of
from qtune_service.server.events import Changes
from qtune_service.server.jobs.access import TokenStore
from qtune_service.server.jobs.database import open_database, prepare
from qtune_service.server.jobs.datasets import DatasetStore
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.jobs.uploads import Datasets, UploadSlots
from qtune_service.server.launchers.base import Launcher
from qtune_service.server.launchers.configured import make_launchers
from qtune_service.server.metrics import Metrics, Readiness
from qtune_service.server.middleware import BodyLimit, Observed, SecurityHeaders
from qtune_service.server.questions.client import Questions
from qtune_service.server.routes import datasets, jobs, outputs, pages, sessions
from qtune_service.server.settings import Settings
from qtune_service.wire import Problem

ROUND_EVERY_S = 0.5
MAX_PREVIEWS = 2
_log = logging.getLogger(__name__)


def create_app(settings: Settings, launchers: Mapping[str, Launcher] | None = None) -> FastAPI:
    """Build the application, by default with all configured launchers. Raises SettingsError and DatabaseError."""
    app = FastAPI(
        title="Q-Tuning service",
        version=__version__,
        summary="Prune fine-tuning data by exact perplexity and predictive entropy.",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.server = server = make_server(settings, launchers)
    errors.install(app)
    openapi.install(app)
    app.add_exception_handler(SignInNeededError, _sign_in)
    for layer, given in (  # the last one is the outermost
        (BodyLimit, {}),
        (OwnOrigin, {"settings": settings}),
        (Observed, {"note": server.metrics.note_request}),
        (SecurityHeaders, {}),
    ):
        app.add_middleware(layer, **given)
    api = APIRouter(prefix="/api/v1")
    api.include_router(sessions.router)
    api.include_router(sessions.server_router)
    api.include_router(jobs.router)
    api.include_router(jobs.log_router)
    api.include_router(outputs.router)
    api.include_router(outputs.plane_router)
    api.include_router(outputs.compare_router)
    api.include_router(datasets.router)
    api.include_router(datasets.preview_router)
    app.include_router(api)
    app.include_router(_operations())
    pages.install(app)
    return app


def _sign_in(_request: Request, error: Exception) -> Response:
    """Redirect to the sign-in page, which returns to the requested page."""
    back = error.back if isinstance(error, SignInNeededError) else "/"
    return RedirectResponse(f"/sign-in?next={quote(back, safe='/')}", status_code=303)


def make_server(settings: Settings, launchers: Mapping[str, Launcher] | None = None) -> Server:
    """Build the parts of a server. Raises SettingsError and DatabaseError."""
    database = open_database(settings.database)
    prepare(database, may_upgrade=settings.migrate_at_start)
    tokens = TokenStore(database)
    if settings.needs_tokens and not any(token.is_valid for token in tokens.all()):
        raise SettingsError(
            f"other machines can reach {settings.host}, and there is no API token",
            "Create one: qtune token create --name NAME --scope admin. Or, at your own risk, pass --insecure.",
        )
    launchers = launchers or make_launchers(settings)
    store = JobStore(database)
    metrics = Metrics(store)
    questions = Questions(settings.child_memory_bytes, settings.max_questions, settings.child_environment)
    return Server(
        settings=settings,
        database=database,
        jobs=JobService(
            store, launchers, settings.max_running_jobs, settings.datasets, policy_of(settings), metrics.note_scored
        ),
        changes=Changes(store),
        metrics=metrics,
        tokens=tokens,
        sessions=Sessions(tokens, settings.session_hours * 3600),
        policy=policy_of(settings),
        datasets=make_datasets(settings, database, questions),
        uploads=UploadSlots(),
        bodies=CapacityLimiter(1),
        readiness=Readiness(database),
        previews=CapacityLimiter(MAX_PREVIEWS),
        questions=questions,
    )


def make_datasets(settings: Settings, database: Engine, questions: Questions) -> Datasets:
    """Build the dataset store. Uploads to an object store are received on this machine first."""
    arrivals = settings.data_root / "arrivals" if "://" in settings.datasets else Path(settings.datasets)
    store = DatasetStore(database)
    return Datasets(store, settings.datasets, arrivals, settings.max_upload_bytes, questions.count_rows)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the job thread while the server runs. Drivers outlive the server."""
    server: Server = app.state.server
    server.datasets.sweep()
    ended = threading.Event()
    thread = threading.Thread(target=_run_jobs, args=(server.jobs, ended), name="jobs", daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()
    server.questions.close()
    server.database.dispose()


def _run_jobs(jobs: JobService, ended: threading.Event) -> None:
    """Run the job service periodically. Errors do not end the loop; a database outage is logged once."""
    problem = ""
    while not ended.wait(ROUND_EVERY_S):
        try:
            jobs.tick()
        except QTuneError as error:
            if error.code != problem:
                _log.error("jobs are not monitored: %s", error)
            problem = error.code
        except Exception:  # noqa: BLE001 - the next round follows
            _log.exception("a round of the job service failed")
        else:
            if problem:
                _log.warning("jobs are monitored again")
            problem = ""


def _operations() -> APIRouter:
    """Return the router of probes and metrics."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process is alive. It uses no worker thread, so it responds while all are busy."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", responses={503: {"model": Problem}})
    async def readyz(server: TheServer) -> dict[str, str]:
        """Report that the database responds within a time limit."""
        await server.readiness.check()
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse, responses=errors.failures(401, 403))
    def metrics(server: TheServer, _who: Reader) -> Response:
        """Return metrics for Prometheus. It sends a token with scope `read` as bearer."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
