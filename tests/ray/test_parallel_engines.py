"""Engines on several devices in a cluster of two nodes: tensor parallel in an actor, and placement groups over nodes.

vLLM's Ray backend refuses CPUs, so what runs in the bundles of a placement group is tested by their shape only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compare import differences
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest, qtune
from tests.nodes import Nodes, ray_nodes

ACTOR_CPUS = 2
ACROSS_SHARDS = 1e-4
"""Nats: sums over two halves of the vocabulary are rounded in another order."""
PLACED = """
import json, sys, time
import ray
from qtune_service.config import EngineSpec
from qtune_service.pipeline.executor import Stage
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.shutdown import Stop

class Placement:
    def __call__(self, index, value):
        from ray.util import get_current_placement_group, placement_group_table
        group = get_current_placement_group()
        nodes = placement_group_table(group)["bundles_to_node_id"]
        own = ray.get_runtime_context().get_node_id()
        return {"bundles": group.bundle_specs, "nodes": len(set(nodes.values())), "is_in_group": own in nodes.values()}

executor = RayExecutor(sys.argv[1])
executor.start(Stop())
pool = executor.size_pool(EngineSpec(vllm={"pipeline_parallel_size": 2}))
stage = Stage("score", Placement, (), pool=pool)
found = [result.value for result in executor.run([(i, None) for i in range(3)], stage)]
deadline = time.monotonic() + 30
while ray.available_resources().get("GPU", 0) < 2 and time.monotonic() < deadline:
    time.sleep(0.2)
print(json.dumps({"found": found, "actors": pool.max_actors, "free": ray.available_resources().get("GPU", 0)}))
executor.close()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Yield a head without room for an actor, and a node with it."""
    with ray_nodes(env={"PYTHONPATH": str(REPO)}, has_dashboard=False) as nodes:
        nodes.start_head(1)
        nodes.join(2 * ACTOR_CPUS)
        yield nodes


@pytest.fixture
def gpu_cluster() -> Iterator[Nodes]:
    """Yield two nodes with one GPU each, as Ray is told."""
    with ray_nodes(env={"PYTHONPATH": str(REPO)}, has_dashboard=False) as nodes:
        nodes.start_head(3, 1)
        nodes.join(3, 1)
        yield nodes


def run(folder: Path, cluster: Nodes | None = None, **engine: Any) -> Path:
    """Run the demo job on vLLM and return its output."""
    folder.mkdir()
    body = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 60, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": "vllm", "num_actors": 1, **engine},
        "output": {"path": str(folder / "out")},
    }
    (folder / "job.json").write_text(json.dumps(body))
    where = ("--ray-address", cluster.address) if cluster else ()
    env = {name: value for name, value in (cluster.env if cluster else {}).items() if name.startswith("RAY_")}
    done = qtune("run", folder / "job.json", *where, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.mark.slow
def test_tensor_parallel_in_an_actor(cluster: Nodes, tmp_path: Path) -> None:
    """Two tensor parallel workers in an actor of a two-node cluster, in production's environment, score as one does.

    The engine's core is in the actor's process (VLLM_ENABLE_V1_MULTIPROCESSING=0), its workers are processes.
    """
    two = run(tmp_path / "two", cluster, tensor_parallel_size=2, cpus_per_actor=ACTOR_CPUS)
    assert manifest(two)["engine"]["head"].startswith("partial sums over 2 shards of the vocabulary")
    assert manifest(two)["performance"]["nodes"] == 1
    one = run(tmp_path / "one")
    assert differences(one, two, ACROSS_SHARDS) == []


def test_an_engine_over_two_nodes_is_placed_by_a_group(gpu_cluster: Nodes) -> None:
    """A pipeline of two on nodes of one GPU gets a bundle on each node, and releases both at the end."""
    done = subprocess.run(
        [sys.executable, "-c", PLACED, gpu_cluster.address],
        env=gpu_cluster.env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    bundles = [{"GPU": 1.0, "CPU": 1.0}] * 2
    assert result == {
        "found": [{"bundles": bundles, "nodes": 2, "is_in_group": True}] * 3,
        "actors": 1,
        "free": 2.0,
    }
