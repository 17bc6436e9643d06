"""Layers that several charts share: points, rings of examples, the picked sample, names of quadrants, and density.

Kept samples are filled and dropped ones hollow, in the colour of their quadrant, so the decision is visible without
colours, and for other strategies than Q-Tuning, where quadrant and decision differ. Colours are a palette: a page
passes CSS variables and follows light, dark and print without a new chart, and a chart file gets plain colours. The
stylesheet repeats LIGHT and DARK; a test compares them.

Charts share the rows of their points: p and e are perplexity and entropy in nats, u and v their ranks, q the quadrant,
k whether the sample is kept, n its trained tokens. Identifiers are whole if the page has room for them, since readers
copy them into commands. Otherwise they are cut in the middle and marked (`cut`).

Density is a two-dimensional histogram, for populations with more samples than points are drawn. A cell has the colour
of the quadrant of most of its samples, and its strength grows with the square root of their number, so that sparse
regions stay visible. Bins are of equal width on the page, whatever the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.report.axes import MAX_DRAWN, Axis, Column, shown_perplexity
from qtune_service.report.data import QUADRANTS, ExampleSample, QuadrantName, ReportData
from qtune_service.report.examples import shown_samples, trained_tokens
from qtune_service.report.text import shorten
from qtune_service.selection.distributions import EvenSample

QUADRANT_LABELS = ("Q1", "Q2", "Q3", "Q4")
PADDING = {"left": 4, "top": 4, "right": 16, "bottom": 4}
"""Padding of charts with names at their right: Vega measures text before the page loads its fonts."""
MAX_ID_BYTES = 350_000
"""Limit on the identifiers of all points together."""
Row = dict[str, Any]
NARROW = 230
"""Width in pixels up to which there is no room for the decisions of quadrants."""
FEW = 400
"""Number of points up to which they are drawn larger."""
_CORNERS = {"Q1": ("right", "top"), "Q2": ("left", "top"), "Q3": ("left", "bottom"), "Q4": ("right", "bottom")}


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the quadrants, in order, and of the rest of a chart."""

    quadrants: tuple[str, str, str, str]
    ink: str
    muted: str
    grid: str
    surface: str
    background: str
    font: str

    def of(self, label: str) -> str:
        """Return the colour of a quadrant."""
        return self.quadrants[QUADRANT_LABELS.index(label)]


# Distinct for any colour vision: at least 20 apart in CIELAB under simulated protanopia, deuteranopia, tritanopia.
LIGHT = Palette(
    ("#c8500a", "#0b5fa5", "#9c86b4", "#1a9e77"), "#1f2328", "#5d6570", "#e4e2dc", "#fffefb", "#fffefb",
    "Helvetica, Arial, sans-serif",
)  # fmt: skip
DARK = Palette(
    ("#f0873c", "#4f94f0", "#b48fbe", "#4be8a4"), "#e8e5de", "#a3a8b0", "#30353c", "#1b1e23", "#1b1e23",
    "Helvetica, Arial, sans-serif",
)  # fmt: skip
PAGE = Palette(
    ("var(--q1)", "var(--q2)", "var(--q3)", "var(--q4)"),
    "var(--ink)", "var(--muted)", "var(--grid)", "var(--surface)", "transparent", "inherit",
)  # fmt: skip


def chart_config(palette: Palette) -> dict[str, Any]:
    """Return Vega-Lite's config, which every chart shares."""
    return {
        "background": palette.background,
        "font": palette.font,
        "aria": False,  # thousands of marks do not help a screen reader: the page describes its charts in text
        "view": {"stroke": None},
        "axis": {
            "labelColor": palette.muted, "titleColor": palette.muted, "gridColor": palette.grid,
            "domainColor": palette.muted, "tickColor": palette.muted, "labelFontSize": 11, "titleFontSize": 12,
            "titleFontWeight": 500, "titlePadding": 10, "labelFlush": False, "tickCount": 8, "labelOverlap": "greedy",
            "labelSeparation": 4,
        },
    }  # fmt: skip


def point_rows(data: ReportData) -> list[Row]:
    """Return one row a point, in the order of the population."""
    return sample_rows(data.sample.points(), data.point_ids)


def sample_rows(points: EvenSample, ids: Sequence[str]) -> list[Row]:
    """Return one row for each of some samples, with their identifiers."""
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
    """Return one row for each example with known ranks; `at` is its index among the page's examples."""
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
    """Return identifiers, cut if they are longer than their share of the page."""
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


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a row with its quadrant and its decision."""

    quadrant: str = "q"
    kept: str = "k"


def point_layers(
    alt: Any, x: Any, y: Any, palette: Palette, *, num_points: int, over_density: bool, fields: Fields = Fields()
) -> list[Any]:
    """Return layers of points, rings of examples, and the ring of the pick (dataset `picked`, empty at first)."""
    size, opacity = (9, 0.5) if over_density else (17, 0.65) if num_points > FEW else (34, 0.75)
    color = {"legend": None, "scale": quadrant_scale(alt, palette)}
    fill = alt.Fill(f"{fields.quadrant}:N", **color)
    is_filled = {"condition": {"test": f"datum.{fields.kept} == 1", "value": 1}, "value": 0}
    shared = {"x": x, "y": y, "fill": fill, "tooltip": _tooltip(alt)}
    points = (
        alt.Chart(alt.NamedData("samples"), name="samples")
        .mark_point(shape="circle", size=size, strokeWidth=0.9, opacity=opacity, cursor="pointer")
        .encode(**shared, stroke=alt.Stroke(f"{fields.quadrant}:N", **color), fillOpacity=is_filled)
    )
    examples = (
        alt.Chart(alt.NamedData("examples"), name="examples")
        .mark_point(shape="circle", size=62, stroke=palette.ink, strokeWidth=1.3, opacity=1, cursor="pointer")
        .encode(**shared)
    )
    picked = (
        alt.Chart(alt.NamedData("picked"), name="picked")
        .mark_point(shape="circle", size=190, filled=False, stroke=palette.ink, strokeWidth=2.2, opacity=1)
        .encode(x=x, y=y)
    )
    return [points, examples, picked]


def name_layers(alt: Any, palette: Palette, decisions: Mapping[QuadrantName, str]) -> list[Any]:
    """Return layers with each quadrant's label in its corner of the plane, and the decision on its samples.

    A text is drawn twice, since a chart file paints its outline over it.
    """
    layers = []
    for meaning in QUADRANTS:
        label, (side, end) = meaning.label, _CORNERS[meaning.label]
        text = f"{label} {decisions.get(label, '')}".strip()
        base = (
            alt.Chart(inline_row(alt, t=text, s=label))
            .transform_calculate(shown=f"width < {NARROW} ? datum.s : datum.t")
            .encode(
                x=alt.value("width") if side == "right" else alt.value(0),
                y=alt.value(0 if end == "top" else "height"),
                text="shown:N",
            )
        )
        style = {
            "align": side, "baseline": end, "fontSize": 13, "fontWeight": 700,
            "dx": 8 if side == "left" else -8, "dy": 8 if end == "top" else -8,
        }  # fmt: skip
        layers.append(base.mark_text(**style, color=palette.surface, stroke=palette.surface, strokeWidth=4))
        layers.append(base.mark_text(**style, color=palette.of(label)))
    return layers


def inline_row(alt: Any, **values: float | str) -> Any:
    """Return a dataset of one row."""
    return alt.InlineData(values=[values])


def quadrant_scale(alt: Any, palette: Palette) -> Any:
    """Return the scale from quadrants to colours."""
    return alt.Scale(domain=list(QUADRANT_LABELS), range=list(palette.quadrants))


def _tooltip(alt: Any) -> list[Any]:
    return [
        alt.Tooltip("id:N", title="sample"),
        alt.Tooltip("q:N", title="quadrant"),
        alt.Tooltip("p:Q", title="perplexity", format=".4~g"),
        alt.Tooltip("e:Q", title="entropy", format=".4~g"),
        alt.Tooltip("n:Q", title="trained tokens", format=","),
    ]


def density_rows(
    x: tuple[Axis, Column], y: tuple[Axis, Column], quadrant: NDArray[np.int8], weight: float, shape: tuple[int, int]
) -> list[Row]:
    """Return one row for each cell with samples: its edges, the number of samples (times `weight`), and their quadrant.

    x, y: axes with their values (S,). quadrant: (S,) 1..4. shape: number of cells across and up.
    """
    across, up = shape
    cell = y[0].bins(y[1], up) * across + x[0].bins(x[1], across)
    size = across * up
    flat = (quadrant.astype(np.int64) - 1) * size + cell
    counts = np.bincount(flat, minlength=4 * size).reshape(4, size)
    total, most = counts.sum(axis=0), counts.argmax(axis=0)
    x_edges, y_edges = (axis.edges(bins).tolist() for axis, bins in ((x[0], across), (y[0], up)))
    return [
        {
            "x": _short(x_edges[at % across]), "x2": _short(x_edges[at % across + 1]),
            "y": _short(y_edges[at // across]), "y2": _short(y_edges[at // across + 1]),
            "n": round(int(total[at]) * weight), "q": QUADRANT_LABELS[most[at]],
        }
        for at in np.flatnonzero(total).tolist()
    ]  # fmt: skip


def density_layer(alt: Any, name: str, rows: list[Row], palette: Palette, color: str = "q") -> Any:
    """Return a layer of the cells of dataset `name`, for quantitative axes that other layers define."""
    most = max((row["n"] for row in rows), default=1)
    strength = alt.Scale(type="sqrt", domain=[0, most], range=[0.05, 0.9])
    return (
        alt.Chart(alt.NamedData(name), name=name)
        .mark_rect(clip=True, strokeWidth=0)
        .encode(
            x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q",
            fill=alt.Fill(f"{color}:N", legend=None, scale=quadrant_scale(alt, palette)),
            opacity=alt.Opacity("n:Q", legend=None, scale=strength),
            tooltip=[alt.Tooltip("n:Q", title="samples here", format=","), alt.Tooltip(f"{color}:N", title="most are")],
        )
    )  # fmt: skip
