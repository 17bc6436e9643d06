"""A comparison of strategies as tables for the terminal, plain data for scripts, and a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qtune_service.output.compare import Choice, Comparison, ScoredColumns
from qtune_service.report.text import count, percent

MAX_GROUPS_SHOWN = 12
PALETTE = ["#0b5fa5", "#8a8f98", "#c8500a", "#1a9e77", "#9c86b4", "#b8860b", "#5b2a86", "#3a7d44"]
"""Distinct for any colour vision. The method is first."""


def describe_comparison(
    columns: ScoredColumns, comparisons: Sequence[Comparison], by: str | None
) -> Iterator[RenderableType]:
    """Yield for each ratio the samples that each strategy keeps, their overlap, and the counts of each group."""
    for comparison in comparisons:
        yield Text(f"\nsample_keep_ratio {comparison.sample_keep_ratio:g}", style="bold")
        yield _kept_and_shared(columns, comparison)
        if columns.groups:
            yield _by_group(columns, comparison, by)


def _kept_and_shared(columns: ScoredColumns, comparison: Comparison) -> Table:
    """Return a row for each strategy: samples, tokens, and the share of its samples that each other one keeps too."""
    table = _table("strategy", "samples", "tokens left", "of all", *(f"∩ {c.name}" for c in comparison.choices))
    total = int(columns.num_tokens.sum())
    for choice, shares in zip(comparison.choices, comparison.overlap, strict=True):
        shared = [percent(s, 1) if c is not choice else "·" for s, c in zip(shares, comparison.choices, strict=True)]
        numbers = (count(choice.num_kept), count(choice.tokens), percent(choice.tokens, total))
        table.add_row(choice.name, *numbers, *shared)
    return table


def _by_group(columns: ScoredColumns, comparison: Comparison, by: str | None) -> Table:
    """Return a row for each group: the share that each strategy keeps."""
    table = _table(f"kept of {by or 'category'}", "samples", *(c.name for c in comparison.choices))
    sizes = np.bincount(columns.group, minlength=len(columns.groups))
    for i, name in enumerate(columns.groups[:MAX_GROUPS_SHOWN]):
        table.add_row(name, count(sizes[i]), *(percent(c.kept_by_group[i], sizes[i]) for c in comparison.choices))
    if (more := len(columns.groups) - MAX_GROUPS_SHOWN) > 0:
        table.add_row(f"… {more} more, see --json", *[""] * (len(comparison.choices) + 1))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def comparison_json(columns: ScoredColumns, comparisons: Sequence[Comparison], by: str | None) -> dict[str, Any]:
    """Return all figures."""
    sizes = np.bincount(columns.group, minlength=len(columns.groups)).tolist()
    return {
        "samples": len(columns.mean_nll),
        "tokens": int(columns.num_tokens.sum()),
        "by": by,
        "groups": dict(zip(columns.groups, sizes, strict=True)),
        "ratios": [
            {
                "sample_keep_ratio": comparison.sample_keep_ratio,
                "strategies": [_choice_json(columns, choice) for choice in comparison.choices],
                "overlap": comparison.overlap.tolist(),
            }
            for comparison in comparisons
        ],
    }


def _choice_json(columns: ScoredColumns, choice: Choice) -> dict[str, Any]:
    kept = dict(zip(columns.groups, choice.kept_by_group.tolist(), strict=True))
    return {"strategy": choice.name, "kept": choice.num_kept, "tokens": choice.tokens, "kept_by_group": kept}


def comparison_chart(columns: ScoredColumns, comparisons: Sequence[Comparison], by: str | None) -> dict[str, Any]:
    """Return a Vega-Lite chart, a panel a ratio: the share of each group that strategies keep, or tokens left."""
    import altair as alt

    rows = list(_chart_rows(columns, comparisons))
    measure = f"kept of {by or 'category'}" if columns.groups else "trained tokens left"
    names = [choice.name for choice in comparisons[0].choices]
    colors = alt.Scale(domain=names, range=PALETTE[: len(names)] if len(names) <= len(PALETTE) else alt.Undefined)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("share:Q", title=measure, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("strategy:N", title=None, sort=names),
        color=alt.Color("strategy:N", scale=colors, legend=None),
        tooltip=["strategy:N", "group:N", alt.Tooltip("share:Q", format=".1%")],
    )
    bars = base.mark_bar(cornerRadiusEnd=2)
    chart = bars.properties(width=190, height=16 * len(names)).facet(
        row=alt.Row("group:N", title=None, sort=list(columns.groups[:MAX_GROUPS_SHOWN])),
        column=alt.Column("ratio:N", title="sample_keep_ratio"),
    )
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _chart_rows(columns: ScoredColumns, comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    sizes = np.bincount(columns.group, minlength=len(columns.groups))
    total = int(columns.num_tokens.sum())
    for comparison in comparisons:
        for choice in comparison.choices:
            row = {"ratio": f"{comparison.sample_keep_ratio:g}", "strategy": choice.name}
            if not columns.groups:
                yield {**row, "group": "all", "share": choice.tokens / total}
            for i, name in enumerate(columns.groups[:MAX_GROUPS_SHOWN]):
                yield {**row, "group": name, "share": int(choice.kept_by_group[i]) / int(sizes[i])}
