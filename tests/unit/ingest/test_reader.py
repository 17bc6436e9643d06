"""Tests of records: good ones, and a reason for each bad one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtune_service.ingest.jsonl import RecordProblem, category_of, parse_line
from qtune_service.ingest.reader import sample_id
from tests.unit.ingest.planning import plan_of, read_all

GOOD = b'{"prompt": "p", "completion": "c"}'


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        (b'{"a": 1', "bad_json", "at character 8 of 7"),
        (b'{"a": }', "bad_json", "Expecting value at character 7"),
        (b'{"a": 1} {"b": 2}', "bad_json", "Extra data at character 10"),
        (b"\x00\x00", "bad_json", "at character 1"),
        (b"[" * 100_000, "bad_json", "nested too deeply"),
        (b'{"a": "\\ud800"}', "bad_json", "half of a surrogate pair"),
        (b'{"a": "\xff"}', "not_utf8", "byte 8 of the record"),
        ('{"a": "ü"}'.encode("latin-1"), "not_utf8", "byte 8"),
        (b"[1, 2]", "not_an_object", "this is an array"),
        (b'"text"', "not_an_object", "this is a string"),
        (b"12", "not_an_object", "this is a number"),
        (b"null", "not_an_object", "this is null"),
    ],
)
def test_bad_lines_have_a_reason(line: bytes, reason: str, says: str) -> None:
    """Each kind of bad line has its code, and a detail with the place."""
    problem = parse_line(line)
    assert isinstance(problem, RecordProblem)
    assert problem.reason == reason
    assert says in problem.detail


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b' {"a": 1}\r', {"a": 1}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'{"a": -Infinity}', {"a": -math.inf}),
        (b'{"a": "\\ud83d\\ude00\\u0000"}', {"a": "😀\x00"}),
    ],
)
def test_lenient_where_nothing_is_lost(line: bytes, value: dict[str, Any]) -> None:
    """A byte order mark, CR, long integers and infinities are read."""
    assert parse_line(line) == value


def test_nan_is_read() -> None:
    """NaN, which Python writes, is a number."""
    record = parse_line(b'{"a": NaN}')
    assert isinstance(record, dict)
    assert math.isnan(record["a"])


def test_a_shard_tells_where_its_records_are(tmp_path: Path) -> None:
    """Lines, ids, source and excerpts lead back to the file; problems are rows of nulls in own columns."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n" + GOOD + b"\r\nb\xffad\n" + GOOD)
    (shard,) = read_all(plan_of(tmp_path, path))
    assert shard.lines == [2, 3, 4]
    assert shard.sample_ids == ["0000-00000002", "0000-00000003", "0000-00000004"]
    assert shard.source == str(path)
    assert shard.excerpt(0, 10) == '{"prompt":'
    assert shard.excerpt(1, 100) == "b\ufffdad"
    assert shard.own_columns([2, 1]).to_pylist() == [json.loads(GOOD), {"prompt": None, "completion": None}]
    assert sample_id(12, 345) == "0012-00000345"


def test_parquet_records_hold_the_columns_that_are_needed(tmp_path: Path) -> None:
    """Python sees the format's columns and the category; own columns hold all."""
    row = {"prompt": "p", "completion": "c", "kind": "k", "blob": b"x" * 10}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (shard,) = read_all(plan_of(tmp_path, tmp_path / "x.parquet", category_field="kind"))
    assert shard.records == [{"prompt": "p", "completion": "c", "kind": "k"}]
    assert shard.own_columns([0]).to_pylist() == [row]
    assert json.loads(shard.excerpt(0, 1000)) == shard.records[0]


def test_one_very_long_line(tmp_path: Path) -> None:
    """A line of many times the shard size belongs to the shard where it begins."""
    path = tmp_path / "x.jsonl"
    long = json.dumps({"prompt": "p" * 3_000_000, "completion": "c"}).encode()
    path.write_bytes(GOOD + b"\n" + long + b"\n" + GOOD)
    plan = plan_of(tmp_path, path, shard_bytes=1 << 18)
    assert [shard.lines for shard in read_all(plan)] == [[1, 2], [3]]
    assert len(plan.shards) == 2


@pytest.mark.parametrize(
    ("value", "name"),
    [("math", "math"), (7, "7"), (1.5, "1.5"), (True, "true"), (None, None), (["a"], None), ({}, None)],
)
def test_categories_are_text(value: Any, name: str | None) -> None:
    """Numbers and booleans are named as in JSON; other values are no category."""
    assert category_of({"c": value}, "c") == name
    assert category_of({}, "c") is None
