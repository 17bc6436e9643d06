"""A real job in the browser: vLLM under Ray, followed, pruned again, downloaded and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from qtune_service.server.app import create_app
from qtune_service.server.launchers.local import LocalLauncher
from tests.api.servers import settings
from tests.browser.job_sites import JobSite, client_of
from tests.browser.sites import open_page, running
from tests.jobs import DEMO_DATA, DEMO_MODEL

NUM_RECORDS = 300


@pytest.mark.timeout(400)
def test_a_job_from_submission_to_its_rows(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is submitted, followed and pruned again with the slider, and a downloaded file has the counted rows."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    server_settings = settings(tmp_path, allowed_inputs=(str(DEMO_DATA.parent),), allowed_models=(DEMO_MODEL,))
    launchers = {"local": LocalLauncher(tmp_path / "jobs")}
    with running(lambda: create_app(server_settings, launchers)) as site, client_of(site) as client:
        place = JobSite(site, tmp_path, client)
        body = {"input": {"paths": [str(DEMO_DATA)], "limit": NUM_RECORDS}, "model": {"name": DEMO_MODEL}}
        answer = client.post("/api/v1/jobs", json={"name": "the demo", **body, "engine": {"name": "vllm"}})
        assert answer.status_code == 201, answer.text
        page, seen = open_page(browser, place.page(answer.json()["id"]))
        page.wait_for_selector("#stages li[aria-current=step]:has-text('Score')", timeout=120_000)
        page.wait_for_selector("#job[data-charts=drawn]", timeout=240_000)
        assert f"of {NUM_RECORDS} samples" in page.inner_text("#status-text")
        expect(page.locator("#log-text")).to_contain_text("score: ")
        page.focus("#ratio")
        page.keyboard.press("Home")
        for _ in range(49):
            page.keyboard.press("ArrowRight")
        promised = int(page.inner_text("td[data-now=kept]"))
        page.click("text=Prune again at 25%")
        page.wait_for_selector("#status[data-status=succeeded]:has-text('succeeded')", timeout=60_000)
        expect(page.locator("#facts")).to_contain_text("Samples to keep 25%", timeout=60_000)
        page.wait_for_selector("#job[data-charts=drawn]", timeout=60_000)
        counts = place.job(page.url.rsplit("/", 1)[-1])["counts"]
        assert counts["kept"] == promised
        rows = 0
        for link in page.locator("#files .folder-of-files[open] tbody a").all():
            with page.expect_download() as download:
                link.click()
            rows += pq.read_table(download.value.path()).num_rows
        assert rows == counts["kept"]
        assert seen.complaints == []
