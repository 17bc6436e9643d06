"""The own columns of JSON records as Arrow, by the schema of the plan.

Arrow's JSON reader makes columns from the text five times as fast as from Python values. Given the schema, it infers
nothing, and what it cannot hold exactly it refuses (a number where there should be text, a column named twice, a field
that the schema lacks, NaN, integers beyond 64 bits); then, and where the schema has types that JSON has not or that
Arrow would read otherwise (times, JSON text), the columns are made of the parsed values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.json as pajson

from qtune_service.ingest.jsonl import Record, RecordProblem
from qtune_service.ingest.schema import is_json, to_array


def own_columns(lines: Sequence[bytes], records: Sequence[Record | RecordProblem], schema: pa.Schema) -> pa.Table:
    """Columns of records that were parsed from these lines; a record with a problem is a row of nulls."""
    good = all(isinstance(record, dict) for record in records)
    if good and len(lines) and len(schema) and all(map(_is_plain, schema)):
        table = _read(lines, schema)
        if table is not None and table.num_rows == len(lines):
            return table
    rows = [record if isinstance(record, dict) else {} for record in records]
    columns = [to_array([row.get(field.name) for row in rows], field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _is_plain(field: pa.Field[Any]) -> bool:
    """Whether JSON has values of the type, and Arrow reads them as they are."""
    of = field.type
    if pa.types.is_struct(of):
        return all(map(_is_plain, of.fields))
    if pa.types.is_list(of):
        return not pa.types.is_null(of.value_type) and _is_plain(of.value_field)  # Arrow's reader miscounts nulls there
    is_plain = of in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string())
    return is_plain and not is_json(field)


def _read(lines: Sequence[bytes], schema: pa.Schema) -> pa.Table | None:
    data = b"\n".join(lines)
    read = pajson.ReadOptions(block_size=max(len(data) + 1, 1024), use_threads=False)
    parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        table = pajson.read_json(cast("Any", pa.BufferReader(data)), read_options=read, parse_options=parse)
        table.validate()
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
