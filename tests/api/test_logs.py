"""Logs of jobs: whole, by their end, and as they are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qtune_service.server.routes.jobs import _last_lines
from tests.api.servers import scripted, serving, settings
from tests.scripted_jobs import submit_job, wait_for_job


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server without models."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made:
        yield made


def add(folder: Path, job_id: str, text: str) -> None:
    """Print something in a driver's place."""
    with (folder / "jobs" / f"{job_id}.log").open("a") as log:
        log.write(text)


def test_a_log_is_followed_until_the_job_ends(client: httpx.Client, tmp_path: Path) -> None:
    """From before the job starts: each line as it is written, none twice, none missing."""
    job = submit_job(client, tmp_path, "sleep")["id"]
    with client.stream("GET", f"/api/v1/jobs/{job}/logs", params={"follow": True}) as answer:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        lines = answer.iter_lines()
        assert next(lines) == "attempt 1"
        add(tmp_path, job, "zwei\n")
        assert next(lines) == "zwei"
        threading.Timer(0.7, add, (tmp_path, job, "drei\n")).start()
        assert next(lines) == "drei"
        client.post(f"/api/v1/jobs/{job}/cancel")
        assert list(lines) == []
    assert wait_for_job(client, job, "cancelled")
    whole = client.get(f"/api/v1/jobs/{job}/logs", params={"follow": True}).text
    assert whole == "attempt 1\nzwei\ndrei\n" == client.get(f"/api/v1/jobs/{job}/logs").text


def test_following_may_begin_at_the_end(client: httpx.Client, tmp_path: Path) -> None:
    """With the last lines, and then what comes."""
    job = submit_job(client, tmp_path, "sleep")["id"]
    with client.stream("GET", f"/api/v1/jobs/{job}/logs", params={"follow": True}) as answer:
        assert next(answer.iter_lines()) == "attempt 1"
    add(tmp_path, job, "2\n3\n4")
    with client.stream("GET", f"/api/v1/jobs/{job}/logs", params={"follow": True, "tail": 2}) as answer:
        text = answer.iter_text()
        assert next(text) == "3\n4"
        add(tmp_path, job, "\n5\n")
        assert next(text) == "\n5\n"
        client.post(f"/api/v1/jobs/{job}/cancel")
        assert "".join(text) == ""


def test_a_deleted_job_ends_its_log(client: httpx.Client, tmp_path: Path) -> None:
    """As a job does that has ended."""
    job = submit_job(client, tmp_path, "fail")["id"]
    wait_for_job(client, job, "failed")
    assert client.get(f"/api/v1/jobs/{job}/logs", params={"follow": True}).text == "attempt 1\n"
    client.delete(f"/api/v1/jobs/{job}")
    assert client.get(f"/api/v1/jobs/{job}/logs", params={"follow": True}).status_code == 404


@pytest.mark.parametrize(("lines", "want"), [(1, b"d"), (2, b"c\nd"), (3, b"b\nc\nd"), (9, b"a\nb\nc\nd")])
def test_the_end_of_a_log(lines: int, want: bytes) -> None:
    """However it is cut into blocks; the size is that of all."""
    text = b"a\nb\nc\nd"
    for cut in range(len(text) + 1):
        assert _last_lines(iter([text[:cut], text[cut:]]), lines) == (want, len(text))


def test_a_long_log_is_searched_for_its_end_in_little_time() -> None:
    """Linear in its length, whatever number of lines is asked for."""
    block = b"x" * 99 + b"\n"
    started = time.perf_counter()
    end, size = _last_lines((block * 655 for _ in range(1600)), 100_000)
    assert (len(end), size) == (100_000 * 100, 1600 * 65_500)
    assert time.perf_counter() - started < 5
