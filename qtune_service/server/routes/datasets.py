"""Datasets: upload as a stream, list, look, delete.

A worker thread pulls the body block by block from the event loop, and writes, hashes and checks each before it asks for
the next one. So a sender is never faster than the disk, and an upload holds a block or two of memory.

`POST /preview`: the first samples of a job, before anything is paid for.
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
"""A sender that is silent for so long is given up."""
WINDOW_S, WINDOW_BYTES = 30.0, 64 << 10
"""In each time of so many seconds that the server waits for a sender, it must send so many bytes."""
LINGER_BYTES, LINGER_S = 64 << 20, 5.0
"""After a refusal so much is read and forgotten: a sender that writes on would not see the answer."""
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file, as it is.",
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
    name: Annotated[str, Query(min_length=1, max_length=1000, description="Of the file; its ending says the format.")],
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    sha256: Annotated[str | None, Header(alias="X-Checksum-Sha256", pattern=r"^[0-9a-fA-F]{64}$")] = None,
) -> DatasetView:
    """Store a file that jobs can read as `dataset://ID`. It is checked while it comes in: see `docs/service.md`."""
    asked = Upload(name, who.name, content_length, sha256)
    body = _Body(request.stream())
    receive = functools.partial(server.datasets.receive, asked, body.pulled())
    try:
        async with server.uploads.of(who.name):
            dataset: Dataset = await to_thread.run_sync(receive, limiter=server.uploads.everybody)
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away") from None  # nobody hears it
    except QTuneError:
        if body.has_begun or "expect" not in request.headers:  # who waits for a word to begin needs no patience
            await body.linger()
        raise
    response.headers["Location"] = f"/api/v1/datasets/{dataset.id}"
    return DatasetView.of(dataset)


class _Body:
    """A request's body: taken in by the event loop, pulled by a thread."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self.has_begun = self._has_ended = False
        self._waited_s, self._window_bytes = 0.0, 0

    def pulled(self) -> Iterator[bytes]:
        """Blocks, for a thread that anyio started. Raises ClientDisconnect and TooSlowError."""
        while block := from_thread.run(self._next_block):
            yield block

    async def _next_block(self) -> bytes:
        """At least BLOCK_BYTES; fewer at the end, none behind it."""
        gathered: list[bytes] = []
        size = 0
        while size < BLOCK_BYTES and not self._has_ended:
            gathered.append(await self._next_piece())
            size += len(gathered[-1])
        return b"".join(gathered)

    async def _next_piece(self) -> bytes:
        """Return what came next, or nothing at the end. Raise TooSlowError. Time that is not the sender's is free."""
        self.has_begun = True
        asked_s = time.monotonic()
        try:
            with anyio.fail_after(IDLE_S):
                piece = await anext(self._stream, None)
        except TimeoutError:
            raise TooSlowError(f"nothing came for {IDLE_S:.0f} s", "Send the file again.") from None
        self._has_ended = piece is None
        self._note(len(piece or b""), time.monotonic() - asked_s)
        return piece or b""

    def _note(self, num_bytes: int, waited_s: float) -> None:
        self._window_bytes += num_bytes
        self._waited_s += waited_s
        if self._waited_s < WINDOW_S or self._has_ended:
            return
        if self._window_bytes < WINDOW_BYTES:
            raise TooSlowError(
                f"{self._window_bytes:,} bytes came within {self._waited_s:.0f} s, and {WINDOW_BYTES:,} are required",
                "Send the file again over a faster connection.",
            )
        self._waited_s, self._window_bytes = 0.0, 0

    async def linger(self) -> None:
        """Read on for a while, so that the sender comes to see the answer."""
        left = LINGER_BYTES
        with anyio.move_on_after(LINGER_S), contextlib.suppress(ClientDisconnect, TooSlowError):
            while left > 0 and not self._has_ended:
                left -= len(await self._next_piece())


@router.get("", responses=FAILURES)
def find(
    server: TheServer,
    _who: Reader,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> DatasetPage:
    """Datasets, the newest first."""
    page = server.datasets.store.find(limit=limit, cursor=cursor)
    return DatasetPage(datasets=[DatasetView.of(one) for one in page.datasets], next_cursor=page.next_cursor)


@router.get("/{dataset_id}", responses=FAILURES)
def get(dataset_id: str, server: TheServer, _who: Reader) -> DatasetView:
    """One dataset."""
    return DatasetView.of(server.datasets.store.get(dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=FAILURES)
def delete(dataset_id: str, server: TheServer, _who: Submitter) -> None:
    """Remove a dataset that no waiting or running job reads. What jobs made of it stays."""
    server.datasets.delete(dataset_id)


preview_router = APIRouter(tags=["jobs"], route_class=JsonRoute)
MAX_WAITING = 8


@preview_router.post("/preview", responses=UPLOAD_FAILURES)
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
