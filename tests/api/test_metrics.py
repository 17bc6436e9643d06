"""/metrics: what Prometheus is told."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from qtune_service.job_states import JobStatus, Progress
from qtune_service.server.jobs.database import jobs, writing
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.metrics import Metrics
from tests.api.servers import scripted, serving, settings
from tests.api.test_sessions import token_store
from tests.scripted_jobs import submit_job, wait_for_job
from tests.waiting import wait_until

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Figures:
    """Parse metrics into samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def figure(found: Figures, name: str, **labels: str) -> float:
    """One of them."""
    return found[name, frozenset(labels.items())]


def scraped(client: httpx.Client) -> Figures:
    """Return the metrics of a server."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


def test_jobs_their_progress_and_requests(tmp_path: Path) -> None:
    """By status; what was scored; and latency by the route's template, so that ids make no new series."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        done = submit_job(client, tmp_path)["id"]
        wait_for_job(client, done, "succeeded")
        running, queued = (submit_job(client, tmp_path, "sleep")["id"] for _ in range(2))
        wait_for_job(client, running, "running")
        wait_until(lambda: figure(scraped(client), "qtune_tokens_per_second") > 0, 10)
        found = scraped(client)
        for status, number in (("succeeded", 1), ("running", 1), ("queued", 1), ("failed", 0), ("cancelled", 0)):
            assert figure(found, "qtune_jobs", status=status) == number
        assert figure(found, "qtune_tokens_per_second") == 12.3
        assert 0 < figure(found, "qtune_queue_oldest_seconds") < 10
        assert figure(found, "qtune_samples_scored_total") == 8 + 3, "all 8 of the first job, 3 so far of the second"
        assert figure(found, "qtune_tokens_scored_total") == 90 + 90
        assert figure(found, "qtune_database_up") == 1
        client.get("/nowhere/1")
        client.get("/api/v1/jobs/x")
        found = scraped(client)
        seen = {dict(labels)["route"] for name, labels in found if name == "qtune_request_seconds_count"}
        assert {"/api/v1/jobs", "/api/v1/jobs/{job_id}", "unknown", "/metrics"} <= seen
        assert not any(done in route for route in seen)
        labels = {"method": "GET", "route": "/api/v1/jobs/{job_id}", "status": "404"}
        assert figure(found, "qtune_request_seconds_count", **labels) == 1
        for job in (running, queued):
            client.post(f"/api/v1/jobs/{job}/cancel")
        wait_for_job(client, running, "cancelled")


def test_a_read_token_may_scrape(tmp_path: Path) -> None:
    """As a bearer, where tokens are required; nobody else may."""
    from qtune_service.server.jobs.access import Scope

    _, text = token_store(tmp_path).create("prometheus", Scope.read)
    with serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_progress_is_counted_once_by_all_servers(store: JobStore, tmp_path: Path) -> None:
    """By whoever sees it first; another attempt counts anew."""
    made, _ = store.create(NewJob("a", {}, str(tmp_path), "ann", "local"))
    claimed = store.claim(1)
    assert claimed is not None
    servers = [Metrics(store) for _ in range(2)]
    services = [JobService(store, {}, on_scored=server.note_scored) for server in servers]
    for done, tokens in ((2, 20), (5, 60), (5, 10)):
        for service in services:
            service._note_progress(claimed, Progress(done, 8, tokens))
    found = [parsed(server.text().decode()) for server in servers]
    assert sum(figure(one, "qtune_samples_scored_total") for one in found) == 5
    assert sum(figure(one, "qtune_tokens_scored_total") for one in found) == 70
    assert store.get(made.id).progress == Progress(5, 8, 10)


def test_many_jobs_are_counted_quickly(database: Engine) -> None:
    """A scrape with 10,000 jobs stays far below the usual 15 s between two of them."""
    row = {
        "name": "a", "spec": {"x": "y" * 2000}, "output": "o", "owner": "ann", "created_at": 1, "updated_at": 1,
        "version": 1, "stage": "", "progress": asdict(Progress()), "counts": {}, "thresholds": {}, "launcher": "local",
        "reference": {}, "attempts": 1, "cancel_requested": False, "request_digest": "",
    }  # fmt: skip
    statuses = [str(status) for status in JobStatus]
    with writing(database) as connection:
        rows = [{**row, "id": f"{i:026}", "status": statuses[i % 5]} for i in range(10_000)]
        connection.execute(jobs.insert(), rows)
    metrics = Metrics(JobStore(database))
    started = time.perf_counter()
    found = parsed(metrics.text().decode())
    assert time.perf_counter() - started < 1.0
    assert figure(found, "qtune_jobs", status="queued") == 2000


def test_what_running_jobs_wait_for(store: JobStore, tmp_path: Path) -> None:
    """Jobs and the longest wait by reason, and actors by phase. Unknown reasons and phases make no series."""
    reports = [
        Progress(waiting_for="resources", waiting_s=60, actors_wanted=8),
        Progress(waiting_for="resources", waiting_s=2460, actors_wanted=8, phases={"failed": 1}),
        Progress(waiting_for="so that the label explodes", waiting_s=5),
        Progress(phases={"scoring": 7, "idle": 1, "unknown": 9}, actors_wanted=8),
    ]
    for number, progress in enumerate(reports):
        store.create(NewJob("a", {}, str(tmp_path / str(number)), "ann", "local"))
        claimed = store.claim(10)
        assert claimed is not None
        store.note_progress(claimed.id, progress)
    found = parsed(Metrics(store).text().decode())
    for reason, number, seconds in (("resources", 2, 2460), ("loading", 0, 0), ("other", 1, 5)):
        assert figure(found, "qtune_jobs_waiting", reason=reason) == number
        assert figure(found, "qtune_waiting_seconds", reason=reason) == seconds
    for phase, number in (("scoring", 7), ("idle", 1), ("starting", 0), ("failed", 1), ("retired", 0)):
        assert figure(found, "qtune_actors", phase=phase) == number
    assert figure(found, "qtune_actors_wanted") == 24
    assert not any("unknown" in str(labels) or "explodes" in str(labels) for _, labels in found)
