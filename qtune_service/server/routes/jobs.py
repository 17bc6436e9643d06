"""Jobs: submit, list, look, cancel, resume, delete, prune again, and follow as events.

What a job's driver printed: all of it, its last lines, or as it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sse_starlette.sse import EventSourceResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from qtune_service.config import JobSpec
from qtune_service.errors import DatabaseError, NotFoundError, OutputConflictError
from qtune_service.job_states import Job, JobStatus
from qtune_service.server.dependencies import Caller, Reader, Server, Submitter, TheServer
from qtune_service.server.errors import failures
from qtune_service.server.jobs.ids import new_id
from qtune_service.server.jobs.policy import real_output
from qtune_service.server.jobs.store import NewJob
from qtune_service.server.routes.json_body import JsonRoute
from qtune_service.wire import JobListItem, JobPage, JobRequest, JobView, RepruneRequest

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)
FAILURES = failures(401, 403, 404, 409, 422, 503)
MADE: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job that an earlier request with this key made."},
    201: {"description": "A new job.", "headers": {"Location": {"schema": {"type": "string"}}}},
    **FAILURES,
}
EVENT = {
    "type": "object",
    "description": "An event.",
    "properties": {
        "id": {"type": "string", "description": "The job's version."},
        "event": {"const": "job"},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The job, as a list has it."},
    },
}
OUTPUT_KEPT = "X-Output-Kept"
"""Header of the answer to DELETE: why the output was not removed, percent-encoded."""
DELETED: dict[int | str, dict[str, Any]] = {
    204: {
        "description": "The job is forgotten.",
        "headers": {OUTPUT_KEPT: {"description": "Why its output was kept.", "schema": {"type": "string"}}},
    },
    **FAILURES,
}
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@router.post("", status_code=201, responses=MADE)
def submit_job(
    body: JobRequest, server: TheServer, who: Submitter, response: Response, idempotency_key: Key = None
) -> JobView:
    """Queue a job. With an Idempotency-Key the same request makes one job, however often it is sent."""
    job_id = new_id()
    spec = body.to_spec(_place(server, job_id))
    return _queue(server, who, body.name, spec, idempotency_key, response, job_id)


def _place(server: Server, job_id: str) -> str:
    """Where the output of a job goes that says no place; `qtune jobs import` knows it by this name again."""
    return f"{server.settings.outputs}/{job_id}"


def _queue(
    server: Server, who: Caller, name: str, spec: JobSpec, key: str | None, response: Response, job_id: str
) -> JobView:
    spec = server.policy.settle(spec)
    plain = spec.model_dump(mode="json")
    asked = {**plain, "output": None} if spec.output.path == real_output(_place(server, job_id)) else plain
    new = NewJob(name, plain, spec.output.path, who.name, server.settings.launcher, key, asked, job_id)
    job, is_new = server.jobs.submit(new)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobView.of(job)


@router.get("", responses=FAILURES)
def list_jobs(
    server: TheServer,
    _who: Reader,
    status: Annotated[list[JobStatus], Query()] = [],  # noqa: B006 - FastAPI copies it
    q: Annotated[
        str,
        Query(
            max_length=200,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="A part of the name, or the beginning of the id.",
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> JobPage:
    """Jobs without their specs, the newest first."""
    page = server.jobs.store.find(statuses=status, query=q, limit=limit, cursor=cursor)
    return JobPage(jobs=[JobListItem.of(job) for job in page.jobs], next_cursor=page.next_cursor)


@router.get("/{job_id}", responses=FAILURES)
def get_job(job_id: str, server: TheServer, _who: Reader) -> JobView:
    """One job."""
    return JobView.of(server.jobs.store.get(job_id))


@router.post("/{job_id}/cancel", status_code=202, responses=FAILURES)
def cancel_job(job_id: str, server: TheServer, _who: Submitter) -> JobView:
    """Stop a job. One that runs saves what it has in hand first; `resume` goes on from there."""
    return JobView.of(server.jobs.cancel(job_id))


@router.post("/{job_id}/resume", status_code=202, responses=FAILURES)
def resume_job(job_id: str, server: TheServer, _who: Submitter) -> JobView:
    """Queue a failed or cancelled job again. It goes on where it was."""
    return JobView.of(server.jobs.resume(job_id))


@router.delete("/{job_id}", status_code=204, responses=DELETED)
def delete_job(job_id: str, server: TheServer, _who: Submitter, response: Response, keep_output: bool = False) -> None:
    """Forget a job that has ended, and remove what it wrote to its output unless that is to be kept.

    An output that is not this job's by its own record, or that another job has too, is kept: the header
    `X-Output-Kept` says why.
    """
    if why_kept := server.jobs.delete(job_id, keep_output=keep_output):
        response.headers[OUTPUT_KEPT] = quote(why_kept)


@router.post("/{job_id}/reprune", status_code=201, responses=MADE)
def reprune_job(
    job_id: str,
    body: RepruneRequest,
    server: TheServer,
    who: Submitter,
    response: Response,
    idempotency_key: Key = None,
) -> JobView:
    """A new job from the scores of a finished one: other ratios or strategies, without the model, in seconds."""
    job = server.jobs.store.get(job_id)
    if job.status is not JobStatus.succeeded:
        raise OutputConflictError(
            f"job {job_id} is {job.status}: it has no finished scores", "Wait until it succeeded."
        )
    new_job_id = new_id()
    place = _place(server, new_job_id)
    changes = {"prune": body.prune.model_dump(), "output": {"path": place}, "from_scores": job.output}
    spec = JobSpec.model_validate({**job.spec, **changes})
    name = body.name or f"{job.name}, again"[:200]
    return _queue(server, who, name, spec, idempotency_key, response, new_job_id)


@router.get(
    "/{job_id}/events",
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}, **FAILURES},
    response_class=Response,
)
async def follow_job(
    job_id: str,
    server: TheServer,
    _who: Reader,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID")] = None,
) -> EventSourceResponse:
    """Server-sent events: the job without its spec at every change, until it ends. With Last-Event-ID what is newer."""
    await run_in_threadpool(server.jobs.store.item, job_id)  # a problem, not a stream, for a job that is not there

    async def stream() -> AsyncIterator[dict[str, Any]]:
        async for change in server.changes.follow(job_id, last_event_id or 0):
            yield {"id": str(change.version), "event": "job", "data": change.body}

    return EventSourceResponse(stream(), ping=15)


log_router = APIRouter(prefix="/jobs", tags=["jobs"])
FOLLOW_EVERY_S = 0.5
TEXT = "text/plain; charset=utf-8"
HEADERS = {"X-Accel-Buffering": "no"}
"""Proxies hand on what there is."""


@log_router.get(
    "/{job_id}/logs",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **failures(401, 403, 404, 422, 503)},
    response_class=StreamingResponse,
)
def get_logs(
    job_id: str,
    request: Request,
    server: TheServer,
    _who: Reader,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many lines of the end.")] = None,
    follow: Annotated[bool, Query(description="Go on with what is printed from now on, until the job ends.")] = False,
) -> StreamingResponse:
    """What the job's driver printed, in all its attempts."""
    job = server.jobs.store.get(job_id)
    if follow:
        return StreamingResponse(_follow(server, job, request, tail), media_type=TEXT, headers=HEADERS)
    blocks = server.jobs.log(job)
    return StreamingResponse(blocks if tail is None else iter([_end(blocks, tail)[0]]), media_type=TEXT)


async def _follow(server: Server, job: Job, request: Request, tail: int | None) -> AsyncIterator[bytes]:
    """The log until the job ends, or is deleted, or nobody listens any more. A database that is away is waited for."""
    seen = 0
    if tail is not None:
        end, seen = await run_in_threadpool(_end, server.jobs.log(job), tail)
        yield end
    while True:
        is_over = job.status.is_final  # as it was before the log is read: nothing is written any more
        async for block in iterate_in_threadpool(server.jobs.log(job, seen)):
            seen += len(block)
            yield block
        if is_over or await request.is_disconnected():
            return
        await asyncio.sleep(FOLLOW_EVERY_S)
        try:
            job = await run_in_threadpool(server.jobs.store.get, job.id)
        except NotFoundError:
            return
        except DatabaseError:
            continue


def _end(blocks: Iterator[bytes], lines: int) -> tuple[bytes, int]:
    """The last lines, holding no more than these, and the size of all."""
    kept: deque[bytes] = deque(maxlen=lines)
    size, rest = 0, b""
    for block in blocks:
        size += len(block)
        *whole, rest = (rest + block).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    return b"".join(kept), size
