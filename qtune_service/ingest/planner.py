"""Plan deterministic shards before work starts, independent of the cluster.

    files = discover(paths)
    chunks = split(files, spec)                      # by size alone
    scans = [scan(chunk, spec, work=...) ...]        # anywhere, in any order
    plan = make_plan(files, chunks, scans, spec)     # prefix sums over the scans

The plan also selects the records of each shard. `limit`: the first N records in input order. `take`: the first N
records of each named category in input order, and `limit` then counts these. An unparsable record counts as read but
has no category, so `take` does not select it. Blank lines are not records.

A scan reads a chunk once. Counting and hashing run at memory speed and Arrow infers types, so a scan reads hundreds of
MB/s a core. Chunks are independent of each other. Compressed files, JSON arrays and CSV are staged during the scan (see
json_reader.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Literal

import pyarrow as pa

from qtune_service.config import FormatName, InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.discovery import SourceFile
from qtune_service.ingest.formats import detect_format
from qtune_service.ingest.json_reader import staged_pieces
from qtune_service.ingest.json_schema import infer_lines
from qtune_service.ingest.jsonl import Record, RecordProblem, category_of, is_blank, parse_line, split_lines
from qtune_service.ingest.plan import Chunk, ChunkScan, Piece, Plan, Shard, encode_schema, staged_name
from qtune_service.ingest.records import NO_NAMES, ColumnNames
from qtune_service.ingest.row_files import cut, groups_of, iter_rows, schema_of
from qtune_service.ingest.rows import records_of
from qtune_service.ingest.schema import finish, unify
from qtune_service.ingest.unknown_format import check_names, explain, nested_in_schema, unknown_format
from qtune_service.storage import file_io

SAMPLE_RECORDS = 20
CATEGORIES_SHOWN = 20
LINE_END_BYTES = 256 << 10


@dataclass(slots=True)
class _Findings:
    """Accumulated findings over the pieces of a chunk."""

    spec: InputSpec
    schemas: list[pa.Schema] = field(default_factory=list)
    sample: list[Record] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    first_problem: str = ""

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
    """Scan a chunk. work: folder for staged files."""
    found = _Findings(spec)
    if chunk.file.is_in_rows:
        pieces = [_scan_rows(chunk, found)]
    elif chunk.file.kind == "jsonl" and chunk.file.compression is None:
        pieces = _scan_range(chunk, found)
    else:
        pieces = _stage(chunk, found, work)
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
    """Return the whole lines that start in [start, stop), and the start of the first one."""
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
    file = chunk.file
    found.schemas.append(schema_of(file))
    sample_stop = min(chunk.stop, chunk.start + SAMPLE_RECORDS)
    found.add_sample(_records(file, chunk.start, sample_stop, None))
    of: Sequence[str] = [chunk_field] if (chunk_field := found.spec.category_field) else []
    rows = _records(file, chunk.start, chunk.stop, of) if found.spec.take else []
    num_rows = chunk.stop - chunk.start
    counts = found.count_categories(rows)
    return Piece(file.uri, chunk.start, chunk.stop, num_rows, num_rows, "", counts)


def _records(file: SourceFile, start: int, stop: int, columns: Sequence[str] | None) -> Iterable[Record]:
    for batch in iter_rows(file, start, stop, columns):
        yield from records_of(batch)


__all__ = ["Chunk", "ChunkScan", "Piece", "Plan", "Shard", "is_enough", "make_plan", "scan", "split"]

MIN_SHARD_BYTES = 128 << 10
SMALL_SHARD_BYTES, MAX_SHARD_BYTES = 4 << 20, 16 << 20
FEW_SHARDS, MANY_SHARDS = 256, 2560
"""Target numbers of shards. At the end of a job the actors wait for the last shard, so it must be a small part of the
work of one actor: of a dozen actors for small inputs, and of dozens for large ones (benchmarks/scale --tail)."""


# --- chunks


def split(files: Sequence[SourceFile], spec: InputSpec) -> list[Chunk]:
    """Split files into chunks. Reads only the footers of Parquet files, and the heads of Arrow's record batches."""
    in_rows = [file for file in files if file.is_in_rows]
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="footers") as pool:
        groups = dict(zip((file.uri for file in in_rows), pool.map(groups_of, in_rows), strict=True))
    sizes = {
        file.uri: sum(group.num_bytes for group in groups[file.uri]) if file.uri in groups else file.size_bytes
        for file in files
    }
    shard_bytes = spec.shard_bytes or default_shard_bytes(sum(sizes.values()))
    chunks: list[Chunk] = []
    for file_index, file in enumerate(files):
        runs = cut(groups[file.uri], shard_bytes) if file.uri in groups else _ranges(file, shard_bytes)
        chunks += [Chunk(len(chunks) + i, file_index, file, *run, shard_bytes) for i, run in enumerate(runs)]
    return chunks


def default_shard_bytes(input_bytes: int) -> int:
    """Return the size of a shard: 256 shards of up to 4 MiB, and above 10 GiB 2,560 shards of up to 16 MiB."""
    few, many = input_bytes // FEW_SHARDS, input_bytes // MANY_SHARDS
    return min(max(min(few, SMALL_SHARD_BYTES), many, MIN_SHARD_BYTES), MAX_SHARD_BYTES)


def _ranges(file: SourceFile, shard_bytes: int) -> list[tuple[int, int]]:
    if file.size_bytes == 0:
        return []
    if file.kind != "jsonl" or file.compression is not None:
        return [(0, file.size_bytes)]
    edges = [*range(0, file.size_bytes, shard_bytes), file.size_bytes]
    if len(edges) > 2 and edges[-1] - edges[-2] < shard_bytes // 4:  # no tiny last shard
        del edges[-2]
    return list(pairwise(edges))


# --- planning


def is_enough(scans: Sequence[ChunkScan], spec: InputSpec) -> bool:
    """Return whether the first chunks contain `limit` records, so that the others need no scan."""
    if spec.limit is None:
        return False
    quotas = dict(spec.take) if spec.take else None
    return sum(_select(piece, quotas, None)[0] for scan in scans for piece in scan.pieces) >= spec.limit


def make_plan(
    files: Sequence[SourceFile], chunks: Sequence[Chunk], scans: Sequence[ChunkScan], spec: InputSpec
) -> Plan:
    """Build the plan from the scans of all chunks, or of the first ones if `is_enough`. Raises DataError."""
    scans = sorted(scans, key=lambda scan: scan.index)
    if [scan.index for scan in scans] != [chunk.index for chunk in chunks[: len(scans)]] or (
        len(scans) < len(chunks) and not is_enough(scans, spec)
    ):
        raise ValueError("make_plan needs the scans of all chunks")
    _check_content(files, scans, spec)
    formats = {index: _format_of_file(file, index, scans) for index, file in enumerate(files)}
    shards = tuple(_shards(files, scans, formats, spec))
    if not shards:
        raise DataError("no record was selected", "Check --take and --limit.")
    used = {shard.file_index for shard in shards}
    schema = finish(unify(scan.schema for scan in scans if scan.file_index in used))
    return Plan(
        files=tuple(files),
        shards=shards,
        schema_ipc=encode_schema(schema),
        num_records=sum(shard.num_records for shard in shards),
        category_field=spec.category_field,
        prompt_column=spec.prompt_column,
        completion_column=spec.completion_column,
        messages_column=spec.messages_column,
        column_map=dict(spec.column_map),
        role_map=dict(spec.role_map),
    )


def _check_content(files: Sequence[SourceFile], scans: Sequence[ChunkScan], spec: InputSpec) -> None:
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not any(piece.num_records for scan in scans for piece in scan.pieces):
        raise DataError(f"no records in {names}: empty", "Give files that hold records.")
    if not any(scan.keys for scan in scans):
        problem = next(scan.first_problem for scan in scans if scan.first_problem)
        raise DataError(f"no usable record in {names}; the first one is {problem}", "Each line is one JSON object.")
    if (column_names := ColumnNames.of(spec)) != NO_NAMES:
        schema = unify(scan.schema for scan in scans)
        check_names(column_names, schema.names, nested_in_schema(schema))
    keys = sorted({key for scan in scans for key in scan.schema.names})
    if spec.category_field is not None and spec.category_field not in keys:
        raise DataError(f"no record has the category field {spec.category_field}", f"Columns: {', '.join(keys[:40])}")
    for category, quota in spec.take.items():
        if quota and not any(category in piece.categories for scan in scans for piece in scan.pieces):
            seen = ", ".join(dict.fromkeys(name for scan in scans for name in scan.categories_seen))
            raise DataError(f"no record has {spec.category_field} = {category}", f"Found: {seen[:500] or 'none'}")


def _format_of_file(file: SourceFile, index: int, scans: Sequence[ChunkScan]) -> FormatName:
    """Return the format of a file's first chunk; `auto` for a file without a valid record."""
    own = [scan for scan in scans if scan.file_index == index]
    keys = list(dict.fromkeys(key for scan in own for key in scan.keys))
    found = next((scan.format for scan in own if scan.format is not None), None)
    if found is None and keys:
        raise unknown_format(file.name, next(scan.unknown for scan in own if scan.unknown))
    return found or "auto"


def _shards(
    files: Sequence[SourceFile], scans: Sequence[ChunkScan], formats: dict[int, FormatName], spec: InputSpec
) -> Iterator[Shard]:
    """Yield the shards in input order, with the remaining quotas."""
    quotas = dict(spec.take) if spec.take else None
    left, line, file_index, number = spec.limit, 1, -1, 0
    for of_file, piece in ((found.file_index, piece) for found in scans for piece in found.pieces):
        if of_file != file_index:
            file_index, line = of_file, 1
        count, taken = _select(piece, quotas, left)
        if count:
            yield Shard(
                index=number,
                file_index=file_index,
                uri=piece.uri,
                kind=_shard_kind(files[file_index]),
                format=formats[file_index],
                start=piece.start,
                stop=piece.stop,
                first_line=line,
                digest=piece.digest,
                num_records=count,
                take=taken,
                limit=left,
            )
            number += 1
        line += piece.num_lines
        left = None if left is None else left - count


def _shard_kind(file: SourceFile) -> Literal["jsonl", "parquet", "arrow"]:
    return file.kind if file.kind in ("parquet", "arrow") else "jsonl"


def _select(piece: Piece, quotas: dict[str, int] | None, left: int | None) -> tuple[int, dict[str, int] | None]:
    """Return the selected records of a piece, in total and by category. Reduces `quotas`."""
    if quotas is None:
        return piece.num_records if left is None else min(left, piece.num_records), None
    taken = {name: min(quotas[name], count) for name, count in piece.categories.items() if quotas[name]}
    for name, count in taken.items():
        quotas[name] -= count
    selected = sum(taken.values())
    return selected if left is None else min(left, selected), taken
