"""A job that waits, on its page and in the list: the driver's sentence, its actors, and their problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.accessibility import faults
from tests.browser.job_sites import JobSite, job_site
from tests.browser.sites import open_page
from tests.waiting import wait_until

SENTENCE = "waiting for 8 GPUs (0 of 8; 8 in use by other jobs), 41 min"
PROBLEM = "actor 3f2a91c0de77:812 on gpu-3 has finished no sample of shard 12 for 31 min"
WAITING = {
    "done": 0, "tokens_done": 0, "tokens_per_s": 0.0, "eta_s": None, "actors": 2, "actors_wanted": 8,
    "phases": {"scoring": 2}, "waiting": SENTENCE, "waiting_for": "resources", "waiting_s": 2460.0,
    "problems": [PROBLEM],
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[JobSite]:
    """Yield a service with scripted drivers."""
    with job_site(tmp_path) as made:
        yield made


def report(place: JobSite, job: str, **fields: Any) -> None:
    """Write what a driver reports."""
    path = Path(place.job(job)["output"]) / "_qtune" / "progress.json"
    wait_until(lambda: path.exists() and path.stat().st_size > 0)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_waiting_job_says_what_for(browser: Any, place: JobSite, tmp_path: Path) -> None:
    """On the job's page and in the list, until it makes progress."""
    job = place.submit("sleep")
    place.until(job, "running")
    report(place, job, **WAITING)
    page, seen = open_page(browser, place.page(job))
    page.wait_for_selector("#waiting:not([hidden])")
    expect(page.locator("#waiting")).to_have_text("Waiting for 8 GPUs (0 of 8; 8 in use by other jobs), 41 min.")
    expect(page.locator("#problems li")).to_have_text([PROBLEM])
    expect(page.locator("#rates")).to_contain_text("of 8 requested")
    page.screenshot(path=tmp_path / "job.png", full_page=True)
    jobs, seen_there = open_page(browser, place.site.url)
    jobs.wait_for_selector("#jobs .status.running")
    expect(jobs.locator("#jobs .waiting")).to_have_text(SENTENCE)
    assert faults(jobs) == []
    jobs.screenshot(path=tmp_path / "list.png")
    report(place, job, done=1, waiting="", waiting_for="", waiting_s=0.0, problems=[], actors=8)
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.locator("#problems")).to_be_hidden()
    expect(jobs.locator("#jobs .waiting")).to_have_text("")
    assert seen.complaints == seen_there.complaints == []
    place.end(job)


def test_a_sentence_is_text(browser: Any, place: JobSite) -> None:
    """Whatever an output contains."""
    job = place.submit("sleep")
    place.until(job, "running")
    hostile = "<img src=x onerror='window.hacked=1'>"
    report(place, job, **{**WAITING, "waiting": hostile, "problems": [hostile]})
    page, _ = open_page(browser, place.page(job))
    expect(page.locator("#waiting")).to_have_text(f"{hostile}.")
    expect(page.locator("#problems li")).to_have_text([hostile])
    assert page.evaluate("window.hacked") is None
    place.end(job)
