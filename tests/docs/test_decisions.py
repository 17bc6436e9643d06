"""Decision records have one form, and their index lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.jobs import REPO

FOLDER = REPO / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
TITLE = re.compile(r"# (\d{4}) (\S.*)")
STATUS = re.compile(r"Status: (accepted|superseded by \d{4})")


def title_and_status(record: Path) -> tuple[str, str]:
    """Return the title and the status that a record has in its first and third line."""
    lines = record.read_text(encoding="utf-8").splitlines()
    title, status = TITLE.fullmatch(lines[0]), STATUS.fullmatch(lines[2])
    assert title is not None, lines[0]
    assert status is not None, lines[2]
    assert title[1] == record.name[:4]
    return title[2], status[1]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_is_short_and_complete(record: Path) -> None:
    """A record has a title, a status, three sections, and at most 30 lines of 100 characters."""
    title_and_status(record)
    lines = record.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("#")][1:] == ["## Context", "## Decision", "## Consequences"]
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100


def test_the_index_lists_every_record() -> None:
    """The index has one row a record, in order, with its title and status, and each number occurs once."""
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line for line in index.splitlines() if line.startswith("| [")]
    expected = [(record.name, *title_and_status(record)) for record in RECORDS]
    assert rows == [f"| [{name[:4]}]({name}) | {title} | {status} |" for name, title, status in expected]
    assert len({record.name[:4] for record in RECORDS}) == len(RECORDS)


def test_superseding_records_exist() -> None:
    """A superseded record names one that exists."""
    numbers = {record.name[:4] for record in RECORDS}
    statuses = {record.name: title_and_status(record)[1] for record in RECORDS}
    assert {status.split()[-1] for status in statuses.values() if status != "accepted"} <= numbers
