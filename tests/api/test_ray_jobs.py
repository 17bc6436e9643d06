"""server/launchers/ray.py against a head that answers as told; tests/ray/test_ray_launcher.py has a real cluster."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import LauncherAwayError, LaunchError, SettingsError, SpecError
from qtune_service.job_states import Job, JobStatus
from qtune_service.server.launchers import ray_api
from qtune_service.server.launchers.base import DriverState
from qtune_service.server.launchers.logs import unescaped
from qtune_service.server.launchers.ray import RayLauncher
from qtune_service.server.launchers.ray_api import RayApi
from qtune_service.server.settings import load_settings
from qtune_service.spec_files import pack_spec, unpack_spec
from tests.api.ray_head import TOKEN, Head, ray_head
from tests.jobs import qtune
from tests.waiting import free_port

SPEC: dict[str, Any] = {
    "input": {"paths": ["s3://b/a.jsonl"], "chat_template": "{{ '${HOME}' }} ü"},
    "model": {"name": "m"},
    "output": {"path": "s3://b/out"},
}


@pytest.fixture
def head() -> Iterator[Head]:
    """Yield a head that answers."""
    with ray_head() as made:
        yield made


@pytest.fixture
def launcher(head: Head, tmp_path: Path) -> RayLauncher:
    """Return a launcher with the right token."""
    return RayLauncher(RayApi(head.address, lambda: TOKEN), tmp_path / "jobs")


def job(attempts: int = 1, status: JobStatus = JobStatus.running, **spec: Any) -> Job:
    """Return a claimed job."""
    now = datetime.now(UTC)
    job_spec = {**SPEC, **spec}
    return Job("01abc", "gsm8k", status, "s3://b/out", "ann", now, now, 1, spec=job_spec, attempts=attempts)


def test_what_is_submitted(launcher: RayLauncher, head: Head) -> None:
    """An id of job and attempt, the spec in a form that nothing on the way changes, time to save, and no token."""
    assert launcher.start(job(attempts=2, limits={"stop_grace_s": 40})) == {"submission_id": "qtune-01abc-2"}
    sent = head.jobs["qtune-01abc-2"]
    assert sent["entrypoint"] == "exec qtune run env:QTUNE_SPEC"
    variables = sent["runtime_env"]["env_vars"]
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "70"
    assert unpack_spec(variables["QTUNE_SPEC"], "x").input.chat_template == SPEC["input"]["chat_template"]
    assert "$" not in variables["QTUNE_SPEC"]
    assert TOKEN not in json.dumps(sent)
    assert "entrypoint_num_cpus" not in sent


def test_a_driver_may_reserve_cpus(head: Head, tmp_path: Path) -> None:
    """Then Ray may run it on any node."""
    api = RayApi(head.address, lambda: TOKEN)
    RayLauncher(api, tmp_path, command="/opt/qtune/bin/qtune", driver_cpus=0.5).start(job())
    sent = head.jobs["qtune-01abc-1"]
    assert (sent["entrypoint_num_cpus"], sent["entrypoint"].split()[1]) == (0.5, "/opt/qtune/bin/qtune")


def test_a_submission_whose_answer_was_lost_is_found(launcher: RayLauncher, head: Head) -> None:
    """There is one driver, and the caller hears of no error; also where another server was faster."""
    head.mode = "loses answers"
    launcher.start(job())
    head.mode = "good"
    launcher.start(job())
    assert head.asked.count("POST /api/jobs/") == 1
    with pytest.raises(LauncherAwayError, match="already exists"):  # what Ray says to an id in use
        launcher._api._once("POST", "/api/jobs/", {"submission_id": "qtune-01abc-1"})
    launcher._api.submit({"submission_id": "qtune-01abc-1"})


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", DriverState.alive), ("RUNNING", DriverState.alive), ("STOPPED", DriverState.ended),
        ("SUCCEEDED", DriverState.ended), ("FAILED", DriverState.ended),
    ],
)  # fmt: skip
def test_states(launcher: RayLauncher, head: Head, status: str, state: DriverState) -> None:
    """Each of Ray's has one of ours."""
    reference = launcher.start(job())
    head.jobs["qtune-01abc-1"]["status"] = status
    assert launcher.state(reference) is state


def test_a_cluster_that_cannot_say_leaves_it_to_the_beat(launcher: RayLauncher, head: Head) -> None:
    """Made anew, broken, or gone: no word about the driver."""
    reference = launcher.start(job())
    head.jobs.clear()
    assert launcher.state(reference) is DriverState.elsewhere
    head.mode = "broken"
    assert launcher.state(reference) is DriverState.elsewhere
    gone = RayLauncher(RayApi(f"http://127.0.0.1:{free_port()}", lambda: TOKEN), Path("/nowhere"))
    assert gone.state(reference) is DriverState.elsewhere


def test_a_cluster_that_is_away_holds_nobody_up(
    launcher: RayLauncher, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries it is not asked for a while, and then is found again."""
    monkeypatch.setattr(ray_api, "PAUSE_S", 1.0)
    reference = launcher.start(job())
    head.mode = "broken"
    launcher.state(reference)
    tried, began = len(head.asked), time.monotonic()
    for _ in range(20):
        assert launcher.state(reference) is DriverState.elsewhere
    assert (len(head.asked), time.monotonic() - began < 0.5) == (tried, True)
    head.mode = "good"
    time.sleep(1.1)
    assert launcher.state(reference) is DriverState.alive


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "requires a token"),
        ("wrong", "refuses the token"),
        ("two words", "must be printable ASCII"),
        ("a\r\nX: y", "must be printable ASCII"),
    ],
)
def test_tokens(head: Head, token: str | None, message: str) -> None:
    """Missing and wrong ones are told, without the token."""
    with pytest.raises(LaunchError, match=message) as caught:
        RayApi(head.address, lambda: token).check()
    assert not isinstance(caught.value, LauncherAwayError)
    assert token is None or token not in str(caught.value)


def test_odd_answers_are_told(head: Head) -> None:
    """Another version, another server, an error of the head, nobody: each with what to do."""
    api = RayApi(head.address, lambda: TOKEN)
    head.version = "5"
    with pytest.raises(LaunchError, match=r"Ray 9\.9\.9 .* version 5"):
        api.check()
    head.mode = "not Ray"
    with pytest.raises(LaunchError, match="is not Ray's Jobs API"):
        api.check()
    head.mode = "broken"
    with pytest.raises(LauncherAwayError, match="answered 500: RuntimeError: the agent is away") as caught:
        api.check()
    assert "QTUNE_RAY_ADDRESS" in caught.value.hint
    with pytest.raises(LauncherAwayError, match="no Ray cluster answers"):
        RayApi(f"http://127.0.0.1:{free_port()}", lambda: TOKEN).check()


def test_stopping(launcher: RayLauncher, head: Head) -> None:
    """Asked for once where there is a driver; of one that has not begun it is said; of one that is gone, nothing."""
    reference = launcher.start(job())
    launcher.stop(reference, force=False)
    head.is_stoppable = False
    with pytest.raises(LaunchError, match="cannot be stopped yet"):
        launcher.stop(reference, force=False)
    head.jobs["qtune-01abc-1"]["status"] = "FAILED"
    launcher.stop(reference, force=True)
    head.jobs.clear()
    launcher.stop(reference, force=True)
    assert len(head.stops) == 3


def test_logs_of_all_attempts_outlive_the_cluster(launcher: RayLauncher, head: Head) -> None:
    """What is at work is read anew; what ended is kept; what was never seen is said."""
    for attempt in (1, 2):
        launcher.start(job(attempts=attempt))
    head.logs = {"qtune-01abc-1": 'first "ü" \\ 😀\n', "qtune-01abc-2": "second\n"}
    head.jobs["qtune-01abc-1"]["status"] = "FAILED"
    launcher.state({"submission_id": "qtune-01abc-1"})
    assert b"".join(launcher.log(job(2))).decode() == 'first "ü" \\ 😀\nsecond\n'
    head.jobs.clear()
    gone = "[the cluster does not have the log of qtune-01abc-3 now]\n"
    assert b"".join(launcher.log(job(3))).decode() == f'first "ü" \\ 😀\nsecond\n{gone}'


def test_a_large_log_is_not_held(launcher: RayLauncher, head: Head) -> None:
    """Of 10 MB, a few pass through at a time, and none is lost."""
    text = "".join(f'{i}: "ü" \\ \t 😀 score\n' for i in range(200)) * 2000
    head.logs["qtune-01abc-1"] = text
    launcher.start(job())
    escaped = [block.encode() for block in _blocks(json.dumps({"logs": text}), 1 << 16)]
    tracemalloc.start()
    size = sum(len(block) for block in unescaped(escaped))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == len(text.encode())
    assert peak < 2 << 20
    assert sum(len(block) for block in launcher.log(job())) == size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_log_in_pieces_is_the_log(size: int) -> None:
    """Wherever it is cut, also within an escape."""
    text = 'a\\b "c" \n\t\x01 ü € 😀😀 \\u0041 \\\\'
    blocks = [block.encode() for block in _blocks(json.dumps({"logs": text}), size)]
    assert b"".join(unescaped(blocks)).decode() == text
    assert b"".join(unescaped([b'{"logs": ""}'])) == b""


def _blocks(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def test_forgetting(launcher: RayLauncher, head: Head, tmp_path: Path) -> None:
    """Of the cluster and of the folder; and it is no error where the cluster is gone."""
    launcher.start(job())
    head.jobs["qtune-01abc-1"]["status"] = "FAILED"
    launcher.state({"submission_id": "qtune-01abc-1"})
    assert list((tmp_path / "jobs").iterdir())
    launcher.forget(job())
    assert (head.jobs, list((tmp_path / "jobs").iterdir())) == ({}, [])
    head.mode = "broken"
    launcher.forget(job())


def test_a_spec_that_is_too_long_is_told() -> None:
    """With what to do instead; one of a thousand files is not."""
    assert len(pack_spec({**SPEC, "input": {"paths": [f"/data/part-{i:05}.jsonl" for i in range(1000)]}})) < 10_000
    with pytest.raises(SpecError, match="too long") as caught:
        pack_spec({"input": {"paths": [f"/{hash((i, 'x'))}" for i in range(20_000)]}})
    assert "pattern" in caught.value.hint


def test_the_command_takes_a_spec_from_its_environment() -> None:
    """JSON or packed; what is missing, broken or wrong is told."""
    wrong = {**SPEC, "prune": {"sample_keep_ratio": 2}}
    for text in (json.dumps(wrong), pack_spec(wrong)):
        done = qtune("run", "env:QTUNE_SPEC", env={"QTUNE_SPEC": text})
        assert done.returncode == 2
        assert "prune.sample_keep_ratio" in done.stderr
    assert "there is no environment variable" in qtune("run", "env:NONE").stderr
    for text in ("x", "eA==", "{"):
        with pytest.raises(SpecError, match="env:X holds no job spec"):
            unpack_spec(text, "env:X")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"launcher": "ray"}, "requires QTUNE_RAY_ADDRESS"),
        ({"ray_address": "head:8265"}, "http://HEAD:8265"),
        ({"ray_address": "http://me:secret@head:8265"}, "must be an address only"),
        ({"ray_token_path": "/nowhere/token"}, "no file '/nowhere/token'"),
        ({"launcher": "slurm"}, "QTUNE_LAUNCHER"),
        ({"outputs_root": "relative"}, "neither an absolute path nor a URI"),
    ],
)
def test_settings_are_checked_at_the_start(changes: dict[str, str], message: str) -> None:
    """Each with what is wrong; no secret is repeated."""
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(**changes)
    assert "secret" not in str(caught.value)


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own setting first, then Ray's variables; a file is read each time, for tokens are exchanged."""
    ours, rays = tmp_path / "ours", tmp_path / "rays"
    ours.write_text("one\n")
    rays.write_text("two\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert load_settings().ray_token() is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(rays))
    assert load_settings().ray_token() == "two"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "three")
    assert load_settings().ray_token() == "three"
    settings = load_settings(ray_token_path=ours)
    assert settings.ray_token() == "one"
    ours.write_text("four")
    assert settings.ray_token() == "four"
    ours.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.ray_token()
