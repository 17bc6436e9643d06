"""The report in a real browser: drawn, silent, offline, light and dark, wide and narrow; slider, clicks and copies."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtune_service.report.data import Counts, ReportData
from qtune_service.report.html import render_report
from qtune_service.selection.thresholds import select
from tests.report_data import example, made_up_report, made_up_scores, nothing_scored

NUM_POINTS = 600
LIGHT_FILLS = ("rgb(200, 80, 10)", "rgb(11, 95, 165)", "rgb(156, 134, 180)", "rgb(26, 158, 119)")  # Q1 to Q4
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
OUTPUT = "out/it's $HOME"
TOKENS = (
    "<script>window.hacked=1</script>", " <img src=x onerror='window.hacked=1'>", " مر", "حبا", "🙂", "", "\n", "\tend",
)  # fmt: skip
POINTS = "#plane-chart .samples_marks path"


@dataclass
class Seen:
    """What a page did while it was open."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ReportData], Path]:
    """Return a function that writes a report and returns its file."""

    def written(data: ReportData) -> Path:
        path = tmp_path_factory.mktemp("report") / "report.html"
        path.write_text(render_report(data), encoding="utf-8")
        return path

    return written


@pytest.fixture(scope="module")
def report(write: Callable[[ReportData], Path]) -> Path:
    """Return a page with overlapping corners, and with hostile, right-to-left and multi-byte text in a sample."""
    hostile = replace(example(TOKENS, sample_id="<b>'one'"), error_rank=0.6, entropy_rank=0.2)
    data = made_up_report(
        made_up_scores(NUM_POINTS), examples=(hostile, example(("right",), "Q4", "s:2")), output=OUTPUT
    )
    return write(data)


def _open(browser: Any, report: Path, **settings: Any) -> tuple[Any, Seen]:
    page, seen = browser.new_context(**settings).new_page(), Seen()
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-state=ready]", timeout=60_000)
    return page, seen


def _long_names() -> ReportData:
    """Return a report with names of 300 letters without a break wherever a name can be."""
    long = "x" * 300
    groups = {f"{i}{long}": Counts.of({long: 5}, [9] * 7) for i in range(20)}
    return made_up_report(
        made_up_scores(30), title=long, by_source=groups, by_category=groups, warnings=(long,), output=long,
        point_ids=(long,) * 30, engine={long: long, "name": long}, seconds={long: 1.0},
        spec={"model": {"name": long}, "prune": {"sample_keep_ratio": 0.5}, long: long},
        examples=(replace(example((long,), sample_id=long), source=long, error_rank=0.5, entropy_rank=0.5),),
    )  # fmt: skip


def _slide(page: Any, at: int) -> None:
    page.evaluate(
        "(at) => { const r = document.getElementById('ratio'); r.value = at; r.dispatchEvent(new Event('input')); }", at
    )


def _click(page: Any, selector: str, nth: int = 0) -> None:
    """Click in the middle of a mark, where nothing is above it."""
    mark = page.locator(selector).nth(nth)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def _fills(page: Any, selector: str) -> dict[str, int]:
    """Count marks by colour."""
    counts: dict[str, int] = page.evaluate(
        """(selector) => {
          const counts = {};
          for (const mark of document.querySelectorAll(selector)) {
            const color = getComputedStyle(mark).fill;
            counts[color] = (counts[color] ?? 0) + 1;
          }
          return counts;
        }""",
        selector,
    )
    return counts


def test_the_pictures_are_drawn_without_complaint_or_connection(browser: Any, report: Path) -> None:
    """A mark a sample, four dashed thresholds, two corners; the console is silent; only the file itself is read."""
    page, seen = _open(browser, report, viewport=DESKTOP)
    states = page.evaluate(
        "[...document.querySelectorAll('[data-chart]')].map((e) => [e.dataset.chart, e.dataset.state])"
    )
    names = ["plane", "ranks", "what_if", "perplexity", "entropy", "length"]
    assert states == [[name, "drawn"] for name in names]
    for chart in ("#plane-chart", "#rank-chart"):
        assert page.locator(f"{chart} .samples_marks path").count() == NUM_POINTS
        assert page.locator(f"{chart} .mark-rect path").count() == 2
    assert page.locator("#plane-chart line[stroke-dasharray]").count() == 4
    assert page.evaluate("window.hacked") is None
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_the_marks_are_where_the_data_are(browser: Any, report: Path) -> None:
    """Q1's marks lie up and right of Q3's, and each quadrant is painted in its own colour."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    places = page.evaluate("""() => {
      const sums = {};
      for (const mark of document.querySelectorAll("#plane-chart .samples_marks path")) {
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
    mark = page.locator(POINTS).last
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
    assert first in _fills(page, POINTS)
    assert seen.complaints == []


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    """At 390 pixels nothing is wider than the screen; wide tables scroll inside themselves."""
    page, seen = _open(browser, report, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert max(svg.bounding_box()["width"] for svg in page.locator("[data-chart] svg").all()) <= 390
    assert page.evaluate("[...document.querySelectorAll('.wide')].some((box) => box.scrollWidth > box.clientWidth)")
    assert seen.complaints == []


def test_a_window_made_narrow_later_redraws_the_plane(browser: Any, report: Path) -> None:
    """The picture follows its container."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    page.set_viewport_size(PHONE)
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
    assert "NLL 0.5   PPL 1.649   entropy 1.25   smoothed 1.5" in readout.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "removed from the loss" in readout.inner_text()
    assert page.evaluate("window.hacked") is None
    assert seen.complaints == []


def test_text_survives_as_it_is(browser: Any, report: Path) -> None:
    """What is shown, and copied, is the sample's text: markup, right-to-left, emoji, line ends and tabs."""
    page, _ = _open(browser, report)
    text = page.locator(".tokens").first.evaluate("(box) => box.textContent")
    assert page.locator(".tokens").first.evaluate("(box) => getComputedStyle(box).unicodeBidi") == "plaintext"
    assert text.endswith("<script>window.hacked=1</script> <img src=x onerror='window.hacked=1'> مرحبا🙂\n\tend")


def test_on_paper_every_sample_is_open_and_the_ground_is_white(browser: Any, report: Path) -> None:
    """Printing also overrides a dark setting. Reasons in tables stay folded."""
    page, _ = _open(browser, report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.why)").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open]):not(.why)").count() > 0


def test_the_slider_moves_numbers_command_and_corners(browser: Any, report: Path) -> None:
    """To what a selection at that ratio gives, in the table and in the colours of the points."""
    page, seen = _open(browser, report, viewport=DESKTOP)
    before = page.locator("#rank-chart .corner_Q2_marks path").bounding_box()["width"]
    _slide(page, 39)  # 20%
    nll, entropy, lengths = made_up_scores(NUM_POINTS)
    found = select(nll, entropy, sample_keep_ratio=0.2)
    sizes = {f"q{int(quadrant)}": size for quadrant, size in found.counts.items()}
    for key, size in sizes.items():
        assert page.inner_text(f"td[data-now={key}]") == f"{size:,}"
    assert page.inner_text("output") == "20%"
    left = np.where(found.labels == 2, np.ceil(0.7 * lengths), lengths)[found.is_kept].sum()
    assert page.inner_text("td[data-now=tokens]") == f"{left:,.0f}"
    fewer = select(nll, entropy, sample_keep_ratio=0.5).kept - found.kept
    assert page.inner_text("td[data-change=kept]") == f"\N{MINUS SIGN}{fewer}"
    assert page.inner_text("[data-now=corners]") == "Corners are disjoint"
    assert shlex.split(page.inner_text("#prune-command")) == [
        "qtune", "prune", "--from-scores", OUTPUT, "--output", f"{OUTPUT}-0.2", "--sample-keep-ratio", "0.2",
    ]  # fmt: skip
    corner = "document.querySelector('#rank-chart .corner_Q2_marks path')"
    page.wait_for_function(f"(before) => {corner}.getBoundingClientRect().width < 0.9 * before", arg=before)
    assert _fills(page, "#rank-chart .samples_marks path") == dict(zip(LIGHT_FILLS, sizes.values(), strict=True))
    assert seen.complaints == []


def test_the_slider_goes_back_to_the_job(browser: Any, report: Path) -> None:
    """By keys, to the numbers it began with, without a trace of the way."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    table, command = page.inner_text(".changes"), page.inner_text("#prune-command")
    page.focus("#ratio")
    page.keyboard.press("End")
    assert page.inner_text("td[data-now=kept]") == f"{NUM_POINTS:,}"
    assert page.inner_text("[data-now=corners]") == "Corners overlap (alpha over 1/2)"
    _slide(page, 99)
    assert page.inner_text(".changes") == table
    assert page.inner_text("#prune-command") == command


def test_a_click_tells_the_sample_and_how_to_inspect_it(browser: Any, report: Path) -> None:
    """Scores, ranks, and a command with the output quoted; both planes ring it."""
    page, seen = _open(browser, report, viewport=DESKTOP)
    _click(page, POINTS, NUM_POINTS - 1)
    page.wait_for_selector("#picked .found:not([hidden])")
    picked = page.inner_text("[data-of=id]")
    assert picked.startswith("gsm8k_train.jsonl:")
    assert shlex.split(page.inner_text("#inspect-command")) == ["qtune", "inspect", OUTPUT, "--sample", picked]
    at = int(picked.split(":")[1]) - 1
    nll, _, lengths = made_up_scores(NUM_POINTS)
    assert float(page.inner_text("[data-of=perplexity]")) == pytest.approx(np.exp(nll[at]), rel=1e-3)
    assert page.inner_text("[data-of=tokens]") == f"{lengths[at]}"
    assert page.inner_text("[data-of=error_rank]") == f"rank {(np.sum(nll < nll[at]) + 0.5) / NUM_POINTS:.3f}"
    assert not page.is_visible("#picked .to-tokens")
    for chart in ("#plane-chart", "#rank-chart"):
        page.wait_for_function(f"document.querySelectorAll('{chart} .picked_marks path').length === 1")
    assert seen.complaints == []


@pytest.mark.parametrize("chart", ["#plane-chart", "#rank-chart"])
def test_a_click_on_an_example_opens_its_tokens(browser: Any, report: Path, chart: str) -> None:
    """It is unfolded, in view and focused; Back leads to where one came from."""
    page, seen = _open(browser, report, viewport=DESKTOP)
    page.evaluate("document.getElementById('sample-0').open = false")
    _click(page, f"{chart} .examples_marks path")
    page.wait_for_function("document.getElementById('sample-0').open")
    assert page.evaluate("document.activeElement.closest('details')?.id") == "sample-0"
    assert page.url.endswith("#sample-0")
    assert shlex.split(page.inner_text("#inspect-command"))[-1] == "<b>'one'"
    page.go_back()
    assert not page.url.endswith("#sample-0")
    assert seen.complaints == []


def test_points_can_be_walked_with_the_keyboard(browser: Any, report: Path) -> None:
    """Arrows go from rank to rank."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    page.focus("#plane-chart")
    page.keyboard.press("ArrowRight")
    ranks = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        ranks.append(float(page.inner_text("[data-of=entropy_rank]").removeprefix("rank ")))
    assert ranks[0] < ranks[1] > ranks[2] == ranks[0]
    page.keyboard.press("ArrowUp")
    assert page.inner_text("[data-of=id]").startswith("gsm8k_train.jsonl:")


def test_a_command_is_copied_without_permission(browser: Any, report: Path) -> None:
    """What is pasted is the command, on one line."""
    page, seen = _open(browser, report, viewport=DESKTOP)
    command = page.inner_text("#prune-command")
    page.click("button[data-copy=prune-command]")
    page.wait_for_function("document.querySelector('button[data-copy=prune-command]').textContent === 'Copied'")
    page.evaluate("document.body.prepend(Object.assign(document.createElement('textarea'), { id: 'pasted' }))")
    page.focus("#pasted")
    page.keyboard.press("Control+V")
    assert page.input_value("#pasted") == command
    assert "\n" not in command
    assert seen.complaints == []


def test_columns_of_tables_sort(browser: Any, report: Path) -> None:
    """Numbers from the largest, again from the smallest; the sum stays below."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    table = page.locator("section[aria-labelledby=by-category] table")
    column = "(table) => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].textContent.replace(',', '')))"
    table.locator("thead th:nth-child(4) button").click()
    falling = table.evaluate(column)
    table.locator("thead th:nth-child(4) button").click()
    assert falling == sorted(falling, reverse=True)
    assert table.evaluate(column) == falling[::-1]
    assert table.locator("tfoot th").inner_text() == "All"


def test_reasons_unfold_in_their_row(browser: Any, report: Path) -> None:
    """By a click on the number of rejected."""
    page, _ = _open(browser, report, viewport=DESKTOP)
    row = page.locator("section[aria-labelledby=by-source] tbody tr")
    row.locator("summary").click()
    assert "no_assistant_turn 4" in row.inner_text()


def test_a_large_job_is_drawn_as_a_density_and_points(browser: Any, write: Callable[[ReportData], Path]) -> None:
    """Cells below, some thousands of points above, and the slider recolours both."""
    page, seen = _open(browser, write(made_up_report(made_up_scores(5_000), keep_ratio=0.25)), viewport=DESKTOP)
    assert page.locator(POINTS).count() == 4_000
    assert page.locator("#plane-chart .plane_cells_marks path").count() > 500
    before = _fills(page, "#rank-chart .rank_cells_marks path")
    _slide(page, 190)
    page.wait_for_function("document.querySelectorAll('#rank-chart .picked_marks path').length === 0")
    page.wait_for_timeout(300)
    after = _fills(page, "#rank-chart .rank_cells_marks path")
    kept = LIGHT_FILLS[1], LIGHT_FILLS[3]
    assert sum(after.get(fill, 0) for fill in kept) > 2 * sum(before.get(fill, 0) for fill in kept)
    assert seen.complaints == []


@pytest.mark.parametrize("kind", ["nothing", "one", "tied", "other", "long"])
def test_unusual_jobs_have_quiet_pages(browser: Any, write: Callable[[ReportData], Path], kind: str) -> None:
    """Nothing scored, one sample, all alike, another strategy, endless names: no complaint, no sideways scrolling."""
    same = np.full(300, 1.25)
    made = {
        "nothing": nothing_scored(),
        "one": made_up_report((same[:1], same[:1], np.array([9]))),
        "tied": made_up_report((same, same, np.full(300, 9))),
        "long": _long_names(),
        "other": made_up_report(made_up_scores(300), curve=(), spec={"prune": {"strategy": "random"}}),
    }
    page, seen = _open(browser, write(made[kind]), viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#ratio").count() == (kind in ("one", "tied", "long"))
    assert page.locator("[data-chart]").count() == {"nothing": 0, "other": 5}.get(kind, 6)
    assert seen.complaints == []
