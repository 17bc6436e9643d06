"""Scan a chunk of the input: count and hash its records, and find their format and schema.

A chunk is read once. Counting and hashing run at memory speed and Arrow infers types, so a scan reads hundreds of MB/s
a core. Of Parquet and Arrow files the footers are read, the first records of each file, and the category column if
records are selected by it.

Content that cannot be read from the middle is staged: its shards are written to a folder of the output, each as exact
bytes with a digest, so that it is read once here and once when it is encoded.

    compressed files, JSON arrays, CSV   pieces of JSON lines (json_reader.py)
    bgzip, zstd in frames                the same, in several chunks (frames.py)
    large row groups                     pieces of rows, as Arrow streams. Groups are decoded page by page

The first scan of a file whose kind follows from its suffix checks the content. Another kind is reported, and the file
is cut again (planner.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import pyarrow as pa

from qtune_service.config import FormatName, InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.compression import BrokenStreamError
from qtune_service.ingest.discovery import SourceFile, inspect_open
from qtune_service.ingest.formats import detect_format
from qtune_service.ingest.frames import Part
from qtune_service.ingest.json_reader import joined, staged_pieces
from qtune_service.ingest.json_schema import infer_lines
from qtune_service.ingest.jsonl import Record, RecordProblem, category_of, is_blank, parse_line, split_lines
from qtune_service.ingest.plan import Chunk, ChunkScan, Piece, encode_schema, staged_name
from qtune_service.ingest.records import ColumnNames
from qtune_service.ingest.row_files import RowFile, Run, cut, open_rows
from qtune_service.ingest.rows import records_of
from qtune_service.ingest.schema import unify
from qtune_service.ingest.unknown_format import explain
from qtune_service.storage import file_io

SAMPLE_RECORDS = 20
CATEGORIES_SHOWN = 20
LINE_END_BYTES = 256 << 10
STAGED_BYTES = 4 << 20
"""Shards of rows are stored together in files of about this size."""


@dataclass(slots=True)
class _Findings:
    """Accumulated findings over the pieces of a chunk."""

    spec: InputSpec
    schemas: list[pa.Schema] = field(default_factory=list)
    sample: list[Record] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    first_problem: str = ""

    @property
    def columns(self) -> list[str]:
        """Return the columns that selection by category needs."""
        return [self.spec.category_field] if self.spec.category_field is not None else []

    def add_sample(self, records: Iterable[Record | RecordProblem]) -> None:
        """Add valid records until there are enough to detect a format."""
        for record in records:
            if len(self.sample) >= SAMPLE_RECORDS:
                return
            if isinstance(record, RecordProblem):
                self.first_problem = self.first_problem or f"{record.reason}: {record.detail}"
            else:
                self.sample.append(record)

    def count_categories(self, records: Iterable[Record | RecordProblem]) -> dict[str, int]:
        """Count the records of each category in `take`."""
        if not self.spec.take:
            return {}
        of = self.spec.category_field or ""
        names = (category_of(record, of) for record in records if not isinstance(record, RecordProblem))
        counts = Counter(name for name in names if name is not None)
        self.seen.update(dict.fromkeys(islice(counts, CATEGORIES_SHOWN)))
        return {name: counts[name] for name in self.spec.take if counts[name]}

    def format(self) -> FormatName | None:
        """Return the named format, else the detected one."""
        if not self.sample:
            return None
        if self.spec.format != "auto":
            return self.spec.format
        return detect_format(self.sample, ColumnNames.of(self.spec))


def scan(chunk: Chunk, spec: InputSpec, *, work: str) -> ChunkScan:
    """Scan a chunk. work: folder for staged files. Raise DataError for content that cannot be read."""
    with file_io.open_ranges(chunk.file.uri) as read:
        file = _checked(chunk, read)
        if (file.kind, file.compression) != (chunk.file.kind, chunk.file.compression):
            return ChunkScan(
                chunk.index, chunk.file_index, (), encode_schema(pa.schema([])), None, (), (), "", file=file
            )
        found, part = _Findings(spec), None
        try:
            if file.is_in_rows:
                with open_rows(file, read) as rows:
                    pieces = _scan_rows(chunk, rows, found, work)
            elif chunk.is_part:
                assert file.compression is not None
                part = Part(read, file.compression, chunk.start, chunk.stop)
                pieces = _stage(chunk, joined(part.lines(), chunk.shard_bytes), found, work)
            elif file.kind == "jsonl" and file.compression is None:
                pieces = _scan_range(chunk, read, found)
            else:
                pieces = _stage(chunk, staged_pieces(file, chunk.shard_bytes, read), found, work)
        except BrokenStreamError:
            if part is None:
                raise
            return replace(_result(chunk, file, [], _Findings(spec)), is_broken=True)
        frames = None if part is None else (part.began, part.ended)
        return replace(_result(chunk, file, pieces, found), frames=frames)


def _result(chunk: Chunk, file: SourceFile, pieces: Sequence[Piece], found: _Findings) -> ChunkScan:
    format_name = found.format()
    return ChunkScan(
        index=chunk.index,
        file_index=chunk.file_index,
        pieces=tuple(pieces),
        schema_ipc=encode_schema(unify(found.schemas)),
        format=format_name,
        keys=tuple(dict.fromkeys(key for record in found.sample for key in record))[:64],
        categories_seen=tuple(found.seen)[:CATEGORIES_SHOWN],
        first_problem=found.first_problem,
        unknown=explain(found.sample) if found.sample and format_name is None else None,
        file=None if chunk.file.is_checked else file,
    )


def _checked(chunk: Chunk, read: file_io.Ranges) -> SourceFile:
    """Return the file as its content shows it. Raise DataError if it changed since it was listed."""
    file = chunk.file
    if read.size_bytes != file.size_bytes or (file.is_checked and read.knows_version and read.version != file.version):
        raise DataError(f"{file.name} has changed while the job was planned", "Run the same command again.")
    if file.is_checked:
        return file
    if chunk.start == 0:
        seen = inspect_open(file.uri, read, file.modified)
        return seen if read.knows_version else replace(seen, version=file.version)
    return replace(file, version=read.version if read.knows_version else file.version, is_checked=True)


# --- lines


def _scan_range(chunk: Chunk, read: file_io.Ranges, found: _Findings) -> list[Piece]:
    data, start = read_owned_lines(read, chunk.start, chunk.stop)
    return [_scan_lines(chunk.file.uri, data, start, found)] if data else []


def _stage(chunk: Chunk, contents: Iterator[bytes], found: _Findings, work: str) -> list[Piece]:
    pieces = []
    for number, data in enumerate(contents):
        name = staged_name(chunk.file_index, number, chunk.start if chunk.is_part else None)
        uri = file_io.join(work, name)
        file_io.write_bytes(uri, data)
        pieces.append(_scan_lines(uri, data, 0, found))
    return pieces


def read_owned_lines(read: file_io.Ranges, start: int, stop: int) -> tuple[bytes, int]:
    """Return the whole lines that start in [start, stop), and the start of the first one."""
    before = max(start - 1, 0)
    data = b"".join(read.blocks(before, stop))
    if start > 0:
        newline = data.find(b"\n")
        if newline < 0:
            return b"", start
        data, start = data[newline + 1 :], before + newline + 1
    if not data or data.endswith(b"\n"):
        return data, start
    return data + b"".join(_until_newline(read.blocks(stop, read.size_bytes, LINE_END_BYTES))), start


def _until_newline(blocks: Iterable[bytes]) -> Iterable[bytes]:
    for block in blocks:
        head, newline, _ = block.partition(b"\n")
        yield head + newline
        if newline:
            return


def _scan_lines(uri: str, data: bytes, start: int, found: _Findings) -> Piece:
    lines = split_lines(data)
    filled = [line for line in lines if not is_blank(line)]
    found.schemas.append(infer_lines(filled))
    found.add_sample(parse_line(line) for line in filled)
    return Piece(
        uri=uri,
        start=start,
        stop=start + len(data),
        num_lines=len(lines),
        num_records=len(filled),
        digest=hashlib.sha256(data).hexdigest(),
        categories=found.count_categories(parse_line(line) for line in filled),
    )


# --- rows


def _scan_rows(chunk: Chunk, file: RowFile, found: _Findings, work: str) -> list[Piece]:
    pieces: list[Piece] = []
    runs = cut(file.groups, chunk.shard_bytes)
    if chunk.start == 0 and runs:
        found.schemas.append(file.schema)
        if not runs[0].is_large:
            found.add_sample(_records(file.first_rows(SAMPLE_RECORDS)))
    for run in runs:
        if chunk.start <= run.start < chunk.stop and not holds_limit(pieces, found.spec):
            pieces += _stage_rows(chunk, run, file, found, work) if run.is_large else [_piece(chunk, run, file, found)]
    return pieces


def _piece(chunk: Chunk, run: Run, file: RowFile, found: _Findings) -> Piece:
    rows = _records(file.rows(run.start, run.stop, found.columns)) if found.spec.take else ()
    num_rows = run.stop - run.start
    return Piece(chunk.file.uri, run.start, run.stop, num_rows, num_rows, "", found.count_categories(rows))


def _stage_rows(chunk: Chunk, run: Run, file: RowFile, found: _Findings, work: str) -> list[Piece]:
    """Store the shards of a large group, up to the limit of the job. Small shards share a file."""
    pieces: list[Piece] = []
    pending: list[bytes] = []
    number = size = 0

    def uri() -> str:
        return file_io.join(work, staged_name(chunk.file_index, number, run.start, "arrow"))

    for batches in _tables(file.streamed(run.start, run.stop), run, 2 * chunk.shard_bytes):
        if run.start == 0:
            found.add_sample(_records(batch.slice(0, SAMPLE_RECORDS) for batch in batches))
        data, num_rows = _stream(batches), sum(batch.num_rows for batch in batches)
        rows = _records(batch.select(found.columns) for batch in batches) if found.spec.take else ()
        digest, categories = hashlib.sha256(data).hexdigest(), found.count_categories(rows)
        pieces.append(Piece(uri(), size, size + len(data), num_rows, num_rows, digest, categories))
        pending.append(data)
        size += len(data)
        if size >= STAGED_BYTES:
            file_io.write_bytes(uri(), b"".join(pending))
            pending, number, size = [], number + 1, 0
        if holds_limit(pieces, found.spec):
            break
    if pending:
        file_io.write_bytes(uri(), b"".join(pending))
    return pieces


def _tables(batches: Iterable[pa.RecordBatch], run: Run, max_bytes: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches of each shard: up to its last row, or to `max_bytes` where rows decode to more than stored."""
    stops = iter([stop for _, stop in run.edges])
    at, stop, size = run.start, next(stops), 0
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        left = batch
        while left.num_rows:
            part = left.slice(0, stop - at)
            left = left.slice(part.num_rows)
            pending.append(part)
            at, size = at + part.num_rows, size + part.nbytes
            if at == stop or size >= max_bytes:
                yield pending
                pending, size = [], 0
            if at == stop:
                stop = next(stops, run.stop)
    if pending:
        yield pending


def _stream(batches: Sequence[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _records(batches: Iterable[pa.RecordBatch]) -> Iterator[Record]:
    for batch in batches:
        yield from records_of(batch)


# --- limits


def holds_limit(pieces: Iterable[Piece], spec: InputSpec) -> bool:
    """Return whether pieces contain `limit` records, so that those behind them need no scan."""
    if spec.limit is None:
        return False
    quotas = dict(spec.take) if spec.take else None
    return sum(select(piece, quotas, None)[0] for piece in pieces) >= spec.limit


def select(piece: Piece, quotas: dict[str, int] | None, left: int | None) -> tuple[int, dict[str, int] | None]:
    """Return the selected records of a piece, in total and by category. Reduces `quotas`."""
    if quotas is None:
        return piece.num_records if left is None else min(left, piece.num_records), None
    taken = {name: min(quotas[name], count) for name, count in piece.categories.items() if quotas[name]}
    for name, count in taken.items():
        quotas[name] -= count
    selected = sum(taken.values())
    return selected if left is None else min(left, selected), taken
