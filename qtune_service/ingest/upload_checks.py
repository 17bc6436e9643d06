"""Whether a file that streams by can be read by a job: looked at piece by piece, in bounded memory.

A job sets single bad records aside and goes on, so they are counted here and no reason to refuse a file. Refused is
what is none of the formats at all, what is cut off or damaged as a whole, and what would not be found by its name.
What is not looked at: records over MAX_RECORD_BYTES, for their content, and the pages of Parquet, whose footer alone
is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from qtune_service.errors import BadDatasetError, DataError, StorageError
from qtune_service.ingest.decompress import NARROW, BrokenStreamError, Compression, decompress
from qtune_service.ingest.discovery import ENDING, HEAD_BYTES, SUPPORTED, Kind, identify
from qtune_service.ingest.json_reader import JsonBreakError, LongValueError, ValueReader, decoded, objects
from qtune_service.ingest.jsonl import RecordProblem, is_blank, parse_line
from qtune_service.ingest.parquet import footer

MAX_RECORD_BYTES = 1 << 20
SLICE_BYTES = 16 << 10
"""Text that is parsed at once: so little that its objects are gone before the collector of cycles looks at them."""
TELLING_ROWS = 20
"""A file whose first so many records are all bad is no file of records."""
MAX_EXPANSION, FREE_EXPANSION_BYTES = 100, 64 << 20
"""A compressed file may hold so many times its bytes; beyond that, so many bytes in all."""
MAX_FOOTER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a file."""

    kind: Kind
    rows: int | None
    num_bad_rows: int | None
    first_problem: str = ""


def check(name: str, blocks: Iterator[bytes], path: Path, parquet_rows: Callable[[str, Path], int]) -> Checked:
    """Look through a file. Raises BadDatasetError.

    path: where its bytes are once `blocks` has ended. parquet_rows: counts the rows of a Parquet file; the server
    passes one that calls `rows_of_parquet` in a child process, because a footer is a program for a native parser.
    """
    head, blocks = _peek(blocks)
    if not head:
        raise BadDatasetError(f"{name} is empty", "Give a file that holds records.")
    try:
        kind, compression = identify(name, head[:HEAD_BYTES], is_whole=len(head) <= HEAD_BYTES)
    except DataError as error:
        raise BadDatasetError(error.message, error.hint) from error
    _check_name(name, kind, compression)
    if kind == "parquet":
        _exhaust(blocks)
        return Checked(kind, parquet_rows(name, path), None)
    text = _slices(blocks if compression is None else _inflated(name, blocks, compression))
    try:
        return _check_lines(name, text) if kind == "jsonl" else _check_json(name, text)
    except BrokenStreamError as error:
        raise BadDatasetError(f"{name} is not whole: {error}", "Was it cut off? Send it again.") from error


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """More than the head that tells the format, where there is more; and all blocks."""
    first: list[bytes] = []
    size = 0
    for block in blocks:
        first.append(block)
        size += len(block)
        if size > HEAD_BYTES:
            break
    return b"".join(first), itertools.chain(first, blocks)


def _exhaust(blocks: Iterable[bytes]) -> None:
    for _ in blocks:
        pass


def _check_name(name: str, kind: Kind, compression: Compression | None) -> None:
    """A job reads what a file holds, whatever its name; but people and other programs go by the name."""
    ending = ENDING.search(name)
    assert ending is not None, "sources.identify takes others, uploads do not"
    is_named_parquet = ending.group(1).lower() in ("parquet", "pq")
    packed = {None: None, "gz": "gz", "gzip": "gz", "zst": "zst", "zstd": "zst"}[ending.group(2) and ending[2].lower()]
    if is_named_parquet == (kind == "parquet") and packed == compression:
        return
    raise BadDatasetError(
        f"{name} holds {_described(kind, compression)}, which its name does not say",
        f"Name it as what it is. {SUPPORTED}",
    )


def _described(kind: Kind, compression: Compression | None) -> str:
    what = {"jsonl": "JSON lines", "json": "JSON", "parquet": "Parquet"}[kind]
    return what + {None: "", "gz": " in gzip", "zst": " in zstd"}[compression]


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
                f"{name} holds more than {MAX_EXPANSION} times its size", "Send it as it is, not compressed."
            )
        yield piece


def _slices(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), SLICE_BYTES):
            yield block[start : start + SLICE_BYTES]


# --- JSON lines


@dataclass(slots=True)
class _Count:
    """Records so far."""

    name: str
    line: int = 0
    rows: int = 0
    num_bad: int = 0
    first_problem: str = ""

    def add(self, record: object) -> None:
        """Count a record, and what is wrong with it."""
        self.rows += 1
        if isinstance(record, RecordProblem):
            self.num_bad += 1
            self.first_problem = self.first_problem or f"line {self.line}: {record.detail}"
            if self.rows == self.num_bad == TELLING_ROWS:
                self.refuse(f"none of its first {TELLING_ROWS} records can be read")

    def refuse(self, what: str) -> None:
        """Raise BadDatasetError."""
        why = f"; {self.first_problem}" if self.first_problem else ""
        raise BadDatasetError(f"{self.name}: {what}{why}", f"Each record is one JSON object. {SUPPORTED}")

    def checked(self, kind: Kind) -> Checked:
        """The result. Raises BadDatasetError where there was no good record."""
        if self.rows == self.num_bad:
            self.refuse(f"none of its {self.rows} records can be read" if self.rows else "it holds no records")
        return Checked(kind, self.rows, self.num_bad, self.first_problem)


def _check_lines(name: str, text: Iterator[bytes]) -> Checked:
    count, rest = _Count(name), b""  # rest: of a line that has not ended; of one over MAX_RECORD_BYTES its beginning
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
            count.add(_looked_at(line))


def _are_objects(lines: list[bytes]) -> bool:
    """Whether lines are all records: parsed in one go, which takes half the time of single ones."""
    try:
        values = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        return False
    return len(values) == len(lines) and all(type(value) is dict for value in values)


def _looked_at(line: bytes) -> object:
    """A record or its problem. Of one that was too long to keep there is only the beginning."""
    if len(line) > MAX_RECORD_BYTES:
        return line if line.lstrip().startswith(b"{") else RecordProblem("not_an_object", "a long line, not an object")
    return parse_line(line)


# --- other formats


def _check_json(name: str, text: Iterator[bytes]) -> Checked:
    """An array, an object of columns, or objects one after the other."""
    count = _Count(name)
    reader = ValueReader(decoded(text), max_chars=MAX_RECORD_BYTES)
    try:
        for line in reader.elements() if reader.peek() == "[" else objects(reader):
            count.line += 1
            count.add(parse_line(line))
    except JsonBreakError as error:
        raise BadDatasetError(f"{name} is not whole or not JSON: {error}", SUPPORTED) from error
    except LongValueError:  # an object of columns, mostly
        _exhaust(text)
        return Checked("json", None, None)
    return count.checked("json")


def rows_of_parquet(name: str, path: Path) -> int:
    """Count the rows of a local Parquet file by its footer. name: for messages. Raises BadDatasetError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        tail = file.read(8)
    if tail[4:] != b"PAR1" or int.from_bytes(tail[:4], "little") > min(size, MAX_FOOTER_BYTES):
        raise BadDatasetError(f"{name} is not whole: it has no Parquet footer at its end", "Send it again.")
    try:
        rows = footer(str(path)).num_rows
    except StorageError as error:
        what = f"{name} has a Parquet footer that cannot be read: {error.__cause__}"
        raise BadDatasetError(what, "Write it anew; pyarrow, pandas and polars can.") from error
    except DataError as error:
        raise BadDatasetError(error.message.replace(str(path), name), error.hint) from error
    if rows == 0:
        raise BadDatasetError(f"{name} holds no records", "Give a file that holds records.")
    return rows
