"""What can be checked of a page's accessibility by looking at its elements: names, headings, ids, contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECK = Path(__file__).with_suffix(".js").read_text(encoding="utf-8").partition("\n")[2]


def faults(page: Any) -> list[str]:
    """Return the accessibility faults of the visible page, and whether it is wider than the screen."""
    found: list[str] = page.evaluate(CHECK)
    width, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return [*found, *([f"{width} pixels wide on a screen of {room}"] if width > room else [])]
