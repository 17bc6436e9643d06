"""What this server offers, for pages and clients: what may be read, run and uploaded here."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from qtune_service import __version__
from qtune_service.web.deps import Reader, TheServer
from qtune_service.web.job_routes import LAUNCHER
from qtune_service.web.problems import failures

router = APIRouter(tags=["server"])


class ServerView(BaseModel):
    """Its owner's settings, as far as they concern those who use it."""

    version: str
    needs_token: bool
    allowed_inputs: list[str]
    allowed_outputs: list[str]
    allowed_models: list[str]
    allow_remote_code: bool
    max_running_jobs: int
    max_upload_bytes: int
    launchers: list[str]
    default_launcher: str


@router.get("/server", responses=failures(401, 403, 503))
def get_server(server: TheServer, _who: Reader) -> ServerView:
    """What this server allows and offers."""
    settings = server.settings
    return ServerView(
        version=__version__,
        needs_token=settings.needs_tokens,
        allowed_inputs=list(settings.allowed_inputs),
        allowed_outputs=list(settings.allowed_outputs),
        allowed_models=list(settings.allowed_models),
        allow_remote_code=settings.allow_remote_code,
        max_running_jobs=settings.max_running_jobs,
        max_upload_bytes=settings.max_upload_bytes,
        launchers=sorted(server.jobs.launchers),
        default_launcher=LAUNCHER,
    )
