"""Tests of the page's tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qtune_service.report.data import Counts
from qtune_service.report.html import MAX_ROWS, common_folder, group_tables, quadrant_cards, reasons_text
from tests.report_data import made_up_report, made_up_scores


def test_what_all_names_share_is_said_once() -> None:
    """Up to a slash; names of one folder differ at their ends."""
    assert common_folder(["s3://b/data/part-0", "s3://b/data/part-1", "s3://b/data/x"]) == "s3://b/data/"
    assert common_folder(["a/b", "a/b"]) == "a/"
    assert common_folder(["abc", "abd"]) == ""
    assert common_folder(["only/one"]) == ""


def test_tables_are_largest_first_and_bounded() -> None:
    """A thousand sources make a table of the largest."""
    groups = {f"d/{i}": Counts(q1=i) for i in range(1_000)}
    table = next(table for table in group_tables(made_up_report(by_source=groups)) if table.key == "source")
    assert (table.total, len(table.rows), table.folder, table.is_tall) == (1_000, MAX_ROWS, "d/", True)
    assert [name for name, _ in table.rows[:2]] == ["999", "998"]


def test_reasons_are_told_in_one_line() -> None:
    """The most common first."""
    assert reasons_text(Counts.of({"a": 1, "b": 2_000}, [0] * 7)) == "b 2,000, a 1"


def test_cards_of_another_strategy_tell_what_it_kept() -> None:
    """Since the quadrant does not."""
    data = made_up_report(made_up_scores(400))
    assert [card.decision for card in quadrant_cards(data)] == ["dropped", "kept, masked", "dropped", "kept whole"]
    kept = np.zeros(400, dtype=np.bool_)
    kept[np.flatnonzero(data.sample.quadrant == 3)[:1]] = True
    other = replace(data, spec={"prune": {"strategy": "random"}}, sample=replace(data.sample, kept=kept))
    fates = [card.decision for card in quadrant_cards(other)]
    assert fates[0] == fates[1] == fates[3] == "0% of them kept"
    assert fates[2] not in ("0% of them kept", "dropped")
