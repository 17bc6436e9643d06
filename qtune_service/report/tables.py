"""Tables of the page, as plain rows: counts by source and category, quadrants, and how the records went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtune_service.report.choice import fates
from qtune_service.report.data import QUADRANTS, Counts, QuadrantMeaning, QuadrantName, ReportData
from qtune_service.report.wording import count, percent

MAX_ROWS = 100
MAX_REASONS = 6
TALL = 15
"""Rows beyond which a table scrolls inside itself."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """A table of counts by source or category: its largest rows, and how many there are in all."""

    key: str
    title: str
    heading: str
    rows: tuple[tuple[str, Counts], ...]
    total: int
    folder: str = ""
    """What all names begin with, up to a slash: said once, since names are cut and differ at their ends."""

    @property
    def is_tall(self) -> bool:
        """Whether it scrolls inside itself."""
        return len(self.rows) > TALL


@dataclass(frozen=True, slots=True)
class QuadrantCard:
    """A quadrant: its samples, and what happens to them."""

    meaning: QuadrantMeaning
    count: int
    fate: str


@dataclass(frozen=True, slots=True)
class Flow:
    """A part of the bar that shows where the records went; `css` is its colour's class."""

    css: str
    name: str
    size: int


def record_flow(data: ReportData) -> list[Flow]:
    """Kept, dropped and rejected: by quadrant where that tells a sample's fate."""
    c, told = data.counts, fates(data)
    sizes: tuple[tuple[QuadrantName, int], ...] = (("Q2", c.q2), ("Q4", c.q4), ("Q1", c.q1), ("Q3", c.q3))
    parts = [Flow("chosen", "kept", c.kept), Flow("left-out", "dropped", c.pruned)]
    if told:
        parts = [Flow(label, f"{label} {told[label]}", size) for label, size in sizes]
    parts.append(Flow("rejected", "rejected before scoring", c.rejected))
    return [part for part in parts if part.size]


def group_tables(data: ReportData) -> list[GroupTable]:
    """Those that have rows."""
    sides = (("source", "Source", data.by_source), ("category", "Category", data.by_category))
    tables = []
    for key, heading, groups in sides:
        rows = tuple(sorted(groups.items(), key=_by_size)[:MAX_ROWS])
        folder = common_folder([name for name, _ in rows])
        rows = tuple((name.removeprefix(folder), counts) for name, counts in rows)
        tables.append(GroupTable(key, f"By {key}", heading, rows, len(groups), folder))
    return [table for table in tables if table.rows]


def quadrant_cards(data: ReportData) -> list[QuadrantCard]:
    """One a quadrant, in order. Where another strategy chose, how much of it is kept: of the even sample."""
    sizes = (data.counts.q1, data.counts.q2, data.counts.q3, data.counts.q4)
    told = fates(data)
    return [
        QuadrantCard(meaning, size, told.get(meaning.label) or _kept_share(data, number))
        for number, (meaning, size) in enumerate(zip(QUADRANTS, sizes, strict=True), start=1)
    ]


def largest(values: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Names with the largest numbers first."""
    return sorted(values.items(), key=lambda item: (-item[1], item[0]))[:limit]


def common_folder(names: Sequence[str]) -> str:
    """The longest beginning that ends in a slash and that all of several names share."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, length) + 1]


def told_reasons(counts: Counts) -> str:
    """A group's rejected by reason, in one line."""
    return ", ".join(f"{reason} {count(number)}" for reason, number in largest(counts.reasons, MAX_REASONS))


def _kept_share(data: ReportData, number: int) -> str:
    of_quadrant = data.sample.kept[data.sample.quadrant == number]
    return f"{percent(float(of_quadrant.sum()), len(of_quadrant))} of them kept"


def _by_size(item: tuple[str, Counts]) -> tuple[int, str]:
    return -item[1].read, item[0]
