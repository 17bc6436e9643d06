"""How numbers and long names read: counts with separators, four significant digits, shares that never round to a lie.

A share is shown as 0% or 100% only when it is exactly that; a reader who sees 0% must be able to trust it.
"""

from __future__ import annotations

import math

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def shorten(text: str, limit: int) -> str:
    """Cut in the middle, to at most `limit` characters: paths differ at their ends."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def file_name(path: str) -> str:
    """The last part of a path or URI."""
    return path.rstrip("/").rpartition("/")[2] or path


def count(value: float) -> str:
    """12345 -> '12,345'."""
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """Share with at most one decimal: '15%', '2.5%', '<0.1%'; a dash where there is no whole."""
    if whole <= 0:
        return NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    if 99.9 < share < 100:
        return ">99.9%"
    return f"{share:.1f}".removesuffix(".0") + "%"


def number(value: float | None) -> str:
    """Four significant digits, no exponent below a million; a dash for what is not there."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if 1e4 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("-", MINUS)


def rank(value: float) -> str:
    """A rank in (0, 1): three digits, '0.507'."""
    return f"{value:.3f}"


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
