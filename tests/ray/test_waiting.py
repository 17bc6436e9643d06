"""A job waits as long as it must, and says what for: nodes, another job, a model, a long shard, a large file."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gated_engine import LOAD_GATE, SCORE_GATE
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, manifest, qtune, start
from tests.nodes import Nodes, ray_nodes
from tests.processes import finished, progress, wait_for
from tests.s3 import S3Endpoint, faulty

LIMIT_S, PAUSE_S, ACTOR_CPUS = 4, 12, 3
LIMIT = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": str(LIMIT_S)}
"""Ray Data's limit of waiting, 30 minutes by default."""
GATED = "tests.gated_engine:build"


def job_file(folder: Path, engine: str, name: str = "out", stall_s: float = 1800, **more: object) -> Path:
    """Write a job over the first records of the demo data."""
    path = folder / f"{name}.json"
    body = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 40},
        "model": {"name": str(DEMO_MODEL), "dtype": "float32"},
        "engine": {"name": engine, **more},
        "limits": {"stall_s": stall_s},
        "output": {"path": str(folder / name)},
    }
    path.write_text(json.dumps(body))
    return path


def wait_for_sentence(out: Path, pattern: str, process: subprocess.Popen[str], since_s: float = 0) -> dict[str, Any]:
    """Return progress.json once its sentence matches a pattern and its age is at least `since_s`."""
    found: dict[str, Any] = {}

    def is_said() -> bool:
        found.update(progress(out))
        return bool(re.fullmatch(pattern, found.get("waiting", ""))) and found["waiting_s"] >= since_s

    try:
        wait_for(is_said, process)
    except AssertionError as error:
        raise AssertionError(f"{error}\nlast: {found}") from error
    return found


def ended(process: subprocess.Popen[str], out: Path) -> str:
    """Return the output of a job that must succeed and read 40 records."""
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert manifest(out)["counts"]["read"] == 40
    return text


@pytest.mark.slow
def test_a_shard_that_takes_longer_than_rays_limit(tmp_path: Path) -> None:
    """No block moves while a slow engine scores the only shard."""
    done = qtune(
        "run", job_file(tmp_path, "tests.slow_engine:build"), env={**LIMIT, "QTUNE_TEST_PAUSE_S": str(PAUSE_S)}
    )
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "out")["counts"]["read"] == 40
    assert manifest(tmp_path / "out")["seconds"]["score"] > PAUSE_S


def test_a_slow_model_and_an_actor_that_hangs(tmp_path: Path) -> None:
    """Loading is waiting. An actor without a finished sample is a problem, named with its node and shard, and ends
    nothing.
    """
    out, gates = tmp_path / "out", {LOAD_GATE: tmp_path / "load", SCORE_GATE: tmp_path / "score"}
    job = job_file(tmp_path, GATED, stall_s=3)
    process = start("run", job, env={**LIMIT, **{name: str(gate) for name, gate in gates.items()}})
    loading = r"1 actor is loading the model on \S+, \d+ s"
    seen = wait_for_sentence(out, loading, process, since_s=3 * LIMIT_S)
    assert (seen["waiting_for"], seen["actors"], seen["phases"]) == ("loading", 1, {"starting": 1})
    gates[LOAD_GATE].touch()
    hanging = r"no scoring actor has finished a sample: shard 0 on \S+, \d+ s"
    seen = wait_for_sentence(out, hanging, process, since_s=2 * LIMIT_S)
    assert seen["waiting_for"] == "hanging"
    (problem,) = seen["problems"]
    assert re.fullmatch(r"actor \w+:\d+ on \S+ has finished no sample of shard 0 for \d+ s", problem)
    gates[SCORE_GATE].touch()
    text = ended(process, out)
    assert len(re.findall(r"warning: actor \w+:\d+ on \S+ has finished no sample of shard 0 for 3 s\. ", text)) == 1
    assert "score: 0/40 samples · 1 actor · 1 actor is loading the model on" in text
    assert (progress(out)["waiting"], progress(out)["problems"]) == ("", [])


def cluster_of(cpus: int, env: dict[str, str]) -> Iterator[Nodes]:
    """Yield a cluster of one node."""
    with ray_nodes(env={**LIMIT, "PYTHONPATH": str(REPO), **env}, has_dashboard=False) as nodes:
        nodes.start_head(cpus)
        yield nodes


@pytest.fixture
def small_cluster() -> Iterator[Nodes]:
    """Yield a cluster whose only node is too small for an actor."""
    yield from cluster_of(ACTOR_CPUS - 1, {})


@pytest.fixture
def gated_cluster(tmp_path: Path) -> Iterator[Nodes]:
    """Yield a cluster with room for one actor, which scores once the file `score` exists."""
    yield from cluster_of(ACTOR_CPUS + 2, {SCORE_GATE: str(tmp_path / "score")})


def start_on(cluster: Nodes, job: Path) -> subprocess.Popen[str]:
    """Start a job on a cluster."""
    env = {name: value for name, value in cluster.env.items() if name.startswith("RAY_")}
    return start("run", job, "--ray-address", cluster.address, env=env)


def test_a_node_that_joins_after_rays_limit(small_cluster: Nodes, tmp_path: Path) -> None:
    """Until then no actor can start, and the job says so. It ends by itself once a larger node is there."""
    out = tmp_path / "out"
    process = start_on(small_cluster, job_file(tmp_path, "reference", cpus_per_actor=ACTOR_CPUS, num_actors=1))
    missing = r"waiting for 3 CPUs \(0 of 3; the largest node has 2\), \d+ s"
    seen = wait_for_sentence(out, missing, process, since_s=3 * LIMIT_S)
    assert (seen["waiting_for"], seen["actors"], seen["actors_wanted"]) == ("resources", 0, 1)
    assert finished(out) == set()
    small_cluster.join(ACTOR_CPUS + 1)
    text = ended(process, out)
    assert "score: 0/40 samples · 0 of 1 actor · waiting for 3 CPUs (0 of 3; the largest node has 2), " in text
    assert (progress(out)["waiting"], progress(out)["stage"]) == ("", "done")


def test_a_job_behind_another_one(gated_cluster: Nodes, tmp_path: Path) -> None:
    """It says that another job uses the resources, for longer than Ray's limit, and runs once that job has ended."""
    jobs = [job_file(tmp_path, GATED, name, cpus_per_actor=ACTOR_CPUS, num_actors=1) for name in ("first", "second")]
    first = start_on(gated_cluster, jobs[0])
    wait_for(lambda: progress(tmp_path / "first").get("phases") == {"scoring": 1}, first)
    second = start_on(gated_cluster, jobs[1])
    behind = r"waiting for 3 CPUs \(0 of 3; 3 in use by other jobs\), \d+ s"
    seen = wait_for_sentence(tmp_path / "second", behind, second, since_s=2 * LIMIT_S)
    assert seen["actors"] == 0
    (tmp_path / "score").touch()
    ended(first, tmp_path / "first")
    ended(second, tmp_path / "second")


@pytest.mark.slow
def test_one_large_compressed_file(s3: S3Endpoint, tmp_path: Path) -> None:
    """It cannot be split, so nothing moves while it is planned. The job says which file it reads, here from a slow
    store.
    """
    write_incompressible(tmp_path / "large.jsonl.gz", 34 << 20)
    s3.put("in/large.jsonl.gz", (tmp_path / "large.jsonl.gz").read_bytes())
    body = json.loads(job_file(tmp_path, "reference").read_text())
    body["input"]["paths"] = [s3.uri("in/large.jsonl.gz")]
    (tmp_path / "job.json").write_text(json.dumps(body))
    with faulty(s3) as proxy:
        proxy.mode = "slow"
        process = start("run", tmp_path / "job.json", env={**LIMIT, **proxy.endpoint.env})
        reading = r"reading s3://\S+/in/large.jsonl.gz \(3\d\.\d MB, compressed, so in one piece\), \d+ s"
        assert wait_for_sentence(tmp_path / "out", reading, process, since_s=3 * LIMIT_S)["waiting_for"] == "reading"
        proxy.mode = "pass"
        ended(process, tmp_path / "out")


def write_incompressible(path: Path, num_bytes: int) -> None:
    """Write records until a compressed file has so many bytes. Compression saves little of them."""
    import random

    rng = random.Random(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        while path.stat().st_size < num_bytes:
            for _ in range(200):
                text = rng.randbytes(600).hex()
                file.write(json.dumps({"prompt": "Say it.", "completion": text[:40], "noise": text}) + "\n")
            file.flush()
