"""ingest/rows.py: records of Arrow tables without the nulls that Arrow added, and the way back."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.ingest.rows import column_of, conform, records_of, text_of, to_array
from qtune_service.ingest.schema import JSON_TYPE, arrow_column, as_json_type, finish, json_field, unify
from tests.unit.ingest.planning import plan_of, read_all

POINT: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "x": st.none() | st.integers(0, 9),
        "to": st.none() | st.fixed_dictionaries({}, optional={"name": st.text(max_size=3), "none": st.none()}),
        "tags": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=3),
    },
)
ROW: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"n": st.none() | st.integers(0, 9)},
    optional={
        "point": st.none() | POINT,
        "points": st.none() | st.lists(st.none() | POINT, max_size=3),
        "nested": st.lists(st.lists(POINT, max_size=2), max_size=2),
    },
)


def without_nulls(value: Any) -> Any:
    """Return a value without the null fields of its objects."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@given(st.lists(ROW, min_size=1, max_size=6), st.integers(0, 3))
def test_padding_is_left_out_and_nothing_else(rows: list[dict[str, Any]], start: int) -> None:
    """Rows through Arrow, in slices and several chunks, have the keys that they had; items and columns keep nulls."""
    table = pa.concat_tables([pa.Table.from_pylist(rows), pa.Table.from_pylist(rows)], promote_options="permissive")
    names = table.column_names
    expected = [{name: without_nulls(row.get(name)) for name in names} for row in rows + rows]
    assert records_of(table.slice(start)) == expected[start:]
    assert [row for batch in table.slice(start).to_batches(2) for row in records_of(batch)] == expected[start:]


@pytest.mark.parametrize(
    "wrap",
    [
        pa.list_,
        pa.large_list,
        lambda of: pa.list_(of, 1),
        lambda of: pa.map_(pa.string(), of),
        lambda of: pa.struct([("k", of)]),
        lambda of: pa.list_(pa.struct([("k", pa.list_(of))])),
    ],
)
def test_the_json_type_is_decoded_at_any_depth(wrap: Any) -> None:
    """Wherever a type can hold another; integers beyond 64 bits and stated nulls are exact."""
    text, value = (
        '{"a":[null,{"b":null}],"n":12345678901234567890123}',
        {"a": [None, {"b": None}], "n": 12345678901234567890123},
    )
    of, plain = wrap(JSON_TYPE), wrap(pa.string())

    def filled(leaf: Any) -> Any:
        if pa.types.is_map(of):
            return [("k", leaf)]
        if pa.types.is_struct(of):
            return {"k": leaf}
        return [{"k": [leaf]}] if pa.types.is_struct(of.value_type) else [leaf]

    array = pa.array([filled(text), None, filled(None)], plain).cast(of)
    first, second, third = (row["x"] for row in records_of(pa.table({"x": array})))
    assert first == (dict(filled(value)) if pa.types.is_map(of) else filled(value))
    assert second is None
    assert third == ({} if pa.types.is_struct(of) else {"k": None} if pa.types.is_map(of) else filled(None))


def test_text_that_is_no_json_stays() -> None:
    """A broken value of the JSON type is the text that it is, which its format then refuses."""
    table = pa.table({"x": pa.array(["{broken", "NaN", '"\\ud800"'], JSON_TYPE)})
    broken, number, half = (row["x"] for row in records_of(table))
    assert broken == "{broken"
    assert math.isnan(number)
    assert half == "\ud800"


def test_maps_are_objects() -> None:
    """Spark writes free-form objects as maps. Equal keys, and keys that are no text, stay pairs."""
    maps = pa.array([[("a", {"x": 1}), ("b", None)], [], None], pa.map_(pa.string(), pa.struct([("x", pa.int8())])))
    assert [row["m"] for row in records_of(pa.table({"m": maps}))] == [{"a": {"x": 1}, "b": None}, {}, None]
    twice = pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8()))
    assert records_of(pa.table({"m": twice})) == [{"m": [("a", 1), ("a", 2)]}]
    numbers = pa.array([[(1, 2)]], pa.map_(pa.int8(), pa.int8()))
    assert records_of(pa.table({"m": numbers})) == [{"m": [(1, 2)]}]


def test_rows_without_columns_are_empty_records() -> None:
    """A selection of no column still has its rows."""
    assert records_of(pa.table({"a": [1, 2]}).select([])) == [{}, {}]


def test_datasets_writes_what_is_read(tmp_path: Path) -> None:
    """Rows of mixed kinds, written to Parquet by `datasets` in its JSON type, are the same records."""
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "n": {"k": 1}}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "n": {"k": "x"}}]},
    ]
    Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(str(tmp_path / "x.parquet"))
    table = pq.read_table(tmp_path / "x.parquet")
    assert "arrow.json" in str(table.schema)
    assert records_of(table) == rows
    (shard,) = read_all(plan_of(tmp_path, tmp_path / "x.parquet"))
    assert shard.records == rows
    assert records_of(shard.own_columns(range(2))) == rows


@pytest.mark.parametrize("kind", ["saved", "views"])
def test_arrow_files_hold_the_same_records(kind: str, tmp_path: Path) -> None:
    """`save_to_disk` writes padded structs and the JSON type; polars writes text inside of them as views."""
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [tool]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "n": 1}], "tools": []},
    ]
    text = pa.string_view() if kind == "views" else pa.string()
    turn = pa.struct([("role", text), ("content", text), ("n", pa.int8())])
    typed = pa.struct([("name", text), ("parameters", JSON_TYPE)])
    tools = [[{**one, "parameters": json.dumps(one["parameters"])} for one in row["tools"]] for row in rows]
    names: Any = pa.array([[one["name"] for one in row] for row in tools], pa.list_(text))
    parameters = pa.array([one["parameters"] for row in tools for one in row], JSON_TYPE)
    structs = pa.StructArray.from_arrays([names.values, parameters], fields=list(typed))
    table = pa.table(
        {
            "messages": pa.array([row["messages"] for row in rows], pa.list_(turn)),
            "tools": pa.ListArray.from_arrays(names.offsets, structs),
        }
    )
    with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as sink:
        sink.write_table(table)
    (shard,) = read_all(plan_of(tmp_path, tmp_path))
    assert shard.records == rows
    own = shard.own_columns(range(2))
    assert records_of(own) == rows
    assert as_json_type(own).schema.field("tools").type.value_type.field("parameters").type == JSON_TYPE


def source_schema(*tables: pa.Table) -> pa.Schema:
    """Return the schema of a job that reads these tables."""
    return finish(unify(pa.schema([arrow_column(field) for field in table.schema]) for table in tables))


def test_the_json_type_survives_to_the_product() -> None:
    """Columns of Parquet keep their types; JSON text changes its storage only."""
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    text = pa.struct([("a", pa.large_string()), ("t", pa.timestamp("ms", "UTC"))])
    typed = pa.struct([("a", pa.json_(pa.large_string())), ("t", pa.timestamp("ms", "UTC"))])
    table = pa.table({"x": pa.array([[{"a": "1", "t": moment}], None], pa.list_(text)).cast(pa.list_(typed))})
    stored = conform(table, source_schema(table))
    assert stored.schema.field("x").type.value_type.field("a").type == pa.string()
    product = as_json_type(stored)
    assert product.schema.field("x").type.value_type == pa.struct([("a", JSON_TYPE), typed.field("t")])
    assert records_of(product) == records_of(table)
    assert records_of(table)[0] == {"x": [{"a": 1, "t": moment}]}


def test_padding_does_not_enter_json_text() -> None:
    """A padded struct that becomes JSON text beside another type has its own keys only."""
    padded = pa.table({"x": pa.array([{"a": 1}, {"b": [None]}, None])})
    text = pa.table({"x": ["plain"]})
    schema = source_schema(padded, text)
    assert conform(padded, schema)["x"].to_pylist() == ['{"a":1}', '{"b":[null]}', None]
    assert records_of(conform(text, schema)) == [{"x": "plain"}]


def test_text_beside_the_json_type_is_text() -> None:
    """Values of the JSON type are not encoded twice, and a list of texts beside it is encoded."""
    typed = pa.table({"x": pa.array([['{"a":1}', '"s"']], pa.list_(pa.string())).cast(pa.list_(JSON_TYPE))})
    plain = pa.table({"x": pa.array([["1", None]])})
    schema = source_schema(typed, plain)
    rows = records_of(pa.concat_tables([conform(typed, schema), conform(plain, schema)]))
    assert rows == [{"x": [{"a": 1}, "s"]}, {"x": ["1", None]}]


def test_a_missing_column_is_not_a_null() -> None:
    """JSON text tells them apart, also in one column."""
    from qtune_service.ingest.json_schema import infer_records

    rows: list[dict[str, Any]] = [{"p": 1, "x": None}, {"p": 2}, {"p": 3, "x": "t"}]
    (_, field) = finish(infer_records(rows))
    array = column_of(rows, field)
    assert array.to_pylist() == ["null", None, '"t"']
    assert records_of(pa.table([array], schema=pa.schema([field]))) == [{"x": None}, {}, {"x": "t"}]


def test_foreign_values_as_json_text() -> None:
    """Values that JSON does not know have a documented text."""
    made = to_array([b"\x01", dt.date(2020, 1, 1), {"ü": [1, None]}, None], json_field("x"))
    assert made.to_pylist() == ['"AQ=="', '"2020-01-01"', '{"ü":[1,null]}', None]


def test_parquet_and_json_lines_of_one_job_meet(tmp_path: Path) -> None:
    """Each record of a mixed job has its own keys, whatever the other files have."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    calls: list[dict[str, Any]] = [turns[0], turns[1] | {"tool_calls": None}]
    pq.write_table(pa.Table.from_pylist([{"messages": calls, "meta": {"k": 1, "l": None}}]), tmp_path / "a.parquet")
    typed = pa.array([{"k": '{"z":null}'}], pa.struct([("k", pa.string())])).cast(pa.struct([("k", JSON_TYPE)]))
    pq.write_table(pa.table({"messages": [turns], "meta": typed}), tmp_path / "b.parquet")
    lines: list[dict[str, Any]] = [
        {"messages": turns, "meta": {"k": None}},
        {"messages": turns},
        {"messages": turns, "meta": {}},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shards = read_all(plan_of(tmp_path, tmp_path))
    made = [row for shard in shards for row in records_of(shard.own_columns(range(len(shard.records))))]
    expected: list[dict[str, Any]] = [
        {"messages": turns, "meta": {"k": 1}},
        {"messages": turns, "meta": {"k": {"z": None}}},
    ]
    assert made == expected + lines


def test_the_product_as_an_input_is_the_same_records(tmp_path: Path) -> None:
    """Types and marks of pruned/ are read back: missing columns, stated nulls and JSON."""
    from qtune_service.ingest.json_schema import infer_records

    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    own: list[dict[str, Any]] = [
        {"same": {"a": None, "b": 1}, "note": None, "free": {"x": 1}},
        {"same": {"a": 2, "b": 1}, "free": {"y": None}},
        {"same": {"a": 2, "b": 1}, "note": "n", "one": "o", "free": 3},
    ]
    records = [{"messages": turns, **row} for row in own]
    schema = finish(infer_records(records))
    table = pa.Table.from_arrays([column_of(records, field) for field in schema], schema=schema)
    pq.write_table(as_json_type(table), tmp_path / "x.parquet")
    plan = plan_of(tmp_path, tmp_path / "x.parquet")
    assert [(f.name, f.metadata) for f in plan.schema] == [(f.name, f.metadata) for f in schema]
    (shard,) = read_all(plan)
    assert records_of(shard.own_columns(range(3))) == records
    assert records_of(pq.read_table(tmp_path / "x.parquet")) == records


def test_groups_of_json_text_have_plain_names() -> None:
    """A category that is text in one file and a number in another is counted under its own name."""
    table = pa.table(
        [['"math"', "3", None, "true"], ["a", "b", None, "c"]],
        schema=pa.schema([json_field("x"), pa.field("y", pa.string())]),
    )
    assert text_of(table, "x").to_pylist() == ["math", "3", None, "true"]
    assert text_of(table, "y").equals(table["y"])
