"""The whole service with a real job: submitted by REST, its server killed on the way, its result downloaded."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from tests.jobs import DEMO_DATA, DEMO_MODEL, QTUNE, environment


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


def answers(client: httpx.Client, path: str = "/readyz") -> Any:
    """What the server answers, once it does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.get(path).raise_for_status().json()
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


def until(client: httpx.Client, path: str, **wanted: str) -> Any:
    """The job, once it is as wanted."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        job = answers(client, path)
        if all(job[name] == value for name, value in wanted.items()):
            return job
        assert job["status"] in ("queued", "running"), job
        time.sleep(0.1)
    raise AssertionError(job)


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    """kill -9 in the middle of a job: the driver goes on, the next server knows how it ended and serves the product."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = {
        "name": "demo",
        "input": {"paths": [str(DEMO_DATA)], "limit": 200, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": "reference"},
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with server(tmp_path, port) as process:
            answers(client)
            made = client.post("/api/v1/jobs", json=body)
            assert made.status_code == 201, made.text
            path = made.headers["location"]
            until(client, path, stage="score")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with server(tmp_path, port):
            answers(client)
            job = until(client, path, status="succeeded")
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
