"""Server-sent job events. One poller queries the versions of all followed jobs every 0.5 s.

A changed job is read and rendered once and broadcast to all of its subscribers, so the load of the database does not
depend on the number of streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from qtune_service.errors import DatabaseError
from qtune_service.job_states import JobItem
from qtune_service.server.jobs.store import JobStore
from qtune_service.wire import JobListItem

POLL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A job at a version, as JSON without its spec, which never changes and may be large."""

    version: int
    body: str
    is_last: bool

    @classmethod
    def of(cls, job: JobItem) -> Change:
        """Render a job as a list item."""
        return cls(job.version, JobListItem.of(job).model_dump_json(), job.status.is_final)


@dataclass(slots=True)
class _Followed:
    """A followed job and its subscribers."""

    latest: Change | None = None
    is_gone: bool = False
    subscribers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        """Wake all subscribers, and reset the event for the next change."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()


class Changes:
    """All followed jobs of a server. Used on the event loop only."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._followed: dict[str, _Followed] = {}
        self._poller: asyncio.Task[None] | None = None

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Change]:
        """Yield changes above version `after` until the job ends or is deleted. Raises NotFoundError."""
        followed = self._followed.setdefault(job_id, _Followed())
        followed.subscribers += 1
        try:
            if followed.latest is None:
                followed.latest = Change.of(await run_in_threadpool(self._store.item, job_id))
            self._start()
            while not followed.is_gone:
                changed, latest = followed.changed, followed.latest
                if latest.version > after:
                    after = latest.version
                    yield latest
                if latest.is_last:
                    return
                await changed.wait()
        finally:
            followed.subscribers -= 1
            if not followed.subscribers:
                self._followed.pop(job_id, None)

    def _start(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll_forever())

    async def _poll_forever(self) -> None:
        while self._followed:
            await asyncio.sleep(POLL_EVERY_S)
            try:
                await self._poll()
            except DatabaseError:  # retry at the next poll; /readyz reports the outage
                continue

    async def _poll(self) -> None:
        versions = await run_in_threadpool(self._store.versions, list(self._followed))
        changed = {
            job_id: followed
            for job_id, followed in self._followed.items()
            if followed.latest is not None and versions.get(job_id) != followed.latest.version
        }
        items = await run_in_threadpool(self._store.items, list(changed)) if changed else {}
        for job_id, followed in changed.items():
            if (item := items.get(job_id)) is None:
                followed.is_gone = True
            else:
                followed.latest = Change.of(item)
            followed.notify()
