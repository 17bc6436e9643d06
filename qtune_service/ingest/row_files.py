"""Lay out, cut and read files whose rows are Arrow's: Parquet (parquet.py) and Arrow IPC (arrow_files.py).

Runs of rows follow the groups of a file: row groups of Parquet, record batches of Arrow. Small groups are joined. A
group above twice the requested size is large: it gives several shards, and rows that start inside it cost the rows
before them. So planning reads it once and stores its shards (scanner.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from qtune_service.ingest import arrow_files, parquet
from qtune_service.ingest.discovery import SourceFile
from qtune_service.storage import file_io


@dataclass(frozen=True, slots=True)
class Group:
    """A row group or record batch. num_bytes: uncompressed for Parquet, as stored for Arrow."""

    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [start, stop) of a file: one shard, or a large group that gives `parts` shards."""

    start: int
    stop: int
    parts: int = 1

    @property
    def is_large(self) -> bool:
        """Return whether it is a large group, of which planning stores the shards."""
        return self.parts > 1

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Return the rows of its shards."""
        rows = self.stop - self.start
        edges = [self.start + rows * i // self.parts for i in range(self.parts + 1)]
        return [(low, high) for low, high in pairwise(edges) if low < high]


class RowFile(Protocol):
    """An open file of rows."""

    @property
    def version(self) -> str:
        """Return the version of the content that is read."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Return the schema. Integer columns that may exceed exact floats are marked as wide."""
        ...

    @property
    def groups(self) -> list[Group]:
        """Return the row groups or record batches."""
        ...

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) in batches of about a thousand. Columns that the file lacks are omitted."""
        ...

    def streamed(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows of a large group. Parquet is read in blocks, in memory that does not grow with the group."""
        ...

    def first_rows(self, count: int) -> Iterator[pa.RecordBatch]:
        """Yield the first rows of the file. Of a row group of Parquet little more than these is read."""
        ...


class _ParquetRows:
    def __init__(self, uri: str, read: file_io.Ranges, file: pq.ParquetFile) -> None:
        self._uri, self._read, self._file = uri, read, file
        self._metadata = parquet.checked_footer(uri, file)

    @property
    def version(self) -> str:
        return self._read.version

    @property
    def schema(self) -> pa.Schema:
        return parquet.schema_of(self._file)

    @property
    def groups(self) -> list[Group]:
        of_group = (self._metadata.row_group(index) for index in range(self._metadata.num_row_groups))
        return [Group(group.num_rows, group.total_byte_size) for group in of_group]

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        return parquet.rows_of(self._file, start, stop, columns)

    def streamed(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        at, is_open = start, False
        batches: Iterator[pa.RecordBatch] = iter(())

        def following() -> pa.RecordBatch | None:
            nonlocal batches, is_open
            if not is_open:  # at first, and again behind the rows that were read before a failure
                file = self._buffered(parquet.buffer_bytes(self._metadata))
                batches, is_open = parquet.rows_of(file, at, stop, None), True
            try:
                return next(batches, None)
            except OSError:
                is_open = False
                raise

        while (batch := file_io.retrying(self._uri, "read", following)) is not None:
            at += batch.num_rows
            yield batch

    def first_rows(self, count: int) -> Iterator[pa.RecordBatch]:
        stop = min(count, self._metadata.num_rows)
        return parquet.rows_of(self._buffered(parquet.HEAD_BYTES), 0, stop, None, batch_rows=count)

    def _buffered(self, buffer_bytes: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._read.file, metadata=self._metadata, buffer_size=buffer_bytes, pre_buffer=False)


class _ArrowRows:
    def __init__(self, file: SourceFile, version: str) -> None:
        self._uri, self.version = file.uri, version
        self.schema = arrow_files.schema_of(self._uri, version)
        check_arrow(file.name, self.schema)
        index = arrow_files.index_of(self._uri, version)
        self.groups = [Group(one.num_rows, one.stop - one.start) for one in index.batches]

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        return arrow_files.iter_rows(self._uri, self.version, start, stop, columns)

    def streamed(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        return self.rows(start, stop)

    def first_rows(self, count: int) -> Iterator[pa.RecordBatch]:
        return self.rows(0, count)


@contextlib.contextmanager
def open_rows(file: SourceFile, read: file_io.Ranges | None = None) -> Iterator[RowFile]:
    """Open a file of rows. read: the file, if it is open. Raise DataError for columns that cannot be read."""
    with contextlib.ExitStack() as stack:
        opened = read or stack.enter_context(file_io.open_ranges(file.uri))
        if file.kind == "arrow":
            yield _ArrowRows(file, opened.version)
            return
        make = functools.partial(pq.ParquetFile, opened.file, pre_buffer=False)
        yield _ParquetRows(file.uri, opened, stack.enter_context(file_io.explained_parquet(file.uri, make)))


def groups_of(file: SourceFile) -> list[Group]:
    """Return the groups of a file. Raise DataError for columns that cannot be read."""
    with open_rows(file) as opened:
        return opened.groups


def check_arrow(name: str, schema: pa.Schema) -> None:
    """Raise DataError for columns that cannot be read. name: of the file."""
    parquet.check_columns(name, sum(_num_leaves(field.type) for field in schema), schema.names)


def _num_leaves(of: pa.DataType) -> int:
    return sum(_num_leaves(of.field(index).type) for index in range(of.num_fields)) if of.num_fields else 1


def num_rows(file: SourceFile) -> int:
    """Return the number of rows of a file."""
    return sum(group.num_rows for group in groups_of(file))


def cut(groups: Sequence[Group], wanted_bytes: int) -> list[Run]:
    """Return runs of rows of about `wanted_bytes` each, and large groups."""
    runs: list[Run] = []
    start = stop = size = 0
    for group in groups:
        if start < stop and size + group.num_bytes > 2 * wanted_bytes:
            runs.append(Run(start, stop))
            start, size = stop, 0
        stop, size = stop + group.num_rows, size + group.num_bytes
        if size >= wanted_bytes:
            parts = math.ceil(size / wanted_bytes) if size > 2 * wanted_bytes else 1
            runs += [Run(start, stop, min(parts, stop - start))] if start < stop else []
            start, size = stop, 0
    return [*runs, Run(start, stop)] if start < stop else runs


def iter_rows(file: SourceFile, start: int, stop: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) in batches of about a thousand. Columns that the file lacks are omitted."""
    with open_rows(file) as opened:
        yield from opened.rows(start, stop, columns)
