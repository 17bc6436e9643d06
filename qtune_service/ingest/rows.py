"""Convert records between Arrow columns and Python values.

Arrow gives every struct the union of all keys, so a null in a struct is usually padding. `records_of` leaves such keys
out, at any depth, decodes JSON text (`arrow.json`, and the text fields of schema.py), and reads maps as objects. It is
the one way from Arrow to records, for inputs and for every output in JSON. Null counts decide which values Python
visits: columns without padding, JSON text and maps are converted by Arrow alone.

These nulls stay: items of lists, columns (unless the schema says that they are absent), and fields that the schema
marks as stated. `column_of` and `conform` are the way back, to the columns of a finished schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from qtune_service.ingest.jsonl import Record, decode_value, encode_value
from qtune_service.ingest.schema import holds_json, is_absent, is_json, is_list, is_stated, with_json_type

Change: TypeAlias = Callable[[Any], Any]


# --- Arrow to Python


def records_of(table: pa.Table | pa.RecordBatch) -> list[Record]:
    """Return the rows as records: without padding and absent columns, JSON text decoded."""
    if not table.num_columns:
        return [{} for _ in range(table.num_rows)]
    names = table.schema.names
    columns = [values_of(table.column(i), table.schema.field(i)) for i in range(table.num_columns)]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    for i, field in enumerate(table.schema):
        if is_absent(field) and table.column(i).null_count:
            for row, is_missing in zip(rows, table.column(i).is_null().to_pylist(), strict=True):
                if is_missing:
                    del row[field.name]
    return rows


def values_of(column: Any, field: pa.Field[Any]) -> list[Any]:
    """Return the values of a column (an array or a chunked array): without padding, JSON text decoded."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values: list[Any] = []
    for chunk in chunks:
        change = _decoder(chunk, field)
        plain = chunk.to_pylist()
        values += plain if change is None else [change(value) for value in plain]
    return values


def _decoder(array: Any, field: pa.Field[Any]) -> Change | None:
    """Return the conversion of the values of `to_pylist`, or None if no value of the array changes."""
    of = array.type
    if is_json(field):
        return lambda text: decode_value(text) if isinstance(text, str) else text
    if pa.types.is_struct(of):
        return _struct_decoder(array)
    if is_list(of) or pa.types.is_list_view(of) or pa.types.is_large_list_view(of):
        item = _decoder(array.flatten(), of.value_field)
        return None if item is None else lambda value: None if value is None else [item(one) for one in value]
    return _map_decoder(array) if pa.types.is_map(of) else None


def _map_decoder(array: Any) -> Change:
    """Return the conversion of maps: an object where the keys are different texts, else pairs. Null values stay."""
    item = _decoder(array.items, array.type.item_field)

    def change(pairs: Any) -> Any:
        if pairs is None:
            return None
        values = [(key, value if item is None else item(value)) for key, value in pairs]
        keys = {key for key, _ in values if isinstance(key, str)}
        return dict(values) if len(keys) == len(values) else values

    return change


def _struct_decoder(array: Any) -> Change | None:
    changes: dict[str, Change] = {}
    padded: set[str] = set()
    for field, child in zip(array.type.fields, array.flatten(), strict=True):  # the parent's nulls included
        if (change := _decoder(child, field)) is not None:
            changes[field.name] = change
        if child.null_count > array.null_count and not is_stated(field):
            padded.add(field.name)
    if not padded:
        return _change_struct(changes) if changes else None

    def change_padded(value: Any) -> Any:
        if value is None:
            return None
        return {
            name: changes[name](one) if name in changes else one
            for name, one in value.items()
            if one is not None or name not in padded
        }

    return change_padded


def _change_struct(changes: Mapping[str, Change]) -> Change:
    def change(value: Any) -> Any:
        if value is None:
            return None
        return value | {name: of(value[name]) for name, of in changes.items() if name in value}

    return change


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


def as_json_type(table: pa.Table) -> pa.Table:
    """Return the table with Arrow's JSON type for JSON text, in which product files hold it."""
    fields = [with_json_type(field) for field in table.schema]
    columns = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(table.columns, fields, strict=True)
    ]
    return pa.table(columns, schema=pa.schema(fields))
