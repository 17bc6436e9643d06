"""Convert JSON without random access (arrays, objects of columns, compressed files) to JSON lines.

The file is streamed once and cut into pieces of whole lines. The line number of a record over all pieces is its number
in the file. Records are copied as text, without a round trip through floats: the parser only finds their ends. At a
break (truncation, damage, a syntax error inside an array) the records before it are kept, and one line represents the
break, which becomes one rejected record with the position. Objects of columns are loaded whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from qtune_service.ingest.discovery import BrokenStreamError, SourceFile, iter_bytes
from qtune_service.ingest.jsonl import RecordProblem, problem_line

_SPACE = re.compile(r"[ \t\r\n]*")
_NEWLINES = str.maketrans("\r\n", "  ")
_MAX_SPLIT_CHARS = 16  # the longest escape or literal that the window end can split
_WINDOW_CHARS = 1 << 20


def staged_pieces(file: SourceFile, piece_bytes: int) -> Iterator[bytes]:
    """Yield the records of a file as JSON lines, in pieces of about `piece_bytes`."""
    lines = _json_lines(file) if file.kind == "json" else _compressed_lines(file)
    pending: list[bytes] = []
    size = 0
    for block in lines:
        pending.append(block)
        size += len(block)
        if size >= piece_bytes:
            yield b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _compressed_lines(file: SourceFile) -> Iterator[bytes]:
    """Yield blocks of whole lines. A problem line replaces a truncated line."""
    rest: list[bytes] = []  # of an incomplete line
    try:
        for data in iter_bytes(file.uri, file.compression):
            head, newline, tail = data.rpartition(b"\n")
            if newline:
                yield b"".join([*rest, head, newline])
                rest.clear()
            rest.append(tail)
    except BrokenStreamError as error:
        yield problem_line(RecordProblem("bad_json", str(error))) + b"\n"
        return
    if any(rest):
        yield b"".join([*rest, b"\n"])


def _json_lines(file: SourceFile) -> Iterator[bytes]:
    reader = ValueReader(decoded(iter_bytes(file.uri, file.compression)))
    try:
        if reader.peek() == "[":
            yield from reader.elements()
        else:
            yield from objects(reader)
    except JsonBreakError as error:
        yield problem_line(RecordProblem("bad_json", str(error))) + b"\n"


def decoded(blocks: Iterator[bytes]) -> Iterator[str]:
    """Decode a stream. Bytes that are not UTF-8 become surrogates, so that only their record is rejected."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    first = True
    for block in blocks:
        text = decoder.decode(block)
        yield text.removeprefix("\ufeff") if first else text
        first = first and not text
    yield decoder.decode(b"", final=True)


def _encode(text: str) -> bytes:
    return text.translate(_NEWLINES).encode("utf-8", "surrogateescape") + b"\n"


class JsonBreakError(Exception):
    """The text is not valid JSON from this position on."""


class LongValueError(Exception):
    """A value exceeds the length limit of its reader."""


class ValueReader:
    """Read JSON values in sequence from a sliding window over a text stream.

    max_chars: approximate length limit of a value, above which LongValueError is raised.
    """

    def __init__(self, blocks: Iterator[str], max_chars: int | None = None) -> None:
        self._blocks = blocks
        self._max_chars = max_chars
        self._window = ""
        self._at = 0  # position in the window
        self._gone = 0  # characters before the window
        self._ended = False
        self._scan = json.JSONDecoder().raw_decode

    def _read_more(self) -> None:
        """Double the lookahead, so that a long value costs at most twice its length."""
        ahead = [self._window[self._at :]]
        wanted = max(_WINDOW_CHARS, len(ahead[0]))
        self._gone += self._at
        self._at = 0
        try:
            while wanted > 0:
                block = next(self._blocks)
                ahead.append(block)
                wanted -= len(block)
        except StopIteration:
            self._ended = True
        except BrokenStreamError as error:
            self._blocks = _broken(error)
            if wanted == max(_WINDOW_CHARS, len(ahead[0])):
                raise JsonBreakError(str(error)) from error
        self._window = "".join(ahead)

    def peek(self) -> str:
        """Return the next non-space character; empty at the end."""
        while True:
            match = _SPACE.match(self._window, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._read_more()

    def skip(self) -> None:
        """Skip the peeked character."""
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """Return the next value and its text."""
        while True:
            try:
                value, end = self._scan(self._window, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._window) - _MAX_SPLIT_CHARS or error.msg.startswith("Unterminated string")
                if not cut or self._ended:
                    what = "the text ends in the middle" if cut else error.msg
                    raise self.broken(what, error.pos) from error
            except RecursionError as error:
                raise self.broken("nested too deeply", self._at) from error
            else:
                if end < len(self._window) or self._ended:  # otherwise a number may continue
                    text = self._window[self._at : end]
                    self._at = end
                    return value, text
            if self._max_chars is not None and len(self._window) - self._at > self._max_chars:
                raise LongValueError
            self._read_more()

    def broken(self, what: str, at: int | None = None) -> JsonBreakError:
        """Return the error for a position, by default the current one."""
        return JsonBreakError(f"{what} at character {self._gone + (self._at if at is None else at) + 1} of the file")

    def elements(self) -> Iterator[bytes]:
        """Yield the elements of the array at the current position as lines."""
        self.skip()
        if self.peek() == "]":
            self.skip()
        else:
            yield from self._some_elements()
        if self.peek():
            raise self.broken("more text after the array")

    def _some_elements(self) -> Iterator[bytes]:
        while True:
            self.peek()
            yield _encode(self.value()[1])
            following = self.peek()
            if following not in (",", "]"):
                raise self.broken("expected , or ] after a record" if following else "the array ends in the middle")
            self.skip()
            if following == "]":
                return


def _broken(error: BrokenStreamError) -> Iterator[str]:
    """Raise the error again after the data before the break was consumed."""
    raise error
    yield ""


def objects(reader: ValueReader) -> Iterator[bytes]:
    """Yield the lines of one object of columns, or of a sequence of objects."""
    if not reader.peek():
        return
    value, text = reader.value()
    if not reader.peek() and _is_columns(value):
        yield from _rows(value)
        return
    yield _encode(text)
    while reader.peek():
        yield _encode(reader.value()[1])


def _is_columns(value: Any) -> bool:
    """Return whether an object holds columns: dicts from row number to value."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(column, dict) and all(map(str.isdecimal, column)) for column in value.values())


def _rows(columns: dict[str, dict[str, Any]]) -> Iterator[bytes]:
    numbers = dict.fromkeys(number for column in columns.values() for number in column)
    for number in sorted(numbers, key=int):
        row = {name: column[number] for name, column in columns.items() if number in column}
        yield _encode(json.dumps(row, ensure_ascii=False))
