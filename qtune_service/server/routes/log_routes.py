"""What a job's driver printed: all of it, its last lines, or as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from qtune_service.errors import DatabaseError, NotFoundError
from qtune_service.job_states import Job
from qtune_service.server.dependencies import Reader, Server, TheServer
from qtune_service.server.errors import failures

router = APIRouter(prefix="/jobs", tags=["jobs"])
FOLLOW_EVERY_S = 0.5
TEXT = "text/plain; charset=utf-8"
HEADERS = {"X-Accel-Buffering": "no"}
"""Proxies hand on what there is."""


@router.get(
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
