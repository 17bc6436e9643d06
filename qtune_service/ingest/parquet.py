"""Inspect and read the rows of Parquet files in bounded memory.

Rows that start inside a row group cost the rows before them: Parquet has no index of rows unless its writer added one.
So planning streams a large row group once, and stores its shards one by one (scanner.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qtune_service.errors import DataError
from qtune_service.ingest.schema import EXACT_FLOAT, arrow_column, wide_field
from qtune_service.storage import file_io

BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20
STREAM_BYTES = 64 << 20
"""Memory of the buffers from which the columns of a large row group are streamed, for all columns together."""
HEAD_BYTES = 256 << 10
"""Bytes of each column that are read for the first rows."""
MAX_COLUMNS = 10_000
"""Limit of leaf columns of a file."""


def footer(uri: str) -> pq.FileMetaData:
    """Return the metadata of a file: rows and bytes of its row groups.

    Raises DataError for duplicate column names and for more than MAX_COLUMNS.
    """
    with file_io.open_parquet(uri) as file:
        return checked_footer(uri, file)


def checked_footer(uri: str, file: pq.ParquetFile) -> pq.FileMetaData:
    """Return the metadata of an open file. Raise as `footer` does."""
    check_columns(file_io.display(uri), file.metadata.num_columns, file.schema_arrow.names)
    return file.metadata


def check_columns(name: str, num_leaves: int, names: Sequence[str]) -> None:
    """Raise DataError for duplicate column names and for more than MAX_COLUMNS leaf columns."""
    if num_leaves > MAX_COLUMNS:
        raise DataError(
            f"{name} has {num_leaves:,} columns, more than {MAX_COLUMNS:,}",
            "Write only the columns that are used for training.",
        )
    twice = sorted(one for one, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{name} has several columns named {twice[0][:200]}", "Rename one of them.")


def schema_of(file: pq.ParquetFile) -> pa.Schema:
    """Return the schema for merging. Integer columns whose statistics exceed exact floats are marked as wide."""
    schema = file.schema_arrow
    wide = {field.name for field in schema if pa.types.is_integer(field.type) and field.type.bit_width >= 64}
    largest = _largest(file.metadata, wide)
    return pa.schema(
        [
            wide_field(field.name, field.type)
            if field.name in wide and largest[field.name] > EXACT_FLOAT
            else arrow_column(field)
            for field in schema
        ]
    )


def _largest(metadata: pq.FileMetaData, names: Collection[str]) -> dict[str, Any]:
    """Return the largest magnitude of integer columns; infinite without statistics."""
    largest: dict[str, Any] = dict.fromkeys(names, 0)
    places = {metadata.schema.column(i).path: i for i in reversed(range(metadata.num_columns if names else 0))}
    for index in range(metadata.num_row_groups if names else 0):
        group = metadata.row_group(index)
        for name in names:
            of_group = _largest_of_group(group, places[name]) if name in places else math.inf
            largest[name] = max(largest[name], of_group)
    return largest


def _largest_of_group(group: pq.RowGroupMetaData, column: int) -> Any:
    stats = group.column(column).statistics
    if stats is None or not stats.has_min_max:
        return 0 if stats is not None and stats.null_count == group.num_rows else math.inf
    return max(abs(stats.min or 0), abs(stats.max or 0))


def buffer_bytes(metadata: pq.FileMetaData) -> int:
    """Return the size of the blocks in which each column of a large row group is streamed."""
    return max(STREAM_BYTES // max(metadata.num_columns, 16), 64 << 10)


def rows_of(
    file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) of an open file in batches, by default of about a thousand."""
    groups, skipped = _groups_of(file.metadata, start, stop)
    names = set(file.schema_arrow.names)
    wanted = None if columns is None else [name for name in columns if name in names]
    at = skipped
    size = batch_rows or _batch_rows(file.metadata, groups)
    for batch in file.iter_batches(size, row_groups=groups, columns=wanted):
        low, high = max(start - at, 0), min(stop - at, batch.num_rows)
        if low < high:
            yield batch.slice(low, high - low)
        at += batch.num_rows
        if at >= stop:
            return


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return the rows of a batch: fewer than BATCH_ROWS where rows are long."""
    of_groups = [metadata.row_group(index) for index in groups]
    num_bytes = max(sum(group.total_byte_size for group in of_groups), 1)
    return min(max(BATCH_BYTES * sum(group.num_rows for group in of_groups) // num_bytes, 1), BATCH_ROWS)


def _groups_of(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that overlap the rows, and the number of rows before the first group."""
    groups, at, skipped = [], 0, 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if at + rows <= start:
            skipped = at + rows
        elif at < stop:
            groups.append(index)
        at += rows
    return groups, skipped
