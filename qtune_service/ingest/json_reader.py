"""JSON that cannot be read from the middle (arrays, objects of columns, compressed files) as plain JSON lines.

The file is streamed once, and cut into pieces of whole lines; a record's line in the pieces, taken together, is its
number in the file. Records are copied as they stand, without a round trip through floats: the parser only finds where
each ends.
Where a file breaks (cut off, damaged, a syntax error inside an array), what came before is good, and one line stands
for the break, which reads as one rejected record with the position. Objects of columns are loaded whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from qtune_service.ingest.decompress import BrokenStreamError, iter_bytes
from qtune_service.ingest.discovery import SourceFile
from qtune_service.ingest.jsonl import RecordProblem, problem_line

_SPACE = re.compile(r"[ \t\r\n]*")
_NEWLINES = str.maketrans("\r\n", "  ")
_NEAR_THE_END = 16  # characters: the longest escape or literal that a cut may split
_WINDOW_CHARS = 1 << 20


def staged_pieces(file: SourceFile, piece_bytes: int) -> Iterator[bytes]:
    """The file's records as JSON lines, in pieces of about `piece_bytes`."""
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
    """Blocks of whole lines. A line that the break cut is replaced by the break."""
    rest: list[bytes] = []  # of a line that has not ended
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
    """Text of a stream. Bytes that are not UTF-8 survive as surrogates, so that only their record is lost."""
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
    """The text is not JSON from here on."""


class LongValueError(Exception):
    """A value is longer than its reader was to hold."""


class ValueReader:
    """JSON values one after the other, over a window of a stream of text.

    max_chars: values longer than this, about, are given up: LongValueError.
    """

    def __init__(self, blocks: Iterator[str], max_chars: int | None = None) -> None:
        self._blocks = blocks
        self._max_chars = max_chars
        self._window = ""
        self._at = 0  # in the window
        self._gone = 0  # characters before the window
        self._ended = False
        self._scan = json.JSONDecoder().raw_decode

    def _read_more(self) -> None:
        """Double what is ahead, so that a long value costs no more than twice its length."""
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
        """Next character that is no white space; empty at the end."""
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
        """Step over the character that was peeked at."""
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        while True:
            try:
                value, end = self._scan(self._window, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._window) - _NEAR_THE_END or error.msg.startswith("Unterminated string")
                if not cut or self._ended:
                    what = "the text ends in the middle" if cut else error.msg
                    raise self.broken(what, error.pos) from error
            except RecursionError as error:
                raise self.broken("nested too deeply", self._at) from error
            else:
                if end < len(self._window) or self._ended:  # else a number may go on
                    text = self._window[self._at : end]
                    self._at = end
                    return value, text
            if self._max_chars is not None and len(self._window) - self._at > self._max_chars:
                raise LongValueError
            self._read_more()

    def broken(self, what: str, at: int | None = None) -> JsonBreakError:
        """The error for the current place."""
        return JsonBreakError(f"{what} at character {self._gone + (self._at if at is None else at) + 1} of the file")

    def elements(self) -> Iterator[bytes]:
        """Elements of the array that begins here, as lines."""
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
    """Raise once more, when what came before the break is used up."""
    raise error
    yield ""


def objects(reader: ValueReader) -> Iterator[bytes]:
    """Lines of one object of columns, or of objects one after the other."""
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
    """Whether an object holds columns: each a dict from row number to value."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(column, dict) and all(map(str.isdecimal, column)) for column in value.values())


def _rows(columns: dict[str, dict[str, Any]]) -> Iterator[bytes]:
    numbers = dict.fromkeys(number for column in columns.values() for number in column)
    for number in sorted(numbers, key=int):
        row = {name: column[number] for name, column in columns.items() if number in column}
        yield _encode(json.dumps(row, ensure_ascii=False))
