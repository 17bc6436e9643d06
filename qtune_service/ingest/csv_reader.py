"""Convert CSV and TSV files to JSON lines that keep the line numbers of the file.

The first row is the header. All cells are text: an empty cell is the empty text, because CSV has no null. A row becomes
a record on the staged line of the same number, since blank lines stand for the header and for the other lines of a row
with line breaks in its quotes.

A row with more or fewer cells than the header, with a broken quote, or with bytes that are not UTF-8 is one rejected
record. A broken quote leaves open which lines belong to its row. If the lines after its first one make whole rows, only
the first is rejected. Otherwise all lines up to the one that shows the error are, since they may be parts of a cell.

The delimiter is the first of comma, tab and semicolon (for `.tsv`: tab, comma, semicolon) that the header contains
outside of quotes. A column without a name, as pandas writes its index, is called `unnamed_1` by its number. Two columns
of one name are an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from qtune_service.errors import DataError
from qtune_service.ingest.compression import BrokenStreamError
from qtune_service.ingest.jsonl import Record, RecordProblem, problem_line
from qtune_service.ingest.schema import MAX_COLUMNS, too_many_columns

MAX_ROW_CHARS = 64 << 20
"""Length limit of a row. A quote that is open for so long counts as broken."""
LOOKAHEAD_CHARS = 64 << 20
"""Text behind broken quotes of a file that may be read twice, in order to find whole rows there."""
_TSV = re.compile(r"\.tsv(\.|$)", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')


class LongRowError(Exception):
    """A row exceeds the length limit of its reader."""


def csv_lines(name: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the rows of a file as JSON lines, with blank lines so that line numbers are those of the file."""
    written = 0  # lines
    for number, row in csv_rows(name, blocks):
        line = problem_line(row) if isinstance(row, RecordProblem) else orjson.dumps(row)
        yield b"\n" * (number - 1 - written) + line + b"\n"
        written = number


def csv_rows(
    name: str, blocks: Iterator[bytes], max_chars: int | None = None
) -> Iterator[tuple[int, Record | RecordProblem]]:
    """Yield the rows with their line numbers. Raise DataError for a header that cannot be used.

    max_chars: length limit of a row, above which LongRowError is raised. By default longer rows are rejected.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))  # of this process; by default 128 KiB
    rows = _Rows(_Lines(blocks, max_chars or MAX_ROW_CHARS), raises=max_chars is not None)
    number, header = rows.header("\t,;" if _TSV.search(name) else ",\t;")
    if isinstance(header, csv.Error):
        raise DataError(
            f"the header of {name}, line {number}, cannot be read: {_explained(header)}", "Correct its quotes."
        )
    if (problem := _not_utf8(header)) is not None:
        raise DataError(f"the header of {name}, line {number}, {problem}", "Save the file as UTF-8.")
    names = _column_names(name, header)
    rows.num_cells = len(names)
    for number, cells in rows:
        yield number, cells if isinstance(cells, RecordProblem) else _record(names, cells)


def _column_names(name: str, header: list[str]) -> list[str]:
    names = [cell.strip() or f"unnamed_{number}" for number, cell in enumerate(header, 1)]
    twice = next((column for column, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        places = " and ".join(str(number) for number, column in enumerate(names, 1) if column == twice)
        raise DataError(f"{name} has several columns named {twice[:200]!r}: {places[:200]}", "Rename one of them.")
    if len(names) > MAX_COLUMNS:
        raise too_many_columns(names)
    return names


def _record(names: list[str], cells: list[str]) -> Record | RecordProblem:
    what = _not_utf8(cells)
    return dict(zip(names, cells, strict=True)) if what is None else RecordProblem("not_utf8", f"the row {what}")


def _not_utf8(cells: list[str]) -> str | None:
    """Return what is wrong with cells that hold bytes which are not UTF-8."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        return f"is not UTF-8: it holds the byte 0x{byte:02x}"
    return None


class _CutLine(str):
    """The beginning of a line that exceeds the length limit."""

    __slots__ = ()


class _Stream(io.RawIOBase):
    """Present blocks as a file. A break is raised when all data before it was read, and then again."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._break: BrokenStreamError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            if self._break is not None:
                raise self._break
            try:
                self._rest = memoryview(next(self._blocks))
            except StopIteration:
                return 0
            except BrokenStreamError as error:
                self._break = error
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class _Lines:
    """Lines of a text with their ends. Lines can be pushed back."""

    def __init__(self, blocks: Iterator[bytes], max_chars: int) -> None:
        self._text = io.TextIOWrapper(io.BufferedReader(_Stream(blocks)), "utf-8", "surrogateescape", newline="")
        self._again: list[str] = []
        self._is_first = True
        self.max_chars = max_chars
        self.number = 0
        """Number of the line that was read last."""

    def next(self) -> str:
        """Return the next line, or the empty text at the end. Raise BrokenStreamError."""
        line = self._again.pop() if self._again else self._read()
        self.number += bool(line)
        return line

    def _read(self) -> str:
        line = self._text.readline(self.max_chars)
        if self._is_first:
            line, self._is_first = line.removeprefix("\ufeff"), False
        if len(line) < self.max_chars or line.endswith("\n"):
            return line
        while (rest := self._text.readline(self.max_chars)) and not rest.endswith(("\n", "\r")):
            pass
        return _CutLine(line)

    def push_back(self, lines: Sequence[str]) -> None:
        """Return lines to the text, in their order."""
        self._again += reversed(lines)
        self.number -= len(lines)


class _Rows:
    """Rows of a file as cells or as problems, with the numbers of their first lines."""

    def __init__(self, lines: _Lines, *, raises: bool) -> None:
        self._lines = lines
        self._raises = raises
        self._taken: list[str] = []  # lines of the row in progress
        self._chars = 0  # in these
        self._max_chars = lines.max_chars
        self._lookahead = LOOKAHEAD_CHARS
        self.num_cells = 0

    def __iter__(self) -> Iterator[tuple[int, list[str] | RecordProblem]]:
        """Yield the rows. Raise LongRowError if the limit raises."""
        while True:
            start = self._lines.number + 1
            try:
                row = self._parse()
                if row is None:
                    return
                if isinstance(row, list) and len(row) == self.num_cells:
                    yield start, row
                elif not _is_blank(row):
                    yield from self._rejected(start, row)
            except BrokenStreamError as error:
                yield start, RecordProblem("bad_row", str(error))
                return

    def header(self, delimiters: str) -> tuple[int, list[str] | csv.Error]:
        """Return the first row that is not blank, and its line number; an empty row without one.

        delimiters: in order of preference. The first one in the header is used for all rows.
        """
        while (line := self._lines.next()) and not line.strip():
            pass
        start = self._lines.number
        self._lines.push_back([line] if line else [])
        outside = _QUOTED.sub("", line)
        self._delimiter = next((sign for sign in delimiters if sign in outside), delimiters[0])
        self._reader = csv.reader(self._take(), delimiter=self._delimiter, strict=True)
        return start, self._parse() or []

    def _take(self) -> Iterator[str]:
        """Yield the lines of the row in progress."""
        while line := self._lines.next():
            self._taken.append(line)
            self._chars += len(line)
            if self._chars > self._max_chars or isinstance(line, _CutLine):
                if self._raises:
                    raise LongRowError
                raise csv.Error(f"it has more than {self._max_chars:,} characters")
            yield line

    def _parse(self) -> list[str] | csv.Error | None:
        """Return the next row, the error in it, or None at the end."""
        self._taken, self._chars = [], 0
        try:
            return next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            self._reader = csv.reader(self._take(), delimiter=self._delimiter, strict=True)
            return error

    def _rejected(self, start: int, row: list[str] | csv.Error) -> Iterator[tuple[int, RecordProblem]]:
        """Yield the problems of the row in progress, and continue behind its first line or behind all."""
        lines = self._taken
        if isinstance(row, list):
            what = f"the row has {len(row)} cells, and the header has {self.num_cells}"
        else:
            what = f"the row cannot be read: {_explained(row)}"
        what += f" (lines {start} to {start + len(lines) - 1})" if len(lines) > 1 else ""
        yield start, RecordProblem("bad_row", what)
        if len(lines) == 1 or self._are_rows(lines[1:]):
            return
        for number, line in enumerate(lines[1:], start + 1):
            assert self._lines.next() == line
            if line.strip():
                what = f"the line is part of the broken row that begins on line {start}"
                yield number, RecordProblem("bad_row", what)

    def _are_rows(self, lines: list[str]) -> bool:
        """Return whether lines that were taken begin and continue as whole rows, and push them back."""
        self._lines.push_back(lines)
        stop, size = self._lines.number + len(lines), sum(map(len, lines))
        is_whole = lines[-1].endswith(("\n", "\r"))
        read: list[str] = []
        self._max_chars = min(self._lines.max_chars, size + self._lookahead)
        try:
            while is_whole and self._lines.number < stop:
                row = self._parse()
                read += self._taken
                is_whole = _is_blank(row) or (isinstance(row, list) and self._is_clean(row))
        except BrokenStreamError:
            read += self._taken
            is_whole = False
            self._reader = csv.reader(self._take(), delimiter=self._delimiter, strict=True)
        finally:
            self._max_chars = self._lines.max_chars
        self._lookahead = max(self._lookahead - max(sum(map(len, read)) - size, 0), 0)
        self._lines.push_back(read)
        return is_whole

    def _is_clean(self, row: list[str]) -> bool:
        """Return whether the row in progress has all its cells, and quotes only around and doubled in them."""
        has_quote = any('"' in cell for cell in row)
        return len(row) == self.num_cells and not (has_quote and not any('""' in line for line in self._taken))


def _explained(error: csv.Error) -> str:
    text = str(error)
    if text == "unexpected end of data":
        return "a quote opens a cell and is never closed"
    if text.endswith("expected after '\"'"):
        return "text follows the quote that closes a cell (a quote inside of a cell is written twice)"
    return text


def _is_blank(row: list[str] | csv.Error | None) -> bool:
    return isinstance(row, list) and len(row) < 2 and not "".join(row).strip()
