"""summary_statistics.json: the numbers of a job for scripts. `stage1` and `stage2` carry the names other tools use.

JSON has no infinity: a threshold or perplexity that is infinite is null. All ratios are over scored samples, or over
the trained tokens of kept samples; a ratio of nothing is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qtune_service.report.data import Counts, ReportData
from qtune_service.report.text import find_warnings
from qtune_service.selection.plane import Thresholds


def summary_statistics(data: ReportData) -> dict[str, Any]:
    """Plain data, ready for a strict JSON encoder."""
    return {
        "title": data.title,
        "created_at": data.created_at,
        "counts": data.counts.as_dict(),
        "stage1": _stage1(data),
        "stage2": _stage2(data),
        "distributions": _distributions(data),
        "by_source": _tables(data.by_source),
        "by_category": _tables(data.by_category),
        "rejected": dict(sorted(data.counts.reasons.items(), key=lambda item: (-item[1], item[0]))),
        "seconds": {stage: round(seconds, 3) for stage, seconds in data.seconds.items()},
        "warnings": list(find_warnings(data)),
    }


def _stage1(data: ReportData) -> dict[str, Any]:
    c = data.counts
    return {
        **{f"{label}_count": value for label, value in c.as_dict().items() if label.startswith("Q")},
        "actual_keep_ratio": _ratio(c.kept, c.scored),
        "target_keep_ratio": data.spec.get("prune", {}).get("sample_keep_ratio"),
        "target_count": data.target,
        "disjoint_capacity_count": data.disjoint_capacity,
        "disjoint_capacity_ratio": _ratio(data.disjoint_capacity, c.scored),
        "thresholds": _thresholds(data.thresholds),
    }


def _stage2(data: ReportData) -> dict[str, Any]:
    t = data.tokens
    return {
        "total_tokens_before": t.before,
        "total_tokens_after": t.after,
        "token_compression_ratio": _ratio(t.after, t.before),
        "total_tokens_scored": t.scored,
        "trained_share_of_scored_tokens": _ratio(t.after, t.scored),
        "median_q2_tokens": data.distributions.median_q2_tokens,
    }


def _distributions(data: ReportData) -> dict[str, Any]:
    d = data.distributions
    return {
        "perplexity": {name: _finite(value) for name, value in d.perplexity.items()},
        "mean_entropy": {name: _finite(value) for name, value in d.entropy.items()},
        "num_tokens": dict(d.num_tokens),
        "rank_correlation": d.rank_correlation,
        "largest_tie_count": d.largest_tie,
    }


def _tables(groups: Mapping[str, Counts]) -> dict[str, dict[str, Any]]:
    return {name: _row(c) for name, c in groups.items()}


def _row(c: Counts) -> dict[str, Any]:
    tokens = {"tokens_before": c.tokens_before, "tokens_after": c.tokens_after}
    return {**c.as_dict(), "keep_ratio": _ratio(c.kept, c.scored), **tokens, "rejected_reasons": dict(c.reasons)}


def _thresholds(t: Thresholds | None) -> dict[str, float | None] | None:
    if t is None:
        return None
    names = ("alpha", "ppl_low", "ppl_high", "ent_low", "ent_high")
    return {name: _finite(getattr(t, name)) for name in names}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
