"""Rows as JSON text. Numbers that JSON lacks (NaN, infinities) become null, bytes base64, other foreign values text.

orjson writes lists of tokens straight from numpy. The few values that it refuses (integers beyond 64 bits) take the
standard library's way.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from qtune_service.ingest.schema import restore
from qtune_service.output.columns import ragged


def encode(value: Any) -> bytes:
    """One value in one line."""
    try:
        return orjson.dumps(value, default=_foreign, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes JSON's own escape


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _plain(value: Any) -> Any:
    """What the standard library can write."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else _foreign(value)


def array(values: Iterable[Any]) -> Iterator[bytes]:
    """A JSON array, an element a line, as a stream."""
    mark = b"["
    for value in values:
        yield mark + b"\n" + encode(value)
        mark = b","
    yield b"[]" if mark == b"[" else b"\n]"


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as plain data; JSON text is restored, and lists of tokens stay numpy."""
    tokens = {name for name in table.column_names if _is_flat(table[name])}
    others = table.select([name for name in table.column_names if name not in tokens])
    lists = {name: ragged(table[name]).rows() for name in tokens}
    plain = restore(others.to_pylist(), others.schema) if others.num_columns else [{}] * table.num_rows
    for i, row in enumerate(plain):
        yield {name: lists[name][i] if name in tokens else row[name] for name in table.column_names}


def _is_flat(column: Any) -> bool:
    """Whether it holds lists of integers or booleans, and nothing is missing."""
    of = column.type
    if not pa.types.is_list(of) or column.null_count:
        return False
    is_simple = pa.types.is_integer(of.value_type) or pa.types.is_boolean(of.value_type)
    return is_simple and all(chunk.flatten().null_count == 0 for chunk in column.chunks)
