"""GET /compare: two jobs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from qtune_service.config import PruneSpec
from qtune_service.job_states import Job
from qtune_service.server.app import create_app
from qtune_service.server.jobs.store import JobStore, NewJob
from tests.api.servers import scripted, settings
from tests.browser.jobs_in_store import add_finished, open_store
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs, prune


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """Return the store of the server."""
    return open_store(tmp_path)


@pytest.fixture
def client(tmp_path: Path, store: JobStore) -> TestClient:
    """Return a client of a server that starts no job."""
    return TestClient(create_app(settings(tmp_path), scripted(tmp_path)), base_url="http://127.0.0.1")


def _queued(store: JobStore) -> Job:
    spec = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "m"}, "output": {"path": "/out"}}
    return store.create(NewJob("waits", spec, "/out", "ann", "local"))[0]


def test_two_ratios_of_the_same_scores(
    client: TestClient, store: JobStore, outputs: FinishedOutputs, tmp_path: Path
) -> None:
    """The settings that differ, the counts of both, what both keep, and samples of the one that keeps more."""
    other = prune(outputs.scored, tmp_path / "other", PruneSpec(sample_keep_ratio=0.7))
    a, b = add_finished(store, "less", outputs.pruned), add_finished(store, "more", other)
    found = client.get("/api/v1/compare", params={"a": a.id, "b": b.id, "examples": 3}).raise_for_status().json()
    assert found["settings"] == [{"field": "prune.sample_keep_ratio", "a": 0.4, "b": 0.7}]
    assert (found["a"]["id"], found["b"]["id"]) == (a.id, b.id)
    assert found["tokens_a"]["after"] < found["tokens_b"]["after"]
    samples = found["samples"]
    assert samples["common"] == NUM_SAMPLES
    assert samples["kept_by_both"] + samples["kept_by_b"] == b.counts["kept"]
    assert samples["overlap"] == samples["kept_by_both"] / b.counts["kept"]
    assert sum(sum(row.values()) for row in samples["moves"].values()) == NUM_SAMPLES
    assert samples["examples_a"] == []
    assert [example["kept"] for example in samples["examples_b"]] == [True] * 3
    assert all(example["tokens"] for example in samples["examples_b"])


def test_a_job_and_itself(client: TestClient, store: JobStore, outputs: FinishedOutputs) -> None:
    """Nothing differs."""
    job = add_finished(store, "one", outputs.pruned)
    found = client.get("/api/v1/compare", params={"a": job.id, "b": job.id}).json()
    assert found["settings"] == []
    assert found["samples"]["overlap"] == 1.0


def test_without_samples_to_compare_settings_are(client: TestClient, store: JobStore, outputs: FinishedOutputs) -> None:
    """A job that waits, and one that only scored: settings, and why there is no more."""
    done, waits = add_finished(store, "done", outputs.pruned), _queued(store)
    scored = add_finished(store, "scored", outputs.scored)
    for other, why in ((waits, "has no result"), (scored, "holds scores only")):
        found = client.get("/api/v1/compare", params={"a": done.id, "b": other.id}).raise_for_status().json()
        assert found["samples"] is None
        assert why in found["why_no_samples"]
        assert found["settings"]


def test_jobs_that_are_not_there(client: TestClient, store: JobStore, outputs: FinishedOutputs) -> None:
    """404 for an unknown one, 422 where one is not named."""
    job = add_finished(store, "one", outputs.pruned)
    assert client.get("/api/v1/compare", params={"a": job.id, "b": "none"}).status_code == 404
    assert client.get("/api/v1/compare", params={"a": job.id}).status_code == 422
