"""What the page of a job draws: the plane, rejected records, speed over time, and the job as a command."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError

from qtune_service.config import parse_spec
from qtune_service.errors import NotFoundError, OutputConflictError
from qtune_service.job_command import job_command
from qtune_service.output.layout import Output
from qtune_service.report.plane_file import Plane
from qtune_service.server.dependencies import Reader, TheServer
from qtune_service.server.jobs.driver_status import MAX_STATUS_BYTES
from qtune_service.server.routes import output_files
from qtune_service.server.routes.jobs import FAILURES
from qtune_service.server.routes.output_files import Wanted
from qtune_service.server.routes.outputs import FILE, finished_output, pruned_output
from qtune_service.wire import CommandView, HistoryView, RejectedView

router = APIRouter(prefix="/jobs/{job_id}", tags=["outputs"])
PLANE: dict[int | str, dict[str, Any]] = {
    **FILE,
    200: {"description": "All of it.", "model": Plane, "headers": FILE[200]["headers"]},
    206: {"description": "The range that was asked for.", "content": {"application/json": {"schema": {}}}},
}


@router.get("/plane", responses=PLANE, response_class=Response)
def get_plane(job_id: str, server: TheServer, _who: Reader, wanted: Wanted) -> Response:
    """The error-uncertainty plane: thresholds, histograms, points, charts, and the curve of other keep ratios."""
    finished = pruned_output(server, job_id)
    if finished.folder.stat("plane.json") is None:
        hint = f"Prune it again from its scores, in seconds; the ratio was {finished.prune.sample_keep_ratio}."
        raise NotFoundError(f"job {job_id} was run by an earlier version, which wrote no plane.json", hint)
    return output_files.serve(output_files.find_file(finished, "plane.json"), wanted, is_head=False)


@router.get("/rejected", responses=FAILURES)
def get_rejected(
    job_id: str,
    server: TheServer,
    _who: Reader,
    reason: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> RejectedView:
    """Records that could not be used, each with its place and the reason."""
    finished, version = finished_output(server, job_id)
    reasons = sorted(finished.rejected_reasons.items(), key=lambda item: (-item[1], item[0]))
    found = server.questions.rejected(finished.root, version, reason=reason, limit=limit, offset=offset)
    return RejectedView(by_reason=dict(reasons), **found)


@router.get("/history", responses=FAILURES)
def get_history(job_id: str, server: TheServer, _who: Reader) -> HistoryView:
    """Speed over time, also while the job runs. Empty where nothing was scored."""
    output = Output(server.jobs.store.get(job_id).output, may_be_link=False)
    body = output.read_object("_qtune", "progress.json", max_bytes=MAX_STATUS_BYTES) or {}
    try:
        return HistoryView.model_validate(body.get("history", {}))
    except ValidationError:
        raise OutputConflictError(f"the history of job {job_id} is damaged", "Somebody changed its output.") from None


@router.get("/command", responses=FAILURES)
def get_command(job_id: str, server: TheServer, _who: Reader) -> CommandView:
    """The command that does the same without a server."""
    spec = server.jobs.store.get(job_id).spec
    return CommandView(command=job_command(parse_spec(dict(spec), where=f"job {job_id}")))
