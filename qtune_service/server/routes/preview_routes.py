"""`POST /preview`: the first samples of a job, before anything is paid for."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from fastapi import APIRouter

from qtune_service.errors import BusyError
from qtune_service.server.dependencies import Server, Submitter, TheServer
from qtune_service.server.jobs.database import reading
from qtune_service.server.jobs.dataset_uris import require_datasets, resolved
from qtune_service.server.jobs.previews import PreviewLimits, run_preview
from qtune_service.server.routes.datasets import UPLOAD_FAILURES
from qtune_service.server.routes.json_body import JsonRoute
from qtune_service.wire import PreviewRequest, PreviewView

router = APIRouter(tags=["jobs"], route_class=JsonRoute)
MAX_WAITING = 8


@router.post("/preview", responses=UPLOAD_FAILURES)
async def preview(body: PreviewRequest, server: TheServer, _who: Submitter) -> PreviewView:
    """The first samples as the model will see them: text, tokens, and which of these are trained on.

    Only the first records are read, and no weights. What would be rejected is told with its reason.
    """
    spec = await to_thread.run_sync(_allowed, server, body)
    if server.previews.statistics().tasks_waiting >= MAX_WAITING:
        raise BusyError(f"{MAX_WAITING} previews are waiting already", "Try again in a minute.")
    settings = server.settings
    limits = PreviewLimits(
        memory_bytes=settings.child_memory_bytes,
        environment=settings.child_environment,
        variables=server.jobs.variables(),
    )
    found = await to_thread.run_sync(run_preview, spec, body.n, limits, limiter=server.previews)
    return PreviewView.model_validate(found)


def _allowed(server: Server, body: PreviewRequest) -> dict[str, Any]:
    """The spec as a driver would get it. Raises what a job's submission would."""
    spec = body.to_spec(f"{server.settings.data_root}/outputs/preview")
    plain = server.policy.settle(spec).model_dump(mode="json")
    with reading(server.database) as connection:
        require_datasets(connection, plain)
    return resolved(plain, server.settings.datasets)
