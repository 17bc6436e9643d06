"""Tests of the page as text; tests/browser opens it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np

from qtune_service.report.contents import Counts, PlaneSample, TokenTotals
from qtune_service.report.distributions import describe
from qtune_service.report.html import _resource, render_report
from qtune_service.report.plane import DARK, LIGHT
from tests.report_data import example, made_up_report, made_up_scores

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def _body(page: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_says_the_numbers_of_the_job() -> None:
    """Counts, shares and tokens are those of the data."""
    data = made_up_report(made_up_scores(12_345))
    text = _body(render_report(data))
    for value in (data.counts.kept, data.counts.q1, data.tokens.before, data.tokens.after, data.counts.read):
        assert f"{value:,}" in text
    assert "4,000 of 12,345 samples are shown" in text
    assert "Before you use this" in text
    assert "no assistant turn" in text


def test_it_is_the_same_every_time() -> None:
    """The same data give the same bytes."""
    assert render_report(made_up_report()) == render_report(made_up_report())


def test_it_refers_to_nothing_outside_itself() -> None:
    """No source, link, import or style of it points anywhere."""
    body = _body(render_report(made_up_report()))
    assert re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)', body) == []
    assert re.findall(r"url\(|@import|https?:", body) == []


def test_hostile_data_stay_text_wherever_they_come_from() -> None:
    """Titles, names, reasons, warnings, tokens, settings and sample ids; also inside the chart's JSON."""
    plane = PlaneSample(np.ones(1), np.ones(1), np.ones(1, dtype=np.int8), (HOSTILE,), 1)
    page = render_report(
        made_up_report(
            title=HOSTILE, warnings=(HOSTILE,), rejected_reasons={HOSTILE: 1}, by_category={HOSTILE: Counts(q1=1)},
            plane=plane, engine={HOSTILE: HOSTILE}, spec={"model": {"name": HOSTILE}}, seconds={HOSTILE: 1.0},
            examples=(example((HOSTILE, "ok"), sample_id=HOSTILE),),
        )
    )  # fmt: skip
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;/script&gt;" in page


def test_the_page_stays_small_whatever_the_data_hold() -> None:
    """Thousands of sources and categories, long names, prompts, tokens and settings: under 3 MB."""
    long = "长" * 5_000
    many = {f"{i}/{long}": Counts(1, 2, 3, 4, 5) for i in range(3_000)}
    samples = tuple(
        example((long,) * 3_000, label, sample_id=f"{i}{long}") for label in ("Q1", "Q2", "Q3", "Q4") for i in range(30)
    )  # fmt: skip
    nll, entropy, _ = made_up_scores(4_000)
    plane = PlaneSample(np.exp(nll), entropy, np.full(4_000, 1), (long,) * 4_000, 10**8)
    data = made_up_report(
        title=long, by_source=many, by_category=many, rejected_reasons=dict.fromkeys(many, 3), examples=samples,
        plane=plane, spec={"input": {"paths": list(many)}}, warnings=tuple(many),
    )  # fmt: skip
    page = render_report(data)
    assert len(page.encode()) < 3_000_000
    assert "The 100 largest of 3,000; summary_statistics.json holds them all." in page


def test_half_a_surrogate_pair_can_be_written() -> None:
    """JSON data can hold one; the page can still be encoded, and says which it was."""
    page = render_report(made_up_report(title="\ud83d!", examples=(example(("\ud83d",)),)))
    assert "\\ud83d!" in page.encode().decode()
    assert "⟨U+D83D⟩" in page


def test_a_job_in_which_nothing_was_scored_has_a_page() -> None:
    """It says so, and has no picture."""
    none = np.empty(0)
    page = render_report(
        made_up_report(
            counts=Counts(rejected=5), tokens=TokenTotals(0, 0, 0), thresholds=None, target=0, disjoint_capacity=0,
            plane=PlaneSample(none, none, none.astype(np.int8), (), 0), examples=(), by_category={}, seconds={},
            distributions=describe(none, none, none.astype(np.int64), none.astype(np.int8)),
        )
    )  # fmt: skip
    assert "No sample was scored" in page
    assert 'id="plane-chart"' not in page
    assert "corners are disjoint" not in page


def test_the_styles_colours_are_those_of_the_palettes() -> None:
    """The stylesheet repeats the palettes that the colour tests check."""
    css = _resource("report.css")
    for palette in (LIGHT, DARK):
        for name, color in zip(("q1", "q2", "q3", "q4"), palette.quadrants, strict=True):
            assert f"--{name}: {color};" in css
        for name in ("ink", "muted", "grid", "surface"):
            assert f"--{name}: {getattr(palette, name)};" in css


def test_importing_the_report_loads_no_heavy_library() -> None:
    """No model library, and the chart library only when a page is made."""
    code = (
        "import sys, qtune_service.report.html, qtune_service.report.summary\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'altair', 'vl_convert'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
