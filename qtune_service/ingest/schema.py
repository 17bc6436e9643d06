"""Merge the columns of all sources into one Arrow schema, and name the types of JSON text and of nulls.

Types form a lattice and are merged pairwise, so that pieces can be scanned in parallel. Null merges with any type,
numbers widen, and the fields of structs and lists merge. Types without a common type that keeps values unchanged are
stored as JSON text, in a string field with the metadata `qtune.encoding: json`:
- types that differ in kind (text and number), integers beyond 64 bits, integers beyond 2^53 beside floats;
- structs of more than 32 fields (free-form arguments of tool calls explode otherwise) and nesting beyond 32 levels;
- structs without fields, which Parquet cannot hold;
- ragged structs: JSON objects of which some lack a key. Arrow would fill the key with null.
The smallest enclosing field becomes text, not its whole column. `rows.records_of` decodes the values. Product files
hold such fields in Arrow's JSON type (`arrow.json`), which `datasets` reads as objects; see `with_json_type`.

`Keys` holds what the values of a field say about its key, while schemas are merged. `finish` derives the meaning of a
null, in the metadata `qtune.null`:
- of a column: the record has the column with null, or lacks it (`absent`). If both occur, the column becomes JSON text:
  an Arrow null is a missing column, the text `null` a null.
- of a field in a struct: the key is missing (padding of Arrow), or the record states null (`stated`).

One thing changes: an integer among floats reads back as an equal float (1 as 1.0). Keys of a struct have the order of
the first record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Flag
from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError

MAX_STRUCT_FIELDS = 32
MAX_DEPTH = 32
MAX_COLUMNS = 4096
EXACT_FLOAT = 1 << 53
_ENCODING, _JSON, _WIDE, _KEYS, _NULL = b"qtune.encoding", b"json", b"qtune.wide", b"qtune.keys", b"qtune.null"
_ABSENT, _STATED = b"absent", b"stated"
JSON_TYPE = pa.json_(pa.string())


class Keys(Flag):
    """What the values of a field say about its key."""

    NONE = 0
    MISSING = 1
    """Some record or object lacks it."""
    NULL = 2
    """Some record states null."""
    PADDED = 4
    """A null of it, from an Arrow source, may stand for a missing key."""
    JSON = 8
    """Of a struct: some values are JSON objects, of which each has its own keys."""


def json_field(name: str) -> pa.Field[Any]:
    """Return a field of JSON text."""
    return pa.field(name, pa.string(), metadata={_ENCODING: _JSON})


def is_json_type(of: pa.DataType) -> bool:
    """Return whether a type is Arrow's JSON type."""
    return isinstance(of, pa.JsonType)


def is_json(field: pa.Field[Any]) -> bool:
    """Return whether the field holds JSON text."""
    return is_json_type(field.type) or (field.metadata or {}).get(_ENCODING) == _JSON


def holds_json(field: pa.Field[Any]) -> bool:
    """Return whether the field or a nested field holds JSON text."""
    if pa.types.is_struct(field.type):
        return any(holds_json(child) for child in field.type.fields)
    return holds_json(field.type.value_field) if is_list(field.type) else is_json(field)


def keys_of(field: pa.Field[Any]) -> Keys:
    """Return what the values of a field say about its key."""
    return Keys(int((field.metadata or {}).get(_KEYS, 0)))


def with_keys(field: pa.Field[Any], keys: Keys) -> pa.Field[Any]:
    """Return the field with `keys` in place of its own."""
    return _with_metadata(field, _KEYS, b"%d" % keys.value if keys else None)


def is_absent(column: pa.Field[Any]) -> bool:
    """Return whether a null in a column of a finished schema means that the record lacks the column."""
    return (column.metadata or {}).get(_NULL) == _ABSENT


def is_stated(field: pa.Field[Any]) -> bool:
    """Return whether a null in a field of a struct is a null of the record, and not padding."""
    return (field.metadata or {}).get(_NULL) == _STATED


def _with_metadata(field: pa.Field[Any], key: bytes, value: bytes | None) -> pa.Field[Any]:
    metadata: dict[bytes | str, bytes | str] = {n: text for n, text in (field.metadata or {}).items() if n != key}
    if value is not None:
        metadata[key] = value
    return field.with_metadata(metadata) if metadata else field.remove_metadata()


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
    """Merge schemas. Columns keep the order of their first appearance. A schema without columns has no records."""
    merged: dict[str, pa.Field[Any]] = {}
    counts: Counter[str] = Counter()
    num_schemas = 0
    for schema in schemas:
        num_schemas += len(schema) > 0
        counts.update(schema.names)
        for field in schema:
            known = merged.get(field.name)
            merged[field.name] = field if known is None or known.equals(field, True) else merge(known, field)
        if len(merged) > MAX_COLUMNS:
            raise too_many_columns(merged)
    return pa.schema([field if counts[name] == num_schemas else _missing(field) for name, field in merged.items()])


def _missing(field: pa.Field[Any]) -> pa.Field[Any]:
    return with_keys(field, keys_of(field) | Keys.MISSING)


def merge(a: pa.Field[Any], b: pa.Field[Any], depth: int = 0) -> pa.Field[Any]:
    """Return the narrowest field that holds the values of both unchanged."""
    return with_keys(_merge_types(a, b, depth), keys_of(a) | keys_of(b))


def _merge_types(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    if is_json(a) or is_json(b) or depth > MAX_DEPTH:
        return json_field(a.name)
    if pa.types.is_null(a.type) or pa.types.is_null(b.type) or a.equals(b, True):
        return (b if pa.types.is_null(a.type) else a).with_name(a.name)
    return _merge_kinds(a, b, depth)


def _merge_kinds(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    if pa.types.is_struct(a.type) and pa.types.is_struct(b.type):
        return _merge_structs(a, b, depth)
    if is_list(a.type) and is_list(b.type):
        return _merge_lists(a, b, depth)
    if a.type.equals(b.type):
        return wide_field(a.name, a.type) if _is_wide(a) or _is_wide(b) else pa.field(a.name, a.type)
    if _is_number(a.type) and _is_number(b.type):
        return _merge_numbers(a, b)
    return _merge_others(a, b)


def _merge_structs(a: pa.Field[Any], b: pa.Field[Any], depth: int) -> pa.Field[Any]:
    fields = {field.name: field for field in a.type.fields}
    others = {field.name: field for field in b.type.fields}
    for name, field in others.items():
        fields[name] = merge(fields[name], field, depth + 1) if name in fields else _missing(field)
    fields |= {name: _missing(field) for name, field in fields.items() if name not in others}
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


def is_list(of: pa.DataType) -> bool:
    """Return whether a type is a list with a field for its items."""
    return bool(pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of))


def finish(schema: pa.Schema) -> pa.Schema:
    """Finalize a merged schema: decide which structs become JSON text and what nulls mean, and remove other marks."""
    return pa.schema([_finish_column(field) for field in schema])


def _finish_column(field: pa.Field[Any]) -> pa.Field[Any]:
    keys = keys_of(field)
    if Keys.MISSING not in keys:
        return _finish_field(field)
    done = json_field(field.name) if Keys.NULL in keys else _finish_field(field)
    return _with_metadata(done, _NULL, _ABSENT)


def _finish_field(field: pa.Field[Any]) -> pa.Field[Any]:
    if is_json(field):
        return json_field(field.name)
    if pa.types.is_struct(field.type):
        if not 0 < field.type.num_fields <= MAX_STRUCT_FIELDS or _is_ragged(field):
            return json_field(field.name)
        return pa.field(field.name, pa.struct([_finish_child(child) for child in field.type.fields]))
    if is_list(field.type):
        return pa.field(field.name, _list_of(field.type, _finish_field(field.type.value_field)))
    return pa.field(field.name, field.type)


def _finish_child(field: pa.Field[Any]) -> pa.Field[Any]:
    done = _finish_field(field)
    return _with_metadata(done, _NULL, _STATED) if Keys.NULL in keys_of(field) else done


def _is_ragged(field: pa.Field[Any]) -> bool:
    """Return whether Arrow cannot hold the keys of JSON objects: some lack a key, or a null has two meanings."""
    all_keys = [keys_of(child) for child in field.type.fields]
    if Keys.JSON in keys_of(field) and any(Keys.MISSING in keys for keys in all_keys):
        return True
    return any(Keys.NULL in keys and keys & (Keys.PADDED | Keys.MISSING) for keys in all_keys)


def _list_of(like: Any, item: pa.Field[Any]) -> pa.DataType:
    """Return a type of lists of the same kind with other items."""
    if pa.types.is_fixed_size_list(like):
        size: int = like.list_size
        return pa.list_(item, size)
    return pa.large_list(item) if pa.types.is_large_list(like) else pa.list_(item)


# --- Arrow sources and files


def arrow_column(field: pa.Field[Any]) -> pa.Field[Any]:
    """Return a column of an Arrow source for merging. Arrow's JSON type becomes JSON text."""
    return with_keys(_arrow_field(field), Keys.MISSING if is_absent(field) else Keys.NONE)


def _arrow_field(field: pa.Field[Any]) -> pa.Field[Any]:
    if is_json(field):
        return json_field(field.name)
    if pa.types.is_struct(field.type):
        children = [
            with_keys(_arrow_field(child), Keys.NULL if is_stated(child) else Keys.PADDED)
            for child in field.type.fields
        ]
        return pa.field(field.name, pa.struct(children))
    if is_list(field.type):
        return pa.field(field.name, _list_of(field.type, _arrow_field(field.type.value_field)))
    return pa.field(field.name, field.type)


def with_json_type(field: pa.Field[Any]) -> pa.Field[Any]:
    """Return the field with Arrow's JSON type for JSON text, also in nested fields. The meaning of nulls is kept."""
    if is_json(field):
        return _with_metadata(field.with_type(JSON_TYPE), _ENCODING, None)
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([with_json_type(child) for child in field.type.fields]))
    if is_list(field.type):
        return field.with_type(_list_of(field.type, with_json_type(field.type.value_field)))
    return field


def as_json_type(table: pa.Table) -> pa.Table:
    """Return the table with Arrow's JSON type for JSON text, in which product files hold it."""
    fields = [with_json_type(field) for field in table.schema]
    columns = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(table.columns, fields, strict=True)
    ]
    return pa.table(columns, schema=pa.schema(fields))


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
