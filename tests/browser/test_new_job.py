"""The form of a new job in a real browser: errors beside fields, uploads, preview, and one job of one form."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.config import JobSpec
from qtune_service.server.app import create_app
from tests.api.servers import scripted, settings
from tests.browser.accessibility import faults
from tests.browser.jobs_in_store import add_finished, open_store
from tests.browser.sites import NARROW, Site, open_page, running
from tests.finished_outputs import FinishedOutputs
from tests.jobs import DEMO_DATA, DEMO_MODEL

PATHS, MODEL = '[data-field="input.paths"]', '[data-field="model.name"]'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Yield a server that may read the demo and run scripted jobs."""
    allowed = {"allowed_inputs": (str(DEMO_DATA.parent),), "allowed_models": ("succeed", DEMO_MODEL)}
    with running(lambda: create_app(settings(tmp_path, **allowed), scripted(tmp_path))) as made:
        yield made


def _form(browser: Any, site: Site, query: str = "", **more: Any) -> tuple[Any, Any]:
    page, seen = open_page(browser, f"{site.url}/new{query}", **more)
    page.locator("#allowed-models code").first.wait_for()
    return page, seen


def _jobs(site: Site) -> list[dict[str, Any]]:
    """All jobs with their specs, which a list does not have."""
    listed = httpx.get(f"{site.url}/api/v1/jobs").json()["jobs"]
    return [httpx.get(f"{site.url}/api/v1/jobs/{job['id']}").json() for job in listed]


def _start(page: Any) -> None:
    page.get_by_role("button", name="Start the job").click()


def test_what_is_missing_is_said_beside_its_field(browser: Any, site: Site) -> None:
    """And at the top, with the focus; a link there leads to the field; typing takes the error away."""
    page, seen = _form(browser, site)
    _start(page)
    assert page.evaluate("document.activeElement.id") == "errors"
    assert page.locator("#errors a").count() == 2
    page.locator("#errors a").first.press("Enter")
    paths = page.locator(PATHS)
    assert paths.evaluate("(field) => field === document.activeElement")
    assert paths.get_attribute("aria-invalid") == "true"
    assert page.inner_text("#input-paths-error") != ""
    page.keyboard.type("/x")
    assert paths.get_attribute("aria-invalid") is None
    assert not page.is_visible("#input-paths-error")
    assert page.locator("#errors a").count() == 1
    page.fill(MODEL, "x")
    assert not page.is_visible("#errors")
    assert _jobs(site) == []
    assert seen.complaints == []


def test_the_servers_refusals_are_beside_their_fields(browser: Any, site: Site) -> None:
    """The policy's and the schema's; a field in a fold is unfolded."""
    page, _ = _form(browser, site)
    page.fill(PATHS, "/etc/passwd")
    page.fill(MODEL, "succeed")
    _start(page)
    page.get_by_text("'/etc/passwd' is not allowed here").first.wait_for()
    assert "is not allowed here" in page.inner_text("#input-paths-error")
    page.fill(PATHS, str(DEMO_DATA))
    page.get_by_text("More about pruning").click()
    page.fill('[data-field="prune.quadrant_rule"]', "a:b")
    page.select_option('[data-field="prune.strategy"]', "random")
    page.get_by_text("How records are read").click()
    page.fill('[data-field="input.take"]', "math=many")
    page.get_by_text("How records are read").click()
    _start(page)
    page.locator("#input-take-error").wait_for()
    assert page.locator("details:has(#input-take)").get_attribute("open") is not None
    needed = "“Quadrant rule” requires “Sample strategy” 'q_tuning', not 'random'"
    assert f"Quadrant rule: {needed}" in page.inner_text("#errors")
    assert page.inner_text("#prune-quadrant_rule-error") == needed
    assert faults(page) == []
    assert _jobs(site) == []


def test_a_form_makes_one_job_with_what_was_chosen(browser: Any, site: Site) -> None:
    """By the keyboard alone, and however often it is sent; the shown command and job file say the same."""
    page, _ = _form(browser, site)
    page.focus('[data-field="name"]')
    for text in ("first look", str(DEMO_DATA)):
        page.keyboard.press("Control+A")
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.focus(MODEL)
    page.keyboard.type("succeed")
    page.keyboard.press("Escape")  # the list of suggestions
    page.focus('[data-slider-for="prune-sample_keep_ratio"]')
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.input_value('[data-field="prune.sample_keep_ratio"]') == "0.4"
    assert "80 of 200" in page.inner_text("#example-plane figcaption")
    command = shlex.split(page.inner_text("#command"))
    file = JobSpec.model_validate_json(page.text_content("#spec"))
    flags = ["--model", "succeed", "--sample-keep-ratio", "0.4", "--output", "out"]
    assert command == ["qtune", "prune", str(DEMO_DATA), *flags]
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method) if request.url.endswith("/jobs") else None)
    page.focus("#start")
    page.evaluate("const form = document.getElementById('new-job'); form.requestSubmit(); form.requestSubmit()")
    page.wait_for_url(re.compile("/jobs/"))
    (job,) = _jobs(site)
    assert (job["name"], job["spec"]["input"], job["spec"]["prune"]) == (
        "first look", file.model_dump(mode="json")["input"], file.model_dump(mode="json")["prune"],
    )  # fmt: skip
    assert sent == ["POST"]


def test_an_answer_that_got_lost_makes_no_second_job(browser: Any, site: Site) -> None:
    """The job was made, its answer never came: sent again, the page goes to the same job."""
    page, _ = _form(browser, site)
    page.fill(PATHS, str(DEMO_DATA))
    page.fill(MODEL, "succeed")
    page.route("**/api/v1/jobs", lambda route: (route.fetch(), route.abort()))
    _start(page)
    page.get_by_text("not be created twice").wait_for()
    page.unroute("**/api/v1/jobs")
    page.locator("#connection").wait_for(state="hidden")
    _start(page)
    page.wait_for_url(re.compile("/jobs/"))
    assert len(_jobs(site)) == 1


def test_only_scoring_sends_no_ratios(browser: Any, site: Site) -> None:
    """The ratios go away, the command is another, and the job has no pruning."""
    page, _ = _form(browser, site)
    page.fill(PATHS, str(DEMO_DATA))
    page.fill(MODEL, "succeed")
    page.fill('[data-field="prune.sample_keep_ratio"]', "0.3")
    page.get_by_label("Only score now").check()
    assert not page.is_visible("#example-plane")
    assert shlex.split(page.inner_text("#command"))[:2] == ["qtune", "score"]
    assert "--sample-keep-ratio" not in page.inner_text("#command")
    _start(page)
    page.wait_for_url(re.compile("/jobs/"))
    assert _jobs(site)[0]["spec"]["prune"] is None


def test_a_file_is_uploaded_and_used(browser: Any, site: Site, tmp_path: Path) -> None:
    """By the button and by dropping; its name stands beside its id; a file that is none is told why."""
    page, _ = _form(browser, site)
    good = tmp_path / "good.jsonl"
    good.write_text("".join(DEMO_DATA.read_text().splitlines(keepends=True)[:20]))
    page.set_input_files("#upload", good)
    page.locator("#named-datasets", has_text="good.jsonl").wait_for()
    assert re.fullmatch(r"dataset://\w+", page.input_value(PATHS))
    assert "20 records" in page.inner_text("#named-datasets")
    assert shlex.split(page.inner_text("#command"))[2] == "good.jsonl"
    page.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File(["not json\\n"], "bad.parquet"));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }""")
    page.locator("#uploads .error").wait_for()
    assert "bad.parquet" in page.inner_text("#uploads")
    assert faults(page) == []
    page.fill(PATHS, "")
    page.get_by_text("Earlier uploads").click()
    page.get_by_role("button", name="Use good.jsonl").click()
    assert page.input_value(PATHS).startswith("dataset://")
    page.fill(MODEL, "succeed")
    _start(page)
    page.wait_for_url(re.compile("/jobs/"))
    assert _jobs(site)[0]["spec"]["input"]["paths"][0].startswith("dataset://")


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled(browser: Any, site: Site, tmp_path: Path) -> None:
    """Its bar moves; what was cancelled is said, and nothing is stored."""
    large = tmp_path / "large.jsonl"
    large.write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 2_000_000)
    page, _ = _form(browser, site)
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 4_000_000}
    network.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#upload", large)
    bar = page.get_by_role("progressbar", name="Upload of large.jsonl")
    deadline = time.monotonic() + 15
    while bar.evaluate("(bar) => bar.position") < 0.02:
        assert time.monotonic() < deadline, "the bar does not move"
        page.wait_for_timeout(100)
    assert re.search(r"\d% of 67 MiB", page.inner_text("#uploads .muted"))
    page.locator("#uploads").get_by_role("button", name="Cancel").click()
    page.locator("#uploads .error", has_text="Cancelled.").wait_for()
    while (found := httpx.get(f"{site.url}/api/v1/datasets").json()["datasets"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == []
    assert page.input_value(PATHS) == ""


def test_the_preview_shows_tokens_and_what_is_trained_on(browser: Any, site: Site, tmp_path: Path) -> None:
    """Rendered by the real tokenizer; trained tokens are marked, special ones outlined, rejected records told."""
    data = tmp_path / "data.jsonl"
    empty = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]}
    strange = {"messages": [{"role": "Eve", "content": "?"}], "passage": "needed"}
    good = DEMO_DATA.read_text().splitlines()[:9]
    data.write_text("\n".join([json.dumps(empty), json.dumps(strange), *good]) + "\n")
    page, seen = _form(browser, site, viewport=NARROW)
    page.set_input_files("#upload", data)
    page.locator("#named-datasets b").wait_for()
    page.fill(MODEL, DEMO_MODEL)
    page.get_by_label("Samples to preview").fill("3")
    page.get_by_role("button", name="Preview").click()
    page.locator("#preview .sample").nth(2).wait_for(timeout=90_000)
    assert page.evaluate("document.activeElement.id") == "preview-title"
    first = json.loads(DEMO_DATA.read_text().splitlines()[0])
    trained = "".join(page.locator("#preview .sample").first.locator("mark.k").all_text_contents())
    assert trained.startswith(first["messages"][-1]["content"])
    special = page.locator("#preview .sample").first.locator(".special")
    assert special.first.text_content() == "<|im_start|>"
    assert special.first.evaluate("(token) => getComputedStyle(token).outlineStyle") == "dashed"
    assert page.locator("mark.k").first.evaluate("(token) => getComputedStyle(token).boxShadow") != "none"
    rejected = page.inner_text("#preview .rejected")
    assert "empty_response" in rejected
    assert "turn 1 of messages has role 'Eve'" in rejected
    assert "“Role map”" in rejected  # the label of a field, not its name
    sources = page.inner_text("#preview .sources")
    assert "is read as messages" in sources
    assert "passage: not read, counted in a warning" in sources
    if folder := os.environ.get("QTUNE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "preview.png"), full_page=True)
    assert faults(page) == []
    assert _jobs(site) == []
    assert seen.complaints == []


def test_a_job_is_taken_as_a_beginning(browser: Any, tmp_path: Path, outputs: FinishedOutputs) -> None:
    """All that it says is in the form, but where its output is; what is changed is changed in the new job alone."""
    store = open_store(tmp_path)
    job = add_finished(store, "done", outputs.pruned)
    store.engine.dispose()
    with running(lambda: create_app(settings(tmp_path), scripted(tmp_path))) as site:
        page, _ = _form(browser, site, f"?from={job.id}")
        page.locator("#from a", has_text="done").wait_for()
        file = json.loads(page.text_content("#spec"))
        assert file.pop("output") == {"path": "out"}
        made = JobSpec.model_validate({**file, "output": {"path": "x"}, "from_scores": job.spec["from_scores"]})
        assert made.model_dump(exclude={"output"}) == outputs.pruned.spec.model_dump(exclude={"output"})
        page.get_by_label("Share of samples to keep", exact=True).fill("0.35")
        assert "--sample-keep-ratio 0.35" in page.inner_text("#command")


def test_texts_are_copied(browser: Any, site: Site) -> None:
    """Also where the clipboard is not allowed."""
    page, seen = _form(browser, site)
    page.fill(MODEL, "it's")
    command = page.text_content("#command")
    page.locator("button[data-copy=command]").click()
    page.locator("button[data-copy=command]", has_text="Copied").wait_for()
    page.evaluate("document.querySelector('[data-field=\"input.paths\"]').focus()")
    page.keyboard.press("Control+V")
    assert page.input_value(PATHS) == command
    assert shlex.split(command)[3] == "it's"
    assert seen.complaints == []
