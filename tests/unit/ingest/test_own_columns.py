"""ingest/json_schema.py: Arrow's reader and the parsed values give the same columns."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.ingest import json_schema
from qtune_service.ingest.json_schema import infer_lines
from qtune_service.ingest.jsonl import parse_line
from qtune_service.ingest.rows import column_of
from qtune_service.ingest.schema import finish

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 66), 1 << 66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUE = st.recursive(SCALAR, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abc"), v, max_size=3))
RECORDS = st.lists(st.dictionaries(st.sampled_from("abcd"), VALUE, max_size=4), min_size=1, max_size=5)


def both(lines: list[bytes]) -> tuple[pa.Table, pa.Table, bool]:
    """Return the columns, the same from Python values, and whether Arrow's reader made the former."""
    records: list[Any] = [parse_line(line) for line in lines]
    schema = finish(infer_lines(lines))
    rows = [record if isinstance(record, dict) else {} for record in records]
    arrays = [column_of(rows, field) for field in schema]
    is_fast = all(map(json_schema._is_plain, schema)) and json_schema._read(lines, schema) is not None
    return json_schema.own_columns(lines, records, schema), pa.Table.from_arrays(arrays, schema=schema), is_fast


@given(RECORDS)
def test_both_ways_agree(records: list[dict[str, Any]]) -> None:
    """Any JSON: same schema, same values, to the last bit of a float."""
    made, wanted, _ = both([json.dumps(record).encode() for record in records])
    assert made.schema.equals(wanted.schema, check_metadata=True)
    assert repr(made.to_pylist()) == repr(wanted.to_pylist())


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": 123456789012345678901234567890}',
        b'\xef\xbb\xbf{"a": "x"}',
        b'{"a": "2024-01-01T00:00:00"}',
        b'{"a": {}}',
        b"{}",
        b'{"a": "half \\ud800"}',
        b"not json",
    ],
)
def test_odd_lines_among_good_ones(line: bytes) -> None:
    """What Arrow's reader would refuse or read otherwise comes out as the parsed value."""
    made, wanted, _ = both([b'{"a": "x", "b": [1, 2]}', line])
    assert repr(made.to_pylist()) == repr(wanted.to_pylist())


def test_ordinary_records_take_the_fast_way() -> None:
    """Chats with ids, numbers and null go through Arrow's reader."""
    turn = {"role": "user", "content": '\u6f22 \\ " \n'}
    *_, is_fast = both(
        [json.dumps({"id": i, "x": i / 3, "messages": [turn] * i, "none": None}).encode() for i in range(3)]
    )
    assert is_fast
