"""Jobs on a Ray cluster of two nodes with token authentication, over an object store, without a shared disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compare import differences
from tests.jobs import DEMO_DATA, DEMO_MODEL, QTUNE, REPO, demo_job, manifest, qtune, start
from tests.nodes import Nodes, ray_job, ray_nodes, said
from tests.processes import finished, wait_for
from tests.s3 import S3Endpoint
from tests.slow_engine import HURRY

CPUS = 4
ACTOR_CPUS = 2.5
"""A node holds one actor and the tasks beside it; a second actor needs a second node."""
GPUS = 1
"""As Ray is told: the engine finds none and computes on the CPU."""
ACROSS_MACHINES = 1e-5


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that lets the slow engine be fast."""
    return tmp_path_factory.mktemp("hurry") / "now"


@pytest.fixture(scope="module")
def cluster(s3: S3Endpoint, hurry: Path) -> Iterator[Nodes]:
    """Yield a head that others may join. Each node works in a folder of its own."""
    with ray_nodes(env={**s3.env, "PYTHONPATH": str(REPO), HURRY: str(hurry), "QTUNE_TEST_PAUSE_S": "4"}) as nodes:
        nodes.start_head(CPUS, GPUS)
        yield nodes


def spec(data: str, output: str, **engine: object) -> dict[str, Any]:
    """Return the demo job as a job file."""
    return {
        "input": {"paths": [data], "limit": 600, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": "tests.slow_engine:build", **engine},
        "output": {"path": output},
    }


def write_spec(path: Path, body: dict[str, Any]) -> Path:
    """Write a job file."""
    path.write_text(json.dumps(body))
    return path


def ray_env(cluster: Nodes) -> dict[str, str]:
    """Return the variables that a command needs to join the cluster."""
    return {name: value for name, value in cluster.env.items() if name.startswith(("RAY_", "AWS_"))}


def test_a_node_that_joins_late_and_an_object_store(
    cluster: Nodes, s3: S3Endpoint, hurry: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """`ray job submit --working-dir`, status and logs of a spec with s3:// in and out: by default the pool grows onto a
    node that joins while the job runs, and the output is that of one machine; and pruning again from there.
    """
    s3.put("in/data.jsonl", DEMO_DATA.read_bytes())
    (tmp_path / "job").mkdir()
    write_spec(tmp_path / "job" / "spec.json", spec(s3.uri("in/data.jsonl"), s3.uri("out")))
    submit = ("submit", "--submission-id", "late", "--working-dir", ".", "--", *QTUNE, "run", "spec.json")
    process = ray_job(cluster, *submit, folder=tmp_path / "job")
    wait_for(lambda: s3.keys("out/_qtune/scored/"), process)
    status = ray_job(cluster, "status", "late")
    cluster.join(CPUS, GPUS)
    assert "RUNNING" in said(status)
    wait_for(lambda: len({s3.json(key)["actor"] for key in s3.keys("out/_qtune/scored/")}) == 2, process)
    hurry.touch()
    assert "Job 'late' succeeded" in said(process)
    hurry.unlink()
    assert "score: 600/600 samples" in said(ray_job(cluster, "logs", "late"))
    s3.download("out", tmp_path / "out")
    assert manifest(tmp_path / "out")["performance"]["nodes"] == 2
    assert differences(undisturbed, tmp_path / "out", ACROSS_MACHINES, ignored=frozenset({"source"})) == []
    less = ("--from-scores", s3.uri("out"), "--output", s3.uri("again"), "--sample-keep-ratio", 0.25)
    again = qtune("prune", *less, "--ray-address", cluster.address, env=ray_env(cluster))
    assert again.returncode == 0, again.stderr
    s3.download("again", tmp_path / "again")
    assert manifest(tmp_path / "again")["counts"]["kept"] < manifest(tmp_path / "out")["counts"]["kept"]


def test_a_missing_token_is_told(cluster: Nodes, tmp_path: Path) -> None:
    """Without the cluster's token the job ends at once, and its message speaks of the token."""
    env = {**ray_env(cluster), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    done = qtune(*demo_job(tmp_path / "o", "--ray-address", cluster.address), env=env)
    assert done.returncode == 4, done.stderr
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("num_actors", ["1-2", "2"])
def test_nodes_that_come_and_go(num_actors: str, cluster: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    """A pool grows onto a node that joins. When that is lost the job goes on, and the shards that its actor held, which
    has no room elsewhere while the others live, do not wait for ever.
    """
    for node in cluster.nodes[1:]:
        cluster.lose(node)
    out = tmp_path / "out"
    engine = {"num_actors": num_actors, "cpus_per_actor": ACTOR_CPUS, "gpus_per_actor": 0}
    job_file = write_spec(tmp_path / "spec.json", spec(str(DEMO_DATA), str(out), **engine))
    process = start("run", job_file, "--ray-address", cluster.address, env=ray_env(cluster))
    wait_for(lambda: finished(out), process)
    joined = cluster.join(CPUS)
    wait_for(lambda: len(actors(out)) == 2, process)
    cluster.lose(joined)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert differences(undisturbed, out, ACROSS_MACHINES) == []


def actors(out: Path) -> set[str]:
    """Return the actors that scored the finished shards."""
    return {json.loads((out / "_qtune" / "scored" / name).read_text())["actor"] for name in finished(out)}


@pytest.mark.slow
def test_a_lost_head_node(cluster: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    """The job ends with one message and not in silence; on a new cluster the same command completes it."""
    out = tmp_path / "out"
    job_file = write_spec(tmp_path / "spec.json", spec(str(DEMO_DATA), str(out)))
    process = start("run", job_file, "--ray-address", cluster.address, env=ray_env(cluster))
    wait_for(lambda: len(finished(out)) >= 3, process)
    cluster.lose_all()
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 4, text
    assert "run the same command again" in text
    marked = len(finished(out))
    cluster.start_head(CPUS, GPUS)
    done = qtune("run", job_file, "--ray-address", cluster.address, env=ray_env(cluster))
    assert done.returncode == 0, done.stderr
    assert f"continuing: {marked} of" in done.stderr
    assert differences(undisturbed, out, ACROSS_MACHINES) == []
