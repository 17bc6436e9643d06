"""Layers that both planes have: the points, the examples as rings, the picked sample, and the quadrants' names.

What is kept is filled and what is dropped is hollow, beside the colour of the quadrant: that tells it without colours,
and where another strategy than Q-Tuning chose, quadrant and fate are two things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qtune_service.report.data import QUADRANTS, QuadrantName
from qtune_service.report.palette import QUADRANT_LABELS, Palette

NARROW = 230
"""Pixels up to which there is no room for what happens to a quadrant's samples."""
FEW = 400
"""Points up to which they are drawn larger."""

_PLACES = {"Q1": ("right", "top"), "Q2": ("left", "top"), "Q3": ("left", "bottom"), "Q4": ("right", "bottom")}


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a row says its quadrant, and whether it is kept."""

    quadrant: str = "q"
    kept: str = "k"


def point_layers(
    alt: Any, x: Any, y: Any, palette: Palette, *, num_points: int, over_density: bool, fields: Fields = Fields()
) -> list[Any]:
    """Points, rings of examples, and the ring of what a reader picks (dataset `picked`, empty at first)."""
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


def name_layers(alt: Any, palette: Palette, fates: Mapping[QuadrantName, str]) -> list[Any]:
    """Each quadrant's label in its corner of the plane, and what happens to its samples.

    A text is drawn twice, since a picture file paints its outline over it.
    """
    layers = []
    for meaning in QUADRANTS:
        label, (side, end) = meaning.label, _PLACES[meaning.label]
        text = f"{label} {fates.get(label, '')}".strip()
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
    """A dataset of one row."""
    return alt.InlineData(values=[values])


def quadrant_scale(alt: Any, palette: Palette) -> Any:
    """From a quadrant to its colour."""
    return alt.Scale(domain=list(QUADRANT_LABELS), range=list(palette.quadrants))


def _tooltip(alt: Any) -> list[Any]:
    return [
        alt.Tooltip("id:N", title="sample"),
        alt.Tooltip("q:N", title="quadrant"),
        alt.Tooltip("p:Q", title="perplexity", format=".4~g"),
        alt.Tooltip("e:Q", title="entropy", format=".4~g"),
        alt.Tooltip("n:Q", title="trained tokens", format=","),
    ]
