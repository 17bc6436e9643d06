"""The whole service with a real job: submitted by REST, its server killed on the way, its result downloaded."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from tests.jobs import DEMO_DATA, DEMO_MODEL, QTUNE, environment
from tests.waiting import free_port, wait_for_answer, wait_until_ready


@contextmanager
def server(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`qtune serve`, until it is stopped or killed."""
    allowed = {"QTUNE_ALLOWED_INPUTS": str(DEMO_DATA.parent), "QTUNE_ALLOWED_MODELS": DEMO_MODEL}
    command = [*QTUNE, "serve", "--data-root", str(root), "--port", str(port)]
    process = subprocess.Popen(command, env=environment(allowed))
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def is_at(job: Any, **wanted: str) -> bool:
    """Return whether a job's fields have some values. Fail where it has ended with others."""
    if all(job[name] == value for name, value in wanted.items()):
        return True
    assert job["status"] in ("queued", "running"), job
    return False


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    """Kill -9 in the middle of a job: the driver goes on, the next server knows how it ended and serves the product."""
    port = free_port()
    body = {
        "name": "demo",
        "input": {"paths": [str(DEMO_DATA)], "limit": 200, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": "reference"},
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with server(tmp_path, port) as process:
            wait_until_ready(client)
            made = client.post("/api/v1/jobs", json=body)
            assert made.status_code == 201, made.text
            path = made.headers["location"]
            wait_for_answer(client, path, lambda job: is_at(job, stage="score"))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with server(tmp_path, port):
            wait_until_ready(client)
            job = wait_for_answer(client, path, lambda job: is_at(job, status="succeeded"))
            assert (job["attempts"], job["error"]) == (1, None)
            assert job["counts"]["read"] == 200
            files = client.get(f"{path}/files").json()
            kept = sum(file["rows"] for file in files if file["path"].startswith("pruned/"))
            assert kept == job["counts"]["kept"] >= 100
            first = next(file["path"] for file in files if file["path"].startswith("pruned/"))
            table = pq.read_table(io.BytesIO(client.get(f"{path}/files/{first}").content))
            assert {"input_ids", "labels", "qtune"} <= set(table.column_names)
            shown = client.get(f"{path}/samples", params={"quadrant": "Q2", "limit": 1}).json()
            assert shown["samples"][0]["tokens"]
            assert "score: " in client.get(f"{path}/logs").text
