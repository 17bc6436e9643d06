"""Where a cluster has nodes for CPU work, the stages without an engine run there, and no GPU node stays for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.jobs import REPO
from tests.nodes import Nodes, ray_nodes

NAME = "cpu_node"
PROGRAM = f"""
import os, sys
from qtune_service.pipeline.executor import Stage
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.shutdown import Stop

def resources(index, value):
    import ray
    node = ray.get_runtime_context().get_node_id()
    return "{NAME}" in next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)

executor = RayExecutor(sys.argv[1])
executor.start(Stop())
stage = Stage("prune", resources, num_cpus=1, on_cpu_nodes=True)
print(sorted({{result.value for result in executor.run([(i, None) for i in range(8)], stage)}}))
executor.close()
"""
"""Prints whether the tasks of a stage ran on nodes with and without the resource."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Yield a large node, as those of engines are, and a small one for CPU work."""
    with ray_nodes(env={"PYTHONPATH": str(REPO)}, has_dashboard=False) as nodes:
        nodes.start_head(4)
        nodes.join(1, resources={NAME: 1})
        yield nodes


def places(cluster: Nodes, **env: str) -> str:
    """Return what the program prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, cluster.address],
        env={**cluster.env, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_tasks_run_on_nodes_for_cpu_work(cluster: Nodes) -> None:
    """All of them, one at a time on the one CPU there, though the large node is idle."""
    assert places(cluster, QTUNE_CPU_NODES=NAME) == "[True]"


def test_without_the_setting_any_node_serves(cluster: Nodes) -> None:
    """Tasks then also run on the large node."""
    assert "False" in places(cluster)
