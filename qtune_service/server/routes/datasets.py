"""Routes of datasets (streamed upload, list, get, delete) and of previews.

A worker thread pulls an upload block by block from the event loop. It writes, hashes and checks each block before it
requests the next one. So the client never outpaces the disk, and an upload holds one or two blocks in memory.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
from anyio import from_thread, to_thread
from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from starlette.requests import ClientDisconnect

from qtune_service.errors import BusyError, QTuneError, TooSlowError
from qtune_service.server.dependencies import Reader, Server, Submitter, TheServer
from qtune_service.server.jobs.database import reading
from qtune_service.server.jobs.dataset_uris import require_datasets, resolved
from qtune_service.server.jobs.datasets import Dataset
from qtune_service.server.jobs.previews import PreviewLimits, run_preview
from qtune_service.server.jobs.uploads import Upload
from qtune_service.server.routes.jobs import FAILURES
from qtune_service.server.routes.json_body import JsonRoute
from qtune_service.wire import DatasetPage, DatasetView, PreviewRequest, PreviewView

router = APIRouter(prefix="/datasets", tags=["datasets"])
BLOCK_BYTES = 1 << 20
IDLE_S = 60.0
"""Time limit without any byte from the client."""
WINDOW_S, WINDOW_BYTES = 30.0, 64 << 10
"""Minimum rate: bytes that a client must send in each window of waiting time."""
DRAIN_BYTES, DRAIN_S = 64 << 20, 5.0
"""Bytes and time to drain after a rejection: a client that still writes would not read the response."""
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The content of the file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
UPLOAD_FAILURES: dict[int | str, dict[str, Any]] = {
    **FAILURES,
    **dict.fromkeys((400, 408, 413, 507), FAILURES[422]),
}


@router.post("", status_code=201, responses=UPLOAD_FAILURES, openapi_extra=BODY)
async def upload(
    request: Request,
    response: Response,
    server: TheServer,
    who: Submitter,
    name: Annotated[
        str, Query(min_length=1, max_length=1000, description="File name. Its suffix determines the format.")
    ],
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    sha256: Annotated[str | None, Header(alias="X-Checksum-Sha256", pattern=r"^[0-9a-fA-F]{64}$")] = None,
) -> DatasetView:
    """Store a file that jobs read as `dataset://ID`. It is checked while it is received."""
    given = Upload(name, who.name, content_length, sha256)
    body = _Body(request.stream())
    receive = functools.partial(server.datasets.receive, given, body.pulled())
    try:
        async with server.uploads.of(who.name):
            dataset: Dataset = await to_thread.run_sync(receive, limiter=server.uploads.everybody)
    except ClientDisconnect:
        raise HTTPException(400, "the client disconnected") from None  # nobody receives it
    except QTuneError:
        if body.has_begun or "expect" not in request.headers:  # a client that waits for 100 Continue sends nothing
            await body.drain()
        raise
    response.headers["Location"] = f"/api/v1/datasets/{dataset.id}"
    return DatasetView.of(dataset)


class _Body:
    """A request body that the event loop receives and a thread pulls."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self.has_begun = self._has_ended = False
        self._waited_s, self._window_bytes = 0.0, 0

    def pulled(self) -> Iterator[bytes]:
        """Yield blocks to a thread that anyio started. Raises ClientDisconnect and TooSlowError."""
        while block := from_thread.run(self._next_block):
            yield block

    async def _next_block(self) -> bytes:
        """Return at least BLOCK_BYTES; fewer at the end, then none."""
        gathered: list[bytes] = []
        size = 0
        while size < BLOCK_BYTES and not self._has_ended:
            gathered.append(await self._next_piece())
            size += len(gathered[-1])
        return b"".join(gathered)

    async def _next_piece(self) -> bytes:
        """Return the next piece, empty at the end. Raises TooSlowError. Only time waiting for the client counts."""
        self.has_begun = True
        began_s = time.monotonic()
        try:
            with anyio.fail_after(IDLE_S):
                piece = await anext(self._stream, None)
        except TimeoutError:
            raise TooSlowError(f"no data arrived for {IDLE_S:.0f} s", "Send the file again.") from None
        self._has_ended = piece is None
        self._note(len(piece or b""), time.monotonic() - began_s)
        return piece or b""

    def _note(self, num_bytes: int, waited_s: float) -> None:
        self._window_bytes += num_bytes
        self._waited_s += waited_s
        if self._waited_s < WINDOW_S or self._has_ended:
            return
        if self._window_bytes < WINDOW_BYTES:
            raise TooSlowError(
                f"{self._window_bytes:,} bytes arrived within {self._waited_s:.0f} s, "
                f"at least {WINDOW_BYTES:,} are required",
                "Send the file again over a faster connection.",
            )
        self._waited_s, self._window_bytes = 0.0, 0

    async def drain(self) -> None:
        """Drain the body for a limited time, so that the client reads the response."""
        left = DRAIN_BYTES
        with anyio.move_on_after(DRAIN_S), contextlib.suppress(ClientDisconnect, TooSlowError):
            while left > 0 and not self._has_ended:
                left -= len(await self._next_piece())


@router.get("", responses=FAILURES)
def find(
    server: TheServer,
    _who: Reader,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> DatasetPage:
    """List datasets, newest first."""
    page = server.datasets.store.find(limit=limit, cursor=cursor)
    return DatasetPage(datasets=[DatasetView.of(one) for one in page.datasets], next_cursor=page.next_cursor)


@router.get("/{dataset_id}", responses=FAILURES)
def get(dataset_id: str, server: TheServer, _who: Reader) -> DatasetView:
    """Return one dataset."""
    return DatasetView.of(server.datasets.store.get(dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=FAILURES)
def delete(dataset_id: str, server: TheServer, _who: Submitter) -> None:
    """Delete a dataset that no queued or running job reads. Outputs of jobs are kept."""
    server.datasets.delete(dataset_id)


preview_router = APIRouter(tags=["jobs"], route_class=JsonRoute)
MAX_WAITING = 8


@preview_router.post("/preview", responses=UPLOAD_FAILURES)
async def preview(body: PreviewRequest, server: TheServer, _who: Submitter) -> PreviewView:
    """Return the first samples as the model will see them: text, tokens, and the trained ones among these.

    It reads the first records and no weights. Records that a job would reject are listed with their reason.
    """
    spec = await to_thread.run_sync(_allowed, server, body)
    if server.previews.statistics().tasks_waiting >= MAX_WAITING:
        raise BusyError(f"{MAX_WAITING} previews are already waiting", "Try again in a minute.")
    settings = server.settings
    limits = PreviewLimits(
        memory_bytes=settings.child_memory_bytes,
        environment=settings.child_environment,
        variables=server.jobs.variables(),
    )
    found = await to_thread.run_sync(run_preview, spec, body.n, limits, limiter=server.previews)
    return PreviewView.model_validate(found)


def _allowed(server: Server, body: PreviewRequest) -> dict[str, Any]:
    """Return the spec as a driver would receive it. Raises the errors of a submission."""
    spec = body.to_spec(f"{server.settings.data_root}/outputs/preview")
    plain = server.policy.settle(spec).model_dump(mode="json")
    with reading(server.database) as connection:
        require_datasets(connection, plain)
    return resolved(plain, server.settings.datasets)
