"""Jobs on clusters with broken nodes: engines that do not start, a GPU that fails, a process that is told to leave."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broken_engine import break_node, mend_node
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest, rows, start
from tests.nodes import Node, Nodes, ray_nodes
from tests.processes import finished, progress, wait_for
from tests.slow_engine import HURRY

ACTOR_CPUS = 2.5
PAUSE_S = 3
"""For each shard, until a test has seen what it waits for."""
FAST_S = 120
"""An actor starts in some five seconds, and each node has at most two tries."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the files that the engines see: `hurry`, and `samples`, which they write."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def nodes(files: Path) -> Iterator[Nodes]:
    """Yield a cluster of a small head and two nodes with room for one actor each."""
    own = {"QTUNE_TEST_SAMPLES": str(files / "samples"), HURRY: str(files / "hurry")}
    env = {"PYTHONPATH": str(REPO), "QTUNE_TEST_PAUSE_S": str(PAUSE_S), **own}
    with ray_nodes(env=env, has_dashboard=False) as cluster:
        cluster.start_head(1)
        for _ in range(2):
            cluster.join(4)
        yield cluster


@pytest.fixture
def cluster(nodes: Nodes, files: Path) -> tuple[Nodes, Node, Node]:
    """Return the cluster and its two nodes, which work."""
    _, one, other = nodes.nodes
    for node in (one, other):
        mend_node(node.folder)
    for left in files.iterdir():
        left.unlink()
    return nodes, one, other


def job_file(folder: Path, limits: dict[str, object] | None = None, limit: int = 200, **engine: object) -> Path:
    """Write a job of two actors over the first records of the demo data."""
    path = folder / "job.json"
    body = {
        "input": {"paths": [str(DEMO_DATA)], "limit": limit, "shard_bytes": 4096},
        "model": {"name": str(DEMO_MODEL), "dtype": "float32"},
        "engine": {"name": "tests.broken_engine:build", "cpus_per_actor": ACTOR_CPUS, "num_actors": 2, **engine},
        "limits": limits or {},
        "output": {"path": str(folder / "out")},
    }
    path.write_text(json.dumps(body))
    return path


def started(nodes: Nodes, job: Path) -> subprocess.Popen[str]:
    """Start a job on a cluster."""
    env = {name: value for name, value in nodes.env.items() if name.startswith("RAY_")}
    return start("run", job, "--ray-address", nodes.address, env=env)


def ended(process: subprocess.Popen[str], status: int = 0, timeout_s: float = 240) -> str:
    """Wait for the end of a job, and return what it said."""
    try:
        text, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        pytest.fail(f"the job did not end: {text}")
    assert process.returncode == status, text
    assert "Traceback" not in text
    return text


def test_an_engine_that_does_not_start_on_one_node(
    cluster: tuple[Nodes, Node, Node], files: Path, tmp_path: Path
) -> None:
    """The job ends well on the other node. Terminal, progress.json and manifest name the node and the reason."""
    nodes, bad, _ = cluster
    break_node(bad.folder, start="no CUDA-capable device is detected")
    process, out = started(nodes, job_file(tmp_path)), tmp_path / "out"
    wait_for(lambda: progress(out).get("problems"), process)
    (files / "hurry").touch()
    text = ended(process)
    assert manifest(out)["counts"]["read"] == 200
    assert manifest(out)["performance"]["nodes"] == 1
    assert manifest(out)["performance"]["actors_failed"] >= 1
    for problems in (manifest(out)["actor_problems"], progress(out)["problems"], [text]):
        assert any("no CUDA-capable device" in problem for problem in problems), problems


@pytest.mark.slow
def test_engines_that_start_nowhere(cluster: tuple[Nodes, Node, Node], tmp_path: Path) -> None:
    """The job ends soon, with the reasons of all nodes."""
    nodes, one, other = cluster
    break_node(one.folder, start="no CUDA-capable device is detected")
    break_node(other.folder, start="the driver is too old")
    begun_s = time.monotonic()
    text = ended(started(nodes, job_file(tmp_path)), status=4)
    assert time.monotonic() - begun_s < FAST_S
    assert "no scoring actor works" in text
    assert "no CUDA-capable device" in text
    assert "the driver is too old" in text


def test_a_model_that_loads_nowhere(cluster: tuple[Nodes, Node, Node], tmp_path: Path) -> None:
    """An error that a second try cannot change ends the job after one try on each node, and stays what it is."""
    nodes, one, other = cluster
    for node in (one, other):
        break_node(node.folder, start="the weights do not fit the configuration", fatal=True)
    begun_s = time.monotonic()
    text = ended(started(nodes, job_file(tmp_path)), status=4)
    assert time.monotonic() - begun_s < FAST_S
    assert "the weights do not fit the configuration" in text
    assert "Look at this node." in text


@pytest.mark.slow
def test_a_limit_of_failed_actors(cluster: tuple[Nodes, Node, Node], tmp_path: Path) -> None:
    """With `max_failed_actors` 0 the first engine that does not start ends the job, though another one works."""
    nodes, bad, _ = cluster
    break_node(bad.folder, start="no CUDA-capable device is detected")
    text = ended(started(nodes, job_file(tmp_path, {"max_failed_actors": 0})), status=4)
    assert "no CUDA-capable device" in text


@pytest.mark.slow
def test_a_pool_of_one_leaves_a_broken_node(cluster: tuple[Nodes, Node, Node], files: Path, tmp_path: Path) -> None:
    """A pool of one actor finds the node that works, also when its node breaks while it works."""
    nodes, one, other = cluster
    process, out = started(nodes, job_file(tmp_path, num_actors=1)), tmp_path / "out"
    wait_for(lambda: finished(out), process)
    used = next(node for node in (one, other) if node.actors())
    break_node(used.folder, start="the GPU has fallen off the bus", after=0)
    wait_for(lambda: len(actors(out)) == 2, process)
    (files / "hurry").touch()
    ended(process)
    assert manifest(out)["performance"]["nodes"] == 2
    assert manifest(out)["counts"]["read"] == 200


@pytest.mark.parametrize(
    "how", ["retired: CUDA error", pytest.param("the engine did not start: no device", marks=pytest.mark.slow)]
)
def test_a_gpu_that_fails_while_it_works(
    cluster: tuple[Nodes, Node, Node], how: str, files: Path, tmp_path: Path
) -> None:
    """Its actor is retired after failures on two shards, or because its engine does not start again. Nothing is lost,
    and no shard is given up.
    """
    nodes, bad, _ = cluster
    process = started(nodes, job_file(tmp_path, limit=300))
    out = tmp_path / "out"
    wait_for(lambda: len(actors(out)) == 2, process)
    break_node(bad.folder, after=0, **({"start": "no device"} if "no device" in how else {}))
    wait_for(lambda: any(how in problem for problem in progress(out).get("problems", [])), process)
    (files / "hurry").touch()
    text = ended(process)
    assert any(how in problem for problem in manifest(out)["actor_problems"]), text
    assert_complete(out, 300)


@pytest.mark.slow
def test_a_worker_that_is_told_to_leave(cluster: tuple[Nodes, Node, Node], files: Path, tmp_path: Path) -> None:
    """SIGTERM of a scoring process, as on a notice of preemption: what it has scored is saved, and used by the next."""
    nodes, one, _ = cluster
    process = started(nodes, job_file(tmp_path, limit=300))
    out = tmp_path / "out"
    wait_for(lambda: len(actors(out)) == 2, process)
    (actor,) = one.actors()
    actor.send_signal(signal.SIGTERM)
    wait_for(lambda: list((out / "_qtune" / "partial").glob("*.arrow")), process)
    (files / "hurry").touch()
    ended(process)
    assert_complete(out, 300)
    scored = (files / "samples").read_text().splitlines()
    assert len(scored) == 300, "samples were scored again"  # some have equal tokens


def assert_complete(out: Path, num_records: int) -> None:
    """Check that each record was scored once."""
    ids = [row["sample_id"] for row in rows(out / "scores")]
    assert len(ids) == len(set(ids)) == num_records == manifest(out)["counts"]["scored"]


def actors(out: Path) -> set[str]:
    """Return the actors that scored the finished shards."""
    return {json.loads((out / "_qtune" / "scored" / name).read_text())["actor"] for name in finished(out)}
