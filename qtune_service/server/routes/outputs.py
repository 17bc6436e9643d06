"""What a job gave: summary, samples with their tokens, report, files to download.

What the page of a job draws: the plane, rejected records, speed over time, and the job as a command.

Two jobs side by side: settings that differ, and what became of the samples that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from qtune_service.config import parse_spec
from qtune_service.errors import NotFoundError, OutputConflictError, QTuneError
from qtune_service.job_command import job_command
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
from qtune_service.wire import CommandView, FileView, HistoryView, JobView, RejectedView, SamplesView

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


plane_router = APIRouter(prefix="/jobs/{job_id}", tags=["outputs"])
PLANE: dict[int | str, dict[str, Any]] = {
    **FILE,
    200: {"description": "All of it.", "model": Plane, "headers": FILE[200]["headers"]},
    206: {"description": "The range that was asked for.", "content": {"application/json": {"schema": {}}}},
}


@plane_router.get("/plane", responses=PLANE, response_class=Response)
def get_plane(job_id: str, server: TheServer, _who: Reader, wanted: Wanted) -> Response:
    """The error-uncertainty plane: thresholds, histograms, points, charts, and the curve of other keep ratios."""
    finished = pruned_output(server, job_id)
    if finished.folder.stat("plane.json") is None:
        hint = f"Prune it again from its scores, in seconds; the ratio was {finished.prune.sample_keep_ratio}."
        raise NotFoundError(f"job {job_id} was run by an earlier version, which wrote no plane.json", hint)
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
    """Records that could not be used, each with its place and the reason."""
    finished, version = finished_output(server, job_id)
    reasons = sorted(finished.rejected_reasons.items(), key=lambda item: (-item[1], item[0]))
    found = server.questions.rejected(finished.root, version, reason=reason, limit=limit, offset=offset)
    return RejectedView(by_reason=dict(reasons), **found)


@plane_router.get("/history", responses=FAILURES)
def get_history(job_id: str, server: TheServer, _who: Reader) -> HistoryView:
    """Speed over time, also while the job runs. Empty where nothing was scored."""
    output = Output(server.jobs.store.get(job_id).output, may_be_link=False)
    body = output.read_object("_qtune", "progress.json", max_bytes=MAX_STATUS_BYTES) or {}
    try:
        return HistoryView.model_validate(body.get("history", {}))
    except ValidationError:
        raise OutputConflictError(f"the history of job {job_id} is damaged", "Somebody changed its output.") from None


@plane_router.get("/command", responses=FAILURES)
def get_command(job_id: str, server: TheServer, _who: Reader) -> CommandView:
    """The command that does the same without a server."""
    spec = server.jobs.store.get(job_id).spec
    return CommandView(command=job_command(parse_spec(dict(spec), where=f"job {job_id}")))


compare_router = APIRouter(prefix="/compare", tags=["outputs"])
NOT_SETTINGS = {"output.path"}
Id = Annotated[str, Query(min_length=1, max_length=100, description="Id of a job.")]


class Difference(BaseModel):
    """A setting that is not the same."""

    field: str
    a: Any
    b: Any


class ComparedSamples(BaseModel):
    """What became of the samples that both jobs have scored."""

    common: int
    only_in_a: int = Field(description="Samples that only a has.")
    only_in_b: int
    kept_by_both: int
    kept_by_a: int = Field(description="Kept by a, and dropped by b.")
    kept_by_b: int
    kept_by_neither: int
    overlap: float | None = Field(description="Kept by both, of those kept by either; null where none is.")
    moves: dict[str, dict[str, int]] = Field(description="Quadrant in a -> quadrant in b -> samples.")
    examples_a: list[dict[str, Any]] = Field(description="Some that only a keeps, as a shows them.")
    examples_b: list[dict[str, Any]]


class CompareView(BaseModel):
    """Two jobs."""

    a: JobView
    b: JobView
    tokens_a: dict[str, int] = Field(description="Tokens of the result: scored, before and after pruning.")
    tokens_b: dict[str, int]
    settings: list[Difference]
    samples: ComparedSamples | None
    why_no_samples: str = Field(default="", description="Why samples are not compared.")


@compare_router.get("", responses=FAILURES)
def compare_jobs(
    server: TheServer, _who: Reader, a: Id, b: Id, examples: Annotated[int, Query(ge=0, le=20)] = 5
) -> CompareView:
    """Settings that differ, overlap of what is kept, moves between quadrants, and some samples that only one keeps."""
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
    """Dotted names of a spec's fields. An empty mapping has none, so it reads as a field that is not there."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _output(job: Job) -> FinishedOutput:
    if job.status is not JobStatus.succeeded:
        raise OutputConflictError(f"{job.name} is {job.status}: it has no result", "Wait until it succeeded.")
    return FinishedOutput(job.output, may_be_link=False)


def _tokens(job: Job) -> dict[str, int]:
    return _output(job).tokens if job.status is JobStatus.succeeded else {}


def _samples(questions: Questions, a: Job, b: Job, num_examples: int) -> tuple[ComparedSamples | None, str]:
    """The comparison, or why there is none."""
    try:
        outputs = _output(a), _output(b)
        found = questions.compare(
            (outputs[0].root, outputs[1].root), (_version(outputs[0]), _version(outputs[1])), num_examples
        )
    except QTuneError as error:
        return None, f"{error.message}. {error.hint}"
    if found is None:
        return None, "The two jobs have no sample in common: they read other files."
    return ComparedSamples.model_validate(found), ""


def _version(finished: FinishedOutput) -> str:
    """The version of an output's manifest, by which a child knows whether it has opened this one."""
    found = finished.folder.stat("manifest.json")
    return found.version if found is not None else ""
