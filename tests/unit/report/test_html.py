"""Tests of the page as text; tests/browser opens it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import Any

from qtune_service.report.chart_layers import DARK, LIGHT
from qtune_service.report.data import Counts
from qtune_service.report.html import STYLES, _resource, render_report
from qtune_service.report.plane_file import as_columns
from tests.report_data import example, made_up_report, made_up_scores, nothing_scored

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def _body(page: str) -> str:
    """Return the page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def _data(page: str) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def test_the_page_says_the_numbers_of_the_job() -> None:
    """Counts, shares and tokens are those of the data."""
    data = made_up_report(made_up_scores(12_345))
    text = _body(render_report(data))
    for value in (data.counts.kept, data.counts.q1, data.tokens.before, data.tokens.after, data.counts.read):
        assert f"{value:,}" in text
    assert "4,000 of 12,345 samples are drawn as points" in text
    assert "Warnings" in text
    assert "no_assistant_turn 82" in text


def test_it_is_the_same_every_time() -> None:
    """The same data give the same bytes."""
    assert render_report(made_up_report()) == render_report(made_up_report())


def test_it_refers_to_nothing_outside_itself() -> None:
    """No source, link, import or style of it points anywhere."""
    body = _body(render_report(made_up_report()))
    assert re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)', body) == []
    assert re.findall(r"url\(|@import|https?:", body) == []


def test_hostile_data_stay_text_wherever_they_come_from() -> None:
    """Titles, names, reasons, warnings, tokens, settings, paths and sample ids; also inside the charts' JSON."""
    page = render_report(
        made_up_report(
            made_up_scores(2), title=HOSTILE, warnings=(HOSTILE,), point_ids=(HOSTILE, HOSTILE), output=HOSTILE,
            spec={"model": {"name": HOSTILE}, "prune": {"strategy": HOSTILE, "quadrant_rule": HOSTILE}},
            by_category={HOSTILE: Counts.of({HOSTILE: 1}, [1] * 7)}, counts=Counts.of({HOSTILE: 1}, [1] * 7),
            engine={HOSTILE: HOSTILE, "name": HOSTILE}, seconds={HOSTILE: 1.0},
            examples=(example((HOSTILE, "ok"), sample_id=HOSTILE),),
        )
    )  # fmt: skip
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;/script&gt;" in page
    assert _data(page)["datasets"]["samples"]["id"] == [HOSTILE, HOSTILE]


def test_the_page_stays_small_whatever_the_data_hold() -> None:
    """Thousands of sources and categories, long names, prompts, tokens and settings: under 3 MB."""
    long = "长" * 5_000
    reasons = {f"{i}{long}": 9 - i % 9 for i in range(300)}
    many = {f"{i}/{long}": Counts.of(reasons, [1, 2, 3, 4, 5, 6, 7]) for i in range(3_000)}
    samples = tuple(
        example((long,) * 3_000, label, sample_id=f"{i}{long}") for label in ("Q1", "Q2", "Q3", "Q4") for i in range(30)
    )  # fmt: skip
    data = made_up_report(
        made_up_scores(4_000), title=long, by_source=many, by_category=many, examples=samples, warnings=tuple(reasons),
        point_ids=(long,) * 4_000, spec={"input": {"paths": list(many)}}, output=long[:1_000], seconds={long: 1.0},
    )  # fmt: skip
    page = render_report(replace(data, counts=replace(data.counts, reasons=reasons)))
    assert len(page.encode()) < 3_000_000, len(page.encode())
    assert "The 100 largest of 3,000. summary_statistics.json contains all of them." in page


def test_a_million_samples_make_a_page_under_three_megabytes() -> None:
    """Points are some thousands, the density counts the rest."""
    page = render_report(made_up_report(made_up_scores(1_000_000), keep_ratio=0.25))
    assert len(page.encode()) < 3_000_000
    cells = _data(page)["datasets"]["plane_cells"]
    assert sum(cells["n"]) == 1_000_000


def test_charts_share_their_data_as_columns() -> None:
    """Rows of like fields become lists; others stay as they are."""
    data = _data(render_report(made_up_report(made_up_scores(40))))
    assert set(data["charts"]["plane"]["datasets"]) & set(data["charts"]["ranks"]["datasets"]) >= {
        "samples",
        "examples",
    }
    assert len(data["datasets"]["samples"]["p"]) == 40
    assert as_columns([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == {"a": [1, 3], "b": [2, 4]}
    assert as_columns([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert as_columns([]) == []


def test_groups_tell_tokens_and_reasons() -> None:
    """Tokens before and after, and behind the number of rejected why they were."""
    counts = Counts.of({"too_long": 7, "bad_json": 2}, [10, 20, 30, 40, 60, 98_765, 43_210])
    text = _body(render_report(made_up_report(by_category={"poems": counts})))
    row = text[text.index("poems") :]
    row = row[: row.index("</tr>")]
    for shown in (
        "<td>109</td>",
        'title="too_long 7, bad_json 2">9</summary>',
        "<td>98,765</td><td>43,210</td>",
        "60%",
    ):
        assert shown in row


def test_the_page_says_who_chose() -> None:
    """Another strategy is named, has no slider, and its quadrants promise nothing; a rule is named."""
    data = made_up_report(curve=())
    other = _body(render_report(replace(data, spec={"prune": {"strategy": "random"}})))
    assert "Chosen by another strategy than Q-Tuning: <b>random choice</b>" in other
    assert "The keep ratio has no slider: these samples were chosen by another strategy (random choice)" in other
    assert 'id="ratio"' not in other
    assert "kept whole" not in other
    ruled = _body(render_report(replace(data, spec={"prune": {"quadrant_rule": "mine:rule"}})))
    assert "Labelled by the quadrant rule <b>mine:rule</b>" in ruled
    assert 'id="ratio"' not in ruled


def test_the_slider_has_the_jobs_numbers_without_a_script() -> None:
    """And the command for the job's own ratio, one shell word an element."""
    data = made_up_report()
    text = _body(render_report(data))
    assert f'<td data-now="kept">{data.counts.kept:,}</td>' in text
    assert f'<td data-now="tokens">{data.tokens.after:,}</td>' in text
    command = re.search(r'<code id="prune-command">(.*?)</code>', text)
    assert command is not None
    words = shlex.split(re.sub("<.*?>", "", command[1]))
    assert " ".join(words) == "qtune prune --from-scores out/gsm8k --output out/gsm8k-0.5 --sample-keep-ratio 0.5"


def test_half_a_surrogate_pair_can_be_written() -> None:
    """JSON data can hold one; the page can still be encoded, and says which it was."""
    page = render_report(made_up_report(title="\ud83d!", examples=(example(("\ud83d",)),)))
    assert "\\ud83d!" in page.encode().decode()
    assert "⟨U+D83D⟩" in page


def test_a_job_in_which_nothing_was_scored_has_a_page() -> None:
    """It says so, and has no picture."""
    page = render_report(nothing_scored())
    assert "No sample was scored" in page
    assert "data-chart=" not in _body(page).split("</style>")[1]
    assert page.count("<script") == 1
    assert "corners are disjoint" not in page


def test_the_styles_colours_are_those_of_the_palettes() -> None:
    """The stylesheet repeats the palettes that the colour tests check."""
    css = "".join(_resource(f"css/{name}.css") for name in STYLES)
    for palette in (LIGHT, DARK):
        for name, color in zip(("q1", "q2", "q3", "q4"), palette.quadrants, strict=True):
            assert f"--{name}: {color};" in css
        for name in ("ink", "muted", "grid", "surface"):
            assert f"--{name}: {getattr(palette, name)};" in css


def test_importing_the_report_loads_no_heavy_library() -> None:
    """No model library, and the chart library only when a page is made."""
    code = (
        "import sys, qtune_service.report.html, qtune_service.report.text\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'altair', 'vl_convert'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
