"""The first records of an input, as a job would read them, without reading the rest of it.

Files come in the job's order, and each is read only so far as records are wanted of it. Its format is told by its first
records, as in a job's plan. Only a JSON object of columns has to be read whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from qtune_service.config import FormatName, InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.discovery import SourceFile, each_file
from qtune_service.ingest.formats import detect_format
from qtune_service.ingest.json_reader import staged_pieces
from qtune_service.ingest.jsonl import Record, RecordProblem, category_of, is_blank, parse_line
from qtune_service.ingest.parquet import iter_rows
from qtune_service.ingest.planner import unknown_format
from qtune_service.ingest.reader import sample_id
from qtune_service.ingest.scanning import SAMPLE_RECORDS, split_lines
from qtune_service.storage import file_io

PIECE_BYTES = 1 << 20
HEAD_RECORDS = 200
MAX_READ = 10_000
"""Records of a file that are read while those of certain categories are looked for."""


@dataclass(frozen=True, slots=True)
class FirstRecord:
    """A record where it stands."""

    sample_id: str
    source: str
    line: int
    format: FormatName
    record: Record | RecordProblem


def first_records(spec: InputSpec, count: int) -> list[FirstRecord]:
    """At most `count` records. Raises DataError where there is none, or a file's format cannot be told."""
    wanted = min(count, spec.limit or count)
    quotas = dict(spec.take) if spec.take else None
    found: list[FirstRecord] = []
    for index, file in enumerate(each_file(spec.paths)):
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
    if spec.format != "auto" or not good:
        return spec.format
    found = detect_format(good, prompt_column=spec.prompt_column, completion_column=spec.completion_column)
    if found is None:
        raise unknown_format(file.name, list(dict.fromkeys(key for record in good for key in record)))
    return found


def _takes(quotas: dict[str, int], record: Record | RecordProblem, field: str) -> bool:
    """Whether a record is of a category that is taken from; it is taken off the quota."""
    category = None if isinstance(record, RecordProblem) else category_of(record, field)
    if category is None or not quotas.get(category):
        return False
    quotas[category] -= 1
    return True


def _numbered(file: SourceFile) -> Iterator[tuple[int, Record | RecordProblem]]:
    """Records with their line, record or row number."""
    if file.kind == "parquet":
        batches = iter_rows(file.uri, 0, MAX_READ, None)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
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
