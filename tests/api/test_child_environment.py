"""What child processes of the server find in their environment: what they need, and none of the server's secrets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from qtune_service.ingest.discovery import INPUT_ROOTS
from qtune_service.server.isolation.processes import child_environment
from qtune_service.server.jobs.previews import PreviewLimits, run_preview
from qtune_service.server.launchers.configured import make_launchers
from qtune_service.server.launchers.local import LocalLauncher
from tests.api.servers import serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs
from tests.scripted_jobs import submit_job, wait_for_job

SECRETS = {
    "QTUNE_DATABASE_URL": "",
    "QTUNE_TOKEN": "secret",
    "RAY_AUTH_TOKEN": "secret",
    "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray-token",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "POSTGRES_PASSWORD": "secret",
    "PGPASSWORD": "secret",
    "MY_SECRET": "secret",
}
"""Variables of the server that no child needs. (An empty URL stands for a database in the server's folder.)"""
STORAGE = {"AWS_ACCESS_KEY_ID": "key", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "GOOGLE_APPLICATION_CREDENTIALS": "/g"}
MODELS = {"HF_HOME": "/models", "HF_TOKEN": "hf", "TRANSFORMERS_CACHE": "/c"}
JOBS = {"CUDA_VISIBLE_DEVICES": "0", "VLLM_CACHE_ROOT": "/v", "RAY_TMPDIR": "/r", "RAY_AUTH_MODE": "token"}
GIVEN = {**STORAGE, **MODELS, **JOBS, "OMP_NUM_THREADS": "3", "HTTPS_PROXY": "http://proxy", "LC_ALL": "C.UTF-8"}
PRINT = "import json, os, sys; sys.stdout.write(json.dumps(dict(os.environ)))"


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set variables of the server."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in {**SECRETS, **GIVEN}.items():
        monkeypatch.setenv(name, value)


def names(found: dict[str, str]) -> set[str]:
    """Return our variables that are among these."""
    return {name for name in {**SECRETS, **GIVEN} if name in found}


@pytest.fixture
def driver(tmp_path: Path) -> str:
    """Return a program that prints its environment, in place of Python."""
    script = tmp_path / "driver"
    script.write_text(f"#!{sys.executable}\n{PRINT}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("more", ["", "MY_*:RAY_AUTH_TOKEN"])
def test_of_a_driver(tmp_path: Path, driver: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server with the local launcher; QTUNE_CHILD_ENVIRONMENT adds names."""
    monkeypatch.setenv("QTUNE_CHILD_ENVIRONMENT", more)
    made = settings(tmp_path)
    launcher = make_launchers(made)["local"]
    assert isinstance(launcher, LocalLauncher)
    launcher._python = driver
    with serving(made, {"local": launcher}) as client:
        job = submit_job(client, tmp_path)["id"]
        wait_for_job(client, job, "failed")
        found = json.loads((tmp_path / "jobs" / f"{job}.log").read_text())
    added = {"MY_SECRET", "RAY_AUTH_TOKEN"} if more else set()
    assert names(found) == set(GIVEN) | added
    assert {name for name in found if name.startswith("QTUNE_")} == {"QTUNE_JOB", INPUT_ROOTS}
    assert {"PATH", "HOME"} <= set(found)


def test_of_a_driver_that_joins_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the cluster's token."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = child_environment("driver")
    assert {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} <= set(found)


def test_of_a_preview(tmp_path: Path) -> None:
    """It reads data and models, and has no GPU."""
    script = tmp_path / "child.py"
    script.write_text(PRINT)
    found = run_preview({}, 1, PreviewLimits(), command=(sys.executable, str(script)))
    assert names(found) == set(GIVEN) - set(JOBS)
    assert not [name for name in found if name.startswith(("QTUNE_", "RAY_", "KUBERNETES_"))]


def test_of_a_child_that_answers_questions(tmp_path: Path, outputs: FinishedOutputs) -> None:
    """It reads outputs, and no models."""
    made = settings(tmp_path, child_environment=("MY_SECRET",))
    with serving(made) as client:
        job = finished_job(tmp_path, outputs.pruned)
        client.timeout = httpx.Timeout(60)
        assert client.get(f"/api/v1/jobs/{job}/samples").status_code == 200
        (child,) = [p for p in psutil.Process().children() if "qtune_service.server.questions.worker" in p.cmdline()]
        found = child.environ()
    assert names(found) == {"MY_SECRET", "HTTPS_PROXY", "LC_ALL", "OMP_NUM_THREADS", *STORAGE}
    assert found["OMP_NUM_THREADS"] == "1"
