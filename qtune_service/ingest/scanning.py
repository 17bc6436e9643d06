"""Look once through a chunk of the input: all that a plan must know before work starts.

Counting and hashing run at memory speed, and types are inferred by Arrow, so that a scan reads hundreds of MB/s a core.
Chunks are independent of each other. Compressed files and JSON arrays are staged on the way (see staging.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from qtune_service.config import FormatName, InputSpec
from qtune_service.ingest.formats import detect_format
from qtune_service.ingest.json_reader import staged_pieces
from qtune_service.ingest.json_schema import infer_lines
from qtune_service.ingest.jsonl import Record, RecordProblem, category_of, is_blank, parse_line
from qtune_service.ingest.parquet import iter_rows, schema_of
from qtune_service.ingest.plan import Chunk, ChunkScan, Piece, encode_schema, staged_name
from qtune_service.ingest.schema import unify
from qtune_service.storage import file_io

SAMPLE_RECORDS = 20
CATEGORIES_SHOWN = 20
LINE_END_BYTES = 256 << 10


@dataclass(slots=True)
class _Findings:
    """What adds up over the pieces of a chunk."""

    spec: InputSpec
    schemas: list[pa.Schema] = field(default_factory=list)
    sample: list[Record] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    first_problem: str = ""

    def add_sample(self, records: Iterable[Record | RecordProblem]) -> None:
        """Add good records until there are enough to detect a format."""
        for record in records:
            if len(self.sample) >= SAMPLE_RECORDS:
                return
            if isinstance(record, RecordProblem):
                self.first_problem = self.first_problem or f"{record.reason}: {record.detail}"
            else:
                self.sample.append(record)

    def count_categories(self, records: Iterable[Record | RecordProblem]) -> dict[str, int]:
        """Count the records of each category that is taken from."""
        if not self.spec.take:
            return {}
        of = self.spec.category_field or ""
        names = (category_of(record, of) for record in records if not isinstance(record, RecordProblem))
        counts = Counter(name for name in names if name is not None)
        self.seen.update(dict.fromkeys(islice(counts, CATEGORIES_SHOWN)))
        return {name: counts[name] for name in self.spec.take if counts[name]}

    def format(self) -> FormatName | None:
        """The named format, else the one that the sample shows."""
        if not self.sample:
            return None
        if self.spec.format != "auto":
            return self.spec.format
        columns = {"prompt_column": self.spec.prompt_column, "completion_column": self.spec.completion_column}
        return detect_format(self.sample, **columns)


def scan(chunk: Chunk, spec: InputSpec, *, work: str) -> ChunkScan:
    """Scan a chunk. What must be staged is written to the folder `work`."""
    found = _Findings(spec)
    if chunk.file.kind == "parquet":
        pieces = [_scan_rows(chunk, found)]
    elif chunk.file.kind == "jsonl" and chunk.file.compression is None:
        pieces = _scan_range(chunk, found)
    else:
        pieces = _stage(chunk, found, work)
    return ChunkScan(
        index=chunk.index,
        file_index=chunk.file_index,
        pieces=tuple(pieces),
        schema_ipc=encode_schema(unify(found.schemas)),
        format=found.format(),
        keys=tuple(dict.fromkeys(key for record in found.sample for key in record))[:64],
        categories_seen=tuple(found.seen)[:CATEGORIES_SHOWN],
        first_problem=found.first_problem,
    )


def _scan_range(chunk: Chunk, found: _Findings) -> list[Piece]:
    data, start = read_owned_lines(chunk.file.uri, chunk.start, chunk.stop)
    return [_scan_lines(chunk.file.uri, data, start, found)] if data else []


def _stage(chunk: Chunk, found: _Findings, work: str) -> list[Piece]:
    pieces = []
    for number, data in enumerate(staged_pieces(chunk.file, chunk.shard_bytes)):
        uri = file_io.join(work, staged_name(chunk.file_index, number))
        file_io.write_bytes(uri, data)
        pieces.append(_scan_lines(uri, data, 0, found))
    return pieces


def read_owned_lines(uri: str, start: int, stop: int) -> tuple[bytes, int]:
    """The lines that begin in [start, stop), whole, and where the first of them begins."""
    before = max(start - 1, 0)
    data = file_io.read_range(uri, before, stop)
    if start > 0:
        newline = data.find(b"\n")
        if newline < 0:
            return b"", start
        data, start = data[newline + 1 :], before + newline + 1
    if not data or data.endswith(b"\n"):
        return data, start
    return data + b"".join(_until_newline(file_io.iter_blocks(uri, stop, block_bytes=LINE_END_BYTES))), start


def _until_newline(blocks: Iterable[bytes]) -> Iterable[bytes]:
    for block in blocks:
        head, newline, _ = block.partition(b"\n")
        yield head + newline
        if newline:
            return


def split_lines(data: bytes) -> list[bytes]:
    """Lines without their ends; a last one that ends the data leaves no empty line behind."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


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


def _scan_rows(chunk: Chunk, found: _Findings) -> Piece:
    found.schemas.append(schema_of(chunk.file.uri))
    sample_stop = min(chunk.stop, chunk.start + SAMPLE_RECORDS)
    found.add_sample(_records(chunk.file.uri, chunk.start, sample_stop, None))
    of: Sequence[str] = [chunk_field] if (chunk_field := found.spec.category_field) else []
    rows = _records(chunk.file.uri, chunk.start, chunk.stop, of) if found.spec.take else []
    num_rows = chunk.stop - chunk.start
    counts = found.count_categories(rows)
    return Piece(chunk.file.uri, chunk.start, chunk.stop, num_rows, num_rows, "", counts)


def _records(uri: str, start: int, stop: int, columns: Sequence[str] | None) -> Iterable[Record]:
    for batch in iter_rows(uri, start, stop, columns):
        yield from batch.to_pylist()
