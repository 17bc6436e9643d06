"""Merge the columns of all sources into one Arrow schema, and convert values to it.

Types form a lattice and are merged pairwise, so that pieces can be scanned in parallel. Null merges with any type,
numbers widen, and the fields of structs and lists merge. Types without a common type that keeps values unchanged are
stored as JSON text, in a string field with the metadata `qtune.encoding: json`:
- types that differ in kind (text and number), integers beyond 64 bits, integers beyond 2^53 beside floats;
- structs of more than 32 fields (free-form arguments of tool calls explode otherwise) and nesting beyond 32 levels;
- structs without fields, which Parquet cannot hold.
The smallest enclosing field becomes text, not its whole column. `restore` decodes the values.

Two things change: a missing key reads back as null, and an integer among floats as a float (1 as 1.0).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError
from qtune_service.ingest.jsonl import encode_value

MAX_STRUCT_FIELDS = 32
MAX_DEPTH = 32
MAX_COLUMNS = 4096
EXACT_FLOAT = 1 << 53
_ENCODING, _JSON, _WIDE = b"qtune.encoding", b"json", b"qtune.wide"


def json_field(name: str) -> pa.Field[Any]:
    """Return a field of JSON text."""
    return pa.field(name, pa.string(), metadata={_ENCODING: _JSON})


def is_json(field: pa.Field[Any]) -> bool:
    """Return whether the field holds JSON text."""
    return (field.metadata or {}).get(_ENCODING) == _JSON


def holds_json(field: pa.Field[Any]) -> bool:
    """Return whether the field or a nested field holds JSON text."""
    if pa.types.is_struct(field.type):
        return any(holds_json(child) for child in field.type.fields)
    return holds_json(field.type.value_field) if _is_list(field.type) else is_json(field)


def wide_field(name: str, of: pa.DataType) -> pa.Field[Any]:
    """Return a field of integers beyond exact floats. `finish` removes the mark."""
    return pa.field(name, of, metadata={_WIDE: b"1"})


def too_many_columns(names: Iterable[str]) -> DataError:
    """Return the error for records with keys that are data instead of names."""
    some = ", ".join(list(names)[:5])
    return DataError(
        f"the records have more than {MAX_COLUMNS} different top-level keys ({some}, ...)",
        "Each record should be one object with the same few keys.",
    )


# --- merging


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Merge schemas. Columns keep the order of their first appearance."""
    merged: dict[str, pa.Field[Any]] = {}
    for schema in schemas:
        for field in schema:
            known = merged.get(field.name)
            merged[field.name] = field if known is None or known.equals(field, True) else merge(known, field)
        if len(merged) > MAX_COLUMNS:
            raise too_many_columns(merged)
    return pa.schema(list(merged.values()))


def merge(a: pa.Field[Any], b: pa.Field[Any], depth: int = 0) -> pa.Field[Any]:
    """Return the narrowest field that holds the values of both unchanged."""
    if is_json(a) or is_json(b) or depth > MAX_DEPTH:
        return json_field(a.name)
    if pa.types.is_null(a.type) or pa.types.is_null(b.type) or a.equals(b, True):
        return (b if pa.types.is_null(a.type) else a).with_name(a.name)
    return _merge_kinds(a, b, depth)


def _merge_kinds(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    if pa.types.is_struct(a.type) and pa.types.is_struct(b.type):
        return _merge_structs(a, b, depth)
    if _is_list(a.type) and _is_list(b.type):
        return _merge_lists(a, b, depth)
    if a.type.equals(b.type):
        return wide_field(a.name, a.type) if _is_wide(a) or _is_wide(b) else pa.field(a.name, a.type)
    if _is_number(a.type) and _is_number(b.type):
        return _merge_numbers(a, b)
    return _merge_others(a, b)


def _merge_structs(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    fields = {field.name: field for field in a.type.fields}
    for field in b.type.fields:
        fields[field.name] = merge(fields[field.name], field, depth + 1) if field.name in fields else field
    if len(fields) > MAX_STRUCT_FIELDS:
        return json_field(a.name)
    return pa.field(a.name, pa.struct(list(fields.values())))


def _merge_lists(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    item = merge(a.type.value_field, b.type.value_field, depth + 1)
    is_large = pa.types.is_large_list(a.type) or pa.types.is_large_list(b.type)
    return pa.field(a.name, pa.large_list(item) if is_large else pa.list_(item))


def _merge_numbers(a: pa.Field[Any], b: pa.Field[Any]) -> pa.Field[Any]:
    if pa.types.is_floating(a.type) and pa.types.is_floating(b.type):
        return pa.field(a.name, max(a.type, b.type, key=lambda kind: kind.bit_width))
    if pa.types.is_floating(a.type) or pa.types.is_floating(b.type):
        return json_field(a.name) if _is_wide(a) or _is_wide(b) else pa.field(a.name, pa.float64())
    if pa.types.is_uint64(a.type) or pa.types.is_uint64(b.type):
        signed = pa.types.is_signed_integer(a.type) or pa.types.is_signed_integer(b.type)
        return json_field(a.name) if signed else wide_field(a.name, pa.uint64())
    widest = pa.int64() if max(a.type.bit_width, b.type.bit_width) >= 32 else pa.int32()
    return wide_field(a.name, widest) if _is_wide(a) or _is_wide(b) else pa.field(a.name, widest)


def _merge_others(a: pa.Field[Any], b: pa.Field[Any]) -> pa.Field[Any]:
    """Merge text, binary, times, decimals and dictionaries of one kind. Other types become JSON text."""
    if pa.types.is_dictionary(a.type) or pa.types.is_dictionary(b.type):
        plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in (a, b)]
        return merge(plain[0], plain[1])
    try:
        schemas = [pa.schema([pa.field("x", f.type)]) for f in (a, b)]
        return pa.field(a.name, pa.unify_schemas(schemas, promote_options="permissive").field(0).type)
    except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return json_field(a.name)


def _is_wide(field: pa.Field[Any]) -> bool:
    return _WIDE in (field.metadata or {})


def _is_number(of: pa.DataType) -> bool:
    return bool(pa.types.is_integer(of) or pa.types.is_floating(of))


def _is_list(of: pa.DataType) -> bool:
    return bool(pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of))


def finish(schema: pa.Schema) -> pa.Schema:
    """Finalize a merged schema: empty structs become JSON text, and marks and file metadata are removed."""
    return pa.schema([_finish_field(field) for field in schema])


def _finish_field(field: pa.Field[Any]) -> pa.Field[Any]:
    if is_json(field):
        return field
    if pa.types.is_struct(field.type):
        if not 0 < field.type.num_fields <= MAX_STRUCT_FIELDS:
            return json_field(field.name)
        return pa.field(field.name, pa.struct([_finish_field(child) for child in field.type.fields]))
    if pa.types.is_list(field.type):
        return pa.field(field.name, pa.list_(_finish_field(field.type.value_field)))
    if pa.types.is_large_list(field.type):
        return pa.field(field.name, pa.large_list(_finish_field(field.type.value_field)))
    return pa.field(field.name, field.type)


# --- values


def to_array(values: Sequence[Any], field: pa.Field[Any]) -> Any:
    """Build a column from Python values, as JSON text if the field requires it."""
    encode = _encoder(field)
    return pa.array(values if encode is None else [encode(value) for value in values], type=field.type)


Change = Callable[[Any], Any]


def _encoder(field: pa.Field[Any]) -> Change | None:
    """Return the conversion of values for Arrow, or None if no value changes."""
    return _change(field, lambda value: None if value is None else encode_value(value))


def _change(field: pa.Field[Any], leaf: Change) -> Change | None:
    if is_json(field):
        return leaf
    if pa.types.is_struct(field.type):
        return _change_struct({f.name: change for f in field.type.fields if (change := _change(f, leaf))})
    if _is_list(field.type):
        item = _change(field.type.value_field, leaf)
        return None if item is None else lambda value: None if value is None else [item(one) for one in value]
    return None


def _change_struct(changes: Mapping[str, Change]) -> Change | None:
    if not changes:
        return None

    def change(value: Any) -> Any:
        if value is None:
            return None
        return value | {name: of(value[name]) for name, of in changes.items() if name in value}

    return change


def restore(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    """Decode the JSON text in rows of `Table.to_pylist`."""
    changes = {f.name: change for f in schema if (change := _change(f, lambda v: None if v is None else json.loads(v)))}
    restored = _change_struct(changes)
    return list(rows) if restored is None else [restored(row) for row in rows]


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert Arrow columns to a unified schema. Missing columns are null."""
    columns = [
        _conform(table.column(field.name).combine_chunks(), field)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _conform(array: Any, field: pa.Field[Any]) -> Any:
    """Cast a column to its field. Nested types are converted through Python values."""
    if array.type.equals(field.type) and not is_json(field):
        return array
    if is_json(field) or pa.types.is_nested(field.type):
        return to_array(array.to_pylist(), field)
    return array.cast(field.type)


# --- names


def output_names(columns: Iterable[str], reserved: Iterable[str]) -> dict[str, str]:
    """Return the output names of carried columns: `original_NAME` for reserved names."""
    names, taken = list(columns), set(reserved)
    result = {name: name for name in names if name not in taken}
    for name in names:
        if name not in result:
            renamed = f"original_{name}"
            while renamed in taken or renamed in names or renamed in result.values():
                renamed = f"original_{renamed}"
            result[name] = renamed
    return {name: result[name] for name in names}
