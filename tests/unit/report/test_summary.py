"""Tests of summary_statistics.json."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from qtune_service.report.data import Counts, TokenTotals
from qtune_service.report.text import summary_statistics
from qtune_service.selection.plane import Thresholds
from tests.report_data import made_up_report


def test_the_names_other_tools_use_hold_the_right_numbers() -> None:
    """Stage 1 counts quadrants over scored samples; stage 2 counts trained tokens of kept samples."""
    data = made_up_report(counts=Counts(10, 40, 20, 30, 10, 30), tokens=TokenTotals(1000, 400, 300))
    summary = summary_statistics(data)
    stage1, stage2 = summary["stage1"], summary["stage2"]
    assert [stage1[f"Q{i}_count"] for i in (1, 2, 3, 4)] == [40, 20, 30, 10]
    assert stage1["actual_keep_ratio"] == 0.3
    assert (stage2["total_tokens_before"], stage2["total_tokens_after"]) == (400, 300)
    assert stage2["token_compression_ratio"] == 0.75
    assert stage2["trained_share_of_scored_tokens"] == 0.3


def test_counts_add_up_in_every_row() -> None:
    """Kept + pruned + rejected = read, in the total and in every group."""
    summary = summary_statistics(made_up_report())
    rows = [summary["counts"], *summary["by_source"].values(), *summary["by_category"].values()]
    assert len(rows) == 6
    for row in rows:
        assert row["kept"] + row["pruned"] + row["rejected"] == row["read"] > 0
        assert row["kept"] == row["Q2"] + row["Q4"]


def test_groups_tell_their_tokens_and_rejected() -> None:
    """Tokens of a group's scored samples before and after, and why records were rejected."""
    counts = Counts.of({"too_long": 2}, [1, 2, 3, 4, 6, 900, 500])
    row = summary_statistics(made_up_report(by_category={"a": counts}))["by_category"]["a"]
    assert (row["tokens_before"], row["tokens_after"], row["keep_ratio"]) == (900, 500, 0.6)
    assert (row["rejected"], row["rejected_reasons"]) == (2, {"too_long": 2})


def test_it_is_strict_json_also_at_infinity() -> None:
    """Empty sets have infinite thresholds; they become null, and nothing else is lost."""
    data = made_up_report(thresholds=Thresholds(0.5, 0.0, math.inf, -math.inf, math.inf))
    data = replace(data, distributions=replace(data.distributions, perplexity={"p50": 2.0, "max": math.inf}))
    summary = json.loads(json.dumps(summary_statistics(data), allow_nan=False))
    assert summary["stage1"]["thresholds"]["ppl_high"] is None
    assert summary["distributions"]["perplexity"] == {"p50": 2.0, "max": None}


def test_a_job_without_scores_has_a_summary() -> None:
    """Ratios of nothing are null."""
    data = made_up_report(counts=Counts(rejected=5), tokens=TokenTotals(0, 0, 0), thresholds=None)
    summary = json.loads(json.dumps(summary_statistics(data), allow_nan=False))
    assert summary["stage1"]["actual_keep_ratio"] is None
    assert summary["stage2"]["token_compression_ratio"] is None
    assert summary["warnings"][0] == "No sample was scored: every record was rejected."
