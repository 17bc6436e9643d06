"""Check in bounded memory, while an upload streams by, that a job can read the file.

A job rejects single bad records and continues, so they are counted here and do not fail the file. A file fails if it
has no supported format, is truncated or damaged, or has a name that does not match its content. The content of records
over MAX_RECORD_BYTES, the pages of Parquet files and the batches of Arrow files are not checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from qtune_service.errors import BadDatasetError, DataError, StorageError
from qtune_service.ingest import arrow_files
from qtune_service.ingest.compression import (
    NARROW,
    SUFFIXES,
    BrokenStreamError,
    Compression,
    decompress,
    head_bytes,
)
from qtune_service.ingest.csv_reader import LongRowError, csv_rows
from qtune_service.ingest.file_kinds import ENDING, IN_ROWS, SUPPORTED, Kind, described, identify
from qtune_service.ingest.json_reader import JsonBreakError, LongValueError, ValueReader, decoded, record_lines
from qtune_service.ingest.jsonl import RecordProblem, is_blank, parse_line
from qtune_service.ingest.parquet import footer
from qtune_service.ingest.row_files import check_arrow

MAX_RECORD_BYTES = 1 << 20
SLICE_BYTES = 16 << 10
"""Text parsed per step: few enough objects that they are freed before a garbage collection."""
FIRST_ROWS = 20
"""Number of first records that must not all be bad."""
MAX_EXPANSION, FREE_EXPANSION_BYTES = 100, 64 << 20
"""Expansion limit of a compressed file, and the decompressed size below which it does not apply."""
MAX_FOOTER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of a check."""

    kind: Kind
    rows: int | None
    num_bad_rows: int | None
    first_problem: str = ""


def check(name: str, blocks: Iterator[bytes], path: Path, count_rows: Callable[[str, Path], int]) -> Checked:
    """Check a file. Raises BadDatasetError.

    path: location of the file once `blocks` is exhausted. count_rows: counts the rows of a Parquet or Arrow file. The
    server runs `rows_of_file` in a child process, because a native parser reads the untrusted metadata.
    """
    head, blocks = _peek(blocks)
    if not head:
        raise BadDatasetError(f"{name} is empty", "Give a file that holds records.")
    wanted = head_bytes(head)
    try:
        kind, compression = identify(name, head[:wanted], is_whole=len(head) <= wanted)
        _check_name(name, kind, compression)
        if kind in IN_ROWS:
            _exhaust(blocks)
            return Checked(kind, count_rows(name, path), None)
        text = _slices(blocks if compression is None else _inflated(name, blocks, compression))
        return _CHECKS[kind](name, text)
    except BadDatasetError:
        raise
    except DataError as error:
        raise BadDatasetError(error.message, error.hint) from error
    except BrokenStreamError as error:
        raise BadDatasetError(f"{name} is incomplete: {error}", "Check the file and upload it again.") from error


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return at least the head that determines the format, and an iterator over all blocks."""
    first: list[bytes] = []
    size = 0
    for block in blocks:
        first.append(block)
        size += len(block)
        if size > head_bytes(b"".join(first[:10])):
            break
    return b"".join(first), itertools.chain(first, blocks)


def _exhaust(blocks: Iterable[bytes]) -> None:
    for _ in blocks:
        pass


def _check_name(name: str, kind: Kind, compression: Compression | None) -> None:
    """Raise BadDatasetError if the suffix does not match the content, which other programs rely on."""
    ending = ENDING.search(name)
    assert ending is not None, "uploads require a known suffix"
    packed = SUFFIXES[ending.group(2).lower()] if ending.group(2) else None
    if _CONTENTS[ending.group(1).lower()] == _CONTENTS.get(kind, kind) and packed == compression:
        return
    raise BadDatasetError(
        f"{name} contains {described(kind, compression)}, which its suffix does not match",
        f"Rename the file. {SUPPORTED}",
    )


_CONTENTS = {
    "jsonl": "json", "ndjson": "json", "json": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet",
    "pq": "parquet", "arrow": "arrow", "feather": "arrow",
}  # fmt: skip
"""Suffixes and kinds, and the content that they stand for."""


def _inflated(name: str, blocks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    received = given = 0

    def counted() -> Iterator[bytes]:
        nonlocal received
        for block in blocks:
            received += len(block)
            yield block

    for piece in decompress(counted(), compression, NARROW):
        given += len(piece)
        if given > max(MAX_EXPANSION * received, FREE_EXPANSION_BYTES):
            raise BadDatasetError(
                f"{name} expands to more than {MAX_EXPANSION} times its size", "Upload it uncompressed."
            )
        yield piece


def _slices(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), SLICE_BYTES):
            yield block[start : start + SLICE_BYTES]


# --- JSON lines


@dataclass(slots=True)
class _Count:
    """Counts of records so far."""

    name: str
    line: int = 0
    rows: int = 0
    num_bad: int = 0
    first_problem: str = ""

    def add(self, record: object) -> None:
        """Count a record or its problem. Raises BadDatasetError if all of the first records are bad."""
        self.rows += 1
        if isinstance(record, RecordProblem):
            self.num_bad += 1
            self.first_problem = self.first_problem or f"line {self.line}: {record.detail}"
            if self.rows == self.num_bad == FIRST_ROWS:
                self.fail(f"none of its first {FIRST_ROWS} records can be read")

    def fail(self, what: str) -> None:
        """Raise BadDatasetError with a reason."""
        why = f"; {self.first_problem}" if self.first_problem else ""
        raise BadDatasetError(f"{self.name}: {what}{why}", f"Each record is one JSON object. {SUPPORTED}")

    def checked(self, kind: Kind) -> Checked:
        """Return the result. Raises BadDatasetError without a valid record."""
        if self.rows == self.num_bad:
            self.fail(f"none of its {self.rows} records can be read" if self.rows else "it holds no records")
        return Checked(kind, self.rows, self.num_bad, self.first_problem)


def _check_lines(name: str, text: Iterator[bytes]) -> Checked:
    count, rest = _Count(name), b""  # rest: incomplete line, or the beginning of a long one
    for piece in text:
        if not rest and piece.isspace():
            count.line += piece.count(b"\n")
            continue
        first, *others = piece.split(b"\n")
        if len(rest) <= MAX_RECORD_BYTES:
            rest += first
        if others:
            _count_lines(count, [rest, *others[:-1]])
            rest = others[-1]
    _count_lines(count, [rest])
    return count.checked("jsonl")


def _count_lines(count: _Count, lines: list[bytes]) -> None:
    if _are_objects(lines):
        count.line += len(lines)
        count.rows += len(lines)
        return
    for line in lines:
        count.line += 1
        if not is_blank(line):
            count.add(_parse_or_head(line))


def _are_objects(lines: list[bytes]) -> bool:
    """Return whether all lines are records. One parse of all takes half the time of single ones."""
    try:
        values = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        return False
    return len(values) == len(lines) and all(type(value) is dict for value in values)


def _parse_or_head(line: bytes) -> object:
    """Return a record or its problem. Of a long record only the beginning is known."""
    if len(line) > MAX_RECORD_BYTES:
        return line if line.lstrip().startswith(b"{") else RecordProblem("not_an_object", "a long line, not an object")
    return parse_line(line)


# --- other formats


def _check_json(name: str, text: Iterator[bytes]) -> Checked:
    """Check an array, an object of columns or of a list of records, or a sequence of objects."""
    count = _Count(name)
    reader = ValueReader(decoded(text), max_chars=MAX_RECORD_BYTES)
    try:
        for line in record_lines(name, reader):
            count.line += 1
            count.add(parse_line(line))
    except JsonBreakError as error:
        raise BadDatasetError(f"{name} is incomplete or not JSON: {error}", SUPPORTED) from error
    except LongValueError:  # usually an object of columns
        _exhaust(text)
        return Checked("json", None, None)
    return count.checked("json")


def _check_csv(name: str, text: Iterator[bytes]) -> Checked:
    count = _Count(name)
    broken: list[BrokenStreamError] = []

    def whole() -> Iterator[bytes]:
        try:
            yield from text
        except BrokenStreamError as error:
            broken.append(error)
            raise

    try:
        for count.line, row in csv_rows(name, whole(), max_chars=MAX_RECORD_BYTES):
            if not broken:
                count.add(row)
    except LongRowError:
        _exhaust(text)
        return Checked("csv", None, None)
    if broken:
        raise broken[0]
    return count.checked("csv")


_CHECKS: dict[Kind, Callable[[str, Iterator[bytes]], Checked]] = {
    "jsonl": _check_lines,
    "json": _check_json,
    "csv": _check_csv,
}


# --- rows


def rows_of_file(name: str, path: Path) -> int:
    """Count the rows of a local Parquet or Arrow file by its metadata. name: for errors. Raises BadDatasetError."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    rows = _rows_of_parquet(name, path) if is_parquet else _rows_of_arrow(name, path)
    if rows == 0:
        raise BadDatasetError(f"{name} holds no records", "Give a file that holds records.")
    return rows


def _rows_of_parquet(name: str, path: Path) -> int:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        tail = file.read(8)
    if tail[4:] != b"PAR1" or int.from_bytes(tail[:4], "little") > min(size, MAX_FOOTER_BYTES):
        raise BadDatasetError(f"{name} is incomplete: it has no Parquet footer at its end", "Upload it again.")
    try:
        return footer(str(path)).num_rows
    except StorageError as error:
        what = f"{name} has a Parquet footer that cannot be read: {error.__cause__}"
        raise BadDatasetError(what, "Write it again, for example with pyarrow, pandas or polars.") from error
    except DataError as error:
        raise BadDatasetError(error.message.replace(str(path), name), error.hint) from error


def _rows_of_arrow(name: str, path: Path) -> int:
    version = str(path.stat().st_mtime_ns)
    try:
        check_arrow(name, arrow_files.schema_of(str(path), version))
        return arrow_files.index_of(str(path), version).num_rows
    except DataError as error:
        raise BadDatasetError(error.message.replace(str(path), name), error.hint) from error
