"""The jobs of the REST API, under uvicorn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.servers import scripted, serving, settings
from tests.scripted_jobs import job_request, submit_job, wait_for_job

PROBLEM = "application/problem+json"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server that runs two jobs at a time, without models."""
    with serving(settings(tmp_path, max_running_jobs=2), scripted(tmp_path)) as made:
        yield made


def test_outputs_go_where_the_owner_says(tmp_path: Path) -> None:
    """Jobs that name no place write below QTUNE_OUTPUTS_ROOT; others may name a place there."""
    root = f"{tmp_path}/shared"
    with serving(settings(tmp_path, outputs_root=f"{root}/"), scripted(tmp_path)) as client:
        made = submit_job(client, tmp_path)
        assert made["output"] == f"{root}/{Path(made['output']).name}"
        assert wait_for_job(client, made["id"], "succeeded")["launcher"] == "local"
        submit_job(client, tmp_path, output={"path": f"{root}/mine"})
        submit_job(client, tmp_path, output={"path": f"{tmp_path}/outputs/mine"})
        elsewhere = client.post("/api/v1/jobs", json=job_request(tmp_path, output={"path": f"{tmp_path}/elsewhere"}))
        assert elsewhere.status_code == 403


def test_a_job_from_submission_to_its_end(client: httpx.Client, tmp_path: Path) -> None:
    """201 with a Location; then queued, running, succeeded, with counts and thresholds."""
    response = client.post("/api/v1/jobs", json=job_request(tmp_path))
    assert response.status_code == 201
    made = response.json()
    assert response.headers["location"] == f"/api/v1/jobs/{made['id']}"
    assert (made["status"], made["owner"], made["version"]) == ("queued", "local", 1)
    assert made["output"].startswith(f"{tmp_path}/outputs/")
    done = wait_for_job(client, made["id"], "succeeded")
    assert (done["stage"], done["counts"], done["thresholds"]) == ("done", {"read": 8, "kept": 4}, {"alpha": 0.5})
    assert done["started_at"] < done["finished_at"]
    assert client.get(f"/api/v1/jobs/{made['id']}/logs").text == "attempt 1\n"


def test_a_wrong_field_is_named(client: httpx.Client, tmp_path: Path) -> None:
    """422, each field with what is wrong; nothing is queued."""
    wrong = job_request(tmp_path, prune={"sample_keep_ratio": 0}, colour="red")
    response = client.post("/api/v1/jobs", json=wrong)
    assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM)
    problem = response.json()
    assert problem["code"] == "invalid_request"
    assert {error["field"] for error in problem["errors"]} == {"prune.sample_keep_ratio", "colour"}
    assert client.get("/api/v1/jobs").json()["jobs"] == []


def test_a_key_makes_one_job(client: httpx.Client, tmp_path: Path) -> None:
    """The same request again is the same job; another one under the key is a conflict."""
    key = {"Idempotency-Key": "monday"}
    first = client.post("/api/v1/jobs", json=job_request(tmp_path), headers=key)
    again = client.post("/api/v1/jobs", json=job_request(tmp_path), headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/api/v1/jobs", json=job_request(tmp_path, "fail"), headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_cancel_resume_delete(client: httpx.Client, tmp_path: Path) -> None:
    """The moves of a job, and a refusal for each that is none."""
    job = submit_job(client, tmp_path, "sleep")["id"]
    wait_for_job(client, job, "running")
    assert client.delete(f"/api/v1/jobs/{job}").json()["code"] == "illegal_move"
    assert client.post(f"/api/v1/jobs/{job}/resume").status_code == 409
    assert client.post(f"/api/v1/jobs/{job}/cancel").status_code == 202
    wait_for_job(client, job, "cancelled")
    resumed = client.post(f"/api/v1/jobs/{job}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")
    assert wait_for_job(client, job, "running")["attempts"] == 2
    client.post(f"/api/v1/jobs/{job}/cancel")
    out = Path(wait_for_job(client, job, "cancelled")["output"])
    assert client.delete(f"/api/v1/jobs/{job}").status_code == 204
    assert client.get(f"/api/v1/jobs/{job}").json()["code"] == "not_found"
    assert not (out / "_qtune").exists()
    assert list((tmp_path / "jobs").iterdir()) == [], "nor its log and spec"


def test_a_failed_job_says_why(client: httpx.Client, tmp_path: Path) -> None:
    """Code, message and hint of the driver."""
    job = wait_for_job(client, submit_job(client, tmp_path, "fail")["id"], "failed")
    assert job["error"] == {"code": "data", "message": "none of 8 records could be scored", "hint": "look"}


def test_pruning_again(client: httpx.Client, tmp_path: Path) -> None:
    """A new job from the scores of a finished one; a job that is not finished has none."""
    first = submit_job(client, tmp_path)
    wait_for_job(client, first["id"], "succeeded")
    response = client.post(f"/api/v1/jobs/{first['id']}/reprune", json={"prune": {"sample_keep_ratio": 0.25}})
    assert response.status_code == 201
    again = response.json()
    assert again["spec"]["from_scores"] == first["output"]
    assert again["spec"]["prune"]["sample_keep_ratio"] == 0.25
    assert again["output"] != first["output"]
    running = submit_job(client, tmp_path, "sleep")["id"]
    refused = client.post(f"/api/v1/jobs/{running}/reprune", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "output_conflict")
    client.post(f"/api/v1/jobs/{running}/cancel")
    wait_for_job(client, running, "cancelled")


def test_events_follow_a_job_to_its_end(client: httpx.Client, tmp_path: Path) -> None:
    """Every change once, in order; Last-Event-ID leaves out what was seen."""
    job = submit_job(client, tmp_path)["id"]
    events = list(stream(client, job))
    assert [event["status"] for event in events][-1] == "succeeded"
    versions = [event["version"] for event in events]
    assert versions == sorted(set(versions))
    assert list(stream(client, job, last=versions[-1])) == []
    assert [event["version"] for event in stream(client, job, last=versions[-1] - 1)] == versions[-1:]


def stream(client: httpx.Client, job_id: str, last: int | None = None) -> Iterator[dict[str, Any]]:
    """Events of a job until the server ends them."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def test_lists_are_paged_and_filtered(client: httpx.Client, tmp_path: Path) -> None:
    """By status, words and cursor."""
    made = [submit_job(client, tmp_path, "sleep", name=f"job {i}")["id"] for i in range(5)]
    page = client.get("/api/v1/jobs", params={"limit": 3}).json()
    rest = client.get("/api/v1/jobs", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [job["id"] for job in page["jobs"] + rest["jobs"]] == made[::-1]
    assert rest["next_cursor"] is None
    assert [job["name"] for job in client.get("/api/v1/jobs", params={"q": "job 2"}).json()["jobs"]] == ["job 2"]
    queued = client.get("/api/v1/jobs", params={"status": "queued"}).json()["jobs"]
    assert {job["status"] for job in queued} == {"queued"}
    assert client.get("/api/v1/jobs", params={"cursor": "%%%"}).status_code == 422
    for job in made:
        client.post(f"/api/v1/jobs/{job}/cancel")
    for job in made:
        wait_for_job(client, job, "cancelled")


def test_the_log_may_be_asked_for_by_its_end(client: httpx.Client, tmp_path: Path) -> None:
    """The last lines alone."""
    job = submit_job(client, tmp_path, "vanish")["id"]
    wait_for_job(client, job, "failed")
    client.post(f"/api/v1/jobs/{job}/resume")
    wait_for_job(client, job, "failed")
    assert client.get(f"/api/v1/jobs/{job}/logs", params={"tail": 1}).text == "attempt 2\n"


def test_probes(client: httpx.Client) -> None:
    """The process answers, and so does the database."""
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").status_code == 200
    assert client.get("/nowhere").headers["content-type"] == PROBLEM
