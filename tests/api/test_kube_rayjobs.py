"""server/launchers/kuberay.py against an API that answers as Kubernetes does, and a head that answers as Ray does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import LauncherAwayError, LaunchError, SettingsError
from qtune_service.job_states import JobStatus
from qtune_service.server.launchers import kuberay
from qtune_service.server.launchers.base import DriverState
from qtune_service.server.launchers.configured import make_launchers
from qtune_service.server.launchers.kuberay import Account, KubeApi, KubeRayLauncher
from qtune_service.server.settings import load_settings
from qtune_service.spec_files import unpack_spec
from tests.api import kube_server, ray_head
from tests.api.kube_server import Kube, kubernetes
from tests.api.ray_head import Head
from tests.api.test_ray_jobs import job
from tests.waiting import free_port

CLUSTER = {"rayVersion": "2.60.0", "suspend": True, "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}}}
NAME = "qtune-01abc-1"


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    """Yield a Kubernetes API that has a RayCluster."""
    with kubernetes(tmp_path / "account") as made:
        made.objects["rayclusters/qtune"] = {"kind": "RayCluster", "metadata": {"name": "qtune"}, "spec": CLUSTER}
        yield made


@pytest.fixture
def head() -> Iterator[Head]:
    """Yield the head of a job's cluster."""
    with ray_head.ray_head() as made:
        yield made


def launcher(kube: Kube, folder: Path, **more: Any) -> KubeRayLauncher:
    """Return a launcher with the right tokens."""
    api = KubeApi(kube.address, Account(kube.account))
    return KubeRayLauncher(api, folder / "jobs", cluster="qtune", token=lambda: ray_head.TOKEN, **more)


def running(kube: Kube, head: Head, status: str = "RUNNING") -> None:
    """Set the status that KubeRay and Ray report of a running driver. KubeRay reports no scheme."""
    kube.says(NAME, jobDeploymentStatus="Running", jobStatus=status, dashboardURL=head.address.removeprefix("http://"))
    head.jobs[NAME] = {"status": status}


def test_what_is_made(kube: Kube, tmp_path: Path) -> None:
    """A name of job and attempt, the suspended cluster's spec set going, and the spec in a form that stays as it is."""
    made = launcher(kube, tmp_path).start(job(attempts=2, limits={"stop_grace_s": 40}))
    assert made == {"rayjob": "qtune-01abc-2"}
    sent = kube.objects["rayjobs/qtune-01abc-2"]
    spec = sent["spec"]
    assert spec["rayClusterSpec"] == {k: v for k, v in CLUSTER.items() if k != "suspend"}
    assert (spec["entrypoint"], spec["jobId"]) == ("exec qtune run env:QTUNE_SPEC", "qtune-01abc-2")
    variables = json.loads(spec["runtimeEnvYAML"])["env_vars"]
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "70"
    assert unpack_spec(variables["QTUNE_SPEC"], "x").model.name == "m"
    assert spec["shutdownAfterJobFinishes"]
    assert ray_head.TOKEN not in json.dumps(sent)
    assert kube_server.TOKEN not in json.dumps(sent)


def test_gpus_that_are_not_there_yet_are_asked_for(kube: Kube, tmp_path: Path) -> None:
    """As many as share a model; what a job says itself stays, and so does a cluster without GPUs."""

    def engine(has_gpus: bool, attempts: int, **said: Any) -> float | None:
        launcher(kube, tmp_path, has_gpus=has_gpus).start(job(attempts=attempts, engine=said))
        text = json.loads(kube.objects[f"rayjobs/qtune-01abc-{attempts}"]["spec"]["runtimeEnvYAML"])["env_vars"]
        return unpack_spec(text["QTUNE_SPEC"], "x").engine.gpus_per_actor

    assert engine(True, 1) == 1
    assert engine(True, 2, tensor_parallel_size=4) == 4
    assert engine(True, 3, gpus_per_actor=0.5) == 0.5
    assert engine(False, 4) is None


def test_a_job_is_made_once(kube: Kube, tmp_path: Path) -> None:
    """Where the answer was lost, where another server was faster, and where it is asked for again."""
    one = launcher(kube, tmp_path)
    kube.mode = "loses answers"
    one.start(job())
    kube.mode = "good"
    one.start(job())
    one._api.create({"metadata": {"name": NAME}})
    assert [key for key in kube.objects if key.startswith("rayjobs/")] == [f"rayjobs/{NAME}"]
    assert "spec" in kube.objects[f"rayjobs/{NAME}"]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, DriverState.alive),
        ({"jobDeploymentStatus": "Initializing"}, DriverState.alive),
        ({"jobDeploymentStatus": "Suspended"}, DriverState.alive),
        ({"jobDeploymentStatus": "Retrying"}, DriverState.alive),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, DriverState.alive),
        ({"jobDeploymentStatus": "Running", "jobStatus": "STOPPED"}, DriverState.ended),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, DriverState.ended),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, DriverState.ended),
        ({"jobDeploymentStatus": "ValidationFailed"}, DriverState.ended),
    ],
)
def test_states(kube: Kube, tmp_path: Path, status: dict[str, str], state: DriverState) -> None:
    """Each of KubeRay's has one of ours; one that waits for its cluster, or in a queue, is at work."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    kube.says(NAME, **status)
    assert one.state(reference) is state


def test_what_cannot_be_known_is_left_to_the_beat(kube: Kube, tmp_path: Path) -> None:
    """An API that is away, and a RayJob that somebody deleted."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    del kube.objects[f"rayjobs/{NAME}"]
    assert one.state(reference) is DriverState.elsewhere
    kube.mode = "broken"
    assert one.state(reference) is DriverState.elsewhere
    asked = len(kube.asked)
    assert one.state(reference) is DriverState.elsewhere
    assert len(kube.asked) == asked  # it is left alone for a while


def test_stopping_lets_a_driver_save(kube: Kube, head: Head, tmp_path: Path) -> None:
    """Ray is asked to stop it, and the RayJob stays until the driver has ended, for its log."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    running(kube, head)
    one.stop(reference, force=False)
    assert head.stops == [NAME]
    assert f"rayjobs/{NAME}" in kube.objects
    kube.says(NAME, jobDeploymentStatus="Complete", jobStatus="STOPPED")
    one.stop(reference, force=True)
    assert len(head.stops) == 1
    assert f"rayjobs/{NAME}" in kube.objects


@pytest.mark.parametrize("mode", ["good", "broken"])
def test_a_driver_that_does_not_stop_loses_its_cluster(kube: Kube, head: Head, tmp_path: Path, mode: Any) -> None:
    """The RayJob is deleted at once, and its head, which may hang, is not asked; again, there is nothing to do."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    running(kube, head)
    head.mode = mode
    one.stop(reference, force=True)
    assert f"rayjobs/{NAME}" not in kube.objects
    assert head.asked == []
    one.stop(reference, force=True)
    assert one.state(reference) is DriverState.elsewhere


@pytest.mark.parametrize("case", ["no cluster yet", "not submitted", "head away"])
def test_what_has_no_driver_is_deleted(kube: Kube, head: Head, tmp_path: Path, case: str) -> None:
    """So a job that waits for GPUs can be cancelled, and one whose head is gone."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    if case == "not submitted":
        running(kube, head)
        head.jobs.clear()
    elif case == "head away":
        kube.says(NAME, jobDeploymentStatus="Running", jobStatus="RUNNING", dashboardURL=f"127.0.0.1:{free_port()}")
    one.stop(reference, force=False)
    assert f"rayjobs/{NAME}" not in kube.objects
    one.stop(reference, force=True)


def test_logs_outlive_the_cluster(kube: Kube, head: Head, tmp_path: Path) -> None:
    """Before there is a driver KubeRay's word stands there, then the driver's, and after a failure both."""
    one = launcher(kube, tmp_path)
    reference = one.start(job())
    assert b"".join(one.log(job())) == b"[no driver yet: not seen by KubeRay]\n"
    running(kube, head)
    head.logs[NAME] = "scoring\n"
    kube.says(NAME, **{**kube.objects[f"rayjobs/{NAME}"]["status"], "jobDeploymentStatus": "Failed", "reason": "Late"})
    assert one.state(reference) is DriverState.ended
    del kube.objects[f"rayjobs/{NAME}"]
    ended = job(status=JobStatus.failed)
    assert b"".join(one.log(ended)) == b"scoring\n[KubeRay: Late: -]\n"
    assert b"".join(one.log(ended, start=8)) == b"[KubeRay: Late: -]\n"


def test_forgetting(kube: Kube, tmp_path: Path) -> None:
    """RayJobs and logs of all attempts; and it is no error where the API is away."""
    one = launcher(kube, tmp_path)
    for attempt in (1, 2):
        one.start(job(attempts=attempt))
    list(one.log(job(2)))
    one.forget(job(2))
    assert list(kube.objects) == ["rayclusters/qtune"]
    assert list((tmp_path / "jobs").iterdir()) == []
    kube.mode = "broken"
    one.forget(job())


@pytest.mark.parametrize(
    ("mode", "message", "hint"),
    [
        ("forbids", "403 .* cannot create resource", "Role"),
        ("no KubeRay", "404 .*page not found", "KubeRay is installed"),
    ],
)
def test_refusals_are_told(kube: Kube, tmp_path: Path, mode: Any, message: str, hint: str) -> None:
    """With what to do; they fail the job at once."""
    kube.mode = mode
    with pytest.raises(LaunchError, match=message) as caught:
        launcher(kube, tmp_path).start(job())
    assert hint in caught.value.hint
    assert not isinstance(caught.value, LauncherAwayError)


def test_a_cluster_that_is_missing_is_told(kube: Kube, tmp_path: Path) -> None:
    """By its name and the setting."""
    kube.objects.clear()
    with pytest.raises(LaunchError, match="no RayCluster 'qtune' in namespace 'qtune'") as caught:
        launcher(kube, tmp_path).start(job())
    assert "QTUNE_KUBE_CLUSTER" in caught.value.hint


def test_what_may_pass_is_tried_again(kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API that is overloaded or away: the job waits."""
    monkeypatch.setattr(kuberay, "PAUSE_S", 0.0)
    one = launcher(kube, tmp_path)
    kube.mode = "broken"
    with pytest.raises(LauncherAwayError, match=r"503 .*leader changed"):
        one.start(job())
    assert len(kube.asked) == kuberay.ATTEMPTS
    kube.mode = "good"
    one.start(job())
    gone = KubeApi(f"http://127.0.0.1:{free_port()}", Account(kube.account))
    with pytest.raises(LauncherAwayError, match="does not answer"):
        gone.job("x")


def test_the_account_is_read_each_time(kube: Kube, tmp_path: Path) -> None:
    """Kubernetes exchanges tokens; a wrong one is told without being shown."""
    one = launcher(kube, tmp_path)
    kube.token = "another"
    with pytest.raises(LaunchError, match="401") as caught:
        one.start(job())
    assert kube_server.TOKEN not in str(caught.value)
    (kube.account / "token").write_text("another")
    one.start(job())
    (kube.account / "token").unlink()
    with pytest.raises(LaunchError, match="cannot be read"):
        one.start(job())


def test_settings(kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod the address comes from its environment; what is missing is told when the server starts."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match="requires QTUNE_KUBE_CLUSTER"):
        load_settings(launcher="kuberay")
    with pytest.raises(SettingsError, match="QTUNE_KUBE_ADDRESS is required"):
        load_settings(kube_cluster="qtune", kube_account=kube.account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    with pytest.raises(SettingsError, match="there is no file"):
        load_settings(kube_cluster="qtune", kube_account=tmp_path / "none")
    given = load_settings(kube_cluster="qtune", kube_account=kube.account, data_root=tmp_path)
    assert given.kubernetes == "https://[fd00::1]:6443"
    given = load_settings(
        launcher="kuberay", kube_cluster="qtune", kube_account=kube.account, kube_address=kube.address
    )
    assert sorted(make_launchers(given)) == ["kuberay", "local"]
