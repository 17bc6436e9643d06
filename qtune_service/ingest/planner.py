"""Plan deterministic shards before work starts, independent of the cluster.

    files = find(paths).files
    plan = plan_input(files, spec, scan_chunks)      # chunks are scanned anywhere, in any order

    chunks = split(files, spec)                      # the steps of plan_input: by size alone,
    scans = [scan(chunk, spec, work=...) ...]        # each chunk on its own (scanner.py),
    plan = make_plan(files, chunks, scans, spec)     # prefix sums over the scans

The plan also selects the records of each shard. `limit`: the first N records in input order. `take`: the first N
records of each named category in input order, and `limit` then counts these. An unparsable record counts as read but
has no category, so `take` does not select it. Blank lines are not records.

A scan may show that a file was cut wrongly: its suffix is not that of its content, or it is no chain of frames. These
files are cut again and their new chunks scanned. The scans of other files are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, islice, pairwise
from typing import Literal

import pyarrow as pa

from qtune_service.config import FormatName, InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.discovery import SourceFile
from qtune_service.ingest.frames import MIN_PROBE_BYTES, PROBE_BYTES, PROBED_FILES, can_split
from qtune_service.ingest.plan import ALL_ROWS, Chunk, ChunkScan, Piece, Plan, Shard, decode_schema, encode_schema
from qtune_service.ingest.records import NO_NAMES, ColumnNames
from qtune_service.ingest.row_files import Run, cut, groups_of
from qtune_service.ingest.scanner import SAMPLE_RECORDS, holds_limit, scan, select
from qtune_service.ingest.schema import finish, unify
from qtune_service.ingest.unknown_format import check_names, nested_in_schema, unknown_format
from qtune_service.storage import file_io

__all__ = [
    "SAMPLE_RECORDS", "Chunk", "ChunkScan", "Piece", "Plan", "Shard", "is_enough", "make_plan", "plan_input", "scan",
    "split",
]  # fmt: skip

MIN_SHARD_BYTES = 128 << 10
SMALL_SHARD_BYTES, MAX_SHARD_BYTES = 4 << 20, 16 << 20
FEW_SHARDS, MANY_SHARDS = 256, 2560
"""Target numbers of shards. At the end of a job the actors wait for the last shard, so it must be a small part of the
work of one actor: of a dozen actors for small inputs, and of dozens for large ones (benchmarks/scale --tail)."""
RUNS_A_CHUNK = 64
"""Runs of rows that one chunk covers: only their category column may have to be read."""
SHARDS_A_PART = 4
"""Size of the ranges of a compressed file, in shards."""
SCAN_WAVE = 64
"""Chunks that are scanned before checking whether `limit` is reached."""


# --- chunks


def split(
    files: Sequence[SourceFile], spec: InputSpec, *, shard_bytes: int | None = None, whole: frozenset[str] = frozenset()
) -> list[Chunk]:
    """Split files into chunks. Reads footers of Parquet, and heads of Arrow's batches and of compressed files.

    shard_bytes: the size of shards, by default that of `spec`, or one that follows from the size of the input. whole:
    URIs of compressed files that are not split.
    """
    in_rows = [file for file in files if file.is_in_rows and file.is_checked]
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="footers") as pool:
        groups = dict(zip((file.uri for file in in_rows), pool.map(groups_of, in_rows), strict=True))
        sizes = [
            sum(group.num_bytes for group in groups[file.uri]) if file.uri in groups else file.size_bytes
            for file in files
        ]
        size = shard_bytes or spec.shard_bytes or default_shard_bytes(sum(sizes))
        packed = [file for file in files if _may_split(file, size) and file.uri not in whole]
        probe = max(PROBE_BYTES * PROBED_FILES // max(len(packed), PROBED_FILES), MIN_PROBE_BYTES)
        splits = pool.map(lambda file: _can_split(file, probe), packed)
        parts = {file.uri for file, is_split in zip(packed, splits, strict=True) if is_split}
    chunks: list[Chunk] = []
    for file_index, file in enumerate(files):
        if file.uri in groups:
            ranges = list(_joined(cut(groups[file.uri], size)))
        else:
            ranges = _ranges(file, size, is_split=file.uri in parts)
        chunks += [
            Chunk(len(chunks) + i, file_index, file, *edges, size, is_part=file.uri in parts)
            for i, edges in enumerate(ranges)
        ]
    return chunks


def default_shard_bytes(input_bytes: int) -> int:
    """Return the size of a shard: 256 shards of up to 4 MiB, and above 10 GiB 2,560 shards of up to 16 MiB."""
    few, many = input_bytes // FEW_SHARDS, input_bytes // MANY_SHARDS
    return min(max(min(few, SMALL_SHARD_BYTES), many, MIN_SHARD_BYTES), MAX_SHARD_BYTES)


def _may_split(file: SourceFile, shard_bytes: int) -> bool:
    is_packed = file.compression in ("gz", "zst") and file.kind == "jsonl"
    return is_packed and file.is_checked and file.size_bytes > 2 * SHARDS_A_PART * shard_bytes


def _can_split(file: SourceFile, probe_bytes: int) -> bool:
    with file_io.open_ranges(file.uri) as read:
        return can_split(read, file.compression, probe_bytes)


def _joined(runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Yield the rows of chunks: a large group, or a number of runs."""
    for is_large, some in groupby(runs, lambda run: run.is_large):
        while joined := list(islice(some, 1 if is_large else RUNS_A_CHUNK)):
            yield joined[0].start, joined[-1].stop


def _ranges(file: SourceFile, shard_bytes: int, *, is_split: bool) -> list[tuple[int, int]]:
    if file.size_bytes == 0:
        return []
    if file.is_in_rows:
        return [(0, ALL_ROWS)]
    if file.kind != "jsonl" or (file.compression is not None and not is_split):
        return [(0, file.size_bytes)]
    size = SHARDS_A_PART * shard_bytes if is_split else shard_bytes
    edges = [*range(0, file.size_bytes, size), file.size_bytes]
    if len(edges) > 2 and edges[-1] - edges[-2] < size // 4:  # no tiny last shard
        del edges[-2]
    return list(pairwise(edges))


# --- planning


def is_enough(scans: Sequence[ChunkScan], spec: InputSpec) -> bool:
    """Return whether the first chunks contain `limit` records, so that the others need no scan."""
    return holds_limit((piece for scan in scans for piece in scan.pieces), spec)


def plan_input(
    files: Sequence[SourceFile],
    spec: InputSpec,
    scan_chunks: Callable[[Sequence[Chunk]], Mapping[int, ChunkScan]],
    begin: Callable[[Sequence[Chunk], int], None] = lambda _chunks, _done: None,
) -> Plan:
    """Return the plan of an input. Raise DataError for an input that cannot be read.

    scan_chunks: scans chunks and returns the results by their indices. begin: is called with all chunks and the number
    of those that are scanned already, and again where files are cut again.
    """
    known: dict[Chunk, ChunkScan] = {}
    whole: frozenset[str] = frozenset()
    shard_bytes = None
    while True:
        chunks = split(files, spec, shard_bytes=shard_bytes, whole=whole)
        shard_bytes = chunks[0].shard_bytes if chunks else None
        by_content = {chunk: replace(chunk, index=0) for chunk in chunks}
        begin(chunks, sum(one in known for one in by_content.values()))
        scans: list[ChunkScan] = []
        wrong: dict[int, SourceFile] = {}
        wave = len(chunks) if spec.limit is None else SCAN_WAVE
        while len(scans) < len(chunks) and not wrong and not is_enough(scans, spec):
            todo = chunks[len(scans) : len(scans) + wave]
            fresh = scan_chunks([chunk for chunk in todo if by_content[chunk] not in known])
            known |= {by_content[chunk]: fresh[chunk.index] for chunk in todo if chunk.index in fresh}
            found = [replace(known[by_content[chunk]], index=chunk.index) for chunk in todo]
            wrong |= {
                scan.file_index: scan.file
                for scan in found
                if scan.file and _kind(scan.file) != _kind(files[scan.file_index])
            }
            scans += found
        is_complete = len(scans) == len(chunks)
        broken = frozenset(files[index].uri for index in _broken_chains(files, scans, is_complete=is_complete))
        if not broken and not wrong:
            return make_plan(files, chunks, scans, spec)
        whole |= broken
        files = [wrong.get(index, file) for index, file in enumerate(files)]


def _kind(file: SourceFile) -> tuple[str, str | None]:
    return file.kind, file.compression


def _broken_chains(files: Sequence[SourceFile], scans: Sequence[ChunkScan], *, is_complete: bool) -> Iterator[int]:
    """Yield the files of which a range could not be read on its own, or does not begin where the one before ends.

    is_complete: whether all ranges of the last file were scanned.
    """
    for index, of_file in groupby(scans, lambda scan: scan.file_index):
        at = 0
        parts = [one for one in of_file if one.frames is not None or one.is_broken]
        is_chain = not any(one.is_broken for one in parts)
        for began, ended in (one.frames or (-1, -1) for one in parts):
            is_chain = is_chain and began in (-1, at)
            at = at if began < 0 else ended
        is_whole = is_complete or scans[-1].file_index != index
        if parts and (not is_chain or (is_whole and at != files[index].size_bytes)):
            yield index


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
    by_file = {index: list(own) for index, own in groupby(scans, lambda scan: scan.file_index)}
    formats = {index: _format_of_file(file, by_file.get(index, [])) for index, file in enumerate(files)}
    shards = tuple(_shards(files, scans, formats, spec))
    if not shards:
        raise DataError("no record was selected", "Check --take and --limit.")
    used = {shard.file_index for shard in shards}
    schema = finish(_unified(scan for scan in scans if scan.file_index in used))
    return Plan(
        files=tuple(_as_read(file, by_file.get(index, [])) for index, file in enumerate(files)),
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


def _unified(scans: Iterable[ChunkScan]) -> pa.Schema:
    """Return the merged schema of scans. Equal ones are merged once."""
    return unify(decode_schema(text) for text in dict.fromkeys(scan.schema_ipc for scan in scans))


def _as_read(file: SourceFile, scans: Sequence[ChunkScan]) -> SourceFile:
    """Return a file with the version that its scans saw. Raise DataError if they saw several."""
    seen = {scan.file.version: scan.file for scan in scans if scan.file is not None}
    if len(seen) > 1:
        raise DataError(f"{file.name} has changed while the job was planned", "Run the same command again.")
    return next(iter(seen.values()), file)


def _check_content(files: Sequence[SourceFile], scans: Sequence[ChunkScan], spec: InputSpec) -> None:
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not any(piece.num_records for scan in scans for piece in scan.pieces):
        raise DataError(f"no records in {names}: empty", "Give files that hold records.")
    if not any(scan.keys for scan in scans):
        problem = next(scan.first_problem for scan in scans if scan.first_problem)
        raise DataError(f"no usable record in {names}; the first one is {problem}", "Each line is one JSON object.")
    if (column_names := ColumnNames.of(spec)) != NO_NAMES:
        schema = _unified(scans)
        check_names(column_names, schema.names, nested_in_schema(schema))
    texts = {scan.schema_ipc for scan in scans}
    keys = sorted({key for text in texts for key in decode_schema(text).names})
    if spec.category_field is not None and spec.category_field not in keys:
        raise DataError(f"no record has the category field {spec.category_field}", f"Columns: {', '.join(keys[:40])}")
    for category, quota in spec.take.items():
        if quota and not any(category in piece.categories for scan in scans for piece in scan.pieces):
            seen = ", ".join(dict.fromkeys(name for scan in scans for name in scan.categories_seen))
            raise DataError(f"no record has {spec.category_field} = {category}", f"Found: {seen[:500] or 'none'}")


def _format_of_file(file: SourceFile, own: Sequence[ChunkScan]) -> FormatName:
    """Return the format of a file's first chunk; `auto` for a file without a valid record. own: its scans."""
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
        count, taken = select(piece, quotas, left)
        if count:
            yield Shard(
                index=number,
                file_index=file_index,
                uri=piece.uri,
                kind=_shard_kind(files[file_index], piece),
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


def _shard_kind(file: SourceFile, piece: Piece) -> Literal["jsonl", "parquet", "arrow"]:
    if not file.is_in_rows:
        return "jsonl"
    return "arrow" if piece.digest or file.kind == "arrow" else "parquet"
