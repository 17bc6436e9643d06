"""The service's pages in a real browser: the list of jobs, the connection, signing in, keyboard and contrast."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from qtune_service.server.app import create_app
from qtune_service.server.jobs.access import Scope, TokenStore
from tests.api.servers import scripted, settings
from tests.browser.accessibility import faults
from tests.browser.jobs_in_store import add_finished, open_store
from tests.browser.sites import NARROW, Site, open_page, running
from tests.finished_outputs import FinishedOutputs

HIDE = """(is) => {
  Object.defineProperty(document, "hidden", { value: is, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
REFUSED = "Failed to load resource: net::ERR_CONNECTION_REFUSED"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Yield a server without jobs."""
    with running(_app_of(tmp_path)) as made:
        yield made
        _end_all(made)


def _app_of(folder: Path, **changes: Any) -> Callable[[], FastAPI]:
    changes = {"allowed_models": ("succeed", "fail", "sleep 60"), **changes}
    return lambda: create_app(settings(folder, **changes), scripted(folder))


def _submit(site: Site, name: str, model: str = "succeed") -> str:
    inputs = site.app.state.server.settings.allowed_inputs[0]
    body = {"name": name, "input": {"paths": [f"{inputs}/a.jsonl"]}, "model": {"name": model}}
    made: str = httpx.post(f"{site.url}/api/v1/jobs", json=body).raise_for_status().json()["id"]
    return made


def _end_all(site: Site) -> None:
    """Drivers outlive their server."""
    jobs = site.app.state.server.jobs
    for job in jobs.store.running():
        jobs.launchers[job.launcher].stop(job.reference, force=True)


def _row(page: Any, name: str) -> Any:
    return page.locator("#jobs tbody tr").filter(has=page.locator(".name", has_text=re.compile(f"^{name}$")))


def test_the_list_follows_its_jobs(browser: Any, site: Site) -> None:
    """From none over one that runs to one that is done; new ones come by themselves; the page has said so."""
    page, seen = open_page(browser, site.url)
    page.get_by_role("heading", name="No jobs yet").wait_for()
    _submit(site, "slow", "sleep 60")
    slow = _row(page, "slow")
    slow.locator(".status.running").wait_for()
    slow.get_by_text("3 of 8 samples").wait_for()
    assert slow.locator("progress").evaluate("(bar) => bar.position") == 3 / 8
    assert slow.locator(".speed").inner_text() == "12 tokens/s · 4.6 s left"
    _submit(site, "next")
    _row(page, "next").locator(".status.queued").wait_for()
    slow.get_by_role("button", name="Actions for slow").click()
    slow.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    slow.locator(".status.cancelled").wait_for()
    _row(page, "next").locator(".status.succeeded").wait_for()
    assert _row(page, "next").locator(".kept").inner_text() == "50%"
    assert "next: succeeded." in page.inner_text("#announcements")
    assert seen.complaints == []


def test_filters_are_in_the_address(browser: Any, site: Site) -> None:
    """Name and status choose rows, by hand and by a link; without a match the page says so, and leads back."""
    for name, model in (("alpha", "succeed"), ("beta", "fail"), ("alphabet", "succeed")):
        _submit(site, name, model)
    page, seen = open_page(browser, site.url)
    _row(page, "alphabet").locator(".status.succeeded").wait_for()
    page.get_by_label("Name or id").fill("alp")
    _row(page, "beta").wait_for(state="detached")
    page.get_by_role("checkbox", name="failed").check(force=True)
    page.get_by_role("heading", name="No job matches").wait_for()
    assert page.url == f"{site.url}/?q=alp&status=failed"
    page.goto(f"{site.url}/?status=failed")
    _row(page, "beta").get_by_text("none of 8 records could be scored").wait_for()
    assert page.locator("#jobs tbody tr").count() == 1
    assert page.get_by_role("checkbox", name="failed").is_checked()
    assert seen.complaints == []


def test_many_jobs_have_pages(browser: Any, tmp_path: Path, outputs: FinishedOutputs) -> None:
    """The newest first; older ones behind a link that the browser's history knows."""
    store = open_store(tmp_path)
    for i in range(30):
        add_finished(store, f"job {i}", outputs.pruned)
    store.engine.dispose()
    with running(_app_of(tmp_path)) as site:
        page, seen = open_page(browser, site.url)
        _row(page, "job 29").wait_for()
        assert page.locator("#jobs tbody tr").count() == 25
        page.get_by_role("link", name="Older").click()
        _row(page, "job 0").wait_for()
        assert page.locator("#jobs tbody tr").count() == 5
        page.go_back()
        _row(page, "job 29").wait_for()
        assert seen.complaints == []


def test_jobs_are_deleted_and_pruned_again(browser: Any, tmp_path: Path, outputs: FinishedOutputs) -> None:
    """After a question whose safe answer has the focus; again with other ratios, which the new job has."""
    store = open_store(tmp_path)
    add_finished(store, "done", outputs.pruned)
    store.engine.dispose()
    place = (str(Path(outputs.pruned.root).parent),)
    allowed = {"allowed_inputs": place, "allowed_outputs": place, "allowed_models": (outputs.pruned.spec.model.name,)}
    with running(_app_of(tmp_path, allow_remote_code=True, **allowed)) as site:
        page, seen = open_page(browser, site.url)
        done = _row(page, "done")
        done.get_by_role("button", name="Actions").click()
        done.get_by_role("button", name="Prune again").click()
        page.get_by_label("Share of samples to keep").fill("0.25")
        page.get_by_role("dialog").get_by_role("button", name="Prune again").click()
        page.wait_for_url(re.compile("/jobs/"))
        newest = httpx.get(f"{site.url}/api/v1/jobs").json()["jobs"][0]["id"]
        made = httpx.get(f"{site.url}/api/v1/jobs/{newest}").json()
        assert made["spec"]["prune"]["sample_keep_ratio"] == 0.25
        assert made["spec"]["from_scores"] == outputs.pruned.root
        page.goto(site.url)
        done.get_by_role("button", name="Actions").click()
        done.get_by_role("button", name="Delete").click()
        assert page.evaluate("document.activeElement.textContent") == "Cancel"
        page.get_by_label("Keep its output files").check()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        page.get_by_text("its output is kept: as requested").wait_for()
        done.wait_for(state="detached")
        assert (Path(outputs.pruned.root) / "manifest.json").exists()
        assert [c for c in seen.complaints if "404" not in c] == []
        _end_all(site)


def test_a_lost_connection_is_said_and_recovered(browser: Any, site: Site) -> None:
    """With the time of what is shown; without a reload the page is fresh again once the server is back."""
    _submit(site, "before")
    page, seen = open_page(browser, site.url)
    _row(page, "before").locator(".status.succeeded").wait_for()
    site.stop()
    banner = page.locator("#connection")
    banner.wait_for()
    assert re.search(r"The server does not answer\. Last update \d\d:\d\d:\d\d\.", banner.inner_text())
    assert _row(page, "before").is_visible()
    site.start()
    _submit(site, "after")
    banner.wait_for(state="hidden")
    _row(page, "after").wait_for()
    assert set(seen.complaints) == {REFUSED}


def test_nothing_is_asked_while_nobody_looks(browser: Any, site: Site) -> None:
    """A hidden page sends no requests, and asks at once when it is looked at again."""
    _submit(site, "slow", "sleep 60")
    page, seen = open_page(browser, site.url)
    _row(page, "slow").wait_for()
    page.evaluate(HIDE, True)
    page.wait_for_timeout(300)
    before = len(seen.requests)
    page.wait_for_timeout(4500)
    assert len(seen.requests) == before
    with page.expect_response("**/api/v1/jobs?*", timeout=1500):
        page.evaluate(HIDE, False)


def test_the_list_works_by_keyboard(browser: Any, site: Site) -> None:
    """Skip link first; a menu opens, takes the focus, closes by Escape and gives it back; a job is chosen by space."""
    _submit(site, "done")
    page, _ = open_page(browser, site.url)
    _row(page, "done").locator(".status.succeeded").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    menu = page.get_by_role("button", name="Actions for done")
    menu.focus()
    page.keyboard.press("Enter")
    page.locator(".menu :focus", has_text="Open").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Prune again"
    page.keyboard.press("Escape")
    assert menu.evaluate("(button) => button === document.activeElement")
    page.get_by_role("checkbox", name="Choose done to compare").focus()
    page.keyboard.press("Space")
    assert page.inner_text("#compare") == "Compare with …"


def _token_site(folder: Path, scope: Scope) -> tuple[Callable[[], FastAPI], str]:
    store = open_store(folder)
    _, token = TokenStore(store.engine).create("ann", scope)
    store.engine.dispose()
    return _app_of(folder, require_tokens=True), token


def _sign_in(page: Any, token: str) -> None:
    page.get_by_label("API token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_signing_in_leads_back_and_signing_out_ends(browser: Any, tmp_path: Path) -> None:
    """To the page that one came for; a wrong token is said beside its field; name and scope are shown."""
    make, token = _token_site(tmp_path, Scope.submit)
    with running(make) as site:
        page, seen = open_page(browser, f"{site.url}/?status=failed")
        assert page.url == f"{site.url}/sign-in?next=/%3Fstatus%3Dfailed"
        _sign_in(page, "wrong")
        page.get_by_text("the token is not valid").wait_for()
        assert page.evaluate("document.activeElement.id") == "token"
        _sign_in(page, token)
        page.wait_for_url(f"{site.url}/?status=failed")
        page.locator("#user", has_text="ann").wait_for()
        assert "submit" in page.inner_text("#user")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{site.url}/sign-in")
        page.goto(site.url)
        assert page.url.startswith(f"{site.url}/sign-in")
        assert token not in " ".join(seen.requests)
        assert [c for c in seen.complaints if "401" not in c] == []


@pytest.mark.parametrize("to", ["https://example.org/", "//example.org/", "/\\example.org", "javascript:alert(1)"])
def test_signing_in_leads_nowhere_else(browser: Any, tmp_path: Path, to: str) -> None:
    """A foreign place to go to is not gone to."""
    make, token = _token_site(tmp_path, Scope.read)
    with running(make) as site:
        page, seen = open_page(browser, f"{site.url}/sign-in?next={to}")
        _sign_in(page, token)
        page.get_by_role("heading", name="Jobs").or_(page.get_by_role("heading", name="No jobs yet")).first.wait_for()
        assert page.url == f"{site.url}/"
        assert all(url.startswith(site.url) for url in seen.requests)


def test_a_reader_is_offered_nothing_more(browser: Any, tmp_path: Path, outputs: FinishedOutputs) -> None:
    """No new job, no action that changes something; an expired sign-in leads to the sign-in page."""
    make, token = _token_site(tmp_path, Scope.read)
    store = open_store(tmp_path)
    add_finished(store, "done", outputs.pruned)
    store.engine.dispose()
    with running(make) as site:
        page, _ = open_page(browser, f"{site.url}/sign-in")
        _sign_in(page, token)
        _row(page, "done").wait_for()
        page.wait_for_selector("html[data-scope=read]")
        page.get_by_role("button", name="Actions for done").click()
        assert page.locator(".menu:popover-open").inner_text().split("\n") == ["Open"]
        assert page.get_by_role("link", name="New job").count() == 0
        page.context.clear_cookies()
        page.wait_for_url(re.compile("/sign-in"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, NARROW], ids=["wide", "narrow"])
def test_pages_can_be_read(browser: Any, tmp_path: Path, outputs: FinishedOutputs, scheme: str, size: Any) -> None:
    """Names, headings and contrast are as they should be, on every page, and nothing is wider than the screen."""
    store = open_store(tmp_path)
    first, second = (add_finished(store, name, outputs.pruned) for name in ("x" * 60, "two"))
    store.engine.dispose()
    with running(_app_of(tmp_path)) as site:
        _submit(site, "broken", "fail")
        _submit(site, "slow", "sleep 60")
        page, seen = open_page(browser, site.url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
        _row(page, "broken").locator(".status.failed").wait_for()
        assert faults(page) == []
        _row(page, "two").get_by_role("button", name="Actions").click()
        _row(page, "two").get_by_role("button", name="Delete").click()
        assert faults(page) == []
        page.goto(f"{site.url}/compare?a={first.id}&b={second.id}")
        page.get_by_role("heading", name="Changes of quadrant").wait_for()
        assert faults(page) == []
        page.goto(f"{site.url}/new")
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        page.get_by_role("button", name="Start the job").click()
        page.get_by_text("2 problems").wait_for()
        assert faults(page) == []
        assert [c for c in seen.complaints if "404" not in c] == []
        _end_all(site)


def test_the_sign_in_page_can_be_read(browser: Any, tmp_path: Path) -> None:
    """Names and contrast, with an error on it."""
    make, _ = _token_site(tmp_path, Scope.read)
    with running(make) as site:
        page, _ = open_page(browser, f"{site.url}/sign-in", viewport=NARROW, color_scheme="dark")
        _sign_in(page, "wrong")
        page.get_by_text("the token is not valid").wait_for()
        assert faults(page) == []


def test_a_page_loads_little(browser: Any, site: Site) -> None:
    """Only from this server, under 100 kB in all, and its files are not asked for again."""
    page, seen = open_page(browser, site.url)
    page.get_by_role("heading", name="No jobs yet").wait_for()
    assert all(url.startswith(site.url) for url in seen.requests)
    sizes = page.evaluate("performance.getEntriesByType('resource').map((e) => [e.name, e.transferSize])")
    assert sum(size for _, size in sizes) < 100_000
    page.goto(f"{site.url}/?q=x")
    page.get_by_role("heading", name="No job matches").wait_for()
    again = page.evaluate("performance.getEntriesByType('resource').map((e) => [e.name, e.transferSize])")
    assert [name for name, size in again if "/static/" in name and size > 0] == []


def test_seen_hears_violations_of_the_policy(browser: Any, site: Site) -> None:
    """What these tests rely on: an inline script is refused and is a complaint."""
    page, seen = open_page(browser, site.url)
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert "Content Security Policy" in " ".join(seen.complaints)
