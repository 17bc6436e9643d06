"""Jobs on a cluster that is already there, through Ray Jobs, and over an object store."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs import DEMO_MODEL, REPO, environment, manifest, qtune
from tests.s3 import serve_s3

DEMO_DATA = REPO / "examples" / "demo" / "data.jsonl"
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """A head and a worker node on this machine."""

    address: str
    dashboard: str
    env: dict[str, str]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`ray start --head` and a second node, as processes of their own."""
    port, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's socket paths must be short
    env = environment({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-cpus=1"]
    nodes = [head, [f"--address=127.0.0.1:{port}", "--num-cpus=2"]]
    try:
        for node in nodes:
            subprocess.run([RAY, "start", *node, "--disable-usage-stats"], env=env, check=True, capture_output=True)
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env)
    finally:
        subprocess.run([RAY, "stop", "--force"], env=env, check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_runs_on_a_given_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """--ray-address uses the nodes of a running cluster and leaves it running."""
    common = ("--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o")
    arguments = ("prune", DEMO_DATA, "--limit", 100, *common)
    done = qtune(*arguments, "--ray-address", cluster.address, env=cluster.env)
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "o")["counts"]["scored"] == 100
    command = [RAY, "status", f"--address={cluster.address}"]
    status = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True)
    assert status.stdout.count("node_") >= 2


def test_runs_inside_ray_job_submit(cluster: Cluster, tmp_path: Path) -> None:
    """`ray job submit -- qtune run SPEC.json` runs the same spec in the cluster."""
    spec = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 80},
        "model": {"name": DEMO_MODEL},
        "engine": {"name": "reference"},
        "output": {"path": str(tmp_path / "o")},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "qtune_service.cli", "run", str(tmp_path / "spec.json")]
    submit = [RAY, "job", "submit", "--address", cluster.dashboard, "--", *command]
    done = subprocess.run(submit, env=cluster.env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifest(tmp_path / "o")["counts"]["scored"] == 80
    assert "score: 80/80 samples" in done.stdout + done.stderr


def test_object_store_in_and_out(tmp_path: Path) -> None:
    """Input and output on s3://: the same rows as on a disk, and pruning again from there."""
    with serve_s3() as s3:
        lines = DEMO_DATA.read_text().splitlines(keepends=True)[:120]
        s3.client().put_object(Bucket=s3.bucket, Key="in/data.jsonl", Body="".join(lines).encode())
        env = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        common = ("--model", DEMO_MODEL, "--engine", "reference", "--shard-bytes", 16384)
        remote = qtune("prune", s3.uri("in"), *common, "--output", s3.uri("out"), env=env)
        assert remote.returncode == 0, remote.stderr
        less = ("--from-scores", s3.uri("out"), "--output", s3.uri("again"), "--sample-keep-ratio", 0.25)
        again = qtune("prune", *less, env=env)
        assert again.returncode == 0, again.stderr
        local_data = tmp_path / "data.jsonl"
        local_data.write_text("".join(lines))
        local = qtune("prune", local_data, *common, "--output", tmp_path / "o")
        assert local.returncode == 0, local.stderr
        bodies = {
            name: json.loads(s3.client().get_object(Bucket=s3.bucket, Key=f"{name}/manifest.json")["Body"].read())
            for name in ("out", "again")
        }
    here = manifest(tmp_path / "o")
    assert bodies["out"]["counts"] == here["counts"]
    assert bodies["out"]["thresholds"]["alpha"] == pytest.approx(here["thresholds"]["alpha"], abs=1e-9)
    assert bodies["again"]["counts"]["kept"] < here["counts"]["kept"]
