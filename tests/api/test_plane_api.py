"""The plane, rejected records, speed and the command of a job over HTTP, and the scripts that draw them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qtune_service.config import JobSpec
from qtune_service.job_fields import job_command
from qtune_service.report.plane_file import Plane
from qtune_service.server.routes.pages import digest
from tests.api.servers import scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs
from tests.scripted_jobs import wait_for_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the server."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """Yield a client of the server."""
    with serving(settings(folder), scripted(folder)) as made:
        yield made


@pytest.fixture(scope="module")
def pruned(client: httpx.Client, folder: Path, outputs: FinishedOutputs) -> str:
    """Return the address of a finished job."""
    return f"/api/v1/jobs/{finished_job(folder, outputs.pruned)}"


def test_the_plane_is_its_schema(client: httpx.Client, pruned: str, outputs: FinishedOutputs) -> None:
    """All of the output's counts; a client that has it is told so."""
    answer = client.get(f"{pruned}/plane")
    plane = Plane.model_validate(answer.json())
    assert plane.counts == outputs.pruned.manifest["counts"]
    assert plane.histogram is not None
    assert sum(map(sum, (row for rows in plane.histogram.counts.values() for row in rows))) == NUM_SAMPLES
    again = client.get(f"{pruned}/plane", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_schema_is_in_the_contract(client: httpx.Client) -> None:
    """With what its parts mean."""
    schemas = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    assert "Nats" in str(schemas["Bounds"])
    assert schemas["CurveColumns"]["required"][:2] == ["sample_keep_ratio", "alpha"]


def test_what_was_only_scored_has_no_plane(client: httpx.Client, folder: Path, outputs: FinishedOutputs) -> None:
    """409 and what to do, also for the numbers and the report of a pruning."""
    job = f"/api/v1/jobs/{finished_job(folder, outputs.scored)}"
    for name in ("plane", "summary", "report"):
        answer = client.get(f"{job}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict")
        assert "reprune" in answer.json()["hint"]


def test_rejected_records_by_reason(client: httpx.Client, pruned: str) -> None:
    """Counted by reason, each with its place; pages fit together; a reason is text, whatever it holds."""
    found = client.get(f"{pruned}/rejected").json()
    assert (found["total"], sum(found["by_reason"].values()), len(found["records"])) == (3, 3, 3)
    one = client.get(f"{pruned}/rejected", params={"reason": "bad_json"}).json()
    assert [(record["reason"], record["line"]) for record in one["records"]] == [("bad_json", 123)]
    second = client.get(f"{pruned}/rejected", params={"limit": 1, "offset": 1}).json()["records"]
    assert second == found["records"][1:2]
    hostile = client.get(f"{pruned}/rejected", params={"reason": "x' OR 1=1 --"})
    assert (hostile.status_code, hostile.json()["total"]) == (200, 0)


def test_the_command_of_a_job(client: httpx.Client, pruned: str) -> None:
    """That of its spec."""
    spec = JobSpec.model_validate(client.get(pruned).json()["spec"])
    assert client.get(f"{pruned}/command").json() == {"command": job_command(spec)}


def test_speed_is_there_while_a_job_runs(client: httpx.Client, folder: Path, pruned: str) -> None:
    """As its driver wrote it; empty where it scored nothing."""
    body = {"input": {"paths": [f"{folder}/inputs/a"]}, "model": {"name": "fail"}}
    job = client.post("/api/v1/jobs", json=body).json()["id"]
    wait_for_job(client, job, "failed")
    assert client.get(f"/api/v1/jobs/{job}/history").json()["tokens_per_s"] == [0.0, 45.0]
    assert client.get(f"{pruned}/history").json()["at_s"] == []


def test_scripts_of_charts_are_cached(client: httpx.Client) -> None:
    """Browsers cache the chart library and the report's modules under the digest of all static files."""
    for name in ("report/js/charts.js", "vega.js"):
        answer = client.get(f"/static/{digest()}/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert "immutable" in answer.headers["cache-control"]
    assert "export const drawCharts" in client.get(f"/static/{digest()}/report/js/charts.js").text
