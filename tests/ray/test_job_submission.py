"""The way of docs/deploy.md onto a cluster by hand: head, two workers, `ray job submit --working-dir`, stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest
from tests.nodes import RAY, Nodes, ray_nodes
from tests.s3 import S3Endpoint, serve_s3

HEAD_CPUS, WORKER_CPUS, ACTOR_CPUS = 2, 3, 2.5
"""An actor fits on a worker, two do not, and none on the head."""
NUM_SAMPLES = 600
STOP_WAIT_S = 60


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Endpoint]:
    """An object store with the demo's data."""
    with serve_s3() as endpoint:
        endpoint.put("in/data.jsonl", DEMO_DATA.read_bytes())
        yield endpoint


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file lets the slow engine be fast."""
    return tmp_path_factory.mktemp("hurry") / "now"


@pytest.fixture(scope="module")
def cluster(s3: S3Endpoint, hurry: Path) -> Iterator[Nodes]:
    """A head and two workers, each with a folder of its own; `qtune` is a command there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {**s3.env, "PYTHONPATH": str(REPO), "PATH": path, "QTUNE_TEST_HURRY": str(hurry)}
    with ray_nodes(HEAD_CPUS, WORKER_CPUS, WORKER_CPUS, env=own) as nodes:
        yield nodes


def ray_job(cluster: Nodes, *arguments: str, folder: Path | None = None) -> str:
    """`ray job ...` with the cluster's token, to its end: what it printed."""
    words = [RAY, "job", arguments[0], "--address", cluster.dashboard, *arguments[1:]]
    done = subprocess.run(words, env=cluster.env, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(cluster: Nodes, name: str, folder: Path, *more: str) -> str:
    """As the page says."""
    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}})
    words = ("--submission-id", name, "--runtime-env-json", grace, "--working-dir", ".", *more)
    return ray_job(cluster, "submit", *words, "--", "qtune", "run", "spec.json", folder=folder)


@pytest.mark.slow
def test_submit_status_logs_stop_and_again(cluster: Nodes, s3: S3Endpoint, hurry: Path, tmp_path: Path) -> None:
    """A job file that is only here scores on both workers, over s3://. Stopped, it keeps what it had; the same
    submission goes on from there to its end.
    """
    spec = {
        "input": {"paths": [s3.uri("in/data.jsonl")], "limit": NUM_SAMPLES, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {
            "name": "tests.slow_engine:build", "num_actors": 2, "cpus_per_actor": ACTOR_CPUS, "gpus_per_actor": 0,
        },
        "output": {"path": s3.uri("out")},
    }  # fmt: skip
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    submit(cluster, "first", folder, "--no-wait")
    deadline = time.monotonic() + 200
    while len(s3.keys("out/_qtune/scored/")) < 2:
        assert time.monotonic() < deadline, ray_job(cluster, "logs", "first")
        time.sleep(0.2)
    assert "RUNNING" in ray_job(cluster, "status", "first")
    head, *workers = cluster.nodes
    assert ([len(node.actors()) for node in workers], head.actors()) == ([1, 1], [])
    assert "score:" in ray_job(cluster, "logs", "first")
    ray_job(cluster, "stop", "first")
    assert "was stopped" in ray_job(cluster, "status", "first")
    assert "Finished shards are safe" in ray_job(cluster, "logs", "first")
    marked = len(s3.keys("out/_qtune/scored/"))
    assert "out/manifest.json" not in s3.keys("out/")

    hurry.touch()
    said = submit(cluster, "second", folder)
    assert "Job 'second' succeeded" in said
    assert f"continuing: {marked} of" in said
    s3.download("out", tmp_path / "out")
    made = manifest(tmp_path / "out")
    assert made["counts"]["read"] == NUM_SAMPLES == made["counts"]["scored"] + made["counts"]["rejected"]
