"""Tests of the own columns: whatever the records hold comes back unchanged."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.ingest import schema
from qtune_service.ingest.json_schema import infer_lines, infer_records
from qtune_service.ingest.rows import conform, records_of, to_array
from qtune_service.ingest.schema import finish, is_json, output_names, unify
from tests.unit.ingest.planning import plan_of, read_all

words = st.one_of(st.text(max_size=6), st.sampled_from(["2020-01-01", "2020-01-01T00:00:00Z", "12:00:00", "1", "true"]))
numbers = st.one_of(
    st.integers(-5, 5), st.integers(-(1 << 70), 1 << 70), st.sampled_from([2**53 + 1, 2**63, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1e300, 0.1, 2.0]),
)  # fmt: skip
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda of: st.one_of(st.lists(of, max_size=3), st.dictionaries(st.sampled_from("abcdé"), of, max_size=3)),
    max_leaves=6,
)
columns = st.dictionaries(st.sampled_from(["n", "s", "deep", "x y"]), values, max_size=4)


def same(got: Any, given: Any) -> bool:
    """Equal with the same keys, but for integers that became equal floats."""
    if isinstance(given, dict):
        return isinstance(got, dict) and got.keys() == given.keys() and all(same(got[k], given[k]) for k in given)
    if isinstance(given, list):
        return isinstance(got, list) and len(got) == len(given) and all(map(same, got, given))
    if isinstance(given, bool) or isinstance(got, bool):
        return given is got
    return bool(got == given)


def test_the_comparison_itself() -> None:
    """What `same` lets pass is documented, and no more."""
    assert same({"b": 1.0}, {"b": 1})
    assert not same({"a": None}, {})
    assert not same({}, {"a": None})
    assert not same({"a": 1}, {})
    assert not same([1], [1, 2])
    assert not same(True, 1)
    assert not same("1", 1)


def roundtrip(rows: list[dict[str, Any]], pieces: int) -> list[dict[str, Any]]:
    """Write JSON lines, plan them in so many chunks, read, write own columns as Parquet, read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        size = max(1024, path.stat().st_size // pieces)
        plan = plan_of(folder, path, shard_bytes=size)
        tables = [shard.own_columns(range(len(shard.records))) for shard in read_all(plan)]
        pq.write_table(pa.concat_tables(tables), Path(folder) / "out.parquet")
        return records_of(pq.read_table(Path(folder) / "out.parquet"))


@settings(max_examples=80, deadline=None)
@given(st.lists(columns, min_size=1, max_size=12))
def test_any_json_comes_back(rows: list[dict[str, Any]]) -> None:
    """Random records, through scan, plan, shards, Arrow and a Parquet file, are what they were."""
    rows = [{"prompt": "p" * 300, "completion": "c", **row} for row in rows]
    for got, expected in zip(roundtrip(rows, pieces=4), rows, strict=True):
        assert same(got, expected), (got, expected)


def line_schema(*rows: Any) -> pa.Schema:
    return finish(infer_lines([json.dumps(row).encode() for row in rows]))


def test_times_in_text_stay_text() -> None:
    """JSON has no times: what looks like one is text."""
    assert line_schema({"t": "2020-01-01"}, {"t": "2021-01-01T00:00:00Z"}).field("t").type == pa.string()


def test_integers_beside_floats() -> None:
    """They become floats where that is exact, JSON text where it is not."""
    assert line_schema({"n": 1}, {"n": 2.5}).field("n").type == pa.float64()
    assert is_json(line_schema({"n": 2**53 + 1}, {"n": 2.5}).field("n"))
    assert line_schema({"n": 2**53 + 1}).field("n").type == pa.int64()
    assert is_json(line_schema({"n": 2**64}).field("n"))
    wide, small = infer_lines([b'{"n": 9007199254740993}']), infer_lines([b'{"n": 0.5}'])
    assert is_json(finish(unify([wide, small])).field("n"))
    assert is_json(finish(unify([small, wide])).field("n"))


def test_structs_that_explode_become_text() -> None:
    """Free-form objects become JSON text, and only they: their column keeps its shape."""
    rows = [{"calls": [{"name": "f", "arguments": {f"key{i}": i}}]} for i in range(40)]
    field = line_schema(*rows).field("calls")
    assert field.type.value_type.field("name").type == pa.string()
    assert is_json(field.type.value_type.field("arguments"))
    half = [infer_lines([json.dumps(row).encode() for row in part]) for part in (rows[:20], rows[20:])]
    assert finish(unify(half)).field("calls").equals(field, check_metadata=True)


def test_empty_structs_become_text() -> None:
    """Parquet cannot hold a struct without fields, and fields that only some objects have would be padding."""
    assert is_json(line_schema({"m": {}}).field("m"))
    assert is_json(line_schema({"m": {}}, {"m": {"a": 1}}).field("m"))


def test_deep_nesting_is_no_crash() -> None:
    """Nesting that would overflow a parser's stack is text, or one bad record."""
    deep = b'{"a":' * 200 + b"1" + b"}" * 200
    assert "a" in finish(infer_lines([deep])).names
    abyss = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert infer_lines([b'{"b": 1}', abyss]).names == ["b"]


def test_unique_keys_need_little_memory() -> None:
    """Thousands of different keys in a nested field are noticed before a cell for each row and key is filled."""
    lines = [json.dumps({"args": {f"k{i}": i}, "prompt": "p"}).encode() for i in range(30_000)]
    before = pa.default_memory_pool().max_memory() or 0
    field = finish(infer_lines(lines)).field("args")
    assert is_json(field)
    assert (pa.default_memory_pool().max_memory() or 0) - before < 100 << 20


def test_too_many_columns_are_refused() -> None:
    """Keys that are data rather than names are an error, not a table of a million columns."""
    lines = [json.dumps({f"id-{i}": 1}).encode() for i in range(5000)]
    with pytest.raises(DataError, match="more than 4096 different top-level keys"):
        infer_lines(lines)


@settings(max_examples=100, deadline=None)
@given(st.lists(columns, min_size=3, max_size=3))
def test_merging_does_not_depend_on_the_order(rows: list[dict[str, Any]]) -> None:
    """Pieces may be scanned in any grouping: types and nulls are the same, and so are those of the slow way."""
    rows = [{"p": 1, **row} for row in rows]  # an empty record is none
    pieces = [infer_records([row]) for row in rows]
    types = {tuple(sorted((f.name, str(canonical(f))) for f in finish(unify(order)))) for order in permutations(pieces)}
    grouped = finish(unify([unify(pieces[:2]), unify(pieces[2:])]))
    assert types == {tuple(sorted((f.name, str(canonical(f))) for f in grouped))}
    whole = finish(infer_lines([json.dumps(row).encode() for row in rows]))
    assert tuple(sorted((f.name, str(canonical(f))) for f in whole)) in types


def canonical(field: Any) -> Any:
    """Return a field's type and the meaning of its nulls, with the fields of structs in order of their names."""
    kind = field.type
    if is_json(field):
        kind = "json"
    elif pa.types.is_struct(field.type):
        kind = sorted((child.name, str(canonical(child))) for child in field.type.fields)
    elif pa.types.is_list(field.type):
        kind = ["list", canonical(field.type.value_field)]
    return kind, schema.is_absent(field), schema.is_stated(field)


def test_arrow_types_survive_exactly(tmp_path: Path) -> None:
    """Times, decimals, binary, dictionaries and small integers of Parquet stay what they are."""
    table = pa.table(
        {
            "prompt": ["p"] * 3,
            "completion": ["c"] * 3,
            "when": pa.array([dt.datetime(2020, 1, 2, 3, 4, 5, 6, dt.UTC)] * 3, pa.timestamp("us", "UTC")),
            "price": pa.array([decimal.Decimal("1.20"), None, decimal.Decimal("-0.01")], pa.decimal128(10, 2)),
            "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "small": pa.array([1, None, 255], pa.uint8()),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "nested": pa.array([[{"a": 1}], [], None], pa.list_(pa.struct([("a", pa.int16())]))),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (shard,) = read_all(plan_of(tmp_path, tmp_path / "x.parquet"))
    assert shard.own_columns(range(3)).equals(table)
    assert shard.own_columns([2, 0]).equals(table.take([2, 0]))


def test_sources_of_different_types_meet(tmp_path: Path) -> None:
    """Parquet and JSON with the same columns share one schema; what has no common type is JSON text."""
    pq.write_table(
        pa.table(
            {
                "prompt": ["p"],
                "completion": ["c"],
                "n": pa.array([1], pa.int32()),
                "mixed": pa.array([dt.date(2020, 1, 2)]),
                "meta": pa.array([{"a": 1}]),
                "id": pa.array([2**60], pa.int64()),
            }
        ),
        tmp_path / "a.parquet",
    )
    row = {"prompt": "q", "completion": "d", "n": 0.5, "mixed": "text", "meta": {"b": "x"}, "id": 0.25}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    shards = read_all(plan_of(tmp_path, tmp_path))
    table = pa.concat_tables([shard.own_columns(range(1)) for shard in shards])
    assert records_of(table) == [
        {"prompt": "p", "completion": "c", "n": 1.0, "mixed": "2020-01-02", "meta": {"a": 1}, "id": 2**60},
        {"prompt": "q", "completion": "d", "n": 0.5, "mixed": "text", "meta": {"b": "x"}, "id": 0.25},
    ]


@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.int8(), pa.int32()),
        (pa.uint32(), pa.int32(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int16(), pa.float32(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
        (pa.list_(pa.int32()), pa.large_list(pa.float32()), pa.large_list(pa.float64())),
        (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.int64(), pa.uint64(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.timestamp("s"), pa.string(), None),
        (pa.struct([("a", pa.int64())]), pa.list_(pa.int64()), None),
    ],
)
def test_arrow_types_merge(one: pa.DataType, other: pa.DataType, merged: pa.DataType | None) -> None:
    """Either way round, two types meet in the narrowest that holds both, else in JSON text."""
    for pair in ((one, other), (other, one)):
        field = finish(unify([pa.schema([("x", kind)]) for kind in pair])).field("x")
        assert (field.type == merged and not is_json(field)) if merged is not None else is_json(field)


def test_conform_adds_what_is_missing() -> None:
    """Columns that a source lacks are null, nested fields too; numbers widen without loss."""
    goal = pa.schema(
        [("a", pa.float64()), ("s", pa.struct([("x", pa.int64()), ("y", pa.string())])), ("new", pa.string())]
    )
    table = pa.table({"s": pa.array([{"x": 1}, None]), "a": pa.array([1, 2], pa.int32())})
    assert conform(table, goal).to_pylist() == [
        {"a": 1.0, "s": {"x": 1, "y": None}, "new": None},
        {"a": 2.0, "s": None, "new": None},
    ]


def test_names_that_an_output_needs_are_kept_free() -> None:
    """Own columns that collide are renamed, never lost, and the new names collide with nothing."""
    names = output_names(["id", "labels", "original_labels", "qtune"], {"labels", "qtune", "original_qtune"})
    assert names == {
        "id": "id",
        "labels": "original_original_labels",
        "original_labels": "original_labels",
        "qtune": "original_original_qtune",
    }
    assert len(set(names.values())) == 4


def test_foreign_values_as_json_text() -> None:
    """Values that JSON does not know have a documented text."""
    field = schema.json_field("x")
    made = to_array([b"\x01", decimal.Decimal("1.5"), dt.date(2020, 1, 1), {"ü": [1, None]}, None], field)
    assert made.to_pylist() == ['"AQ=="', '"1.5"', '"2020-01-01"', '{"ü":[1,null]}', None]
