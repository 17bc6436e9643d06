"""Write the results as a Markdown table, and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.scoring.processes import Outcome

LABELS = {
    "qtune": "qtune end to end",
    "engine": "bare engine",
    "reference": "reference engine",
    "script": "baseline script",
    "batched": "transformers batched",
    "prompt-logprobs": "vLLM prompt_logprobs=20",
}
"""Route -> name in the table, in the order in which they run."""
NOT_ENTROPY = "prompt-logprobs"
HEAD = (
    "| route | tokens/s | x bare engine | of GEMM peak | start-up s | scoring s | whole s | peak RSS GiB "
    "| max diff NLL | max diff entropy |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
Scores = Mapping[str, np.ndarray[Any, Any]]  # nll and entropy, both (all trained tokens,)


@dataclass(frozen=True, slots=True)
class Row:
    """One route's figures. None where another route's are needed and missing, or the route failed."""

    route: str
    tokens_per_s: float | None
    x_engine: float | None
    peak_share: float | None
    startup_s: float
    score_s: float
    whole_s: float
    peak_bytes: int
    busy_share: float | None
    max_diff_nll: float | None
    max_diff_entropy: float | None
    error: str


def make_rows(
    outcomes: Sequence[Outcome], scores: Mapping[str, Scores], num_tokens: int, flops: float, peak_flops_per_s: float
) -> list[Row]:
    """Figures of all routes. scores: of the routes that ran; differences are to `base_of` them."""
    seconds = {o.route: o.score_s for o in outcomes if not o.error}
    base = base_of(scores)
    return [
        Row(
            route=o.route,
            tokens_per_s=num_tokens / o.score_s if not o.error else None,
            x_engine=seconds["engine"] / o.score_s if not o.error and "engine" in seconds else None,
            peak_share=flops / o.score_s / peak_flops_per_s if not o.error else None,
            startup_s=o.startup_s,
            score_s=o.score_s,
            whole_s=o.whole_s,
            peak_bytes=o.peak_bytes,
            busy_share=o.busy_share,
            max_diff_nll=max_diff(scores, o.route, base, "nll"),
            max_diff_entropy=max_diff(scores, o.route, base, "entropy"),
            error=o.error,
        )
        for o in outcomes
    ]


def base_of(scores: Mapping[str, Scores]) -> str | None:
    """Return the route that the others' scores are compared with: the baseline script, or the first that is exact."""
    exact = [route for route in ("script", *LABELS) if route in scores and route != NOT_ENTROPY]
    return exact[0] if exact else None


def max_diff(scores: Mapping[str, Scores], route: str, base: str | None, name: str) -> float | None:
    """Largest absolute difference to the base, in nats; inf where the number of scores differs, or one is NaN."""
    if base is None or route == base or route not in scores:
        return None
    a, b = scores[route][name], scores[base][name]
    if a.shape != b.shape:
        return float("inf")
    diff = float(np.abs(a.astype(np.float64) - b).max())
    return float("inf") if np.isnan(diff) else diff


def render(rows: Sequence[Row]) -> str:
    """Return the table and the notes below it."""
    lines = [HEAD, *map(_line, rows)]
    for row in rows:
        if row.busy_share is not None:
            lines.append(f"\n{LABELS[row.route]}: its engine was busy for {row.busy_share:.1%} of the scoring time.")
        if row.route == NOT_ENTROPY and not row.error:
            lines.append(
                f"\n{LABELS[row.route]}: top-20 entropy is NOT the entropy; here the mass outside of the top 20 is "
                "spread evenly, and the last column shows how far off that is."
            )
    lines += [f"\n{LABELS[row.route]} FAILED:\n```\n{row.error}\n```" for row in rows if row.error]
    return "\n".join(lines)


def _line(row: Row) -> str:
    if row.error:
        return f"| {LABELS[row.route]} | failed | | | | | | | | |"
    cells = (
        LABELS[row.route],
        f"{row.tokens_per_s:,.0f}",
        "" if row.x_engine is None else f"{row.x_engine:.2f}",
        f"{row.peak_share:.0%}",
        f"{row.startup_s:.1f}",
        f"{row.score_s:.1f}",
        f"{row.whole_s:.1f}",
        f"{row.peak_bytes / 2**30:.2f}",
        "" if row.max_diff_nll is None else f"{row.max_diff_nll:.2g}",
        "" if row.max_diff_entropy is None else f"{row.max_diff_entropy:.2g}",
    )
    return f"| {' | '.join(cells)} |"
