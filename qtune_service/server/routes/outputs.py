"""What a job gave: summary, samples with their tokens, report, files to download."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from qtune_service.errors import NotFoundError, OutputConflictError
from qtune_service.output.layout import Output
from qtune_service.output.query import Selection
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.dependencies import Reader, Server, TheServer
from qtune_service.server.errors import failures
from qtune_service.server.routes import output_files
from qtune_service.server.routes.jobs import FAILURES
from qtune_service.server.routes.output_files import Wanted
from qtune_service.wire import FileView, SamplesView

router = APIRouter(prefix="/jobs/{job_id}", tags=["outputs"])
MAX_PAGE_BYTES = 64 << 20
"""The largest report or summary that is read; theirs are bounded to a few MiB, however large the data."""
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-downloads"
)
"""For reports: no access to the server and its cookies. Each names its own scripts in a policy that it carries."""


TEXT, BINARY = {"type": "string"}, {"type": "string", "format": "binary"}
CONTENT: dict[str, Any] = {kind: {"schema": {}} for kind in (*output_files.TYPES.values(), output_files.OTHER)}
HEADERS = {
    "ETag": "Another content has another.",
    "X-Checksum-Sha256": "Of the whole file, where it is known.",
    "Content-Disposition": "The file's name.",
}
LOCATION = {"description": "Where.", "schema": {"type": "string", "format": "uri"}}
SENT = {name: {"description": text, "schema": TEXT} for name, text in HEADERS.items()}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": CONTENT, "headers": SENT},
    206: {"description": "The range that was asked for.", "content": CONTENT, "headers": SENT},
    304: {"description": "It has not changed since the ETag of If-None-Match."},
    307: {"description": "The store itself has it, at Location, for some minutes.", "headers": {"Location": LOCATION}},
    **failures(401, 403, 404, 409, 416, 422, 503),
}
FilePath = Annotated[str, Path(description="As `GET .../files` lists it.")]


@lru_cache(maxsize=32)
def _opened(output: str, version: str) -> FinishedOutput:  # noqa: ARG001 - another version is another entry
    return FinishedOutput(output, may_be_link=False)


def finished_output(server: Server, job_id: str) -> tuple[FinishedOutput, str]:
    """Return the output of a job, and the version of its manifest. Raises OutputConflictError where there is none."""
    job = server.jobs.store.get(job_id)
    found = Output(job.output, may_be_link=False).stat("manifest.json")
    if found is None:
        raise OutputConflictError(f"job {job_id} is {job.status}: it has no result", "Wait until it succeeded.")
    return _opened(job.output, found.version), found.version


def pruned_output(server: Server, job_id: str) -> FinishedOutput:
    """The same, where more was done than to score. Raises OutputConflictError for others."""
    finished, _ = finished_output(server, job_id)
    if finished.spec.prune is None:
        raise OutputConflictError(f"job {job_id} only scored its samples", "Prune them: POST .../reprune.")
    return finished


@router.get("/summary", responses=FAILURES)
def get_summary(job_id: str, server: TheServer, _who: Reader) -> dict[str, Any]:
    """The numbers of a finished job: summary_statistics.json."""
    finished = pruned_output(server, job_id)
    body: dict[str, Any] | None = finished.folder.read_object("summary_statistics.json", max_bytes=MAX_PAGE_BYTES)
    if body is None:
        raise NotFoundError(f"job {job_id} has no summary", "It may have been removed from the output.")
    return body


@router.get("/samples", responses=FAILURES)
def list_samples(
    job_id: str,
    server: TheServer,
    _who: Reader,
    quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None,
    kept: bool | None = None,
    where: Annotated[str | None, Query(max_length=2000, description="A condition in SQL.")] = None,
    sort: Annotated[str, Query(max_length=200, description="borderline, typical, or a column; -column.")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> SamplesView:
    """Samples with their tokens and scores."""
    finished, version = finished_output(server, job_id)
    wanted = Selection(quadrant=quadrant, kept=kept, where=where, sort=sort, limit=limit, offset=offset)
    return SamplesView.model_validate(server.questions.samples(finished.root, version, wanted))


@router.get("/samples/{sample_id}", responses=FAILURES)
def get_sample(job_id: str, sample_id: str, server: TheServer, _who: Reader) -> dict[str, Any]:
    """One sample with its tokens and scores."""
    finished, version = finished_output(server, job_id)
    return server.questions.sample(finished.root, version, sample_id)


@router.get(
    "/report", responses={200: {"content": {"text/html": {"schema": TEXT}}}, **FAILURES}, response_class=Response
)
def get_report(job_id: str, server: TheServer, _who: Reader) -> Response:
    """The report page."""
    finished = pruned_output(server, job_id)
    body = finished.folder.read_bytes("report.html", max_bytes=MAX_PAGE_BYTES)
    return Response(body, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/files", responses=FAILURES)
def list_files(job_id: str, server: TheServer, _who: Reader) -> list[FileView]:
    """The files of a finished job."""
    finished, _ = finished_output(server, job_id)
    return [FileView.model_validate(file, from_attributes=True) for file in output_files.list_files(finished)]


@router.get("/files/{path:path}", responses=FILE, response_class=Response)
def get_file(
    job_id: str, path: FilePath, request: Request, server: TheServer, _who: Reader, wanted: Wanted
) -> Response:
    """A file, or a range of it."""
    finished, _ = finished_output(server, job_id)
    found, may_redirect = output_files.find_file(finished, path), server.settings.presigned_downloads
    return output_files.serve(found, wanted, is_head=request.method == "HEAD", may_redirect=may_redirect)


@router.head("/files/{path:path}", responses=FILE, response_class=Response)
def head_file(
    job_id: str, path: FilePath, request: Request, server: TheServer, who: Reader, wanted: Wanted
) -> Response:
    """What `GET` would say of a file, without the file."""
    return get_file(job_id, path, request, server, who, wanted)


@router.get(
    "/archive",
    responses={200: {"content": {"application/x-tar": {"schema": BINARY}}}, **FAILURES},
    response_class=StreamingResponse,
)
def get_archive(job_id: str, server: TheServer, _who: Reader, scores: bool = False) -> StreamingResponse:
    """A tar of the product and what explains it; with scores, of all."""
    finished, _ = finished_output(server, job_id)
    folders = ("",) if scores else ("pruned/", "tokenizer/", *output_files.OTHERS)
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.tar"'}
    return StreamingResponse(output_files.archive(finished, folders), media_type="application/x-tar", headers=headers)
