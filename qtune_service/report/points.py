"""Samples that a picture draws one by one, as rows of Vega-Lite data: the points, and the examples.

Both planes share the rows: p and e are perplexity and entropy in nats, u and v their ranks, q the quadrant, k whether
the sample is kept, n its trained tokens. Identifiers are whole where the page has room for them, since a reader
copies them into commands; where there is none they are cut in the middle and said to be (`cut`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtune_service.report.axes import MAX_DRAWN, shown_perplexity
from qtune_service.report.data import ExampleSample, ReportData
from qtune_service.report.examples import shown_samples, trained_tokens
from qtune_service.report.wording import shorten
from qtune_service.selection.even_sample import EvenSample

MAX_ID_BYTES = 350_000
"""Of all points' identifiers together."""

Row = dict[str, Any]


def point_rows(data: ReportData) -> list[Row]:
    """One row a point, in the order of the population."""
    return sample_rows(data.sample.points(), data.point_ids)


def sample_rows(points: EvenSample, ids: Sequence[str]) -> list[Row]:
    """One row for each of some samples, by their identifiers."""
    columns = zip(
        shown_perplexity(points).tolist(),
        points.mean_entropy.tolist(),
        points.error_rank.tolist(),
        points.entropy_rank.tolist(),
        points.quadrant.tolist(),
        points.kept.tolist(),
        points.num_tokens.tolist(),
        _fitting(ids),
        strict=True,
    )
    return [
        {"p": _short(p), "e": _short(e), "u": _short(u), "v": _short(v), "q": f"Q{q}", "k": int(k), "n": n, **name}
        for p, e, u, v, q, k, n, name in columns
    ]


def example_rows(data: ReportData) -> list[Row]:
    """One row an example whose ranks are known; `at` is its place among the page's examples."""
    shown = shown_samples(data.examples)
    names = _fitting([sample.sample_id for sample in shown])
    return [
        _example_row(sample, at) | name
        for at, (sample, name) in enumerate(zip(shown, names, strict=True))
        if sample.error_rank is not None and sample.entropy_rank is not None
    ]


def _example_row(sample: ExampleSample, at: int) -> Row:
    u, v = sample.error_rank or 0.0, sample.entropy_rank or 0.0
    return {
        "p": _short(min(sample.perplexity, MAX_DRAWN)), "e": _short(sample.entropy), "u": _short(u), "v": _short(v),
        "q": sample.quadrant, "k": int(sample.kept), "n": len(trained_tokens(sample)), "at": at,
    }  # fmt: skip


def _fitting(names: Sequence[str]) -> list[Row]:
    """Identifiers, cut where they are longer than their share of the page."""
    share = MAX_ID_BYTES // max(len(names), 1)
    sizes = [len(name.encode("utf-8", "surrogatepass")) for name in names]
    if sum(sizes) <= MAX_ID_BYTES:
        return [{"id": name, "cut": 0} for name in names]
    return [
        {"id": name, "cut": 0} if size <= share else {"id": shorten(name, share // 4), "cut": 1}  # 4 bytes a character
        for name, size in zip(names, sizes, strict=True)
    ]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
