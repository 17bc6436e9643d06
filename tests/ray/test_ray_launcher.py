"""The service with a Ray cluster of two nodes and an object store: real jobs through the Jobs API, no shared disk."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from qtune_service.server.jobs import service as service_module
from qtune_service.server.launchers import base
from qtune_service.server.settings import Settings
from tests.api.servers import serving
from tests.jobs import DEMO_DATA, DEMO_MODEL, QTUNE, REPO, environment
from tests.nodes import Nodes, ray_nodes
from tests.processes import tree
from tests.s3 import S3Endpoint
from tests.slow_engine import HURRY
from tests.waiting import free_port, wait_for_answer, wait_until, wait_until_ready

ROWS = 300
VANISHED_S = 30


@pytest.fixture(scope="module")
def s3(s3: S3Endpoint) -> S3Endpoint:
    """Return an object store that holds some rows of the demo."""
    s3.put("in/data.jsonl", b"".join(DEMO_DATA.read_bytes().splitlines(keepends=True)[:ROWS]))
    return s3


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that lets the slow engine be fast."""
    return tmp_path_factory.mktemp("hurry") / "now"


def nodes_env(s3: S3Endpoint, hurry: Path) -> dict[str, str]:
    """Variables of the cluster's nodes."""
    return {**s3.env, "PYTHONPATH": str(REPO), HURRY: str(hurry)}


@pytest.fixture(scope="module")
def cluster(s3: S3Endpoint, hurry: Path) -> Iterator[Nodes]:
    """Two nodes; each works in a folder of its own."""
    with ray_nodes(2, 2, env=nodes_env(s3, hurry)) as nodes:
        yield nodes


def variables(cluster: Nodes, s3: S3Endpoint) -> dict[str, str]:
    """Return the settings of a server whose jobs run on the cluster."""
    return {
        "QTUNE_LAUNCHER": "ray",
        "QTUNE_RAY_ADDRESS": cluster.dashboard,
        "QTUNE_RAY_TOKEN_PATH": cluster.env["RAY_AUTH_TOKEN_PATH"],
        "QTUNE_RAY_COMMAND": f"{sys.executable} -m qtune_service.cli",
        "QTUNE_OUTPUTS_ROOT": s3.uri("outputs"),
        "QTUNE_ALLOWED_INPUTS": s3.uri("in"),
        "QTUNE_ALLOWED_MODELS": DEMO_MODEL,
        "QTUNE_ALLOW_REMOTE_CODE": "true",
        "QTUNE_MAX_RUNNING_JOBS": "2",
    }


@contextmanager
def server(root: Path, port: int, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`qtune serve`, until it is stopped or killed."""
    command = [*QTUNE, "serve", "--data-root", str(root), "--port", str(port)]
    process = subprocess.Popen(command, env=environment(env))
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def cluster_job(s3: S3Endpoint, engine: str, **more: Any) -> dict[str, Any]:
    """Return a job of many small shards. The server chooses its output."""
    return {
        "name": f"demo {engine}",
        "input": {"paths": [s3.uri("in/data.jsonl")], "shard_bytes": 2048},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": engine},
        **more,
    }


def drivers(cluster: Nodes) -> list[psutil.Process]:
    """Drivers of the service that are at work on the cluster."""
    found = []
    for process in tree(*cluster.roots):
        try:
            if "env:QTUNE_SPEC" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_life_of_a_job_on_a_cluster(cluster: Nodes, s3: S3Endpoint, hurry: Path, tmp_path: Path) -> None:
    """Submitted by REST, it is scored on the cluster. kill -9 of the server: the job goes on, the next one knows it.
    kill -9 of the driver: it fails within 30 s, and resumed goes on. Cancelled: it saves what it has in hand. Resumed
    again: it ends, and its product is served. The logs of all three attempts are there without the cluster, too.
    """
    port, env = free_port(), {**variables(cluster, s3), **s3.env}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with server(tmp_path, port, env) as process:
            wait_until_ready(client)
            made = client.post("/api/v1/jobs", json=cluster_job(s3, "tests.slow_engine:build"))
            assert made.status_code == 201, made.text
            path, output = made.headers["location"], made.json()["output"]
            assert output.startswith(s3.uri("outputs/"))
            first = wait_for_answer(client, path, scoring)["progress"]["samples_done"]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        (driver,) = drivers(cluster)
        with server(tmp_path, port, env):
            job = wait_for_answer(client, path, lambda j: j["progress"]["samples_done"] > first)
            assert (job["status"], job["attempts"], drivers(cluster)) == ("running", 1, [driver])
            driver.kill()
            failed = wait_for_answer(client, path, lambda j: j["status"] == "failed", VANISHED_S)
            assert failed["error"]["code"] == "driver_vanished"

            assert client.post(f"{path}/resume").status_code == 202
            wait_for_answer(client, path, lambda j: j["progress"]["samples_done"] > failed["progress"]["samples_done"])
            assert client.post(f"{path}/cancel").status_code == 202
            assert wait_for_answer(client, path, lambda j: j["status"] != "running", 60)["status"] == "cancelled"
            assert drivers(cluster) == []

            hurry.touch()
            assert client.post(f"{path}/resume").status_code == 202
            job = wait_for_answer(client, path, lambda j: j["status"] not in ("queued", "running"))
            assert (job["status"], job["attempts"], job["error"]) == ("succeeded", 3, None)
            assert job["counts"]["read"] == job["progress"]["samples_done"] == ROWS
            check_product(client, path)
            check_log(client, path, cluster, job["id"])
            assert client.delete(path).status_code == 204
            left = s3.keys(output.partition(s3.bucket)[2].strip("/"))
            assert [key for key in left if not key.endswith("/")] == []


def scoring(job: Any) -> bool:
    """Return whether a job is in the middle of scoring."""
    return bool(job["stage"] == "score" and 0 < job["progress"]["samples_done"] < ROWS)


def check_product(client: httpx.Client, path: str) -> None:
    """Check that the product is served from the object store."""
    files = client.get(f"{path}/files").json()
    first = next(file["path"] for file in files if file["path"].startswith("pruned/"))
    assert "qtune" in pq.read_table(io.BytesIO(client.get(f"{path}/files/{first}").content)).column_names


def check_log(client: httpx.Client, path: str, cluster: Nodes, job_id: str) -> None:
    """Three attempts, one after the other, also when the cluster has forgotten them; and no secret."""
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    for attempt in (1, 2, 3):
        url = f"{cluster.dashboard}/api/jobs/qtune-{job_id}-{attempt}"
        gone = httpx.delete(url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert gone.status_code == 200, gone.text
    log = client.get(f"{path}/logs").text
    first, second, third = (log.index(f"Running entrypoint for job qtune-{job_id}-{attempt}") for attempt in (1, 2, 3))
    assert first < second < third
    assert "terminated. Finished shards are safe" in log[second:third]
    assert "continuing: " in log[third:]
    assert f"score: {ROWS}/{ROWS} samples" in log[third:]
    assert token not in log


def test_a_wrong_token_is_told(cluster: Nodes, s3: S3Endpoint, tmp_path: Path) -> None:
    """The job fails at once, and says which setting is wrong, without the token."""
    wrong = tmp_path / "token"
    wrong.write_text("0123456789abcdef" * 4)
    env = {**variables(cluster, s3), "QTUNE_RAY_TOKEN_PATH": str(wrong)}
    with serving(Settings(data_root=tmp_path, **_fields(env))) as client:
        path = client.post("/api/v1/jobs", json=cluster_job(s3, "reference")).headers["location"]
        error = wait_for_answer(client, path, lambda j: j["status"] == "failed", 10)["error"]
    assert error["code"] == "launch_failed"
    assert "refuses the token" in error["message"]
    assert "QTUNE_RAY_TOKEN_PATH" in error["hint"]
    assert wrong.read_text() not in json.dumps(error)


def test_a_driver_that_ignores_sigterm_is_killed(
    cluster: Nodes, s3: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray, after a wait that the server bounds: with the 1e9 s that an older version took, here cut to none."""
    monkeypatch.setattr(base, "MAX_STOP_GRACE_S", 0)
    monkeypatch.setattr(base, "RAY_MARGIN_S", 2)
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    env = {**variables(cluster, s3), "QTUNE_RAY_COMMAND": f"{sys.executable} {stubborn}"}
    monkeypatch.setattr(service_module, "SILENCE_S", 600)  # only Ray's own word counts
    with serving(Settings(data_root=tmp_path, **_fields(env))) as client:
        made = client.post("/api/v1/jobs", json=cluster_job(s3, "reference", limits={"stop_grace_s": 600}))
        path = made.headers["location"]
        wait_until(lambda: any(str(stubborn) in process.cmdline() for process in drivers(cluster)), 60)
        began = time.monotonic()
        assert client.post(f"{path}/cancel").status_code == 202
        assert wait_for_answer(client, path, lambda j: j["status"] != "running", 60)["status"] == "cancelled"
        assert time.monotonic() - began < 30
        assert drivers(cluster) == []


@pytest.mark.slow
def test_a_cluster_that_is_lost(s3: S3Endpoint, tmp_path: Path) -> None:
    """Its job fails within 30 s of its last word (and what it takes to ask); resumed, it ends on another cluster, and
    the first one's log is still there.
    """

    def on(cluster: Nodes) -> AbstractContextManager[httpx.Client]:
        return serving(Settings(data_root=tmp_path, **_fields(variables(cluster, s3))))

    hurry = tmp_path / "hurry"
    env = nodes_env(s3, hurry)
    with ray_nodes(2, env=env) as cluster, on(cluster) as client:
        path = client.post("/api/v1/jobs", json=cluster_job(s3, "tests.slow_engine:build")).headers["location"]
        wait_for_answer(client, path, scoring)
        cluster.lose_all()
        failed = wait_for_answer(client, path, lambda j: j["status"] == "failed", VANISHED_S + 20)
        assert failed["error"]["code"] == "driver_vanished"
    hurry.touch()
    with ray_nodes(2, env=env) as another, on(another) as client:
        assert client.post(f"{path}/resume").status_code == 202
        job = wait_for_answer(client, path, lambda j: j["status"] not in ("queued", "running"))
        assert (job["status"], job["attempts"], job["counts"]["read"]) == ("succeeded", 2, ROWS)
        assert f"Running entrypoint for job qtune-{job['id']}-1" in client.get(f"{path}/logs").text


def _fields(env: dict[str, str]) -> dict[str, Any]:
    return {name.removeprefix("QTUNE_").lower(): value for name, value in env.items()}
