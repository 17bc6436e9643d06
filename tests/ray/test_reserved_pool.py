"""The GPUs of a scoring pool are requested before planning, all at once, and for no longer than the driver lives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.jobs import REPO
from tests.nodes import Nodes, ray_nodes
from tests.waiting import wait_until

COMMON = """
import collections, json, sys, time
from qtune_service.config import EngineSpec
from qtune_service.pipeline.executor import Pool, Stage
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.shutdown import Stop

def demand():
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    state = get_cluster_resource_state(global_worker.gcs_client)
    return [
        dict(request.resources_bundle)
        for gang in state.pending_gang_resource_requests
        for request in (gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests)
    ]

executor = RayExecutor(sys.argv[1])
executor.start(Stop())
"""
WAITS = f"""{COMMON}
executor.reserve(EngineSpec(num_actors="3", tensor_parallel_size=2, gpus_per_actor=2))
deadline = time.monotonic() + 60
while len(demand()) < 3 and time.monotonic() < deadline:
    time.sleep(0.2)
print(json.dumps(demand()), flush=True)
time.sleep(600)
"""
"""Asks for a pool and prints what an autoscaler sees."""
LOOKS = f"{COMMON}\nprint(json.dumps(demand()))\nexecutor.close()"
SCORES = f"""{COMMON}
spec = EngineSpec(num_actors="3", tensor_parallel_size=2, gpus_per_actor=2)
executor.reserve(spec)

def plan(index, value):
    return value

class Actor:
    def __call__(self, index, value):
        import ray
        return [ray.get_runtime_context().get_actor_id(), ray.get_runtime_context().get_assigned_resources()["GPU"]]

planned = [result.value for result in executor.run([(i, i) for i in range(4)], Stage("plan", plan))]
stage = Stage("score", Actor, pool=executor.size_pool(spec))
found = [result.value for result in executor.run([(i, i) for i in range(30)], stage)]
print(json.dumps([planned, len({{actor for actor, _ in found}}), sorted({{gpus for _, gpus in found}}), demand()]))
executor.close()
"""
"""Plans while GPUs are reserved, then scores on them."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Yield a head without GPUs."""
    with ray_nodes(env={"PYTHONPATH": str(REPO)}, has_dashboard=False) as nodes:
        nodes.start_head(4)
        yield nodes


def start(cluster: Nodes, program: str) -> subprocess.Popen[str]:
    """Start a driver."""
    return subprocess.Popen(
        [sys.executable, "-c", program, cluster.address], env=cluster.env, stdout=subprocess.PIPE, text=True
    )


def printed(driver: subprocess.Popen[str]) -> Any:
    """Return what a driver prints before it ends."""
    text, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0
    return json.loads(text)


def test_a_fixed_pool_is_requested_at_once_and_ends_with_its_driver(cluster: Nodes) -> None:
    """An autoscaler sees a bundle for each actor while the driver plans, and none after it is killed."""
    driver = start(cluster, WAITS)
    assert driver.stdout is not None
    assert json.loads(driver.stdout.readline()) == [{"GPU": 2.0}] * 3
    driver.kill()
    driver.wait()
    wait_until(lambda: printed(start(cluster, LOOKS)) == [], 120)


def test_the_reserved_gpus_are_given_to_the_actors(cluster: Nodes) -> None:
    """Planning runs meanwhile, on CPUs. Then the actors get the GPUs, and nothing stays reserved."""
    cluster.join(4, gpus=6)
    planned, actors, gpus, left = printed(start(cluster, SCORES))
    assert sorted(planned) == [0, 1, 2, 3]
    assert actors == 3
    assert gpus == [2.0]
    assert left == []
