"""Who chose the samples: the method, a rule of the user's in its place, or another strategy.

By the method and by a rule, a sample's quadrant tells its fate. Another strategy keeps samples of every quadrant, and
the quadrants only tell where samples lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtune_service.report.data import QuadrantName, ReportData

_STRATEGIES = {
    "random": "random choice",
    "longest": "the longest first",
    "perplexity": "the highest perplexity first",
    "entropy": "the highest entropy first",
    "infobatch": "InfoBatch",
}
_TURNED = {
    "longest": "the shortest first",
    "perplexity": "the lowest perplexity first",
    "entropy": "the lowest entropy first",
}


def prune_spec(data: ReportData) -> Mapping[str, Any]:
    """The job's arguments of the method; empty where it has none."""
    part: Mapping[str, Any] = data.spec.get("prune") or {}
    return part


def other_strategy(data: ReportData) -> str | None:
    """What chose the samples, in words, where it was not the method."""
    prune = prune_spec(data)
    name = prune.get("strategy", "q_tuning")
    if name == "q_tuning":
        return None
    turned = _TURNED.get(name) if prune.get("strategy_order") == "lowest" else None
    return turned or _STRATEGIES.get(name, str(name))


def quadrant_rule(data: ReportData) -> str | None:
    """The user's own rule, `module:function`."""
    rule: str | None = prune_spec(data).get("quadrant_rule")
    return rule


def fates(data: ReportData) -> dict[QuadrantName, str]:
    """What happens to a quadrant's samples, in a word or two; empty where the quadrant does not tell."""
    if other_strategy(data) is not None:
        return {}
    is_masked = data.tokens.after < data.tokens.before
    kept = ("kept, masked", "kept whole") if is_masked else ("kept", "kept")
    return {"Q1": "dropped", "Q2": kept[0], "Q3": "dropped", "Q4": kept[1]}
