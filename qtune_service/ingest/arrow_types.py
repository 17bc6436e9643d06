"""Convert Arrow columns to types that Parquet and all functions of Arrow know, with the same values.

Views become plain text, binary and lists. Run ends, and dictionaries of views, become their values. polars writes all
text as views. The conversion goes through Python values, because casts of nested views lose rows (pyarrow 26).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from qtune_service.ingest.schema import arrow_column


def plain_type(of: Any) -> pa.DataType:
    """Return the type that replaces a type."""
    plain: pa.DataType = next((convert(of) for matches, convert in _CONVERSIONS if matches(of)), of)
    return plain


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with plain types."""
    types = [plain_type(field.type) for field in batch.schema]
    if types == batch.schema.types:
        return batch
    columns = [
        column if column.type == kind else _built(column.to_pylist(), kind)
        for column, kind in zip(batch.columns, types, strict=True)
    ]
    fields = [field.with_type(kind) for field, kind in zip(batch.schema, types, strict=True)]
    return pa.record_batch(columns, schema=pa.schema(fields))


def _built(values: list[Any], kind: pa.DataType) -> Any:
    """Return an array of a type. Arrow builds no JSON type inside of others, so its text is built and cast."""
    return pa.array(values, arrow_column(pa.field("", kind)).type).cast(kind)


def _of_dictionary(of: Any) -> pa.DataType:
    values = plain_type(of.value_type)
    kept: pa.DataType = of if values == of.value_type else values
    return kept


def _of_struct(of: Any) -> pa.DataType:
    return pa.struct([_of_field(field) for field in of.fields])


def _of_field(field: pa.Field[Any]) -> pa.Field[Any]:
    plain: pa.Field[Any] = field.with_type(plain_type(field.type))
    return plain


def _of_map(of: Any) -> pa.DataType:
    return pa.map_(plain_type(of.key_type), plain_type(of.item_type), of.keys_sorted)


_CONVERSIONS: tuple[tuple[Callable[[Any], bool], Callable[[Any], pa.DataType]], ...] = (
    (lambda of: of == pa.string_view(), lambda _: pa.string()),
    (lambda of: of == pa.binary_view(), lambda _: pa.binary()),
    (pa.types.is_run_end_encoded, lambda of: plain_type(of.value_type)),
    (pa.types.is_dictionary, _of_dictionary),
    (pa.types.is_struct, _of_struct),
    (pa.types.is_map, _of_map),
    (pa.types.is_fixed_size_list, lambda of: pa.list_(_of_field(of.value_field), of.list_size)),
    (lambda of: pa.types.is_list(of) or pa.types.is_list_view(of), lambda of: pa.list_(_of_field(of.value_field))),
    (
        lambda of: pa.types.is_large_list(of) or pa.types.is_large_list_view(of),
        lambda of: pa.large_list(_of_field(of.value_field)),
    ),
)
