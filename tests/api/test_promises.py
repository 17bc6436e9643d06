"""What the service promises, with servers that are killed, doubled, and out of disk: each job once, and its truth."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.job_states import Job
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.launchers.local import LocalLauncher
from tests.api.servers import DRIVER, scripted, serving, settings
from tests.jobs import REPO, environment
from tests.scripted_jobs import job_request, num_starts
from tests.waiting import free_port, wait_for_answer, wait_until_ready

KILLS = 5
ENDS = {
    "succeed": ("succeeded", None),
    "slow 0.3": ("succeeded", None),
    "slow 2": ("succeeded", None),
    "fail": ("failed", "data"),
    "vanish": ("failed", "driver_vanished"),
}
"""What drivers do, and how their jobs end: status and code of the error."""


@contextmanager
def server(root: Path, port: int, max_running: int, database_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process that ends with the block."""
    command = [sys.executable, "-m", "tests.api.scripted_server", str(root), str(port), str(max_running)]
    env = environment({"QTUNE_DATABASE_URL": database_url, "PYTHONPATH": str(REPO)})
    process = subprocess.Popen(command, env=env, cwd=REPO)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def client_of(port: int) -> Iterator[httpx.Client]:
    """Yield a client once the server answers."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        wait_until_ready(client)
        yield client


def wait_for_all(store_view: httpx.Client, number: int, seconds: float = 90) -> list[dict[str, Any]]:
    """Return all jobs once none is queued or running."""
    path = "/api/v1/jobs?limit=200"

    def all_ended(page: Any) -> bool:
        jobs = page["jobs"]
        return len(jobs) == number and all(job["status"] not in ("queued", "running") for job in jobs)

    return list(wait_for_answer(store_view, path, all_ended, seconds)["jobs"])


def most_at_once(jobs: list[dict[str, Any]]) -> int:
    """Drivers that were at work at the same time, by what they noted themselves."""
    notes = [line.split() for job in jobs for line in (Path(job["output"]) / "span").read_text().splitlines()]
    steps = [1 if what == "begin" else -1 for what, _ in sorted(notes, key=lambda note: float(note[1]))]
    return max(accumulate(steps))


def test_two_servers_run_each_job_once(postgres_database: str, tmp_path: Path) -> None:
    """Two processes on one PostgreSQL, jobs through either: each has one driver, and the limit holds for both."""
    (tmp_path / "inputs").mkdir()
    acts = list(ENDS) * 5
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(server(tmp_path, port, 3, postgres_database))
        clients = [stack.enter_context(client_of(port)) for port in ports]
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda i: clients[i % 2].post("/api/v1/jobs", json=job_request(tmp_path, acts[i])), range(len(acts))
            )
            assert {answer.status_code for answer in answers} == {201}
        jobs = wait_for_all(clients[0], len(acts))
    assert [num_starts(job["output"]) for job in jobs] == [1] * len(acts)
    assert {job["attempts"] for job in jobs} == {1}
    assert 2 <= most_at_once(jobs) <= 3


def test_a_server_killed_at_any_moment(postgres_database: str, tmp_path: Path) -> None:
    """Kill -9 at random moments, with jobs waiting, starting, running and ending: each job is started once and
    ends as its driver did.
    """
    (tmp_path / "inputs").mkdir()
    chance = random.Random(5)
    acts = list(ENDS) * 5
    port = free_port()
    for kill in range(KILLS + 1):
        with server(tmp_path, port, 4, postgres_database) as process, client_of(port) as client:
            if kill == 0:
                for act in acts:
                    assert client.post("/api/v1/jobs", json=job_request(tmp_path, act)).status_code == 201
            if kill < KILLS:
                time.sleep(chance.uniform(0.0, 0.8))
                process.send_signal(signal.SIGKILL)
                process.wait()
                continue
            jobs = wait_for_all(client, len(acts))
    assert [job["name"] for job in jobs] == acts[::-1]
    for job in jobs:
        assert (job["status"], (job["error"] or {}).get("code"), num_starts(job["output"])) == (*ENDS[job["name"]], 1)


def test_a_double_submission_is_one_job(tmp_path: Path) -> None:
    """Twenty at once with one key: one is 201 and nineteen are 200 with the same job; another body is 409."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client, ThreadPoolExecutor(20) as pool:
        key = {"Idempotency-Key": "monday"}

        def send(act: str) -> httpx.Response:
            return client.post("/api/v1/jobs", json=job_request(tmp_path, act), headers=key)

        answers = list(pool.map(send, ["sleep"] * 20))
        assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
        assert len({answer.json()["id"] for answer in answers}) == 1
        others = list(pool.map(send, ["slow 0.3"] * 20))
        assert {answer.status_code for answer in others} == {409}
        assert len(client.get("/api/v1/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("full", ["spec", "log"])
def test_a_full_disk_fails_one_job(store: JobStore, tmp_path: Path, full: str) -> None:
    """Where the launcher cannot write a job's spec, or its driver the log, that job fails and says so; the next one
    runs.
    """
    service = JobService(store, {"local": LocalLauncher(tmp_path / "jobs", python=DRIVER)}, max_running=2)
    (tmp_path / "jobs").mkdir()
    unlucky, lucky = (_queue(service, tmp_path / name) for name in ("a", "b"))
    ending = {"spec": "json", "log": "log"}[full]
    (tmp_path / "jobs" / f"{unlucky.id}.{ending}").symlink_to("/dev/full")
    deadline = time.monotonic() + 20
    while not all(store.get(job.id).status.is_final for job in (unlucky, lucky)) and time.monotonic() < deadline:
        service.tick()
        time.sleep(0.02)
    failed = store.get(unlucky.id)
    assert (failed.status, store.get(lucky.id).status) == ("failed", "succeeded")
    assert failed.error is not None
    if full == "spec":
        assert failed.error.code == "launch_failed"
        assert "No space left on device" in failed.error.message
    else:
        assert failed.error.code == "driver_vanished"


def _queue(service: JobService, out: Path) -> Job:
    spec = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "succeed"}, "output": {"path": str(out)}}
    return service.submit(NewJob(out.name, spec, str(out), "ann", "local"))[0]
