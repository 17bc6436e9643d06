"""Jobs without a model: a scripted driver (tests/api/driver.py) does what the name of the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.waiting import wait_until


def job_request(folder: Path, act: str = "succeed", **more: Any) -> dict[str, Any]:
    """Return the body of a request for a job whose driver does `act`."""
    return {"name": act, "input": {"paths": [f"{folder}/inputs/a.jsonl"]}, "model": {"name": act}, **more}


def submit_job(client: httpx.Client, folder: Path, act: str = "succeed", **more: Any) -> dict[str, Any]:
    """Submit a job and return it."""
    response = client.post("/api/v1/jobs", json=job_request(folder, act, **more))
    assert response.status_code == 201, response.text
    return dict(response.json())


def wait_for_job(client: httpx.Client, job_id: str, *statuses: str, seconds: float = 20) -> dict[str, Any]:
    """Return a job once it has one of some statuses."""

    def job() -> dict[str, Any]:
        return dict(client.get(f"/api/v1/jobs/{job_id}").json())

    return wait_until(lambda: found if (found := job())["status"] in statuses else None, seconds, explain=job)


def num_starts(output: str) -> int:
    """Return how many drivers the job with this output had."""
    path = Path(output) / "starts"
    return len(path.read_text()) if path.exists() else 0
