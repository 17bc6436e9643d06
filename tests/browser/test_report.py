"""The report in a real browser: drawn, silent, offline, light and dark, wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qtune_service.report.html import render_report
from tests.report_data import example, made_up_report, made_up_scores

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
NUM_POINTS = 1_500
LIGHT_FILLS = ("rgb(200, 80, 10)", "rgb(11, 95, 165)", "rgb(156, 134, 180)", "rgb(26, 158, 119)")  # Q1 to Q4


@dataclass
class Seen:
    """What a page did while it was open."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of this machine."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs a system Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with overlapping corners, and with hostile, right-to-left and multi-byte text in a sample."""
    tokens = (
        "<script>window.hacked=1</script>",
        " <img src=x onerror='window.hacked=1'>",
        " مر",
        "حبا",
        "🙂",
        "",
        "\n",
        "\tend",
    )
    data = made_up_report(made_up_scores(NUM_POINTS), examples=(example(tokens), example(("right",), "Q4")))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(data), encoding="utf-8")
    return path


def _open(browser: Any, report: Path, **settings: Any) -> tuple[Any, Seen]:
    page, seen = browser.new_context(**settings).new_page(), Seen()
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#plane-chart[data-state]", timeout=30_000)
    return page, seen


def test_the_plane_is_drawn_without_complaint_or_connection(browser: Any, report: Path) -> None:
    """A mark a sample, four dashed thresholds, two corners; the console is silent; only the file itself is read."""
    page, seen = _open(browser, report, viewport={"width": 1280, "height": 900})
    assert page.get_attribute("#plane-chart", "data-state") == "drawn"
    assert page.locator("#plane-chart .mark-symbol path").count() == NUM_POINTS
    assert page.locator("#plane-chart line[stroke-dasharray]").count() == 4
    assert page.locator("#plane-chart .mark-rect path").count() == 2
    assert page.evaluate("window.hacked") is None
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_the_marks_are_where_the_data_are(browser: Any, report: Path) -> None:
    """Q1's marks lie up and right of Q3's, and each quadrant is painted in its own colour."""
    page, _ = _open(browser, report, viewport={"width": 1280, "height": 900})
    places = page.evaluate("""() => {
      const sums = {};
      for (const mark of document.querySelectorAll("#plane-chart .mark-symbol path")) {
        const box = mark.getBoundingClientRect(), color = getComputedStyle(mark).fill;
        const [x, y, n] = sums[color] ?? [0, 0, 0];
        sums[color] = [x + box.x, y + box.y, n + 1];
      }
      return Object.fromEntries(Object.entries(sums).map(([color, [x, y, n]]) => [color, [x / n, y / n]]));
    }""")
    q1, q2, q3, q4 = (places[color] for color in LIGHT_FILLS)
    assert len(places) == 4
    assert q1[0] > q3[0]
    assert q1[1] < q3[1]
    assert q2[0] < q4[0]
    assert q2[1] < q4[1]


def test_hovering_a_mark_names_the_sample(browser: Any, report: Path) -> None:
    """The tooltip holds the id and the scores, as text."""
    page, seen = _open(browser, report, viewport={"width": 1280, "height": 1600})
    mark = page.locator("#plane-chart .mark-symbol path").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#vg-tooltip-element.visible")
    text = page.inner_text("#vg-tooltip-element")
    assert "gsm8k_train.jsonl:" in text
    assert "perplexity" in text
    assert seen.complaints == []


@pytest.mark.parametrize(
    ("scheme", "ground", "first"), [("light", 200, "rgb(200, 80, 10)"), ("dark", 60, "rgb(240, 135, 60)")]
)
def test_light_and_dark(browser: Any, report: Path, scheme: str, ground: int, first: str) -> None:
    """The page and the picture in it follow the reader's setting."""
    page, seen = _open(browser, report, color_scheme=scheme)
    red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
    assert red > ground if scheme == "light" else red < ground
    fills = page.evaluate(
        "[...document.querySelectorAll('.mark-symbol path')].map((mark) => getComputedStyle(mark).fill)"
    )
    assert first in set(fills)
    assert seen.complaints == []


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    """At 390 pixels nothing is wider than the screen; wide tables scroll inside themselves."""
    page, seen = _open(browser, report, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#plane-chart svg").bounding_box()["width"] <= 390
    assert page.evaluate("[...document.querySelectorAll('.wide')].some((box) => box.scrollWidth > box.clientWidth)")
    assert seen.complaints == []


def test_a_window_made_narrow_later_redraws_the_plane(browser: Any, report: Path) -> None:
    """The picture follows its container."""
    page, _ = _open(browser, report, viewport={"width": 1280, "height": 900})
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.querySelector('#plane-chart svg').getBoundingClientRect().width < 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_tokens_can_be_walked_with_the_keyboard(browser: Any, report: Path) -> None:
    """Focus a sample, press an arrow: the line below tells the token, its scores and its fate."""
    page, seen = _open(browser, report)
    sample = page.locator(".tokens").first
    sample.focus()
    page.keyboard.press("ArrowRight")
    readout = page.locator(".readout").first
    assert '"<script>window.hacked=1</script>"' in readout.inner_text()
    assert "NLL 0.5" in readout.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "removed from the loss" in readout.inner_text()
    assert page.evaluate("window.hacked") is None
    assert seen.complaints == []


def test_text_survives_as_it_is(browser: Any, report: Path) -> None:
    """What is shown, and copied, is the sample's text: markup, right-to-left, emoji, line ends and tabs."""
    page, _ = _open(browser, report)
    text = page.locator(".tokens").first.evaluate("(box) => box.textContent")
    assert text.endswith("<script>window.hacked=1</script> <img src=x onerror='window.hacked=1'> مرحبا🙂\n\tend")


def test_on_paper_every_sample_is_open_and_the_ground_is_white(browser: Any, report: Path) -> None:
    """Printing also overrides a dark setting."""
    page, _ = _open(browser, report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
