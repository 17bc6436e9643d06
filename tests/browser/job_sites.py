"""A service with jobs in every state, for tests of a job's page: scripted drivers, and outputs that stages made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from qtune_service.output.reader import FinishedOutput
from qtune_service.server.app import create_app
from qtune_service.server.jobs.database import open_database
from qtune_service.server.jobs.store import JobStore
from tests.api.servers import scripted, settings
from tests.browser.jobs_in_store import add_finished
from tests.browser.sites import Site, running
from tests.jobs import DEMO_DATA, DEMO_MODEL
from tests.scripted_jobs import submit_job, wait_for_job


@dataclass(frozen=True, slots=True)
class JobSite:
    """A running service and its folder."""

    site: Site
    folder: Path
    client: httpx.Client

    def page(self, job: str) -> str:
        """Return the address of a job's page."""
        return f"{self.site.url}/jobs/{job}"

    def submit(self, act: str, **more: Any) -> str:
        """Submit a scripted job and return its id."""
        return str(submit_job(self.client, self.folder, act, **more)["id"])

    def job(self, job: str) -> dict[str, Any]:
        """Return a job as the API shows it."""
        return dict(self.client.get(f"/api/v1/jobs/{job}").json())

    def until(self, job: str, *statuses: str, seconds: float = 20) -> dict[str, Any]:
        """Return a job once it has one of some statuses."""
        return wait_for_job(self.client, job, *statuses, seconds=seconds)

    def end(self, job: str) -> None:
        """Stop a job, whatever it does."""
        self.client.post(f"/api/v1/jobs/{job}/cancel")
        self.until(job, "succeeded", "failed", "cancelled")

    def add_finished(self, finished: FinishedOutput, name: str = "done") -> str:
        """Add a job that has an output, and return its id."""
        return add_finished(JobStore(open_database(f"sqlite:///{self.folder}/qtune.db")), name, finished).id


def client_of(site: Site) -> httpx.Client:
    """Return a client of a site's API."""
    return httpx.Client(base_url=site.url, timeout=30)


@contextmanager
def job_site(folder: Path, *, outputs: str = "") -> Iterator[JobSite]:
    """Run a service until the block ends. outputs: a folder that jobs may write to, beside the server's own."""
    allowed = {
        "allowed_models": ("succeed", "fail", "vanish", "sleep", "sleep 6", DEMO_MODEL),
        "allowed_inputs": (f"{folder}/inputs", str(DEMO_DATA.parent), *filter(None, [outputs])),
        "allowed_outputs": tuple(filter(None, [outputs])),
    }
    told = settings(
        folder, max_running_jobs=4, allow_remote_code=True, **allowed
    )  # the outputs have an engine of tests
    with (
        running(lambda: create_app(told, scripted(folder))) as site,
        client_of(site) as client,
    ):
        yield JobSite(site, folder, client)
