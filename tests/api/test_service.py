"""server/jobs/service.py and server/launchers/local.py: jobs are started once, followed, and come to their true end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from qtune_service.errors import LauncherAwayError, NotFoundError
from qtune_service.job_states import Job, JobError, JobStatus
from qtune_service.server.jobs import service as service_module
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.launchers import base
from qtune_service.server.launchers.base import DriverState, Launcher, Reference
from qtune_service.server.launchers.local import LocalLauncher
from tests.scripted_jobs import num_starts
from tests.waiting import wait_until

DRIVER = str(Path(__file__).parent / "driver.py")


@pytest.fixture
def launcher(tmp_path: Path) -> LocalLauncher:
    """Drivers without a model."""
    return LocalLauncher(tmp_path / "jobs", python=DRIVER)


@pytest.fixture
def service(store: JobStore, launcher: LocalLauncher) -> Iterator[JobService]:
    """One that starts two jobs at a time; what still runs at the end is ended."""
    made = JobService(store, {"local": launcher}, max_running=2)
    yield made
    for job in store.running():
        launcher.stop(job.reference, force=True)


def queue_job(service: JobService, tmp_path: Path, act: str, **more: Any) -> Job:
    """Queue a job whose driver does `act`."""
    name = f"{act} {time.monotonic_ns()}"
    out = str(tmp_path / name.replace(" ", "-"))
    spec = {"input": {"paths": ["a.jsonl"]}, "model": {"name": act}, "output": {"path": out}, **more}
    return service.submit(NewJob(name, spec, out, "ann", "local"))[0]


def tick_until(service: JobService, job: Job, reached: Callable[[Job], object], seconds: float = 20) -> Job:
    """Call the service's tick until `reached(job)` is true, and return the job."""

    def look() -> Job | None:
        service.tick()
        return now if reached(now := service.store.get(job.id)) else None

    return wait_until(look, seconds, explain=lambda: service.store.get(job.id))


def ended(job: Job) -> bool:
    """Return whether a job has ended."""
    return job.status.is_final


def has_started(job: Job) -> bool:
    """Return whether a job has had a driver."""
    return num_starts(job.output) > 0


def test_a_job_runs_to_its_end(service: JobService, tmp_path: Path) -> None:
    """Its counts and thresholds are the manifest's; its log is there."""
    job = tick_until(service, queue_job(service, tmp_path, "succeed"), ended)
    assert (job.status, job.stage, job.attempts) == (JobStatus.succeeded, "done", 1)
    assert (job.counts, job.thresholds) == ({"read": 8, "kept": 4}, {"alpha": 0.5})
    assert b"".join(service.launchers["local"].log(job)) == b"attempt 1\n"


def test_progress_is_the_drivers(service: JobService, tmp_path: Path) -> None:
    """Samples, tokens, speed and what is left."""
    job = tick_until(service, queue_job(service, tmp_path, "sleep"), lambda j: j.progress.samples_done)
    assert (job.status, job.stage) == (JobStatus.running, "score")
    p = job.progress
    assert (p.samples_done, p.samples_total, p.tokens_done, p.tokens_per_s, p.eta_s) == (3, 8, 90, 12.3, 4.6)


def test_a_drivers_error_is_the_jobs(service: JobService, tmp_path: Path) -> None:
    """Code, message and hint."""
    job = tick_until(service, queue_job(service, tmp_path, "fail"), ended)
    assert job.status is JobStatus.failed
    assert job.error is not None
    assert (job.error.code, job.error.message, job.error.hint) == ("data", "none of 8 records could be scored", "look")


def test_a_vanished_driver_is_a_failure_that_can_be_resumed(service: JobService, tmp_path: Path) -> None:
    """Without a word, and also where an earlier attempt left one."""
    job = tick_until(service, queue_job(service, tmp_path, "vanish"), ended)
    assert job.error is not None
    assert job.error.code == "driver_vanished"
    service.resume(job.id)
    again = tick_until(service, job, ended)
    assert (again.attempts, num_starts(job.output)) == (2, 2)
    assert b"".join(service.launchers["local"].log(job)) == b"attempt 1\nattempt 2\n"


def test_an_error_of_an_earlier_attempt_is_not_told_again(service: JobService, tmp_path: Path) -> None:
    """What stands in progress.json may be older than the driver that died."""
    job = tick_until(service, queue_job(service, tmp_path, "sleep"), lambda j: j.reference)
    path = Path(job.output) / "_qtune" / "progress.json"
    wait_until(path.exists)
    old = '{"stage": "plan", "updated_at_s": 1.0, "error": {"code": "data", "message": "old", "hint": ""}}'
    path.write_text(old)
    os.kill(job.reference["pid"], signal.SIGKILL)
    failed = tick_until(service, job, ended)
    assert failed.error is not None
    assert failed.error.code == "driver_vanished"


@pytest.mark.parametrize(("attempt", "clock_s", "code"), [(1, -3600.0, "data"), (7, 3600.0, "driver_vanished")])
def test_an_error_is_known_by_its_attempt_and_not_by_clocks(
    service: JobService, tmp_path: Path, attempt: int, clock_s: float, code: str
) -> None:
    """The driver's node may be an hour late, and an earlier attempt may have run on a node that is an hour early."""
    job = tick_until(service, queue_job(service, tmp_path, "sleep"), lambda j: j.reference)
    path = Path(job.output) / "_qtune" / "progress.json"
    wait_until(path.exists)
    error = {"code": "data", "message": "no such column", "hint": ""}
    body = {"stage": "plan", "updated_at_s": time.time() + clock_s, "attempt": f"{job.id}:{attempt}", "error": error}
    path.write_text(json.dumps(body))
    os.kill(job.reference["pid"], signal.SIGKILL)
    failed = tick_until(service, job, ended)
    assert failed.error is not None
    assert failed.error.code == code


def test_cancelling_lets_a_driver_save(service: JobService, tmp_path: Path) -> None:
    """It gets SIGTERM, and is cancelled when it is gone."""
    job = tick_until(service, queue_job(service, tmp_path, "sleep"), has_started)
    wait_until((Path(job.output) / "_qtune" / "progress.json").exists)
    service.cancel(job.id)
    cancelled = tick_until(service, job, ended)
    assert cancelled.status is JobStatus.cancelled
    assert (Path(job.output) / "saved").exists()


def test_a_driver_that_does_not_stop_is_ended(
    service: JobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time of grace."""
    monkeypatch.setattr(base, "SERVER_MARGIN_S", -24.5)  # half a second with the default of stop_grace_s, 25
    job = tick_until(service, queue_job(service, tmp_path, "stubborn"), has_started)
    wait_until((Path(job.output) / "_qtune" / "progress.json").exists)
    service.cancel(job.id)
    assert tick_until(service, job, ended).status is JobStatus.cancelled


def test_no_more_than_the_limit_run(service: JobService, tmp_path: Path) -> None:
    """The third waits for the first."""
    made = [queue_job(service, tmp_path, "sleep") for _ in range(3)]
    service.tick()
    assert [service.store.get(j.id).status for j in made] == ["running", "running", "queued"]
    service.cancel(made[0].id)
    tick_until(service, made[2], lambda j: j.status is JobStatus.running)


def test_a_server_that_died_after_starting_a_driver_finds_it(
    service: JobService, store: JobStore, launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is known by its environment; there is never a second one."""
    job = queue_job(service, tmp_path, "sleep")
    claimed = store.claim(1)
    assert claimed is not None
    launcher.start(claimed)  # and here the server is killed
    monkeypatch.setattr(service_module, "SILENCE_S", 0.0)
    fresh = JobService(store, {"local": LocalLauncher(tmp_path / "jobs", python=DRIVER)})
    found = tick_until(fresh, job, lambda j: j.reference)
    assert psutil.pid_exists(found.reference["pid"])
    wait_until(lambda: num_starts(job.output) == 1)
    fresh.cancel(job.id)
    assert tick_until(fresh, job, ended).status is JobStatus.cancelled
    assert num_starts(job.output) == 1


def test_servers_that_start_a_driver_at_once_start_one(store: JobStore, tmp_path: Path) -> None:
    """Eight launchers for the same attempt: all of them have the same driver."""
    launchers = [LocalLauncher(tmp_path / "jobs", python=DRIVER) for _ in range(8)]
    service = JobService(store, {"local": launchers[0]})
    queue_job(service, tmp_path, "sleep")
    claimed = store.claim(1)
    assert claimed is not None
    with ThreadPoolExecutor(8) as pool:
        references = list(pool.map(lambda launcher: launcher.start(claimed), launchers))
    wait_until((Path(claimed.output) / "_qtune" / "progress.json").exists)
    assert all(reference == references[0] for reference in references)
    assert num_starts(claimed.output) == 1
    launchers[0].stop(references[0], force=True)


@pytest.mark.parametrize("act", ["fail", "vanish", "succeed"])
def test_a_driver_that_ended_before_it_was_written_down(
    service: JobService, store: JobStore, launcher: LocalLauncher, tmp_path: Path, act: str
) -> None:
    """The server was killed just after starting it: the next one starts no second driver, and reads how it ended."""
    job = queue_job(service, tmp_path, act)
    claimed = store.claim(1)
    assert claimed is not None
    reference = launcher.start(claimed)  # and here the server is killed
    wait_until(lambda: launcher.state(reference) is DriverState.ended)
    fresh = JobService(store, {"local": LocalLauncher(tmp_path / "jobs", python=DRIVER)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "SILENCE_S", 0.0)
        done = tick_until(fresh, job, ended)
    want = {"fail": "data", "vanish": "driver_vanished"}
    assert (done.error.code if done.error else None, num_starts(job.output)) == (want.get(act), 1)
    service.delete(job.id)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_an_output_of_another_job_is_no_success(service: JobService, tmp_path: Path) -> None:
    """A driver that refuses a finished output of another job has failed, though a manifest is there."""
    job = queue_job(service, tmp_path, "fail")
    (Path(job.output) / "_qtune").mkdir(parents=True)
    (Path(job.output) / "manifest.json").write_text('{"counts": {"read": 1}}')
    assert tick_until(service, job, ended).status is JobStatus.failed


def test_a_job_of_a_launcher_that_is_gone(store: JobStore, launcher: LocalLauncher, tmp_path: Path) -> None:
    """It is followed by what its driver writes, to its end; its log is told to be elsewhere."""
    before = JobService(store, {"cluster": launcher})
    out = tmp_path / "out"
    spec = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "sleep"}, "output": {"path": str(out)}}
    job = before.submit(NewJob("x", spec, str(out), "ann", "cluster"))[0]
    tick_until(before, job, lambda j: j.progress.samples_done)
    after = JobService(store, {"local": launcher})
    after.tick()
    assert store.get(job.id).status is JobStatus.running
    with pytest.raises(NotFoundError, match="no launcher 'cluster'"):
        after.log(store.get(job.id))
    launcher.stop(store.get(job.id).reference, force=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "SILENCE_S", 0.3)
        assert tick_until(after, job, ended).status is JobStatus.failed


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_launcher_that_is_away_is_waited_for(service: JobService, tmp_path: Path, is_cancelled: bool) -> None:
    """A job waits for it, and is started when it is back; after the time of patience it fails with what was wrong."""
    away = Away(service.launchers["local"])
    waiting = JobService(service.store, {"local": away})
    job = tick_until(waiting, queue_job(waiting, tmp_path, "succeed"), lambda j: j.stage == "launch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "SILENCE_S", 0.0)
        away.is_away = False
        assert tick_until(waiting, job, ended).status is JobStatus.succeeded
        away.is_away = True
        job = tick_until(waiting, queue_job(waiting, tmp_path, "succeed"), lambda j: j.stage == "launch")
        if is_cancelled:
            waiting.cancel(job.id)
        patch.setattr(service_module, "LAUNCH_LIMIT_S", 0.2)
        done = tick_until(waiting, job, ended)
    if is_cancelled:
        assert (done.status, done.error) == (JobStatus.cancelled, None)
    else:
        assert done.error == JobError("launch_failed", "nobody is there", "wait")
    assert num_starts(job.output) == 0


class Away:
    """A launcher that can be away."""

    name = "local"

    def __init__(self, inner: Launcher) -> None:
        self._inner, self.is_away = inner, True
        self.state, self.stop, self.log, self.forget = inner.state, inner.stop, inner.log, inner.forget

    def start(self, job: Job) -> Reference:
        """Start the job by the other launcher, if it is there."""
        if self.is_away:
            raise LauncherAwayError("nobody is there", "wait")
        return self._inner.start(job)


def test_a_job_that_ended_while_no_server_was_there(service: JobService, store: JobStore, tmp_path: Path) -> None:
    """The next server reads how."""
    job = queue_job(service, tmp_path, "succeed")
    service.tick()
    wait_until((tmp_path / job.name.replace(" ", "-") / "manifest.json").exists)
    fresh = JobService(store, {"local": LocalLauncher(tmp_path / "jobs", python=DRIVER)})
    assert tick_until(fresh, job, ended).status is JobStatus.succeeded


def test_another_hosts_driver_is_judged_by_what_it_writes(service: JobService, store: JobStore, tmp_path: Path) -> None:
    """As long as it writes, it is alive, whatever its clock says; after silence it is gone."""
    job = queue_job(service, tmp_path, "sleep")
    store.claim(1)
    store.note(job.id, reference={"host": "another", "pid": 1, "started_s": 0.0})
    out = Path(job.output) / "_qtune"
    out.mkdir(parents=True)
    beat = {"stage": "score", "done": 1, "total": 2, "tokens_done": 1, "tokens_per_s": 1, "eta_s": 1}
    now = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for count in range(4):  # its clock is an hour late
            patch.setattr(time, "monotonic", lambda at=now + count * 25: at)
            (out / "progress.json").write_text(json.dumps({**beat, "updated_at_s": time.time() - 3600 + count}))
            service.tick()
            assert store.get(job.id).status is JobStatus.running
        patch.setattr(time, "monotonic", lambda: now + 3 * 25 + service_module.SILENCE_S + 1)
        service.tick()
    assert store.get(job.id).status is JobStatus.failed


def test_a_number_that_another_process_got_is_not_the_driver(launcher: LocalLauncher) -> None:
    """It was started at another time."""
    me = psutil.Process()
    reference = {"host": os.uname().nodename, "pid": me.pid, "started_s": me.create_time() - 100}
    assert launcher.state(reference) is DriverState.ended
    launcher.stop(reference, force=True)  # and nothing happens to this test


def test_what_cannot_be_started_fails_with_the_reason(store: JobStore, tmp_path: Path) -> None:
    """An unknown launcher, and a folder that cannot be written."""
    (tmp_path / "file").touch()
    broken = JobService(store, {"local": LocalLauncher(tmp_path / "file" / "jobs", python=DRIVER)})
    job = tick_until(broken, queue_job(broken, tmp_path, "succeed"), ended)
    assert job.error is not None
    assert job.error.code == "launch_failed"
    nowhere = JobService(store, {})
    job = tick_until(nowhere, queue_job(nowhere, tmp_path, "succeed"), ended)
    assert job.error is not None
    assert "has no launcher 'local'" in job.error.message


WAITING = {
    "waiting": "waiting for 8 GPUs (0 of 8), 41 min", "waiting_for": "resources", "waiting_s": 2460.4, "actors": 2,
    "actors_wanted": 8, "phases": {"scoring": 2, "retired": 1}, "problems": ["actor a:1 retired: sick"],
}  # fmt: skip


def test_a_job_says_what_it_waits_for(service: JobService, tmp_path: Path) -> None:
    """In stages that count no samples too. What an earlier attempt waited for is not the present."""
    job = tick_until(service, queue_job(service, tmp_path, "sleep"), has_started)
    path = Path(job.output, "_qtune", "progress.json")
    wait_until(path.exists)
    for stage, attempt in (("score", ""), ("plan", f"{job.id}:1")):
        path.write_text(json.dumps({"stage": stage, "done": 3, "total": 8, "attempt": attempt, **WAITING}))
        found = tick_until(service, job, lambda j, stage=stage: j.stage == stage).progress  # type: ignore[misc]
        assert (found.waiting, found.waiting_for, found.waiting_s) == (WAITING["waiting"], "resources", 2460)
        assert (found.actors, found.actors_wanted, found.phases) == (2, 8, WAITING["phases"])
        assert found.problems == WAITING["problems"]
    service.tick()
    version = service.store.get(job.id).version
    service.tick()
    assert service.store.get(job.id).version == version, "the same report is no news"
    path.write_text(json.dumps({"stage": "score", "done": 3, "total": 8, "attempt": f"{job.id}:0", **WAITING}))
    found = tick_until(service, job, lambda j: j.stage == "score").progress
    assert (found.waiting, found.problems, found.samples_done) == ("", [], 3)


@pytest.mark.parametrize(
    "field",
    [{"waiting": "x" * 10_000}, {"problems": ["x"] * 1000}, {"problems": ["x" * 10_000]}, {"phases": {"a": -1}}],
    ids=["sentence", "problems", "problem", "phases"],
)
def test_sizes_of_a_report_are_checked(service: JobService, tmp_path: Path, field: dict[str, Any]) -> None:
    """No output can fill the database or the lists of jobs."""
    from qtune_service.job_states import Progress
    from qtune_service.server.jobs.driver_status import read_driver_status

    (tmp_path / "out" / "_qtune").mkdir(parents=True)
    (tmp_path / "out" / "_qtune" / "progress.json").write_text(json.dumps({"stage": "score", **field}))
    status = read_driver_status(str(tmp_path / "out"), before=Progress())
    assert status.damage is not None
    assert next(iter(field)) in status.damage.message
