"""Routes of job outputs: summary, samples, plane, rejected records, history, report, files, and comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from qtune_service.errors import NotFoundError, OutputConflictError, QTuneError
from qtune_service.job_fields import job_command
from qtune_service.job_states import Job, JobStatus
from qtune_service.output.layout import Output
from qtune_service.output.query import Selection
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.plane_file import Plane
from qtune_service.server.dependencies import Reader, Server, TheServer
from qtune_service.server.errors import failures
from qtune_service.server.jobs.driver_status import MAX_STATUS_BYTES
from qtune_service.server.questions.client import Questions
from qtune_service.server.routes import output_files
from qtune_service.server.routes.jobs import FAILURES
from qtune_service.server.routes.output_files import Wanted
from qtune_service.spec_files import parse_spec
from qtune_service.wire import CommandView, FileView, HistoryView, JobView, RejectedView, SamplesView

router = APIRouter(prefix="/jobs/{job_id}", tags=["outputs"])
MAX_PAGE_BYTES = 64 << 20
"""Size limit of a report or summary. They have a few MiB, whatever the size of the data."""
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-downloads"
)
"""Policy of reports: no access to the server and its cookies. A report carries a policy for its scripts."""


TEXT, BINARY = {"type": "string"}, {"type": "string", "format": "binary"}
CONTENT: dict[str, Any] = {kind: {"schema": {}} for kind in (*output_files.TYPES.values(), output_files.OTHER)}
HEADERS = {
    "ETag": "Identifies the content.",
    "X-Checksum-Sha256": "SHA-256 of the whole file, if known.",
    "Content-Disposition": "The file's name.",
}
LOCATION = {"description": "Presigned URL.", "schema": {"type": "string", "format": "uri"}}
SENT = {name: {"description": text, "schema": TEXT} for name, text in HEADERS.items()}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": CONTENT, "headers": SENT},
    206: {"description": "The requested range.", "content": CONTENT, "headers": SENT},
    304: {"description": "The content matches If-None-Match."},
    307: {
        "description": "Redirect to the object store. The URL is valid for some minutes.",
        "headers": {"Location": LOCATION},
    },
    **failures(401, 403, 404, 409, 416, 422, 503),
}
FilePath = Annotated[str, Path(description="As `GET .../files` lists it.")]


@lru_cache(maxsize=32)
def _opened(output: str, version: str) -> FinishedOutput:  # noqa: ARG001 - part of the cache key
    return FinishedOutput(output, may_be_link=False)


def finished_output(server: Server, job_id: str) -> tuple[FinishedOutput, str]:
    """Return the output of a job and the version of its manifest. Raises OutputConflictError without a manifest."""
    job = server.jobs.store.get(job_id)
    found = Output(job.output, may_be_link=False).stat("manifest.json")
    if found is None:
        raise OutputConflictError(f"job {job_id} is {job.status} and has no result", "Wait until it has succeeded.")
    return _opened(job.output, found.version), found.version


def pruned_output(server: Server, job_id: str) -> FinishedOutput:
    """Return the output of a job that pruned. Raises OutputConflictError for a job that only scored."""
    finished, _ = finished_output(server, job_id)
    if finished.spec.prune is None:
        raise OutputConflictError(f"job {job_id} only scored its samples", "Prune them with POST .../reprune.")
    return finished


@router.get("/summary", responses=FAILURES)
def get_summary(job_id: str, server: TheServer, _who: Reader) -> dict[str, Any]:
    """Return summary_statistics.json of a finished job."""
    finished = pruned_output(server, job_id)
    body: dict[str, Any] | None = finished.folder.read_object("summary_statistics.json", max_bytes=MAX_PAGE_BYTES)
    if body is None:
        raise NotFoundError(f"job {job_id} has no summary", "The file may have been removed from the output.")
    return body


@router.get("/samples", responses=FAILURES)
def list_samples(
    job_id: str,
    server: TheServer,
    _who: Reader,
    quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None,
    kept: bool | None = None,
    where: Annotated[str | None, Query(max_length=2000, description="A condition in SQL.")] = None,
    sort: Annotated[
        str, Query(max_length=200, description="`borderline`, `typical`, or a column; `-column` sorts descending.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> SamplesView:
    """Return samples with their tokens and scores."""
    finished, version = finished_output(server, job_id)
    wanted = Selection(quadrant=quadrant, kept=kept, where=where, sort=sort, limit=limit, offset=offset)
    return SamplesView.model_validate(server.questions.samples(finished.root, version, wanted))


@router.get("/samples/{sample_id}", responses=FAILURES)
def get_sample(job_id: str, sample_id: str, server: TheServer, _who: Reader) -> dict[str, Any]:
    """Return one sample with its tokens and scores."""
    finished, version = finished_output(server, job_id)
    return server.questions.sample(finished.root, version, sample_id)


@router.get(
    "/report", responses={200: {"content": {"text/html": {"schema": TEXT}}}, **FAILURES}, response_class=Response
)
def get_report(job_id: str, server: TheServer, _who: Reader) -> Response:
    """Return the report as HTML."""
    finished = pruned_output(server, job_id)
    body = finished.folder.read_bytes("report.html", max_bytes=MAX_PAGE_BYTES)
    return Response(body, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/files", responses=FAILURES)
def list_files(job_id: str, server: TheServer, _who: Reader) -> list[FileView]:
    """List the files of a finished job."""
    finished, _ = finished_output(server, job_id)
    return [FileView.model_validate(file, from_attributes=True) for file in output_files.list_files(finished)]


@router.get("/files/{path:path}", responses=FILE, response_class=Response)
def get_file(
    job_id: str, path: FilePath, request: Request, server: TheServer, _who: Reader, wanted: Wanted
) -> Response:
    """Return a file, or a range of it."""
    finished, _ = finished_output(server, job_id)
    found, may_redirect = output_files.find_file(finished, path), server.settings.presigned_downloads
    return output_files.serve(found, wanted, is_head=request.method == "HEAD", may_redirect=may_redirect)


@router.head("/files/{path:path}", responses=FILE, response_class=Response)
def head_file(
    job_id: str, path: FilePath, request: Request, server: TheServer, who: Reader, wanted: Wanted
) -> Response:
    """Return the headers of a file."""
    return get_file(job_id, path, request, server, who, wanted)


@router.get(
    "/archive",
    responses={200: {"content": {"application/x-tar": {"schema": BINARY}}}, **FAILURES},
    response_class=StreamingResponse,
)
def get_archive(job_id: str, server: TheServer, _who: Reader, scores: bool = False) -> StreamingResponse:
    """Stream a tar of the pruned data and reports; with `scores`, of all files."""
    finished, _ = finished_output(server, job_id)
    folders = ("",) if scores else ("pruned/", "tokenizer/", *output_files.OTHERS)
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.tar"'}
    return StreamingResponse(output_files.archive(finished, folders), media_type="application/x-tar", headers=headers)


plane_router = APIRouter(prefix="/jobs/{job_id}", tags=["outputs"])
PLANE: dict[int | str, dict[str, Any]] = {
    **FILE,
    200: {"description": "The whole plane.", "model": Plane, "headers": FILE[200]["headers"]},
    206: {"description": "The requested range.", "content": {"application/json": {"schema": {}}}},
}


@plane_router.get("/plane", responses=PLANE, response_class=Response)
def get_plane(job_id: str, server: TheServer, _who: Reader, wanted: Wanted) -> Response:
    """Return the error-uncertainty plane: thresholds, histograms, points, charts, and the what-if curve."""
    finished = pruned_output(server, job_id)
    if finished.folder.stat("plane.json") is None:
        hint = f"Reprune it from its scores, in seconds. Its ratio was {finished.prune.sample_keep_ratio}."
        raise NotFoundError(f"job {job_id} was run by an earlier version and has no plane.json", hint)
    return output_files.serve(output_files.find_file(finished, "plane.json"), wanted, is_head=False)


@plane_router.get("/rejected", responses=FAILURES)
def get_rejected(
    job_id: str,
    server: TheServer,
    _who: Reader,
    reason: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> RejectedView:
    """Return rejected records, each with its position and reason."""
    finished, version = finished_output(server, job_id)
    reasons = sorted(finished.rejected_reasons.items(), key=lambda item: (-item[1], item[0]))
    found = server.questions.rejected(finished.root, version, reason=reason, limit=limit, offset=offset)
    return RejectedView(by_reason=dict(reasons), **found)


@plane_router.get("/history", responses=FAILURES)
def get_history(job_id: str, server: TheServer, _who: Reader) -> HistoryView:
    """Return the speed over time, also while the job runs; empty if nothing was scored."""
    output = Output(server.jobs.store.get(job_id).output, may_be_link=False)
    body = output.read_object("_qtune", "progress.json", max_bytes=MAX_STATUS_BYTES) or {}
    try:
        return HistoryView.model_validate(body.get("history", {}))
    except ValidationError:
        raise OutputConflictError(f"the history of job {job_id} is damaged", "Its output was changed.") from None


@plane_router.get("/command", responses=FAILURES)
def get_command(job_id: str, server: TheServer, _who: Reader) -> CommandView:
    """Return the command line that runs the same job without a server."""
    spec = server.jobs.store.get(job_id).spec
    return CommandView(command=job_command(parse_spec(dict(spec), where=f"job {job_id}")))


compare_router = APIRouter(prefix="/compare", tags=["outputs"])
NOT_SETTINGS = {"output.path"}
Id = Annotated[str, Query(min_length=1, max_length=100, description="Job id.")]


class Difference(BaseModel):
    """A setting with different values."""

    field: str
    a: Any
    b: Any


class ComparedSamples(BaseModel):
    """Comparison of the samples that both jobs scored."""

    common: int
    only_in_a: int = Field(description="Samples in a only.")
    only_in_b: int
    kept_by_both: int
    kept_by_a: int = Field(description="Kept by a and dropped by b.")
    kept_by_b: int
    kept_by_neither: int
    overlap: float | None = Field(
        description="Share of samples kept by both among those kept by either; null if none is kept."
    )
    moves: dict[str, dict[str, int]] = Field(description="Quadrant in a -> quadrant in b -> samples.")
    examples_a: list[dict[str, Any]] = Field(description="Samples that only a keeps.")
    examples_b: list[dict[str, Any]]


class CompareView(BaseModel):
    """Comparison of two jobs."""

    a: JobView
    b: JobView
    tokens_a: dict[str, int] = Field(description="Trained tokens: scored, before and after pruning.")
    tokens_b: dict[str, int]
    settings: list[Difference]
    samples: ComparedSamples | None
    why_no_samples: str = Field(default="", description="The reason why samples are not compared.")


@compare_router.get("", responses=FAILURES)
def compare_jobs(
    server: TheServer, _who: Reader, a: Id, b: Id, examples: Annotated[int, Query(ge=0, le=20)] = 5
) -> CompareView:
    """Compare two jobs: settings, overlap of kept samples, moves between quadrants, and example samples."""
    jobs = server.jobs.store.get(a), server.jobs.store.get(b)
    specs = [dict(_flat(job.spec)) for job in jobs]
    names = [name for name in dict.fromkeys([*specs[0], *specs[1]]) if name not in NOT_SETTINGS]
    different = [name for name in names if specs[0].get(name) != specs[1].get(name)]
    samples, why = _samples(server.questions, *jobs, examples)
    return CompareView(
        a=JobView.of(jobs[0]),
        b=JobView.of(jobs[1]),
        tokens_a=_tokens(jobs[0]),
        tokens_b=_tokens(jobs[1]),
        settings=[Difference(field=name, a=specs[0].get(name), b=specs[1].get(name)) for name in different],
        samples=samples,
        why_no_samples=why,
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of a spec. An empty mapping yields nothing."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _output(job: Job) -> FinishedOutput:
    if job.status is not JobStatus.succeeded:
        raise OutputConflictError(f"{job.name} is {job.status} and has no result", "Wait until it has succeeded.")
    return FinishedOutput(job.output, may_be_link=False)


def _tokens(job: Job) -> dict[str, int]:
    return _output(job).tokens if job.status is JobStatus.succeeded else {}


def _samples(questions: Questions, a: Job, b: Job, num_examples: int) -> tuple[ComparedSamples | None, str]:
    """Return the comparison, or the reason why there is none."""
    try:
        outputs = _output(a), _output(b)
        found = questions.compare(
            (outputs[0].root, outputs[1].root), (_version(outputs[0]), _version(outputs[1])), num_examples
        )
    except QTuneError as error:
        return None, f"{error.message}. {error.hint}"
    if found is None:
        return (
            None,
            "The two jobs have no sample in common, because no texts are equal, and the files are different ones.",
        )
    return ComparedSamples.model_validate(found), ""


def _version(finished: FinishedOutput) -> str:
    """Return the version of an output's manifest, which a child process uses as cache key."""
    found = finished.folder.stat("manifest.json")
    return found.version if found is not None else ""
