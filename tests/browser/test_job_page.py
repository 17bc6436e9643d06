"""The page of a job in a real browser: every state, its pictures and buttons, hostile texts, keys, a lost server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from playwright.sync_api import expect

from tests.browser.job_sites import JobSite, job_site
from tests.browser.sites import NARROW, Seen, open_page
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs, finished_output, prune

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202eabc\u0000\u200b"
SAMPLES = "#sample-list > details"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[JobSite]:
    """Yield a service whose jobs may read the input of the outputs."""
    root = str(Path(outputs.pruned.root).parent)
    with job_site(tmp_path_factory.mktemp("service"), outputs=root) as made:
        yield made


@pytest.fixture(scope="module")
def done(place: JobSite, outputs: FinishedOutputs) -> str:
    """Return a finished job of 120 samples, 40% kept."""
    return place.add_finished(outputs.pruned)


def opened(browser: Any, place: JobSite, job: str, **settings: Any) -> tuple[Any, Seen]:
    """Open a job's page and wait until it shows the job."""
    page, seen = open_page(browser, place.page(job), **settings)
    page.wait_for_selector("#job:not([hidden])")
    return page, seen


def finished_page(browser: Any, place: JobSite, job: str, **settings: Any) -> tuple[Any, Seen]:
    """Open the page of a finished job and wait until all of it is there."""
    page, seen = opened(browser, place, job, **settings)
    page.wait_for_selector("#job[data-charts=drawn]")
    page.wait_for_selector("#sample-list details")
    page.wait_for_selector(".snippet")
    return page, seen


def answering(body: Any) -> Callable[[Any], None]:
    """Return a route handler that answers in the server's place."""
    return lambda route: route.fulfill(json=body)


def test_a_finished_job_shows_what_it_gave(browser: Any, place: JobSite, done: str, outputs: FinishedOutputs) -> None:
    """Counts, a mark a sample in both planes, quadrants, files; no other server is asked, nothing complains."""
    page, seen = finished_page(browser, place, done)
    counts = outputs.pruned.manifest["counts"]
    assert page.inner_text("#status") == "✓ succeeded"
    assert f"Kept {counts['kept']} of {counts['scored']}" in page.inner_text("#status-text")
    for chart in ("plane", "ranks"):
        assert page.locator(f"[data-chart={chart}] .samples_marks path").count() == NUM_SAMPLES
    rows = page.locator("#quadrant-rows tr").all_inner_texts()
    assert [int(row.split("\t")[1]) for row in rows] == [counts[name] for name in ("Q1", "Q2", "Q3", "Q4")]
    assert page.inner_text("td[data-job=kept]") == str(counts["kept"])
    assert page.locator("#files tbody tr").count() == sum(
        file["path"].startswith("pruned/") for file in outputs.pruned.manifest["files"]
    )
    assert seen.complaints == []
    assert all(url.startswith((place.site.url, "data:")) for url in seen.requests)


def test_the_chart_library_is_kept(browser: Any, place: JobSite, done: str) -> None:
    """Made once, and told to browsers to be kept for good."""
    _, seen = finished_page(browser, place, done)
    (url,) = [url for url in seen.requests if url.endswith("/vega.js")]
    answer = place.client.get(url)
    assert "immutable" in answer.headers["cache-control"]
    assert len(list((place.folder / "static").iterdir())) == 1


def test_the_slider_prunes_again(browser: Any, place: JobSite, done: str) -> None:
    """By keys: numbers and field follow; the button leads to a new job with that ratio and these scores."""
    page, seen = finished_page(browser, place, done)
    page.focus("#ratio")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.input_value("#reprune-samples") == "0.425"
    assert page.inner_text("output") == "42.5%"
    page.fill("#reprune-tokens", "0.5")
    page.click("text=Prune again at 42.5%")
    page.wait_for_url(lambda url: not url.endswith(done))
    job = place.job(page.url.rsplit("/", 1)[-1])
    assert (job["spec"]["prune"]["sample_keep_ratio"], job["spec"]["prune"]["token_keep_ratio"]) == (0.425, 0.5)
    assert job["spec"]["from_scores"] == place.job(done)["output"]
    assert seen.complaints == []
    place.end(job["id"])


def test_a_wrong_ratio_is_told_beside_its_field(browser: Any, place: JobSite, done: str) -> None:
    """And nothing is sent."""
    page, seen = finished_page(browser, place, done)
    page.fill("#reprune-samples", "1.5")
    before = len(seen.requests)
    page.click("#reprune-start")
    assert page.inner_text("#reprune-samples-error") == "Enter a number above 0 and at most 1."
    assert page.evaluate("document.activeElement.id") == "reprune-samples"
    assert len(seen.requests) == before


def test_samples_by_quadrant_fate_and_condition(browser: Any, place: JobSite, done: str) -> None:
    """Tabs, selects, pages, and a condition in SQL over the records' own columns."""
    page, seen = finished_page(browser, place, done)
    page.check("input[name=quadrant][value=Q3]", force=True)
    expect(page.locator(".sample .label")).to_have_text(["Q3"] * 10)
    assert "It would be kept at keep ratios from about" in page.inner_text(".sample[open] .reason")
    page.click("#sample-after")
    expect(page.locator("#sample-total")).to_contain_text("11\u201320 of ")
    page.check("input[name=quadrant][value='']", force=True)
    page.fill("#sample-where", "category = 'town' AND num_tokens < 7")
    page.keyboard.press("Enter")
    answer = place.client.get(f"/api/v1/jobs/{done}/samples", params={"where": page.input_value("#sample-where")})
    expect(page.locator(SAMPLES)).to_have_count(min(answer.json()["total"], 10))
    assert seen.complaints == []


def test_a_wrong_condition_is_told_beside_its_field(browser: Any, place: JobSite, done: str) -> None:
    """With the columns that there are; the next one that is right takes it away."""
    page, _ = finished_page(browser, place, done)
    page.fill("#sample-where", "perplexiti > 2")
    page.keyboard.press("Enter")
    page.wait_for_selector("#where-error:not([hidden])")
    assert "did you mean perplexity?" in page.inner_text("#where-error")
    assert page.get_attribute("#sample-where", "aria-invalid") == "true"
    page.fill("#sample-where", "perplexity > 1e9")
    page.keyboard.press("Enter")
    page.wait_for_selector("#where-error", state="hidden")
    expect(page.locator("#sample-total")).to_have_text("No sample matches.")


def test_planes_and_tokens_work_by_keys(browser: Any, place: JobSite, done: str) -> None:
    """Arrows walk the samples of the plane, Enter shows one's tokens, arrows walk these and their scores are told."""
    page, seen = finished_page(browser, place, done)
    page.focus("#plane-chart")
    page.keyboard.press("ArrowRight")
    picked = page.inner_text("[data-of=id]")
    page.keyboard.press("Enter")
    expect(page.locator(SAMPLES)).to_have_count(1)
    assert page.inner_text(".sample summary b") == picked
    page.focus(".tokens")
    page.keyboard.press("ArrowRight")
    assert "NLL" in page.inner_text(".readout")
    page.click("text=Back to all samples")
    expect(page.locator(SAMPLES)).to_have_count(10)
    assert seen.complaints == []


def test_every_control_has_a_name_and_is_reached(browser: Any, place: JobSite, done: str) -> None:
    """Nothing that can be focused is nameless."""
    page, _ = finished_page(browser, place, done)
    nameless = page.evaluate("""() => [...document.querySelectorAll('a[href], button, input, select, [tabindex="0"]')]
      .filter((e) => e.checkVisibility() && !e.textContent.trim() && !e.ariaLabel && !e.labels?.length
        && !e.getAttribute('aria-labelledby')).map((e) => e.outerHTML.slice(0, 80))""")
    assert nameless == []


def test_hostile_texts_do_nothing(browser: Any, place: JobSite, done: str, outputs: FinishedOutputs) -> None:
    """Markup is shown, marks that turn text round are named, and a token of 100,000 characters is cut."""
    tokens = [
        {"text": HOSTILE, "state": "prompt", "nll": None, "entropy": None, "score": None},
        {"text": HOSTILE, "state": "kept", "nll": 0.5, "entropy": 1.0, "score": "inf"},
        {"text": "x" * 100_000, "state": "removed", "nll": 9.0, "entropy": 1.0, "score": 3000.0},
    ]
    (real,) = place.client.get(f"/api/v1/jobs/{done}/samples", params={"limit": 1}).json()["samples"]
    sample = {**real, "sample_id": HOSTILE, "source": HOSTILE, "own": {HOSTILE: HOSTILE}, "tokens": tokens}
    record = {"source": HOSTILE, "line": 1, "reason": HOSTILE, "detail": HOSTILE, "record": HOSTILE * 1000}
    answers = {
        "samples": {"total": 1, "samples": [sample]},
        "rejected": {"total": 1, "by_reason": {HOSTILE: 1}, "records": [record]},
    }
    job = place.add_finished(outputs.pruned, name="<b>bold</b>" + "y" * 180)
    page, seen = open_page(browser, "about:blank")
    for name, answer in answers.items():
        page.route(f"**/api/v1/jobs/*/{name}?*", answering(answer))
    page.goto(place.page(job))
    page.wait_for_selector("#job[data-charts=drawn]")
    page.click("#rejected summary")
    page.wait_for_selector("#rejected pre")
    shown = page.inner_text(".tokens")
    assert shown.count("<script>window.hacked=1</script>") == 2
    assert "⟨U+202E⟩abc␀⟨U+200B⟩" in shown
    assert len(shown) < 1000
    assert page.locator(".tokens .r.heat-5").count() == 1
    assert page.inner_text("#name").startswith("<b>bold</b>y")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert seen.complaints == []


def test_endless_samples_come_in_part(browser: Any, place: JobSite, done: str) -> None:
    """1,500 tokens at first, all on demand."""
    token = {"text": "ab", "state": "kept", "nll": 0.5, "entropy": 1.0, "score": 1.0}
    (real,) = place.client.get(f"/api/v1/jobs/{done}/samples", params={"limit": 1}).json()["samples"]
    page, _ = open_page(browser, "about:blank")
    answer = {"total": 1, "samples": [{**real, "tokens": [token] * 4000}]}
    page.route("**/api/v1/jobs/*/samples?*", answering(answer))
    page.goto(place.page(done))
    page.wait_for_selector(".tokens")
    assert page.locator(".tokens > span").count() == 1500
    page.click("text=Show all 4,000 tokens")
    assert page.locator(".tokens > span").count() == 4000


def test_records_of_a_reason_unfold(browser: Any, place: JobSite, done: str) -> None:
    """Each with its place, what was wrong, and its beginning."""
    page, seen = finished_page(browser, place, done)
    page.click("#rejected summary:has-text('bad_json')")
    page.wait_for_selector("#rejected pre")
    assert "data.jsonl, line 123" in page.inner_text("#rejected details[open]")
    assert '{"id": "broken"' in page.inner_text("#rejected pre")
    assert seen.complaints == []


def test_the_lines_for_programs_work(browser: Any, place: JobSite, done: str, tmp_path: Path) -> None:
    """As they are copied: pyarrow, curl, datasets and duckdb find as many rows as were kept."""
    page, _ = finished_page(browser, place, done)
    kept = place.job(done)["counts"]["kept"]
    text = {name: page.locator(f"#with-{name}").text_content() for name in ("pyarrow", "curl", "datasets", "duckdb")}
    python = f"{text['pyarrow']}\nprint(table.num_rows)"
    assert run(sys.executable, "-c", python, at=tmp_path) == str(kept)
    run("sh", "-c", text["curl"], at=tmp_path)
    (glob,) = [word for word in text["duckdb"].split("'") if word.endswith("*.parquet")]
    sql = text["duckdb"].split('"')[1].replace(glob, f"{tmp_path}/{glob}")
    assert sum(rows for _, rows in duckdb.sql(sql).fetchall()) == kept
    assert run(sys.executable, "-c", f"{text['datasets']}\nprint(len(data))", at=tmp_path) == str(kept)


def run(*command: str, at: Path) -> str:
    """Return the last line that a command prints."""
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip().rpartition("\n")[2]


def test_a_failed_job_says_why_and_is_resumed(browser: Any, place: JobSite) -> None:
    """Message, hint and code; Resume starts another attempt, which the page follows to its end."""
    job = place.submit("fail")
    place.until(job, "failed")
    page, seen = opened(browser, place, job)
    failure = page.inner_text("#failure")
    assert "none of 8 records could be scored" in failure
    assert "look" in failure
    assert "data" in failure
    assert page.inner_text("#stages li.stopped").startswith("✕ Score with the model")
    page.click("text=Resume")
    expect(page.locator("#facts")).to_contain_text("Attempt 2")
    page.wait_for_selector("#status[data-status=failed]")
    expect(page.locator("#log-text")).to_contain_text("attempt 2")
    assert page.evaluate("document.activeElement.closest('#actions') !== null")
    assert seen.complaints == []


def test_a_running_job_is_followed_and_cancelled(browser: Any, place: JobSite) -> None:
    """Stage, progress, log; Cancel stops it, and Delete forgets it after a question."""
    job = place.submit("sleep")
    page, seen = opened(browser, place, job)
    page.wait_for_selector("#stages li[aria-current=step]:has-text('Score with the model')")
    assert "3 of 8" in page.inner_text("#rates")
    expect(page.locator("#log-text")).to_contain_text("attempt 1")
    page.click("text=Cancel")
    page.wait_for_selector("#status[data-status=cancelled]")
    page.click("text=Delete…")
    page.click("dialog button.danger")
    page.wait_for_url(f"{place.site.url}/")
    expect(page.locator("#notices")).to_contain_text("is deleted.")
    assert place.client.get(f"/api/v1/jobs/{job}").status_code == 404
    assert seen.complaints == []


def test_speed_is_drawn_also_after_a_reload(browser: Any, place: JobSite) -> None:
    """From what the driver noted."""
    job = place.submit("sleep")
    place.until(job, "running")
    progress = Path(place.job(job)["output"]) / "_qtune" / "progress.json"
    page, seen = opened(browser, place, job)
    page.wait_for_selector("#stages li[aria-current=step]")
    body = json.loads(progress.read_text())
    times = [1.0e9 + 2 * i for i in range(50)]
    body["history"] = {"at_s": times, "samples_done": [1] * 50, "tokens_done": [1] * 50, "tokens_per_s": [800.0] * 50}
    progress.write_text(json.dumps(body))
    page.reload()
    page.wait_for_selector("#speed .drawing[data-state=drawn] path")
    assert "highest 800" in page.inner_text("#speed")
    assert seen.complaints == []
    place.end(job)


def test_a_paused_log_stands_still(browser: Any, place: JobSite) -> None:
    """And has all of it when it goes on."""
    job = place.submit("sleep")
    page, _ = opened(browser, place, job)
    expect(page.locator("#log-text")).to_contain_text("attempt 1")
    page.click("#log-pause")
    with (place.folder / "jobs" / f"{job}.log").open("a") as log:
        log.write("\u001b[31mmore\u001b[0m\n")
    page.wait_for_timeout(2600)
    assert "more" not in page.inner_text("#log-text")
    page.click("#log-pause")
    expect(page.locator("#log-text")).to_contain_text("more")
    assert "[31m" not in page.inner_text("#log-text")
    place.end(job)


def test_a_lost_server_is_told_and_found_again(browser: Any, tmp_path: Path) -> None:
    """The page says so, keeps what it shows, and shows the truth once the server is back."""
    with job_site(tmp_path) as place:
        job = place.submit("sleep 6")
        page, seen = opened(browser, place, job)
        page.wait_for_selector("#status[data-status=running]")
        place.site.stop()
        page.wait_for_selector("#connection:not([hidden])")
        assert page.inner_text("#name") == "sleep 6"
        place.site.start()
        page.wait_for_selector("#connection", state="hidden")
        page.wait_for_selector("#status[data-status=failed]", timeout=30_000)
        assert "exited without reporting a result" in page.inner_text("#failure")
        assert [text for text in seen.complaints if not text.startswith("Failed to load resource")] == []


def test_a_result_that_could_not_be_read_is_read_later(browser: Any, place: JobSite, done: str) -> None:
    """The chart library breaks off: the page recovers without a hand."""
    page, seen = open_page(browser, "about:blank")
    page.route("**/vega.js", lambda route: route.abort())
    page.route("**/readyz", lambda route: route.abort())
    page.goto(place.page(done))
    page.wait_for_selector("#connection:not([hidden])")
    page.unroute_all()
    page.wait_for_selector("#job[data-charts=drawn]")
    assert [text for text in seen.complaints if not text.startswith("Failed to load resource")] == []


def test_a_reader_is_offered_nothing_that_changes(browser: Any, place: JobSite, done: str) -> None:
    """No buttons that would be refused."""
    page, _ = open_page(browser, "about:blank")
    who = {"name": "eve", "scope": "read", "needs_token": True, "is_signed_in": True, "csrf_token": None}
    page.route("**/api/v1/session", answering(who))
    page.goto(place.page(done))
    page.wait_for_selector(".snippet")
    assert page.locator("#actions :visible").all_inner_texts() == ["Download", "Compare"]
    assert not page.is_visible("#reprune")
    assert "QTUNE_TOKEN" in page.inner_text("#with-curl")


def test_scores_alone_can_be_pruned_from_the_page(browser: Any, place: JobSite, outputs: FinishedOutputs) -> None:
    """No plane, but samples, files and the form."""
    page, seen = opened(browser, place, place.add_finished(outputs.scored))
    page.wait_for_selector(".snippet")
    page.wait_for_selector("#sample-list details")
    assert not page.is_visible("#charts")
    assert page.is_visible("#reprune-start")
    assert seen.complaints == []


def test_an_earlier_versions_output_has_no_pictures(browser: Any, place: JobSite, outputs: FinishedOutputs) -> None:
    """And the page says what to do; the rest is there."""
    old = prune(outputs.scored, Path(outputs.scored.root).parent / "old", outputs.pruned.prune)
    (Path(old.root) / "plane.json").unlink()
    page, seen = opened(browser, place, place.add_finished(old))
    page.wait_for_selector("#warnings:not([hidden])")
    assert "and has no plane.json" in page.inner_text("#warnings")
    page.wait_for_selector("#sample-list details")
    assert [text for text in seen.complaints if "404" not in text] == []


def test_another_strategys_job_has_no_slider(browser: Any, place: JobSite, tmp_path: Path) -> None:
    """The page says which chose, and does not pretend that quadrants did."""
    records = [{"prompt": f"q{i}", "completion": f"a{i} b c d e f"} for i in range(40)]
    finished = finished_output(tmp_path, records, prune_by={"sample_keep_ratio": 0.5, "strategy": "random"})
    page, seen = finished_page(browser, place, place.add_finished(finished))
    assert "random choice" in page.inner_text("#no-curve")
    assert not page.is_visible("#ratio")
    assert "another strategy than Q-Tuning: random choice" in page.inner_text(".sample[open] .reason")
    assert seen.complaints == []


def test_an_unknown_job_is_told(browser: Any, place: JobSite) -> None:
    """With a way back."""
    page, _ = open_page(browser, place.page("nothing"))
    page.wait_for_selector("#missing:not([hidden])")
    assert not page.is_visible("#job")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, place: JobSite, done: str, scheme: str) -> None:
    """At 360 pixels, in both colours."""
    page, seen = finished_page(browser, place, done, viewport=NARROW, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert seen.complaints == []
