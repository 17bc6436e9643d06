"""Event streams: many followers, one look at the database."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from qtune_service.errors import NotFoundError
from qtune_service.job_states import JobStatus, Progress
from qtune_service.server.events import POLL_EVERY_S, Change, Changes
from qtune_service.server.jobs.store import JobStore, NewJob

T = TypeVar("T")


class CountingStore(JobStore):
    """A store that counts the looks at it."""

    __slots__ = ()
    looks: list[int] = []  # noqa: RUF012 - of all instances

    def versions(self, job_ids: Any) -> dict[str, int]:
        """Count, and look."""
        self.looks.append(len(job_ids))
        return JobStore.versions(self, job_ids)


def submitted(store: JobStore) -> str:
    return store.create(NewJob("a", {}, "/nowhere", "ann", "local"))[0].id


def in_own_loop(story: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread and return its result. The browser's tests leave a running loop in the main
    thread.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, story).result()


async def everything(changes: Changes, job_id: str, after: int = 0) -> list[Change]:
    return [change async for change in changes.follow(job_id, after)]


def test_all_followers_see_every_look_and_the_end(store: JobStore) -> None:
    """A hundred streams of a job get the same changes to its end, by one question each round."""
    counting = CountingStore(store.engine)
    counting.looks.clear()
    job_id = submitted(store)

    async def story() -> list[list[Change]]:
        changes = Changes(counting)
        tasks = [asyncio.create_task(everything(changes, job_id)) for _ in range(100)]
        await asyncio.sleep(3 * POLL_EVERY_S)
        store.move(job_id, JobStatus.running)
        await asyncio.sleep(3 * POLL_EVERY_S)
        store.note(job_id, progress=Progress(1, 2, 3))
        await asyncio.sleep(3 * POLL_EVERY_S)
        store.move(job_id, JobStatus.succeeded)
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    found = in_own_loop(story())
    assert {tuple(change.version for change in each) for each in found} == {(1, 2, 3, 4)}
    assert all([change.is_last for change in each] == [False, False, False, True] for each in found)
    assert len(counting.looks) < 30
    assert set(counting.looks) == {1}


def test_a_follower_gets_only_what_is_newer(store: JobStore) -> None:
    """From a version on, which may be the last one."""
    job_id = submitted(store)
    store.move(job_id, JobStatus.cancelled)
    assert [change.version for change in in_own_loop(everything(Changes(store), job_id, after=1))] == [2]
    assert in_own_loop(everything(Changes(store), job_id, after=2)) == []


def test_a_deleted_job_ends_its_streams(store: JobStore) -> None:
    """Nobody waits for what is gone; one that never was is an error."""
    job_id = submitted(store)

    async def story() -> list[Change]:
        changes = Changes(store)
        task = asyncio.create_task(everything(changes, job_id))
        await asyncio.sleep(POLL_EVERY_S)
        store.move(job_id, JobStatus.cancelled)
        store.delete(job_id)
        return await asyncio.wait_for(task, 20)

    assert [change.version for change in in_own_loop(story())] == [1]
    with pytest.raises(NotFoundError):
        in_own_loop(everything(Changes(store), job_id))
