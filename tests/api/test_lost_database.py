"""A database that goes away while jobs run, and comes back: for real, with PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.servers import scripted, serving, settings
from tests.api.test_jobs_api import PROBLEM, stream
from tests.postgres import Postgres, stoppable_server
from tests.scripted_jobs import job_request, wait_for_job
from tests.waiting import wait_until_ready

ACT = "succeed 4"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """Yield a PostgreSQL server of this test's own."""
    with stoppable_server() as server:
        yield server


def test_an_outage_is_told_and_survived(postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """503 while it is away; the job, its events and its log go on, and it ends as it did."""
    mine = settings(tmp_path, database_url=postgres.url, allowed_models=(ACT,))
    with serving(mine, scripted(tmp_path)) as client:
        job = client.post("/api/v1/jobs", json=job_request(tmp_path, ACT)).json()["id"]
        wait_for_job(client, job, "running")
        seen: list[str] = []
        followers = [
            threading.Thread(target=lambda: seen.extend(event["status"] for event in stream(client, job))),
            threading.Thread(target=lambda: seen.append(client.get(f"/api/v1/jobs/{job}/logs?follow=true").text)),
        ]
        for follower in followers:
            follower.start()
        time.sleep(0.7)
        postgres.stop()
        try:
            outage(client, job, tmp_path)
        finally:
            postgres.start()
        done = until_it_answers(client, job)
        assert (done["status"], done["attempts"], done["error"]) == ("succeeded", 1, None)
        for follower in followers:
            follower.join(20)
        assert "attempt 1\n" in seen
        assert "succeeded" in seen
    told = [record.getMessage() for record in caplog.records if "monitored" in record.getMessage()]
    assert len(told) == 2, "once that it is away, once that it is back"


def outage(client: httpx.Client, job: str, folder: Path) -> None:
    """Check the answers for some seconds, longer than the driver takes."""
    ended = time.monotonic() + 6
    while time.monotonic() < ended:
        assert client.get("/healthz").status_code == 200
        assert "qtune_database_up 0.0" in client.get("/metrics").text
        answers = [client.get(path) for path in ("/readyz", "/api/v1/jobs", f"/api/v1/jobs/{job}")]
        answers.append(client.post("/api/v1/jobs", json=job_request(folder, ACT)))
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (503, "database")
            assert answer.headers["content-type"] == PROBLEM
        time.sleep(0.5)


def until_it_answers(client: httpx.Client, job: str) -> dict[str, object]:
    """Return the job once it has ended, after the outage."""
    wait_until_ready(client, seconds=20)
    return wait_for_job(client, job, "succeeded", "failed", "cancelled")
