"""server/jobs/store.py: legal moves only, nothing twice, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, inspect

from qtune_service.errors import (
    DatabaseError,
    IdempotencyConflictError,
    IllegalMoveError,
    NotFoundError,
    SettingsError,
    SpecError,
)
from qtune_service.job_states import MOVES, JobError, JobStatus, Progress
from qtune_service.server.jobs.database import check_schema, metadata, open_database, upgrade
from qtune_service.server.jobs.ids import new_id
from qtune_service.server.jobs.store import JobStore, NewJob

SPEC: dict[str, Any] = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "m"}, "output": {"path": "out"}}


def new(name: str = "a job", owner: str = "ann", key: str | None = None, **spec: Any) -> NewJob:
    """Return a submission."""
    return NewJob(name, {**SPEC, **spec}, f"out/{new_id()}", owner, "local", key)


def test_a_job_comes_back_as_it_went_in(store: JobStore) -> None:
    """Queued, with its spec, at version 1."""
    job, is_new = store.create(new())
    assert is_new
    assert store.get(job.id) == job
    assert (job.status, job.spec, job.version, job.attempts) == (JobStatus.queued, SPEC, 1, 0)
    assert job.created_at == job.updated_at
    assert job.created_at.tzinfo is not None


def test_a_repeated_submission_finds_its_job(store: JobStore) -> None:
    """The same key and body; another body is a conflict; another owner's key is another key."""
    first, _ = store.create(new(key="k"))
    again, is_new = store.create(new(key="k"))
    assert (again.id, is_new) == (first.id, False)
    with pytest.raises(IdempotencyConflictError, match=first.id):
        store.create(new(key="k", limits={"max_rejected_ratio": 1}))
    other, is_new = store.create(new(owner="bob", key="k"))
    assert is_new
    assert other.id != first.id


def test_double_clicks_make_one_job(store: JobStore) -> None:
    """Eight at once with one key."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.create(new(key="k")), range(8)))
    assert len({job.id for job, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1


@pytest.mark.parametrize("old", JobStatus)
@pytest.mark.parametrize("target", JobStatus)
def test_only_legal_moves_are_made(store: JobStore, old: JobStatus, target: JobStatus) -> None:
    """Every pair of statuses."""
    ways = {
        "queued": [], "running": ["running"], "cancelled": ["cancelled"],
        "succeeded": ["running", "succeeded"], "failed": ["running", "failed"],
    }  # fmt: skip
    job, _ = store.create(new())
    for step in ways[old]:
        job = store.move(job.id, JobStatus(step))
    if target in MOVES[old]:
        moved = store.move(job.id, target)
        assert (moved.status, moved.version) == (target, job.version + 1)
    else:
        with pytest.raises(IllegalMoveError, match=f"is {old} and cannot become {target}"):
            store.move(job.id, target)
        assert store.get(job.id) == job


def test_the_life_of_a_job(store: JobStore) -> None:
    """Times, attempts, progress and error through a failure and a resume."""
    job, _ = store.create(new())
    claimed = store.claim(1)
    assert claimed is not None
    assert (claimed.id, claimed.status, claimed.attempts) == (job.id, JobStatus.running, 1)
    assert claimed.started_at is not None
    noted = store.note(job.id, stage="score", progress=Progress(5, 10, 100, 7.5, 3.0), reference={"pid": 7})
    assert (noted.stage, noted.progress.samples_done, noted.reference) == ("score", 5, {"pid": 7})
    assert store.note(job.id, stage="score") == noted, "nothing new is no event"
    failed = store.move(job.id, JobStatus.failed, error=JobError("driver_vanished", "gone", "resume it"))
    assert failed.error == JobError("driver_vanished", "gone", "resume it")
    assert failed.finished_at is not None
    resumed = store.move(job.id, JobStatus.queued)
    assert (resumed.error, resumed.started_at, resumed.finished_at, resumed.reference) == (None, None, None, {})
    again = store.claim(1)
    assert again is not None
    assert again.attempts == 2


def test_the_queue_is_fair_and_bounded(store: JobStore) -> None:
    """Who has the fewest running jobs comes first, then the oldest job; never more than the limit."""
    ids = [store.create(new(owner=owner))[0].id for owner in ("ann", "ann", "ann", "bob")]
    started = [job.id for _ in range(5) if (job := store.claim(3)) is not None]
    assert started == [ids[0], ids[3], ids[1]]
    store.move(ids[0], JobStatus.succeeded)
    assert (store.claim(3) or pytest.fail("there is room")).id == ids[2]


def test_owners_take_turns(store: JobStore) -> None:
    """One job at a time: who queued many does not hold up who came later with one; of each owner the oldest first."""
    made = {store.create(new(owner=owner))[0].id: owner for owner in ("ann", "ann", "ann", "bob", "bob", "eve")}
    started = []
    while (job := store.claim(1)) is not None:
        started.append(job.id)
        store.move(job.id, JobStatus.succeeded)
    assert [made[one] for one in started] == ["ann", "bob", "eve", "ann", "bob", "ann"]
    assert [one for one in started if made[one] == "ann"] == [one for one, owner in made.items() if owner == "ann"]


def test_servers_do_not_take_the_same_job(store: JobStore) -> None:
    """Ten that claim at once, of twelve jobs, with room for six."""
    for _ in range(12):
        store.create(new())
    with ThreadPoolExecutor(10) as pool:
        claimed = [job.id for job in pool.map(lambda _: store.claim(6), range(10)) if job is not None]
    assert len(claimed) == len(set(claimed)) == 6
    assert store.count()["running"] == len(store.running()) == 6


def test_cancelling(store: JobStore) -> None:
    """A queued job at once; a running one when its launcher has stopped it; a finished one never."""
    queued, _ = store.create(new())
    assert store.request_cancel(queued.id).status is JobStatus.cancelled
    running, _ = store.create(new())
    store.claim(1)
    asked = store.request_cancel(running.id)
    assert (asked.status, asked.cancel_requested) == (JobStatus.running, True)
    store.move(running.id, JobStatus.succeeded)
    with pytest.raises(IllegalMoveError):
        store.request_cancel(running.id)


def test_deleting_waits_for_the_end(store: JobStore) -> None:
    """What runs is not forgotten."""
    job, _ = store.create(new())
    with pytest.raises(IllegalMoveError, match="Cancel it"):
        store.delete(job.id)
    store.request_cancel(job.id)
    assert store.delete(job.id).id == job.id
    with pytest.raises(NotFoundError, match=job.id):
        store.get(job.id)


def test_pages_cover_every_job_once(store: JobStore) -> None:
    """The newest first, also while jobs are added; filters by status, owner and words hold on every page."""
    made = [store.create(new(name=f"job {i}", owner="ann" if i % 2 else "bob"))[0].id for i in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = store.find(limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        if len(seen) == 3:
            store.create(new(name="later"))
        if (cursor := page.next_cursor) is None:
            break
    assert seen == made[::-1]
    assert [job.name for job in store.find(query="JOB 3").jobs] == ["job 3"]
    assert [job.name for job in store.find(query="%").jobs] == []
    assert {job.owner for job in store.find(owner="ann").jobs} == {"ann"}
    assert store.find(statuses=[JobStatus.failed]).jobs == ()
    with pytest.raises(SpecError, match="cursor"):
        store.find(cursor="é")


def test_the_migrations_make_the_tables_that_the_code_uses(database: Engine) -> None:
    """Columns, their types and what must not be null; and a second upgrade does nothing."""
    upgrade(database)
    check_schema(database)
    found = inspect(database)
    for table in metadata.sorted_tables:
        columns = {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(table.name)}
        dialect = database.dialect
        want = {c.name: (str(c.type.compile(dialect)), bool(c.nullable)) for c in table.columns}
        assert columns == want, table.name
    indices = {i["name"] for i in found.get_indexes("jobs")}
    assert "ix_jobs_status_id" in indices


def test_a_database_without_schema_is_told(database_url: str) -> None:
    """With what to do."""
    with pytest.raises(DatabaseError, match="schema none, this version needs"):
        check_schema(open_database(database_url))


def test_a_database_that_is_not_there_is_told_without_its_password() -> None:
    """In one line."""
    engine = open_database("postgresql://me:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseError) as caught:
        JobStore(engine).count()
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    """With what may be used."""
    with pytest.raises(SettingsError, match="QTUNE_DATABASE_URL"):
        open_database(url)
