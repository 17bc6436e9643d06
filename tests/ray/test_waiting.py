"""A job waits as long as it must: for a slow shard, and for a node that can hold its actors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest, qtune, start
from tests.nodes import Nodes, ray_nodes
from tests.processes import finished

LIMIT_S, PAUSE_S, ACTOR_CPUS = 4, 12, 3
LIMIT = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": str(LIMIT_S)}
"""Ray Data's limit of waiting, 30 minutes by default."""


def job_file(folder: Path, engine: str, **more: object) -> Path:
    """Write a job over the first records of the demo data."""
    path = folder / "job.json"
    body = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 40},
        "model": {"name": str(DEMO_MODEL), "dtype": "float32"},
        "engine": {"name": engine, **more},
        "output": {"path": str(folder / "out")},
    }
    path.write_text(json.dumps(body))
    return path


def test_a_shard_that_takes_longer_than_rays_limit(tmp_path: Path) -> None:
    """No block moves while a slow engine scores the only shard."""
    done = qtune(
        "run", job_file(tmp_path, "tests.slow_engine:build"), env={**LIMIT, "QTUNE_TEST_PAUSE_S": str(PAUSE_S)}
    )
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "out")["counts"]["read"] == 40
    assert manifest(tmp_path / "out")["seconds"]["score"] > PAUSE_S


@pytest.fixture
def small_cluster() -> Iterator[Nodes]:
    """Yield a cluster whose only node is too small for an actor."""
    with ray_nodes(env={**LIMIT, "PYTHONPATH": str(REPO)}, has_dashboard=False) as nodes:
        nodes.start_head(ACTOR_CPUS - 1)
        yield nodes


def test_a_node_that_joins_after_rays_limit(small_cluster: Nodes, tmp_path: Path) -> None:
    """Until then no actor can start. The job ends by itself once a larger node is there."""
    job = job_file(tmp_path, "reference", cpus_per_actor=ACTOR_CPUS, num_actors=1)
    env = {name: value for name, value in small_cluster.env.items() if name.startswith("RAY_")}
    process = start("run", job, "--ray-address", small_cluster.address, env=env)
    planned = tmp_path / "out" / "_qtune" / "plan.json"
    while process.poll() is None and not planned.exists():
        time.sleep(0.2)
    time.sleep(3 * LIMIT_S)
    assert process.poll() is None, process.communicate()[0]
    assert finished(tmp_path / "out") == set()
    small_cluster.join(ACTOR_CPUS + 1)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert manifest(tmp_path / "out")["counts"]["read"] == 40
