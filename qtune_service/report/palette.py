"""Colours and type of the pictures.

They come in as a palette, so that a page can pass CSS variables (and follow light, dark and print by itself) while a
picture file gets plain colours. The stylesheet repeats LIGHT and DARK; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QUADRANT_LABELS = ("Q1", "Q2", "Q3", "Q4")
PADDING = {"left": 4, "top": 4, "right": 16, "bottom": 4}
"""Of pictures with names at their right: Vega measures text before the page's own fonts, which may be wider."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the quadrants, in order, and of what surrounds them."""

    quadrants: tuple[str, str, str, str]
    ink: str
    muted: str
    grid: str
    surface: str
    background: str
    font: str

    def of(self, label: str) -> str:
        """A quadrant's colour."""
        return self.quadrants[QUADRANT_LABELS.index(label)]


# Told apart with any colour vision: at least 20 apart in CIELAB under simulated protanopia, deuteranopia, tritanopia.
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
    """Vega-Lite's config: how every picture looks."""
    return {
        "background": palette.background,
        "font": palette.font,
        "aria": False,  # thousands of marks are no help to a screen reader: the page describes its pictures in words
        "view": {"stroke": None},
        "axis": {
            "labelColor": palette.muted, "titleColor": palette.muted, "gridColor": palette.grid,
            "domainColor": palette.muted, "tickColor": palette.muted, "labelFontSize": 11, "titleFontSize": 12,
            "titleFontWeight": 500, "titlePadding": 10, "labelFlush": False, "tickCount": 8, "labelOverlap": "greedy",
            "labelSeparation": 4,
        },
    }  # fmt: skip
