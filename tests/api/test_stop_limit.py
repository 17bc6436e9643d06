"""A driver that was asked to stop is gone after a bounded time, whatever its spec says and wherever it runs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from qtune_service.config import MAX_STOP_GRACE_S
from qtune_service.errors import LaunchError
from qtune_service.job_states import Job
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.launchers import base
from qtune_service.server.launchers.base import DriverState, Reference, ray_stop_wait_s, server_stop_limit_s
from qtune_service.server.launchers.local import LocalLauncher
from qtune_service.server.launchers.ray import environment
from tests.api.servers import DRIVER, scripted, serving, settings
from tests.api.test_ray_jobs import job as ray_job
from tests.api.test_service import queue_job, tick_until
from tests.waiting import wait_until

OLD_SPECS = [1e9, float("inf"), float("nan"), -5, "never", None, True, 10**400]


@pytest.mark.parametrize("given", [0, 25, 40.5, 600, *OLD_SPECS])
def test_the_limits_are_bounded(given: Any) -> None:
    """Also of specs that an older version took; Ray's comes first, so that what it did can be seen."""
    spec = {"limits": {"stop_grace_s": given}}
    wait_s, limit_s = ray_stop_wait_s(spec), server_stop_limit_s(spec)
    assert 30 <= wait_s <= MAX_STOP_GRACE_S + 30
    assert wait_s + 10 <= limit_s <= MAX_STOP_GRACE_S + 45
    if isinstance(given, (int, float)) and 0 <= given <= MAX_STOP_GRACE_S and given is not True:
        assert wait_s >= given + 30
    variables = environment(ray_job(limits={"stop_grace_s": given}), has_gpus=False)
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == str(wait_s)


def test_a_spec_without_limits_has_the_default() -> None:
    """25 seconds, as config.py says."""
    assert ray_stop_wait_s({}) == ray_stop_wait_s({"limits": None}) == 55
    assert server_stop_limit_s({}) == 70


@dataclass
class Deaf:
    """A place where drivers cannot be asked to stop; it counts how it was asked."""

    name: str = "local"
    asked: list[bool] = field(default_factory=list)

    def start(self, job: Job) -> Reference:
        """Return a name."""
        return {"driver": job.id}

    def state(self, reference: Reference) -> DriverState:
        """Return that it lives, however often it was stopped."""
        assert reference["driver"]
        return DriverState.alive

    def stop(self, reference: Reference, *, force: bool) -> None:
        """Keep what was requested; fail where the driver is to be asked."""
        assert reference["driver"]
        self.asked.append(force)
        if not force:
            raise LaunchError("it cannot be asked", "")

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:  # noqa: ARG002 - it printed nothing
        """Return nothing."""
        return iter(())

    def forget(self, job: Job) -> None:
        """Keep nothing."""


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """Return an empty store."""
    database = open_database(f"sqlite:///{tmp_path}/q.db")
    upgrade(database)
    return JobStore(database)


def test_force_follows_where_asking_fails(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit counts from the first try. Force is repeated; the log says it once."""
    deaf = Deaf()
    service = JobService(store, {"local": deaf})
    made = queue_job(service, tmp_path, "sleep")
    service.tick()
    service.cancel(made.id)
    for _ in range(3):
        service.tick()
    assert deaf.asked == [False, False, False]
    monkeypatch.setattr(base, "SERVER_MARGIN_S", -25)
    with caplog.at_level(logging.WARNING):
        service.tick()
        JobService(store, {"local": deaf}).tick()  # a server that was restarted
    assert deaf.asked[3:] == [True, True]
    assert sum("is killed" in line for line in caplog.messages) == 1


def test_a_driver_is_asked_once(store: JobStore, tmp_path: Path) -> None:
    """A second SIGTERM would end it before it has saved."""

    class Polite(Deaf):
        def stop(self, reference: Reference, *, force: bool) -> None:
            assert "stop_asked_s" not in reference
            self.asked.append(force)

    place = Polite()
    service = JobService(store, {"local": place})
    made = queue_job(service, tmp_path, "sleep")
    service.tick()
    service.cancel(made.id)
    for _ in range(3):
        service.tick()
    assert place.asked == [False]


def test_a_spec_of_an_older_version_keeps_no_driver(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `stop_grace_s` of 1e9 in the database, a driver that ignores SIGTERM is killed after the largest limit."""
    monkeypatch.setattr(base, "MAX_STOP_GRACE_S", 0)
    monkeypatch.setattr(base, "SERVER_MARGIN_S", 0.5)
    service = JobService(store, {"local": LocalLauncher(tmp_path / "jobs", python=DRIVER)})
    made = queue_job(service, tmp_path, "stubborn", limits={"stop_grace_s": 1e9})
    beat = Path(made.output) / "_qtune" / "progress.json"
    running = tick_until(service, made, lambda now: now.reference and beat.exists())
    service.cancel(made.id)
    assert tick_until(service, made, lambda now: now.status.is_final).status == "cancelled"
    assert not _lives(running.reference["pid"])


def test_cancelling_by_rest_removes_a_stubborn_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is answered at once; the job is cancelled within its limit, and no process is left."""
    monkeypatch.setattr(base, "SERVER_MARGIN_S", 0.5)
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        body = {"input": {"paths": [str(tmp_path / "inputs" / "a.jsonl")]}, "model": {"name": "stubborn"}}
        made = client.post("/api/v1/jobs", json={**body, "limits": {"stop_grace_s": 0}})
        assert made.status_code == 201, made.text
        path, beat = made.headers["location"], Path(made.json()["output"]) / "_qtune" / "progress.json"
        wait_until(beat.exists)
        (number,) = (tmp_path / "jobs").glob("*.pid")
        pid = int(number.read_text())
        assert client.post(f"{path}/cancel").status_code == 202
        wait_until(lambda: client.get(path).json()["status"] == "cancelled")
        assert not _lives(pid)


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


STUBBORN_FAMILY = """#!{python}
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
pathlib.Path("{note}").write_text(str(child.pid))
time.sleep(60)
"""


def test_force_reaches_the_processes_of_a_driver(tmp_path: Path) -> None:
    """Also one in a session of its own, as Ray's workers are: it would keep the GPU."""
    note, driver = tmp_path / "child", tmp_path / "driver.py"
    driver.write_text(STUBBORN_FAMILY.format(python=sys.executable, note=note))
    driver.chmod(0o755)
    place = LocalLauncher(tmp_path / "jobs", python=str(driver))
    reference = place.start(ray_job())
    wait_until(lambda: note.exists() and note.read_text())
    pids = (reference["pid"], int(note.read_text()))
    place.stop(reference, force=False)
    time.sleep(0.3)
    assert all(map(_lives, pids))
    place.stop(reference, force=True)
    wait_until(lambda: not any(map(_lives, pids)))
    assert place.state(reference) is DriverState.ended
