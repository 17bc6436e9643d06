"""Arrow types by the names that `datasets` and the hub have for them, as in the `dataset_info` of a card."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError

_BY_ALIAS = {
    "halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32", "date64[ms]": "date64",
}  # fmt: skip


def named_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """`features` of a card. Raises DataError for a type that `datasets` does not have."""
    return [_named(field, field.name) for field in schema]


def _named(field: pa.Field[Any], where: str) -> dict[str, Any]:
    return {"name": field.name, **_feature(field.type, where)}


def _feature(of: pa.DataType, where: str) -> dict[str, Any]:
    if pa.types.is_struct(of):
        return {"struct": [_named(child, f"{where}.{child.name}") for child in of.fields]}
    if pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of):
        item = _feature(of.value_type, where)
        # A list of a plain type is written by the type's name, one of structs by their fields.
        short = item.get("dtype") or item.get("struct") or item
        length = {"length": of.list_size} if pa.types.is_fixed_size_list(of) else {}
        return {"large_list" if pa.types.is_large_list(of) else "list": short, **length}
    return {"dtype": _dtype(of, where)}


def _dtype(of: pa.DataType, where: str) -> str:
    if pa.types.is_dictionary(of):
        return _dtype(of.value_type, where)
    if pa.types.is_decimal(of):
        return f"decimal{of.bit_width}({of.precision}, {of.scale})"
    if pa.types.is_nested(of) or isinstance(of, pa.BaseExtensionType):
        raise DataError(
            f"column {where} is of type {of}, which datasets cannot read",
            "Export with --to parquet or --to jsonl, or drop the column before scoring.",
        )
    return _BY_ALIAS.get(str(of), str(of))
