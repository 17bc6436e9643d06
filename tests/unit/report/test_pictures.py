"""Tests of the histograms, the what-if curve, and of pictures as files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vl_convert

from qtune_service.report.charts import histogram_charts, report_charts
from qtune_service.report.what_if import what_if, what_if_chart, why_no_curve
from qtune_service.selection.thresholds import select
from tests.report_data import made_up_report, made_up_scores

NAMES = ["plane", "ranks", "what_if", "perplexity", "entropy", "length"]


def _totals(rows: list[dict[str, Any]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for row in rows:
        totals[row["q"]] += row["n"]
    return totals


@pytest.mark.parametrize("name", ["perplexity", "entropy", "length"])
def test_histograms_hold_every_sample_once(name: str) -> None:
    """By quadrant, stacked without gaps, what is kept below what is dropped."""
    data = made_up_report(made_up_scores(2_000))
    rows = histogram_charts(data)[name]["datasets"][f"{name}_bars"]
    c = data.counts
    assert _totals(rows) == {"Q1": c.q1, "Q2": c.q2, "Q3": c.q3, "Q4": c.q4}
    for left in {row["x"] for row in rows}:
        stack = sorted((row for row in rows if row["x"] == left), key=lambda row: row["y"])
        assert [row["y"] for row in stack] == [0, *(row["y2"] for row in stack[:-1])]
        fates = [row["f"] for row in stack]
        assert fates == sorted(fates, reverse=True)  # 'kept' before 'dropped'


def test_histograms_of_a_sample_speak_for_the_population() -> None:
    """Counts over an even sample are scaled to all samples."""
    data = made_up_report(made_up_scores(1_000))
    scaled = replace(data, sample=replace(data.sample, total=50_000))
    rows = histogram_charts(scaled)["length"]["datasets"]["length_bars"]
    assert sum(row["n"] for row in rows) == 50_000


def test_the_curve_holds_what_other_ratios_really_lead_to() -> None:
    """Bands of kept and dropped, against selections of their own; alpha and tokens as shares."""
    scores = made_up_scores(1_000)
    data = made_up_report(scores, keep_ratio=0.25)
    datasets = what_if_chart(data)["datasets"]
    for ratio in (0.1, 0.25, 0.9):
        found = select(scores[0], scores[1], sample_keep_ratio=ratio)
        bands = {row["q"]: row["y2"] - row["y"] for row in datasets["bands"] if row["r"] == ratio}
        assert bands == pytest.approx({f"Q{int(q)}": size / 1_000 for q, size in found.counts.items()}, abs=2e-5)
        (share,) = [row for row in datasets["shares"] if row["r"] == ratio]
        assert share["a"] == pytest.approx(found.thresholds.alpha, abs=1e-5)
        left = np.where(found.labels == 2, np.ceil(0.7 * scores[2]), scores[2])[found.is_kept].sum()
        assert share["t"] == pytest.approx(left / scores[2].sum(), abs=1e-5)


def test_the_slider_begins_at_the_job_and_knows_where_corners_overlap() -> None:
    """The job's ratio, and the first ratio that needs alpha over a half."""
    data = made_up_report(keep_ratio=0.35)
    found = what_if(data)
    assert found is not None
    assert found.now.sample_keep_ratio == 0.35
    assert found.now.kept == data.counts.kept
    assert found.first_overlap is not None
    assert found.points[found.first_overlap - 1].alpha <= 0.5 < found.points[found.first_overlap].alpha
    assert (
        found.points[found.first_overlap - 1].kept <= data.disjoint_capacity < found.points[found.first_overlap].target
    )


def test_no_curve_has_a_reason() -> None:
    """Another strategy, or a rule."""
    data = made_up_report(curve=())
    assert what_if(data) is None
    other = replace(data, spec={"prune": {"strategy": "infobatch"}})
    assert "chosen by another strategy (InfoBatch)" in why_no_curve(other)
    ruled = replace(data, spec={"prune": {"strategy": "q_tuning", "quadrant_rule": "m:f"}})
    assert "'m:f' decides" in why_no_curve(ruled)


def test_every_picture_is_drawn_to_a_file() -> None:
    """By the installed library alone, with plain colours."""
    found = report_charts(made_up_report(made_up_scores(200)))
    assert list(found) == NAMES
    for spec in found.values():
        assert vl_convert.vegalite_to_png(spec)[:4] == b"\x89PNG"
        assert "var(--" not in str(spec)


def test_jobs_of_one_sample_or_of_equal_samples_have_pictures() -> None:
    """No axis is empty, no scale breaks."""
    for size in (1, 40):
        same = np.full(size, 1.25)
        for spec in report_charts(made_up_report((same, same / 2, np.full(size, 7)))).values():
            assert "NaN" not in vl_convert.vegalite_to_svg(spec)


def test_nothing_scored_has_no_picture() -> None:
    """And no error."""
    assert report_charts(made_up_report(thresholds=None)) == {}
