"""Changes of jobs for those who follow them: one look at the database for all streams, however many there are.

While anybody follows a job, its version is asked for twice a second, with those of all other followed jobs; where it is
another one, the job is read and rendered once and handed to all who follow it.
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

EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A job at a version, as JSON without its spec, which never changes and may be large."""

    version: int
    body: str
    is_last: bool

    @classmethod
    def of(cls, job: JobItem) -> Change:
        """Return a job rendered as a list shows it."""
        return cls(job.version, JobListItem.of(job).model_dump_json(), job.status.is_final)


@dataclass(slots=True)
class _Followed:
    """A job that some follow."""

    latest: Change | None = None
    is_gone: bool = False
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake all who wait, and let the next ones wait for the next change."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()


class Changes:
    """All followed jobs of a server. It lives in the server's event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._followed: dict[str, _Followed] = {}
        self._watch: asyncio.Task[None] | None = None

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Change]:
        """Changes of a job to versions above `after`, until it ends or is deleted. Raises NotFoundError."""
        followed = self._followed.setdefault(job_id, _Followed())
        followed.followers += 1
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
            followed.followers -= 1
            if not followed.followers:
                self._followed.pop(job_id, None)

    def _start(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        while self._followed:
            await asyncio.sleep(EVERY_S)
            try:
                await self._look()
            except DatabaseError:  # it comes back; /readyz tells
                continue

    async def _look(self) -> None:
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
            followed.tell()
