"""Lay out, cut and read files whose rows are Arrow's: Parquet (parquet.py) and Arrow IPC (arrow_files.py).

Runs of rows follow the groups of a file: row groups of Parquet, record batches of Arrow. Small groups are joined, and
groups above twice the requested size are split by rows. A run that starts inside a group decodes the rows before it,
which small groups avoid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from qtune_service.ingest import arrow_files, parquet
from qtune_service.ingest.discovery import SourceFile


@dataclass(frozen=True, slots=True)
class Group:
    """A row group or record batch. num_bytes: uncompressed for Parquet, as stored for Arrow."""

    num_rows: int
    num_bytes: int


def groups_of(file: SourceFile) -> list[Group]:
    """Return the groups of a file. Raise DataError for columns that cannot be read."""
    if file.kind == "parquet":
        metadata = parquet.footer(file.uri)
        of_group = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        return [Group(group.num_rows, group.total_byte_size) for group in of_group]
    check_arrow(file.name, schema_of(file))
    index = arrow_files.index_of(file.uri, file.version)
    return [Group(batch.num_rows, batch.stop - batch.start) for batch in index.batches]


def check_arrow(name: str, schema: pa.Schema) -> None:
    """Raise DataError for columns that cannot be read. name: of the file."""
    parquet.check_columns(name, sum(_num_leaves(field.type) for field in schema), schema.names)


def _num_leaves(of: pa.DataType) -> int:
    return sum(_num_leaves(of.field(index).type) for index in range(of.num_fields)) if of.num_fields else 1


def num_rows(file: SourceFile) -> int:
    """Return the number of rows of a file."""
    return sum(group.num_rows for group in groups_of(file))


def cut(groups: Sequence[Group], wanted_bytes: int) -> list[tuple[int, int]]:
    """Return runs of rows [start, stop) of about `wanted_bytes` each."""
    runs: list[tuple[int, int]] = []
    start = stop = size = 0
    for group in groups:
        if start < stop and size + group.num_bytes > 2 * wanted_bytes:
            runs.append((start, stop))
            start, size = stop, 0
        stop, size = stop + group.num_rows, size + group.num_bytes
        if size >= wanted_bytes:
            parts = math.ceil(size / wanted_bytes) if size > 2 * wanted_bytes else 1
            runs += _parts(start, stop, parts)
            start, size = stop, 0
    return runs + _parts(start, stop, 1)


def _parts(start: int, stop: int, count: int) -> list[tuple[int, int]]:
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return [(low, high) for low, high in pairwise(edges) if low < high]


def schema_of(file: SourceFile) -> pa.Schema:
    """Return the schema. Integer columns that may exceed exact floats are marked as wide."""
    if file.kind == "parquet":
        return parquet.schema_of(file.uri)
    return arrow_files.schema_of(file.uri, file.version)


def iter_rows(file: SourceFile, start: int, stop: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) in batches of about a thousand. Columns that the file lacks are omitted."""
    if file.kind == "parquet":
        return parquet.iter_rows(file.uri, start, stop, columns)
    return arrow_files.iter_rows(file.uri, file.version, start, stop, columns)
