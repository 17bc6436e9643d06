"""Routes of jobs: submit, list, get, cancel, resume, delete, reprune, events, and logs."""

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
from qtune_service.spec_files import as_it_ran, pruned_again, validated
from qtune_service.wire import JobListItem, JobPage, JobRequest, JobView, RepruneRequest

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)
FAILURES = failures(401, 403, 404, 409, 422, 503)
CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job that an earlier request with this key created."},
    201: {"description": "A new job.", "headers": {"Location": {"schema": {"type": "string"}}}},
    **FAILURES,
}
EVENT = {
    "type": "object",
    "description": "An event.",
    "properties": {
        "id": {"type": "string", "description": "The job's version."},
        "event": {"const": "job"},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The job as a list item."},
    },
}
OUTPUT_KEPT = "X-Output-Kept"
"""Response header of DELETE: the reason why the output was kept, percent-encoded."""
DELETED: dict[int | str, dict[str, Any]] = {
    204: {
        "description": "The job is deleted.",
        "headers": {OUTPUT_KEPT: {"description": "The reason why its output was kept.", "schema": {"type": "string"}}},
    },
    **FAILURES,
}
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@router.post("", status_code=201, responses=CREATED)
def submit_job(
    body: JobRequest, server: TheServer, who: Submitter, response: Response, idempotency_key: Key = None
) -> JobView:
    """Queue a job. Requests with the same Idempotency-Key create one job."""
    job_id = new_id()
    spec = body.to_spec(_default_output(server, job_id))
    return _queue(server, who, body.name, spec, idempotency_key, response, job_id)


def _default_output(server: Server, job_id: str) -> str:
    """Return the default output of a job. `qtune jobs import` recognizes jobs by this path."""
    return f"{server.settings.outputs}/{job_id}"


def _queue(
    server: Server, who: Caller, name: str, spec: JobSpec, key: str | None, response: Response, job_id: str
) -> JobView:
    spec = server.policy.settle(spec)
    plain = spec.model_dump(mode="json")
    requested = {**plain, "output": None} if spec.output.path == real_output(_default_output(server, job_id)) else plain
    new = NewJob(name, plain, spec.output.path, who.name, server.settings.launcher, key, requested, job_id)
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
            description="Part of the name, or the beginning of the id.",
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> JobPage:
    """List jobs without their specs, newest first."""
    page = server.jobs.store.find(statuses=status, query=q, limit=limit, cursor=cursor)
    return JobPage(jobs=[JobListItem.of(job) for job in page.jobs], next_cursor=page.next_cursor)


@router.get("/{job_id}", responses=FAILURES)
def get_job(job_id: str, server: TheServer, _who: Reader) -> JobView:
    """Return one job."""
    return JobView.of(server.jobs.store.get(job_id))


@router.post("/{job_id}/cancel", status_code=202, responses=FAILURES)
def cancel_job(job_id: str, server: TheServer, _who: Submitter) -> JobView:
    """Stop a job. A running job saves its shards in progress, and `resume` continues from there."""
    return JobView.of(server.jobs.cancel(job_id))


@router.post("/{job_id}/resume", status_code=202, responses=FAILURES)
def resume_job(job_id: str, server: TheServer, _who: Submitter) -> JobView:
    """Queue a failed or cancelled job again. It continues from its saved shards."""
    return JobView.of(server.jobs.resume(job_id))


@router.delete("/{job_id}", status_code=204, responses=DELETED)
def delete_job(job_id: str, server: TheServer, _who: Submitter, response: Response, keep_output: bool = False) -> None:
    """Delete a finished job, and the files that it wrote to its output unless `keep_output` is set.

    The output is kept if its own record names another job, or another job uses it. The header `X-Output-Kept` gives
    the reason.
    """
    if why_kept := server.jobs.delete(job_id, keep_output=keep_output):
        response.headers[OUTPUT_KEPT] = quote(why_kept)


@router.post("/{job_id}/reprune", status_code=201, responses=CREATED)
def reprune_job(
    job_id: str,
    body: RepruneRequest,
    server: TheServer,
    who: Submitter,
    response: Response,
    idempotency_key: Key = None,
) -> JobView:
    """Queue a job that prunes the scores of a finished job again, with other ratios or strategies and no model.

    Settings that are not given are those of the finished job.
    """
    job = server.jobs.store.get(job_id)
    if job.status is not JobStatus.succeeded:
        raise OutputConflictError(
            f"job {job_id} is {job.status} and has no complete scores", "Wait until it has succeeded."
        )
    new_job_id = new_id()
    output = _default_output(server, new_job_id)
    earlier = as_it_ran(job.spec)
    prune = pruned_again(earlier, body.prune.model_dump(exclude_unset=True))
    changes = {"prune": prune, "output": {"path": output}, "from_scores": job.output}
    spec = validated(JobSpec, {**earlier, **changes}, "job spec")
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
    """Stream the job without its spec at every change until it ends; with Last-Event-ID, newer versions only."""
    await run_in_threadpool(server.jobs.store.item, job_id)  # respond with a problem, not a stream, for an unknown job

    async def stream() -> AsyncIterator[dict[str, Any]]:
        async for change in server.changes.follow(job_id, last_event_id or 0):
            yield {"id": str(change.version), "event": "job", "data": change.body}

    return EventSourceResponse(stream(), ping=15)


log_router = APIRouter(prefix="/jobs", tags=["jobs"])
FOLLOW_EVERY_S = 0.5
TEXT = "text/plain; charset=utf-8"
HEADERS = {"X-Accel-Buffering": "no"}
"""Disable buffering in proxies."""


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
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Number of last lines to return.")] = None,
    follow: Annotated[bool, Query(description="Stream new lines until the job ends.")] = False,
) -> StreamingResponse:
    """Return the log of the job's driver, over all attempts."""
    job = server.jobs.store.get(job_id)
    if follow:
        return StreamingResponse(_follow(server, job, request, tail), media_type=TEXT, headers=HEADERS)
    blocks = server.jobs.log(job)
    return StreamingResponse(blocks if tail is None else iter([_last_lines(blocks, tail)[0]]), media_type=TEXT)


async def _follow(server: Server, job: Job, request: Request, tail: int | None) -> AsyncIterator[bytes]:
    """Yield the log until the job ends or is deleted, or the client disconnects. Database outages are tolerated."""
    seen = 0
    if tail is not None:
        end, seen = await run_in_threadpool(_last_lines, server.jobs.log(job), tail)
        yield end
    while True:
        is_over = job.status.is_final  # before the log is read: a finished job writes nothing more
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


def _last_lines(blocks: Iterator[bytes], lines: int) -> tuple[bytes, int]:
    """Return the last lines and the size of the whole log, holding only the last lines in memory."""
    kept: deque[bytes] = deque(maxlen=lines)
    size, rest = 0, b""
    for block in blocks:
        size += len(block)
        *whole, rest = (rest + block).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    return b"".join(kept), size
