"""What this server offers, for pages and clients: what may be read, run and uploaded here."""

from __future__ import annotations

from fastapi import APIRouter

from qtune_service import __version__
from qtune_service.server.dependencies import Reader, TheServer
from qtune_service.server.errors import failures
from qtune_service.wire import ServerView

router = APIRouter(tags=["server"])


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
        default_launcher=settings.launcher,
    )
