"""Index and read Arrow IPC data in bounded memory: streams, as `save_to_disk` writes them, and files (Feather 2).

A stream is a sequence of messages: the schema, dictionaries and record batches. A file has a footer with the schema and
the positions of its messages. A stream is indexed by the lengths in the head of each message, without reading the
bodies, so that rows can be read from any batch. The index of a file is cached. pyarrow decodes the batches, in a stream
from its schema, the dictionaries so far, and the batches that are wanted. It also validates them, since a file may be
damaged.

Format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError
from qtune_service.ingest.arrow_types import plain_batch, plain_type
from qtune_service.ingest.schema import arrow_column, wide_field
from qtune_service.storage import file_io

FILE_MAGIC = b"ARROW1"
BATCH_ROWS = 1024
DECODE_BYTES = 8 << 20
"""Small batches are decoded together up to this size."""
MAX_METADATA_BYTES = 64 << 20
_HEAD_BYTES = 4 << 10
_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_HINT = "Write the file again, for example with save_to_disk of datasets, or as Parquet."

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a file."""

    kind: int
    start: int
    stop: int
    """Its bytes [start, stop) in the file."""
    num_rows: int = 0
    """Of a record batch."""
    dictionary: int = 0
    """Id of a dictionary."""
    is_delta: bool = False
    """Whether a dictionary extends the one before with this id."""


@dataclass(frozen=True, slots=True)
class Index:
    """Positions of the messages of a file."""

    is_file: bool
    batches: tuple[Message, ...]
    schema: bytes = b""
    """The message of the schema, of a stream."""
    dictionaries: tuple[Message, ...] = ()
    """Those of a stream."""

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return sum(batch.num_rows for batch in self.batches)


@functools.lru_cache(maxsize=64)
def index_of(uri: str, version: str) -> Index:  # noqa: ARG001 - part of the cache's key
    """Return the index of a file. Raise DataError for a truncated file, and for other content."""
    name = file_io.display(uri)
    with file_io.open_ranges(uri) as read:
        try:
            return _index(read, read.size_bytes)
        except (struct.error, IndexError, _ArrowError) as error:
            raise DataError(f"{name} is not a readable Arrow file: {error}", _HINT) from error


class _ArrowError(Exception):
    """The content is not Arrow IPC data."""


def _index(read: Read, size: int) -> Index:
    return _index_file(read, size) if read(0, len(FILE_MAGIC)) == FILE_MAGIC else _index_stream(read, size)


def _index_stream(read: Read, size: int) -> Index:
    messages: list[Message] = []
    at = 0
    while at < size and (message := _message(read, at, size)) is not None:
        if message.stop > size:
            raise _ArrowError(f"it is truncated: it ends inside of record batch {len(messages)}, at byte {size:,}")
        if message.kind not in (_SCHEMA, _DICTIONARY, _BATCH) or (message.kind == _SCHEMA) != (not messages):
            raise _ArrowError(f"unexpected message of kind {message.kind} at byte {at:,}")
        messages.append(message)
        at = message.stop
    if not messages:
        raise _ArrowError("it has no schema")
    return Index(
        is_file=False,
        batches=tuple(one for one in messages if one.kind == _BATCH),
        schema=read(messages[0].start, messages[0].stop),
        dictionaries=tuple(one for one in messages if one.kind == _DICTIONARY),
    )


def _index_file(read: Read, size: int) -> Index:
    tail = read(max(size - 10, 0), size)
    if len(tail) < 10 or not tail.endswith(FILE_MAGIC):
        raise _ArrowError("it is truncated: it has no footer at its end")
    (length,) = struct.unpack_from("<i", tail)
    if not 0 < length <= min(size - 10, MAX_METADATA_BYTES):
        raise _ArrowError("its footer is damaged")
    footer = read(size - 10 - length, size - 10)
    batches: list[Message] = []
    for start in _block_offsets(footer):
        message = _message(read, start, size)
        if message is None or message.kind != _BATCH or message.stop > size:
            raise _ArrowError(f"its footer names a record batch at byte {start:,}, where none is")
        batches.append(message)
    return Index(is_file=True, batches=tuple(batches))


def _block_offsets(footer: bytes) -> Iterator[int]:
    """Yield the positions of the record batches of a file."""
    (table,) = struct.unpack_from("<I", footer)
    at = _field(footer, table, 3)
    if not at:
        return
    at += struct.unpack_from("<I", footer, at)[0]
    (count,) = struct.unpack_from("<I", footer, at)
    for number in range(count):
        (offset,) = struct.unpack_from("<q", footer, at + 4 + 24 * number)
        yield int(offset)


def _message(read: Read, start: int, size: int) -> Message | None:
    """Return the message at a position, or None at the end of the stream."""
    head = read(start, min(start + _HEAD_BYTES, size)) if 0 <= start < size else b""
    at = 4 if head.startswith(_CONTINUATION) else 0  # old versions have none
    (length,) = struct.unpack_from("<i", head, at)
    at += 4
    if length == 0:
        return None
    if not 0 < length <= MAX_METADATA_BYTES:
        raise _ArrowError(f"a message at byte {start:,} has a length of {length:,}")
    stop = start + at + length
    if stop > size:
        raise _ArrowError(f"it is truncated: it ends inside of a message, at byte {size:,}")
    metadata = head[at : at + length] if len(head) >= at + length else read(start + at, stop)
    return _described(metadata, start, stop)


def _described(metadata: bytes, start: int, stop: int) -> Message:
    """Return a message by its metadata, a FlatBuffers table. stop: the end of the metadata in the file."""
    (table,) = struct.unpack_from("<I", metadata)
    kind = _number(metadata, table, 1, "<B")
    body_bytes = _number(metadata, table, 3, "<q")
    header = _field(metadata, table, 2)
    header += struct.unpack_from("<I", metadata, header)[0]
    num_rows = _number(metadata, header, 0, "<q") if kind == _BATCH else 0
    if body_bytes < 0 or num_rows < 0:
        raise _ArrowError(f"a message at byte {start:,} has a negative length")
    if kind != _DICTIONARY:
        return Message(kind, start, stop + body_bytes, num_rows)
    dictionary, is_delta = _number(metadata, header, 0, "<q"), bool(_number(metadata, header, 2, "<B"))
    return Message(kind, start, stop + body_bytes, dictionary=dictionary, is_delta=is_delta)


def _number(metadata: bytes, table: int, number: int, code: str) -> int:
    """Return a field of a FlatBuffers table; 0 if it is absent."""
    at = _field(metadata, table, number)
    return int(struct.unpack_from(code, metadata, at)[0]) if at else 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return the position of a field of a FlatBuffers table, or 0 if it is absent."""
    (back,) = struct.unpack_from("<i", metadata, table)
    if not 0 <= table - back < len(metadata):
        raise _ArrowError("the metadata of a message is damaged")
    (size,) = struct.unpack_from("<H", metadata, table - back)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, table - back + 4 + 2 * number)
    return table + offset if offset else 0


def schema_of(uri: str, version: str) -> pa.Schema:
    """Return the schema for merging. Long integers are marked as wide, because Arrow data has no statistics.

    Raise DataError for a damaged schema.
    """
    try:
        return pa.schema(
            [
                wide_field(field.name, field.type)
                if pa.types.is_integer(field.type) and field.type.bit_width >= 64
                else arrow_column(field.with_type(plain_type(field.type)))
                for field in _schema(uri, index_of(uri, version))
            ]
        )
    except UnicodeDecodeError as error:
        raise _damaged(uri, error) from error


def _schema(uri: str, index: Index) -> pa.Schema:
    if not index.is_file:
        return _stream(uri, index.schema, None).schema
    with file_io.open_input(uri) as file:
        return _opened(uri, file, None).schema


def _stream(uri: str, data: bytes, fields: list[int] | None) -> pa.RecordBatchReader:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        return pa.ipc.open_stream(pa.py_buffer(data + _END), options=options)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(uri, error) from error


def _opened(uri: str, file: Any, fields: list[int] | None) -> pa.ipc.RecordBatchFileReader:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        return file_io.retrying(uri, "read", lambda: pa.ipc.open_file(file, options=options))
    except pa.ArrowException as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> DataError:
    what = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{file_io.display(uri)} is a damaged Arrow file: {what}", _HINT)


def iter_rows(uri: str, version: str, start: int, stop: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) in batches of at most BATCH_ROWS. Raise DataError for damage.

    Columns that the file lacks are omitted. Types are those of `plain_type`.
    """
    index = index_of(uri, version)
    names = schema_of(uri, version).names
    fields = None if columns is None else [number for number, name in enumerate(names) if name in columns]
    read = _batches_of_file if index.is_file else _batches_of_stream
    for row, batch in read(uri, index, start, stop, fields):
        low, high = max(start - row, 0), min(stop - row, batch.num_rows)
        for first in range(low, high, BATCH_ROWS):
            yield plain_batch(batch.slice(first, min(BATCH_ROWS, high - first)))


Batches = Iterator[tuple[int, pa.RecordBatch]]
"""Batches, and the number of rows before each."""


def _batches_of_file(uri: str, index: Index, start: int, stop: int, fields: list[int] | None) -> Batches:
    with file_io.open_input(uri) as file:
        reader, row = _opened(uri, file, fields), 0
        for number, batch in enumerate(index.batches):
            if row < stop and row + batch.num_rows > start:
                try:
                    found = file_io.retrying(uri, "read", functools.partial(reader.get_batch, number))
                    found.validate(full=True)
                except pa.ArrowException as error:
                    raise _damaged(uri, error) from error
                yield row, found
            row += batch.num_rows


def _batches_of_stream(uri: str, index: Index, start: int, stop: int, fields: list[int] | None) -> Batches:
    known: dict[int, bytes] = {}  # dictionaries of the run before, by position
    with file_io.open_ranges(uri) as read:
        for first_row, run in _runs(index.batches, start, stop):
            known = {one.start: known.get(one.start) or read(one.start, one.stop) for one in _needed(index, run)}
            parts = known | {one.start: read(one.start, one.stop) for one in run}
            row = first_row
            for batch in _decoded(uri, b"".join([index.schema, *(parts[at] for at in sorted(parts))]), fields):
                yield row, batch
                row += batch.num_rows


def _needed(index: Index, run: Sequence[Message]) -> list[Message]:
    """Return the dictionaries that batches refer to, without those that others replaced before."""
    before: dict[int, list[Message]] = {}
    between: list[Message] = []
    for one in index.dictionaries:
        if run[0].start < one.start < run[-1].start:
            between.append(one)
        elif one.start < run[0].start:
            before[one.dictionary] = [*(before.get(one.dictionary, ()) if one.is_delta else ()), one]
    return [*(one for some in before.values() for one in some), *between]


def _decoded(uri: str, data: bytes, fields: list[int] | None) -> Iterator[pa.RecordBatch]:
    reader = _stream(uri, data, fields)
    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise _damaged(uri, error) from error
        yield batch


def _runs(batches: Sequence[Message], start: int, stop: int) -> Iterator[tuple[int, list[Message]]]:
    """Yield the batches that overlap the rows, with the number of rows before them, in runs to decode together."""
    run, first_row, at = list[Message](), 0, 0
    for batch in batches:
        if at < stop and at + batch.num_rows > start:
            if run and batch.stop - run[0].start > DECODE_BYTES:
                yield first_row, run
                run = []
            first_row = first_row if run else at
            run.append(batch)
        at += batch.num_rows
    if run:
        yield first_row, run
