"""Read a shard, or the first records of an input.

A shard yields records with their position in the source, and the carried columns as Arrow. Columns of Parquet and
Arrow files stay Arrow throughout, so that times, decimals and binary are exact. Python sees only the columns that the
format reads. JSON records become Arrow by the schema of the plan. The digest is verified, because a changed file could
contain fields that the schema would drop.

`first_records` reads files in the job's order and only as far as needed, for previews and estimates. The format is
detected from the first records, as in a plan. Only a JSON object of columns is read whole.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from qtune_service.config import FormatName, InputSpec
from qtune_service.errors import DataError, StorageError
from qtune_service.ingest.discovery import SourceFile, each_file
from qtune_service.ingest.formats import detect_format, used_columns
from qtune_service.ingest.json_reader import staged_pieces
from qtune_service.ingest.json_schema import own_columns as own_columns_of
from qtune_service.ingest.jsonl import (
    BOM,
    Record,
    RecordProblem,
    category_of,
    encode_value,
    is_blank,
    parse_line,
    split_lines,
)
from qtune_service.ingest.plan import Plan, Shard
from qtune_service.ingest.planner import SAMPLE_RECORDS
from qtune_service.ingest.records import NO_NAMES, ColumnNames
from qtune_service.ingest.row_files import iter_rows, open_rows
from qtune_service.ingest.rows import conform, records_of
from qtune_service.ingest.unknown_format import check_names, explain, nested_in_records, unknown_format
from qtune_service.storage import file_io

__all__ = ["Record", "RecordProblem", "ShardRecords", "category_of", "first_records", "read_shard", "sample_id"]

PIECE_BYTES = 1 << 20
HEAD_RECORDS = 200
MAX_READ = 10_000
"""Limit of records read from a file while searching for certain categories."""


@dataclass(frozen=True, slots=True)
class ShardRecords:
    """The selected records of a shard, in order. All lists have the same length."""

    source: str
    """Input file, without URI options."""
    file_index: int
    lines: list[int]
    """Line, record or row number in the source, from 1."""
    records: list[Record | RecordProblem]
    own_columns: Callable[[Sequence[int]], pa.Table]
    """Carried columns of the records at the indices, by the plan's schema. A record with a problem is a null row."""
    excerpt: Callable[[int, int], str]
    """`excerpt(index, num_chars)`: the beginning of a record in the source."""

    @property
    def sample_ids(self) -> list[str]:
        """Return the ids of the records, unique in the job."""
        return [sample_id(self.file_index, line) for line in self.lines]


def sample_id(file_index: int, line: int) -> str:
    """Return the id of a record, made of file and line, so that it is the same in every run."""
    return f"{file_index:04d}-{line:08d}"


def read_shard(plan: Plan, shard: Shard) -> ShardRecords:
    """Read a shard. Raises DataError if the input has changed, and StorageError if it cannot be read."""
    return _read_lines(plan, shard) if shard.kind == "jsonl" else _read_rows(plan, shard)


class _Quota:
    """Select the records of a shard in order, by category and number."""

    def __init__(self, shard: Shard, category_field: str | None) -> None:
        self._left = shard.num_records
        self._quotas = None if shard.take is None else dict(shard.take)
        self._field = category_field or ""

    @property
    def is_full(self) -> bool:
        return self._left == 0

    def takes(self, record: Record | RecordProblem) -> bool:
        if self._quotas is not None:
            name = None if isinstance(record, RecordProblem) else category_of(record, self._field)
            if name is None or not self._quotas.get(name):
                return False
            self._quotas[name] -= 1
        self._left -= 1
        return True


# --- JSON lines


def _read_lines(plan: Plan, shard: Shard) -> ShardRecords:
    raw, lines, records = [], [], []
    quota = _Quota(shard, plan.category_field)
    for number, line in _numbered_lines(plan, shard):
        if quota.is_full:
            break
        record = parse_line(line)
        if quota.takes(record):
            raw.append(line)
            lines.append(number)
            records.append(record)
    _check_count(plan, shard, len(records))
    schema = plan.schema

    def own_columns(indices: Sequence[int]) -> pa.Table:
        return own_columns_of([raw[i] for i in indices], [records[i] for i in indices], schema)

    def excerpt(index: int, num_chars: int) -> str:
        head = raw[index][: 4 * num_chars + 8].removeprefix(BOM)
        return head.decode("utf-8", "replace").strip("\x00 \t\r")[:num_chars]

    return ShardRecords(plan.files[shard.file_index].name, shard.file_index, lines, records, own_columns, excerpt)


def _numbered_lines(plan: Plan, shard: Shard) -> Iterator[tuple[int, bytes]]:
    data = file_io.read_range(shard.uri, shard.start, shard.stop)
    if hashlib.sha256(data).hexdigest() != shard.digest:
        raise _changed(plan, shard)
    for offset, line in enumerate(split_lines(data)):
        if not is_blank(line):
            yield shard.first_line + offset, line


def _changed(plan: Plan, shard: Shard) -> DataError:
    name = plan.files[shard.file_index].name
    return DataError(
        f"{name} has changed since this job was planned (from line {shard.first_line})",
        "Restore the input, or start from scratch with --overwrite or another --output.",
    )


def _check_count(plan: Plan, shard: Shard, count: int) -> None:
    if count != shard.num_records:
        raise _changed(plan, shard)


# --- Parquet and Arrow


def _read_rows(plan: Plan, shard: Shard) -> ShardRecords:
    file = plan.files[shard.file_index]
    table = _staged_rows(plan, shard) if shard.digest else _rows_of_file(plan, shard)
    columns = _needed_columns(plan, shard, table.column_names)
    quota = _Quota(shard, plan.category_field)
    kept, records = [], []
    for index, record in enumerate(records_of(table.select(columns))):
        if quota.is_full:
            break
        if quota.takes(record):
            kept.append(index)
            records.append(record)
    _check_count(plan, shard, len(records))
    lines = [shard.first_line + index for index in kept]

    def own_columns(indices: Sequence[int]) -> pa.Table:
        return conform(table.take(pa.array([kept[i] for i in indices], pa.int64())), plan.schema)

    def excerpt(index: int, num_chars: int) -> str:
        return encode_value(records[index])[:num_chars]

    return ShardRecords(file.name, shard.file_index, lines, list(records), own_columns, excerpt)


def _staged_rows(plan: Plan, shard: Shard) -> pa.Table:
    data = file_io.read_range(shard.uri, shard.start, shard.stop)
    if hashlib.sha256(data).hexdigest() != shard.digest:
        raise _changed(plan, shard)
    table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
    table.validate(full=True)
    return table


def _rows_of_file(plan: Plan, shard: Shard) -> pa.Table:
    """Read rows of an input file, whose version is compared before and after, since rows have no digest."""
    file = plan.files[shard.file_index]
    try:
        with open_rows(file) as rows:
            if rows.version != file.version:
                raise _changed(plan, shard)
            table = pa.Table.from_batches(list(rows.rows(shard.start, shard.stop)))
        with file_io.open_ranges(file.uri) as read:
            if read.version != file.version:
                raise _changed(plan, shard)
    except StorageError as error:
        if file_io.stat(file.uri) is None:
            raise _changed(plan, shard) from error
        raise
    return table


def _needed_columns(plan: Plan, shard: Shard, names: Sequence[str]) -> list[str]:
    needed = used_columns(shard.format, names, plan.names) | {plan.category_field}
    return [name for name in names if name in needed]


@dataclass(frozen=True, slots=True)
class FirstRecord:
    """A record and its position."""

    sample_id: str
    source: str
    line: int
    format: FormatName
    record: Record | RecordProblem


def first_records(spec: InputSpec, count: int) -> list[FirstRecord]:
    """Return at most `count` records. Raises DataError without records or with an unknown format.

    Datasets of the hub are pinned before, see hub_dataset.py.
    """
    wanted = min(count, spec.limit or count)
    quotas = dict(spec.take) if spec.take else None
    found: list[FirstRecord] = []
    for index, file in enumerate(each_file(spec.paths, spec.split)):
        found += itertools.islice(_of_file(file, index, spec, quotas), wanted - len(found))
        if len(found) >= wanted:
            return found
    if not found:
        names = ", ".join(file_io.display(path) for path in spec.paths[:3])
        raise DataError(f"no records in {names}", "Give files that hold records, and check --take.")
    return found


def _of_file(file: SourceFile, index: int, spec: InputSpec, quotas: dict[str, int] | None) -> Iterator[FirstRecord]:
    numbered = _numbered(file)
    head = list(itertools.islice(numbered, HEAD_RECORDS))
    good = [record for _, record in head if not isinstance(record, RecordProblem)]
    name = _format(file, good[:SAMPLE_RECORDS], spec)
    for line, record in itertools.chain(head, numbered if good else ()):
        if quotas is None or _takes(quotas, record, spec.category_field or ""):
            yield FirstRecord(sample_id(index, line), file.name, line, name, record)


def _format(file: SourceFile, good: list[Record], spec: InputSpec) -> FormatName:
    names = ColumnNames.of(spec)
    if good and names != NO_NAMES:
        check_names(names, list(dict.fromkeys(itertools.chain.from_iterable(good))), nested_in_records(good))
    if spec.format != "auto" or not good:
        return spec.format
    found = detect_format(good, names)
    if found is None:
        raise unknown_format(file.name, explain(good))
    return found


def _takes(quotas: dict[str, int], record: Record | RecordProblem, field: str) -> bool:
    """Return whether the category of a record has quota left, and reduce the quota."""
    category = None if isinstance(record, RecordProblem) else category_of(record, field)
    if category is None or not quotas.get(category):
        return False
    quotas[category] -= 1
    return True


def _numbered(file: SourceFile) -> Iterator[tuple[int, Record | RecordProblem]]:
    """Yield records with their line, record or row number."""
    if file.is_in_rows:
        batches = iter_rows(file, 0, MAX_READ, None)
        yield from enumerate((row for batch in batches for row in records_of(batch)), 1)
        return
    is_plain = file.kind == "jsonl" and file.compression is None
    pieces = _whole_lines(file.uri) if is_plain else staged_pieces(file, PIECE_BYTES)
    lines = enumerate((line for piece in pieces for line in split_lines(piece)), 1)
    filled = ((number, line) for number, line in lines if not is_blank(line))
    for number, line in itertools.islice(filled, MAX_READ):
        yield number, parse_line(line)


def _whole_lines(uri: str) -> Iterator[bytes]:
    rest = b""
    for block in file_io.iter_blocks(uri, block_bytes=PIECE_BYTES):
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += tail
    if rest:
        yield rest
