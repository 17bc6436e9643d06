"""The EU plane (entropy across, perplexity up, on a log scale) as a Vega-Lite chart, and the choice of its points.

Axes are the way round that makes the quadrants those of mathematics: Q1 is at the upper right, Q2 at the upper left.
The thresholds are drawn as they are: above alpha 0.5 they cross and the corners overlap, and the picture shows that.
Colours come in as a palette, so that a page can pass CSS variables (and follow light, dark and print by itself) while
a picture file gets plain colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.metrics import perplexity
from qtune_service.core.plane import Thresholds
from qtune_service.report.sample import EvenSample
from qtune_service.report.wording import number, shorten

MAX_ID_CHARS = 40
MAX_DRAWN = 1e300  # Vega's log scale needs finite perplexities


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the quadrants, in order, and of what surrounds them."""

    quadrants: tuple[str, str, str, str]
    ink: str
    muted: str
    grid: str
    surface: str


@dataclass(frozen=True, slots=True)
class Points:
    """What is drawn one by one."""

    perplexity: NDArray[np.float64]  # (S,)
    entropy: NDArray[np.float64]  # (S,) nats
    quadrant: NDArray[np.int8]  # (S,) 1..4
    sample_id: tuple[str, ...]  # (S,)

    @classmethod
    def of(cls, sample: EvenSample, ids: tuple[str, ...]) -> Points:
        """Those of a sample, with their ids."""
        points = sample.points()
        return cls(perplexity(points.mean_nll), points.mean_entropy, points.quadrant, ids)


# Told apart with any colour vision: at least 20 apart in CIELAB under simulated protanopia, deuteranopia, tritanopia.
LIGHT = Palette(("#c8500a", "#0b5fa5", "#9c86b4", "#1a9e77"), "#1f2328", "#5d6570", "#e4e2dc", "#fffefb")
DARK = Palette(("#f0873c", "#4f94f0", "#b48fbe", "#4be8a4"), "#e8e5de", "#a3a8b0", "#30353c", "#1b1e23")
PAGE = Palette(
    ("var(--q1)", "var(--q2)", "var(--q3)", "var(--q4)"), "var(--ink)", "var(--muted)", "var(--grid)", "var(--surface)"
)


def plane_chart(plane: Points, thresholds: Thresholds, palette: Palette = LIGHT) -> dict[str, Any]:
    """Vega-Lite specification of the plane."""
    import altair as alt

    x_domain, y_domain = _domains(plane, thresholds)
    x = alt.X("e:Q", title="Entropy, nats", scale=alt.Scale(domain=x_domain, nice=False, zero=False))
    y_axis = alt.Axis(values=_log_ticks(*y_domain) or alt.Undefined, format="~s")
    y = alt.Y(
        "p:Q", title="Perplexity, log scale", axis=y_axis, scale=alt.Scale(type="log", domain=y_domain, nice=False)
    )
    color = alt.Color("q:N", legend=None, scale=alt.Scale(domain=["Q1", "Q2", "Q3", "Q4"], range=palette.quadrants))
    tooltip = [
        alt.Tooltip("id:N", title="sample"),
        alt.Tooltip("q:N", title="quadrant"),
        alt.Tooltip("p:Q", title="perplexity", format=".4~g"),
        alt.Tooltip("e:Q", title="entropy", format=".4~g"),
    ]
    points = alt.Chart(alt.NamedData("samples")).mark_point(filled=True, size=17, opacity=0.62, clip=True)
    layers = [
        *_corners(alt, thresholds, x_domain, y_domain, palette),
        points.encode(x=x, y=y, color=color, tooltip=tooltip),
        *_rules(alt, thresholds, x_domain, y_domain, palette),
        *_names(alt, palette),
    ]
    padding = {"left": 4, "top": 22, "right": 8, "bottom": 4}
    spec: dict[str, Any] = alt.layer(*layers).properties(width="container", height=440, padding=padding).to_dict()
    spec["datasets"] = {**spec["datasets"], "samples": _rows(plane)}
    return spec | {"config": _config(palette)}


def _rows(plane: Points) -> list[dict[str, Any]]:
    drawn = np.minimum(plane.perplexity, MAX_DRAWN)
    return [
        {"p": float(f"{p:.5g}"), "e": float(f"{e:.5g}"), "q": f"Q{q}", "id": shorten(name, MAX_ID_CHARS)}
        for p, e, q, name in zip(drawn, plane.entropy, plane.quadrant, plane.sample_id, strict=True)
    ]


def _domains(plane: Points, t: Thresholds) -> tuple[list[float], list[float]]:
    """Axis ranges that hold every point and every finite threshold, with a margin of 3%."""
    entropy = [v for v in (*plane.entropy.tolist(), t.ent_low, t.ent_high) if math.isfinite(v)] or [0.0, 1.0]
    drawn = np.minimum(plane.perplexity, MAX_DRAWN).tolist()
    perplexity = [v for v in (*drawn, t.ppl_low, t.ppl_high) if 0 < v < math.inf]
    logs = [math.log(v) for v in perplexity] or [0.0, 1.0]
    x_margin = 0.03 * (max(entropy) - min(entropy)) or 0.5
    y_margin = 0.03 * (max(logs) - min(logs)) or 0.5
    near_zero = min(entropy) < 0.25 * max(entropy)  # then the axis begins at 0; entropy is never negative
    x_domain = [0.0 if near_zero else max(min(entropy) - x_margin, 0.0), max(entropy) + x_margin]
    return x_domain, [math.exp(max(min(logs) - y_margin, 0.0)), math.exp(min(max(logs) + y_margin, 705.0))]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or fewer where there are many; nothing where Vega's own ticks do better."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = max(1, len(decades) // 8)
    digits = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 6 else (1,)
    ticks = [digit * 10.0**decade for decade in decades[::step] for digit in digits]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= 3 else []


def _corners(
    alt: Any, t: Thresholds, x_domain: list[float], y_domain: list[float], palette: Palette
) -> list[Any]:  # fmt: skip
    """A faint sheet over each kept corner; where the corners overlap, so do the sheets."""
    sheets = []
    if 0 < t.ppl_high < math.inf and math.isfinite(t.ent_low):
        sheets.append((x_domain[0], t.ent_low, t.ppl_high, y_domain[1], palette.quadrants[1]))
    if 0 < t.ppl_low < math.inf and math.isfinite(t.ent_high):
        sheets.append((t.ent_high, x_domain[1], y_domain[0], t.ppl_low, palette.quadrants[3]))
    return [
        alt.Chart(_row(alt, x=x, x2=x2, y=y, y2=y2))
        .mark_rect(color=color, opacity=0.09, clip=True)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
        for x, x2, y, y2, color in sheets
    ]


def _rules(alt: Any, t: Thresholds, x_domain: list[float], y_domain: list[float], palette: Palette) -> list[Any]:
    """Dashed thresholds. Of each pair the larger is named on its outer side, so that names never meet."""
    line = {"strokeDash": [5, 4], "strokeWidth": 1.2, "color": palette.ink, "opacity": 0.75}
    text = {"fontSize": 11, "color": palette.ink, "stroke": palette.surface, "strokeWidth": 3}
    layers = []
    for label, value, above in _pair("ppl", t.ppl_low, t.ppl_high):
        if 0 < value < math.inf:  # 0 and infinity mean that no sample lies beyond
            base = alt.Chart(_row(alt, x=x_domain[1], y=value, t=f"{label} {number(value)}"))
            name = base.mark_text(align="right", dx=-46, dy=-7 if above else 8, **text)
            layers += [base.mark_rule(**line).encode(y="y:Q"), name.encode(x="x:Q", y="y:Q", text="t:N")]
    for label, value, right in _pair("ent", t.ent_low, t.ent_high):
        if math.isfinite(value):
            base = alt.Chart(_row(alt, x=value, y=y_domain[1], t=f"{label} {number(value)}"))
            # Near the left edge there is no room on the outer side: the name goes to the right, one line up.
            is_tight = not right and value - x_domain[0] < 0.2 * (x_domain[1] - x_domain[0])
            align = "left" if right or is_tight else "right"
            name = base.mark_text(align=align, dy=-22 if is_tight else -10, **text)
            layers += [base.mark_rule(**line).encode(x="x:Q"), name.encode(x="x:Q", y="y:Q", text="t:N")]
    return layers


def _pair(name: str, low: float, high: float) -> tuple[tuple[str, float, bool], tuple[str, float, bool]]:
    """Name, value, and whether it is the larger, of two thresholds; above alpha 0.5 `low` is."""
    return (f"{name}_low", low, low > high), (f"{name}_high", high, high >= low)


def _row(alt: Any, **values: float | str) -> Any:
    return alt.InlineData(values=[values])


def _names(alt: Any, palette: Palette) -> list[Any]:
    """The quadrant's label in its corner of the plane."""
    places = {"Q1": ("right", "top"), "Q2": ("left", "top"), "Q3": ("left", "bottom"), "Q4": ("right", "bottom")}
    layers = []
    for index, (label, (side, end)) in enumerate(places.items()):
        text = alt.Chart(_row(alt, t=label)).mark_text(
            align=side, baseline=end, fontSize=17, fontWeight=700, color=palette.quadrants[index],
            stroke=palette.surface, strokeWidth=3, dx=8 if side == "left" else -8, dy=8 if end == "top" else -8,
        )  # fmt: skip
        x = alt.value("width") if side == "right" else alt.value(0)
        layers.append(text.encode(x=x, y=alt.value(0 if end == "top" else "height"), text="t:N"))
    return layers


def _config(palette: Palette) -> dict[str, Any]:
    return {
        "background": "transparent",
        "font": "inherit",
        "aria": False,  # thousands of marks are no help to a screen reader: the page describes the picture in words
        "view": {"stroke": None},
        "axis": {
            "labelColor": palette.muted, "titleColor": palette.muted, "gridColor": palette.grid,
            "domainColor": palette.muted, "tickColor": palette.muted, "labelFontSize": 11, "titleFontSize": 12,
            "titleFontWeight": 500, "titlePadding": 10, "labelFlush": False, "tickCount": 8, "labelOverlap": True,
        },
    }  # fmt: skip
