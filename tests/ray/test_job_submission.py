"""Jobs through the Ray cluster CLI (docs/operations/deploy.md, Ray clusters): `ray job submit` and `ray job stop`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest
from tests.nodes import LONG_S, Node, Nodes, ray_job, ray_nodes, said
from tests.processes import wait_for
from tests.s3 import S3Endpoint
from tests.slow_engine import HURRY
from tests.waiting import wait_until

HEAD_CPUS, WORKER_CPUS, ACTOR_CPUS = 2, 3, 2.5
"""An actor fits on a worker, two do not, and none on the head."""
NUM_SAMPLES = 300
STOP_WAIT_S = 60
SPEC: dict[str, Any] = {
    "input": {"shard_bytes": 4096},
    "model": {"name": DEMO_MODEL, "dtype": "float32"},
    "engine": {
        "name": "tests.slow_engine:build",
        "num_actors": "1-2",
        "cpus_per_actor": ACTOR_CPUS,
        "gpus_per_actor": 0,
    },
}


@pytest.fixture(scope="module")
def s3(s3: S3Endpoint) -> S3Endpoint:
    """Return an object store that holds some rows of the demo."""
    s3.put("in/data.jsonl", b"".join(DEMO_DATA.read_bytes().splitlines(keepends=True)[:NUM_SAMPLES]))
    return s3


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that lets the slow engine be fast."""
    return tmp_path_factory.mktemp("hurry") / "now"


@pytest.fixture(scope="module")
def cluster(s3: S3Endpoint, hurry: Path) -> Iterator[Nodes]:
    """Yield a head and two workers, each with a folder of its own; `qtune` is a command there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {**s3.env, "PYTHONPATH": str(REPO), "PATH": path, HURRY: str(hurry), "QTUNE_TEST_PAUSE_S": "5"}
    with ray_nodes(HEAD_CPUS, WORKER_CPUS, WORKER_CPUS, env=own) as nodes:
        yield nodes


@pytest.fixture
def folder(s3: S3Endpoint, tmp_path: Path) -> Path:
    """Return a folder with a job file, on this machine alone."""
    spec = {**SPEC, "input": {**SPEC["input"], "paths": [s3.uri("in/data.jsonl")]}, "output": {"path": s3.uri("out")}}
    made = tmp_path / "job"
    made.mkdir()
    (made / "spec.json").write_text(json.dumps(spec))
    return made


def submitting(cluster: Nodes, name: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Submit a job as the documentation says."""
    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}})
    words = ("--submission-id", name, "--runtime-env-json", grace, "--working-dir", ".", *more)
    return ray_job(cluster, "submit", *words, "--", "qtune", "run", "spec.json", folder=folder)


def num_actors(nodes: list[Node]) -> list[int]:
    """Return the number of actors on each node."""
    return [len(node.actors()) for node in nodes]


@pytest.mark.slow
def test_stop_and_again_and_a_lost_node(cluster: Nodes, s3: S3Endpoint, hurry: Path, folder: Path) -> None:
    """A job file that is only here scores on both workers, over s3://. Stopped, it keeps what it had. The same
    submission goes on from there, loses a worker half way, and comes to its end with every sample.
    """

    def marked() -> int:
        return len(s3.keys("out/_qtune/scored/"))

    def log_of_first() -> str:
        return said(ray_job(cluster, "logs", "first"))

    head, *workers = cluster.nodes
    said(submitting(cluster, "first", folder, "--no-wait"))
    wait_until(lambda: marked() and num_actors(workers) == [1, 1], LONG_S, explain=log_of_first)
    assert "RUNNING" in said(ray_job(cluster, "status", "first"))
    assert num_actors([head]) == [0]
    assert "Job 'first' was stopped" in said(ray_job(cluster, "stop", "first"))
    log = log_of_first()
    assert "score:" in log
    assert "Finished shards are safe" in log
    before = marked()
    assert "out/manifest.json" not in s3.keys("out/")

    second = submitting(cluster, "second", folder)
    wait_for(lambda: marked() > before and num_actors(workers) == [1, 1], second, LONG_S)
    cluster.lose(workers[0])
    hurry.touch()
    log = said(second)
    assert "Job 'second' succeeded" in log
    assert f"continuing: {before} of" in log
    s3.download("out", folder / "out")
    counts = manifest(folder / "out")["counts"]
    assert counts["read"] == NUM_SAMPLES == counts["scored"] + counts["rejected"]
