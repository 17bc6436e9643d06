"""Tests of CSV and TSV: every row read or rejected, with the line numbers of the file."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.ingest import csv_reader
from qtune_service.ingest.csv_reader import csv_lines, csv_rows
from qtune_service.ingest.jsonl import RecordProblem, parse_line, split_lines
from tests.unit.ingest.planning import columns_of, plan_of, read_all, records_of

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=12) | st.sampled_from(
    ["", '"', '""', "a,b", "x\ny", "x\r\ny", "\r", "\t", ";", '{"role": "user"}', " padded ", "\u2028", "漢"]
)


def rows_of(text: str | bytes, name: str = "x.csv", **options: Any) -> list[tuple[int, Any]]:
    """Return line numbers with records, or with the reasons of problems."""
    data = text if isinstance(text, bytes) else text.encode()
    found = csv_rows(name, iter([data[i : i + 7] for i in range(0, len(data), 7)]), **options)
    return [(number, row.reason if isinstance(row, RecordProblem) else row) for number, row in found]


def written(rows: list[list[str]], delimiter: str, end: str, quoting: Any) -> str:
    """Return rows as the standard library writes them."""
    if any("\r" in cell for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # Python's writer leaves a lone CR without quotes
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return sink.getvalue()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=8),
    st.sampled_from([(",", "x.csv"), ("\t", "x.tsv"), (";", "x.csv"), ("\t", "x.csv.gz")]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
    st.integers(1, 50),
)
def test_rows_come_back_on_their_lines(
    rows: list[list[str]], sign: tuple[str, str], end: str, quoting: Any, bom: bool, block_bytes: int
) -> None:
    """Any cells, as they were written, numbered by the line on which their row begins, in records and staged lines."""
    header = ["prompt", "completion", "note"]
    text = ("\ufeff" if bom else "") + "".join(written([row], sign[0], end, quoting) for row in [header, *rows])
    data = text.encode()
    blocks = [data[i : i + block_bytes] for i in range(0, len(data), block_bytes)]
    line, expected = 2, []
    for row in rows:
        expected.append((line, dict(zip(header, row, strict=True))))
        raw = written([row], sign[0], end, quoting)
        line += len(io.StringIO(raw, newline="").readlines())
    assert list(csv_rows(sign[1], iter(blocks))) == expected
    staged = split_lines(b"".join(csv_lines(sign[1], iter(blocks))))
    assert [(n, parse_line(one)) for n, one in enumerate(staged, 1) if one] == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('ab",\n\r'), max_size=60), st.integers(8, 40))
def test_no_text_breaks_the_reader(text: str, max_chars: int) -> None:
    """Rows, or problems, in the order of the lines, and every line with text belongs to one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "MAX_ROW_CHARS", max_chars)
        found = rows_of(f"p,c\n{text}")
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    good = [row for _, row in found if isinstance(row, dict)]
    assert all(list(row) == ["p", "c"] for row in good)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p,c\na,b\n\n\nc,d", [(2, {"p": "a", "c": "b"}), (5, {"p": "c", "c": "d"})]),
        ("p,c\na,b,c\na\nc,d\n", [(2, "bad_row"), (3, "bad_row"), (4, {"p": "c", "c": "d"})]),
        ('p,c\n"bad,c\nd,e\nf,g\n', [(2, "bad_row"), (3, {"p": "d", "c": "e"}), (4, {"p": "f", "c": "g"})]),
        ('p,c\n"bad,c\nd,e\n"f","g"\n', [(2, "bad_row"), (3, {"p": "d", "c": "e"}), (4, {"p": "f", "c": "g"})]),
        ('p,c\n"a"b,c\nd,e\n', [(2, "bad_row"), (3, {"p": "d", "c": "e"})]),
        ('p,c\n"say \\"hi\\"",c\nd,e\n', [(2, "bad_row"), (3, {"p": "d", "c": "e"})]),
        ('p,c\nx,"one\ntwo, "three"\nd,e\n', [(2, "bad_row"), (3, "bad_row"), (4, {"p": "d", "c": "e"})]),
        ('p,c\na,b\nx,"cut in the\nmiddle, he', [(2, {"p": "a", "c": "b"}), (3, "bad_row"), (4, "bad_row")]),
        ('p,c\n5" disk,6" disk\n', [(2, {"p": '5" disk', "c": '6" disk'})]),
        (",p,\n0,a,\n", [(2, {"unnamed_1": "0", "p": "a", "unnamed_3": ""})]),
        (" p , c\na, b\n", [(2, {"p": "a", "c": " b"})]),
        ("p,c\ra,b\rc,d\r", [(2, {"p": "a", "c": "b"}), (3, {"p": "c", "c": "d"})]),
        ('messages\n"[{""role"": ""user""}]"\n', [(2, {"messages": '[{"role": "user"}]'})]),
        ("\n\np,c\na,b\n", [(4, {"p": "a", "c": "b"})]),
        ("p,c\n", []),
        ("", []),
        (b"p,c\na,\xff\nc,d\n", [(2, "not_utf8"), (3, {"p": "c", "c": "d"})]),
        ('"p","c"\n"a;b","c"\n', [(2, {"p": "a;b", "c": "c"})]),
        ('"a,b";c\n1;2\n', [(2, {"a,b": "1", "c": "2"})]),
    ],
)
def test_rows_and_problems(text: str | bytes, expected: list[tuple[int, Any]]) -> None:
    """What people and programs write, and what goes wrong: one rejected row, and the others read."""
    assert rows_of(text) == expected


def test_a_row_beyond_the_limit_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line, or a quote that is open for too long, costs its row."""
    monkeypatch.setattr(csv_reader, "MAX_ROW_CHARS", 50)
    long = "x" * 70
    assert rows_of(f"p,c\n{long},b\na,b\n") == [(2, "bad_row"), (3, {"p": "a", "c": "b"})]
    assert rows_of('p,c\n"' + "a,b\n" * 30)[0] == (2, "bad_row")
    assert rows_of('p,c\n"' + "a,b\n" * 30)[1:] == [(n, {"p": "a", "c": "b"}) for n in range(3, 32)]


def test_quotes_that_never_pair_take_linear_time() -> None:
    """A hostile file of which each line opens a quote is rejected as one broken row."""
    found = rows_of("p,c\n" + 'a","x\n' * 20_000)
    assert len(found) == 20_000
    assert {row for _, row in found} == {"bad_row"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p,c,p\n1,2,3\n", "several columns named 'p': 1 and 3"),
        ("unnamed_2,\n1,2\n", "several columns named 'unnamed_2'"),
        ('"p,c\n1,2\n', "the header of .*x.csv, line 1, cannot be read: a quote opens a cell and is never closed"),
        (b"p,\xe9t\xe9\n1,2\n", "the header of .*x.csv, line 1, is not UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(tmp_path: Path, text: str | bytes, says: str) -> None:
    """With the file, and what is wrong."""
    (tmp_path / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=says) as caught:
        plan_of(tmp_path, tmp_path / "x.csv")
    assert caught.value.hint


def test_files_of_csv_make_a_plan(tmp_path: Path) -> None:
    """Shards, compressed files, categories and own columns work as for JSON; cells are text."""
    rows = [{"prompt": f"p\n{i}", "completion": "c", "kind": "ab"[i % 2], "n": str(i)} for i in range(400)]
    text = written([list(rows[0]), *(list(row.values()) for row in rows)], ",", "\r\n", csv.QUOTE_MINIMAL)
    (tmp_path / "a.csv").write_text(text, newline="")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    plan = plan_of(tmp_path / "work", tmp_path, shard_bytes=2048)
    assert records_of(plan) == columns_of(plan) == rows * 2
    shards = read_all(plan)
    assert len(shards) > 8
    assert [line for shard in shards for line in shard.lines] == [2 + 2 * i for i in range(400)] * 2
    plan = plan_of(tmp_path / "w2", tmp_path / "a.csv", category_field="kind", take={"b": 7})
    assert records_of(plan) == [row for row in rows if row["kind"] == "b"][:7]


def test_a_truncated_stream_keeps_the_rows_before_it(tmp_path: Path) -> None:
    """The break is one rejected row, on its line."""
    import bz2
    import random

    numbers = random.Random(0)
    body = "".join(f"{numbers.random()},c\n" for _ in range(100_000))
    packed = bz2.compress(b"p,c\n" + body.encode())
    (tmp_path / "x.csv.bz2").write_bytes(packed[: len(packed) * 3 // 4])
    plan = plan_of(tmp_path, tmp_path / "x.csv.bz2", prompt_column="p", completion_column="c")
    shards = read_all(plan)
    records = [record for shard in shards for record in shard.records]
    assert 10_000 < len(records) < 100_000
    assert [record["p"] for record in records[:-1]] == [line[:-2] for line in body.split("\n")[: len(records) - 1]]  # type: ignore[index]
    assert isinstance(records[-1], RecordProblem)
    assert "ends in the middle" in records[-1].detail
    assert shards[-1].lines[-1] == len(records) + 1
