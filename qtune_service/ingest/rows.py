"""Convert records between Arrow columns and Python values.

Arrow gives every struct the union of all keys, so a null in a struct is usually padding. `records_of` leaves such keys
out, at any depth, decodes JSON text (`arrow.json`, and the text fields of schema.py), and reads maps as objects. It is
the one way from Arrow to records, for inputs and for every output in JSON. Null counts and types decide which columns
differ from `to_pylist`, so that others cost nothing more. Objects of these are built from whole columns of values.

These nulls stay: items of lists, columns (unless the schema says that they are absent), and fields that the schema
marks as stated. `column_of` and `conform` are the way back, to the columns of a finished schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from qtune_service.ingest.jsonl import Record, decode_value, encode_value
from qtune_service.ingest.schema import holds_json, is_absent, is_json, is_list, is_stated

Change: TypeAlias = Callable[[Any], Any]


# --- Arrow to Python


def records_of(table: pa.Table | pa.RecordBatch) -> list[Record]:
    """Return the rows as records: without padding and absent columns, JSON text decoded."""
    columns: list[Any] = table.columns
    fields = list(table.schema)
    is_absent_in_some = any(is_absent(f) and column.null_count for f, column in zip(fields, columns, strict=True))
    if not is_absent_in_some and not any(map(_differs, columns, fields)):
        rows: list[Record] = table.to_pylist()
        return rows
    names = table.schema.names
    rows = [dict(zip(names, row, strict=True)) for row in zip(*map(values_of, columns, fields), strict=True)]
    for i, field in enumerate(table.schema):
        if is_absent(field) and table.column(i).null_count:
            for row, is_missing in zip(rows, table.column(i).is_null().to_pylist(), strict=True):
                if is_missing:
                    del row[field.name]
    return rows


def values_of(column: Any, field: pa.Field[Any]) -> list[Any]:
    """Return the values of a column (an array or a chunked array): without padding, JSON text decoded."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in values_of(chunk, field)]
    of = column.type
    if not _differs(column, field):
        plain: list[Any] = column.to_pylist()
        return plain
    if is_json(field):
        return [decode_value(text) if isinstance(text, str) else text for text in column.to_pylist()]
    if pa.types.is_struct(of):
        return _objects(column)
    return _maps(column) if pa.types.is_map(of) else _slices(values_of(column.flatten(), of.value_field), column)


def _differs(column: Any, field: pa.Field[Any]) -> bool:
    """Return whether a value differs from that of `to_pylist`: by its null counts and types."""
    if isinstance(column, pa.ChunkedArray):
        return any(_differs(chunk, field) for chunk in column.chunks)
    of = column.type
    if is_json(field) or pa.types.is_map(of):
        return True
    if pa.types.is_struct(of):
        children = list(zip(column.flatten(), of.fields, strict=True))
        return any(_is_padded(child, f, column) or _differs(child, f) for child, f in children)
    if is_list(of) or pa.types.is_list_view(of) or pa.types.is_large_list_view(of):
        return _differs(column.flatten(), of.value_field)
    return False


def _is_padded(child: Any, field: pa.Field[Any], parent: Any) -> bool:
    """Return whether Arrow added nulls to a field of structs. child: null where its parent is."""
    return bool(child.null_count > parent.null_count) and not is_stated(field)


def _objects(array: Any) -> list[Any]:
    """Return the values of structs, without the fields that are null and not stated as such."""
    fields, children = array.type.fields, array.flatten()  # a child is null where its parent is
    names = [field.name for field in fields]
    padded = {f.name for f, child in zip(fields, children, strict=True) if _is_padded(child, f, array)}
    rows = zip(*map(values_of, children, fields), strict=True)
    values: list[Any]
    if padded:
        values = [
            {name: one for name, one in zip(names, row, strict=True) if one is not None or name not in padded}
            for row in rows
        ]
    else:
        values = [dict(zip(names, row, strict=True)) for row in rows]
    if array.null_count:
        for index, is_null in enumerate(array.is_null().to_pylist()):
            if is_null:
                values[index] = None
    return values


def _slices(items: list[Any], lists: Any) -> list[Any]:
    """Return the items of each list, from those of all lists."""
    values: list[Any] = []
    start = 0
    for length in pc.list_value_length(lists).to_pylist():
        if length is None:
            values.append(None)
        else:
            values.append(items[start : start + length])
            start += length
    return values


def _maps(array: Any) -> list[Any]:
    """Return maps as objects where the keys are different texts, else as pairs. Null values are no padding."""
    fields = [array.type.key_field, array.type.item_field]
    entries = array.cast(pa.list_(pa.struct(fields)))
    pairs = list(zip(*map(values_of, entries.flatten().flatten(), fields), strict=True))
    return [one if one is None or not _is_object(one) else dict(one) for one in _slices(pairs, entries)]


def _is_object(pairs: Sequence[tuple[Any, Any]]) -> bool:
    return len({key for key, _ in pairs if isinstance(key, str)}) == len(pairs)


def text_of(table: pa.Table, name: str) -> Any:
    """Return a column for grouping: text inside of JSON text as the text itself, other columns unchanged."""
    column, field = table[name], table.schema.field(name)
    if not is_json(field):
        return column
    values = (
        value if value is None or isinstance(value, str) else encode_value(value) for value in values_of(column, field)
    )
    return pa.chunked_array([pa.array(list(values), pa.string())])


# --- Python to Arrow


def column_of(records: Sequence[Record], field: pa.Field[Any]) -> Any:
    """Build the column of a finished schema from records. A record without it has null there."""
    name = field.name
    if is_json(field) and is_absent(field):
        texts = [encode_value(record[name]) if name in record else None for record in records]
        return pa.array(texts, type=field.type)
    return to_array([record.get(name) for record in records], field)


def to_array(values: Sequence[Any], field: pa.Field[Any]) -> Any:
    """Build an array from Python values, as JSON text if the field requires it."""
    encode = _encoder(field)
    return pa.array(values if encode is None else [encode(value) for value in values], type=field.type)


def _encoder(field: pa.Field[Any]) -> Change | None:
    """Return the conversion of values for Arrow, or None if no value changes."""
    if is_json(field):
        return lambda value: None if value is None else encode_value(value)
    if pa.types.is_struct(field.type):
        changes = {child.name: change for child in field.type.fields if (change := _encoder(child))}
        return _change_struct(changes) if changes else None
    if is_list(field.type):
        item = _encoder(field.type.value_field)
        return None if item is None else lambda value: None if value is None else [item(one) for one in value]
    return None


def _change_struct(changes: Mapping[str, Change]) -> Change:
    def change(value: Any) -> Any:
        if value is None:
            return None
        return value | {name: of(value[name]) for name, of in changes.items() if name in value}

    return change


# --- Arrow to Arrow


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert Arrow columns to a finished schema. Missing columns are null."""
    columns = [
        _conform(table.column(field.name).combine_chunks(), table.schema.field(field.name), field)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _conform(array: Any, source: pa.Field[Any], field: pa.Field[Any]) -> Any:
    """Convert a column to its field. Only nested types of another form are converted through Python values."""
    if _has_same_form(source, field):
        return array if array.type.equals(field.type) else array.cast(field.type)
    if holds_json(field) or pa.types.is_nested(field.type):
        return to_array(values_of(array, source), field)
    return array.cast(field.type)


def _has_same_form(source: pa.Field[Any], field: pa.Field[Any]) -> bool:
    """Return whether the fields differ at most in the storage of JSON text and in nullability."""
    of, to = source.type, field.type
    if is_json(source) or is_json(field):
        return is_json(source) and is_json(field)
    if pa.types.is_struct(of) and pa.types.is_struct(to):
        if [child.name for child in of.fields] != [child.name for child in to.fields]:
            return False
        return all(map(_has_same_form, of.fields, to.fields))
    if is_list(of) and is_list(to):
        is_same_list = of.id == to.id and getattr(of, "list_size", None) == getattr(to, "list_size", None)
        return is_same_list and _has_same_form(of.value_field, to.value_field)
    return bool(of.equals(to))
