"""Convert files without random access (JSON, CSV, compressed files) to JSON lines.

The file is streamed once and cut into pieces of whole lines. The line number of a record over all pieces is its number
in the file. Records are copied as text, without a round trip through floats: the parser only finds their ends. At a
break (truncation, damage, a syntax error inside an array) the records before it are kept, and one line represents the
break, which becomes one rejected record with the position.

A JSON file holds an array of records, a sequence of objects, an object of columns, or an object with one list of
records; see json_shapes.py. An array of turns is one record. Objects of columns are loaded whole, wrapped lists are
streamed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from qtune_service.ingest.compression import BrokenStreamError, decompress
from qtune_service.ingest.csv_reader import csv_lines
from qtune_service.ingest.discovery import SourceFile
from qtune_service.ingest.json_shapes import ambiguous_wrapper, first_members, is_turn, rows_of, wrapper_keys
from qtune_service.ingest.jsonl import RecordProblem, problem_line
from qtune_service.storage.file_io import Ranges, iter_blocks

_SPACE = re.compile(r"[ \t\r\n]*")
_NEWLINES = str.maketrans("\r\n", "  ")
MAX_OBJECT_CHARS = 16 << 20
"""Length of an object that is parsed as a whole before deciding whether it is a record. Longer ones wrap records."""
MAX_CONVERSATION_CHARS = 64 << 20
_MAX_SPLIT_CHARS = 16  # the longest escape or literal that the window end can split
_WINDOW_CHARS = 1 << 20


def staged_pieces(file: SourceFile, piece_bytes: int, read: Ranges | None = None) -> Iterator[bytes]:
    """Yield the records of a file as JSON lines, in pieces of about `piece_bytes`. read: the file, if it is open."""
    blocks = iter_blocks(file.uri) if read is None else read.blocks(0, file.size_bytes)
    content = blocks if file.compression is None else decompress(blocks, file.compression)
    match file.kind:
        case "json":
            lines = _json_lines(file.name, content)
        case "csv":
            lines = csv_lines(file.name, content)
        case _:
            lines = _compressed_lines(content)
    return joined(lines, piece_bytes)


def joined(blocks: Iterator[bytes], piece_bytes: int) -> Iterator[bytes]:
    """Join blocks of lines to pieces of about `piece_bytes`."""
    pending: list[bytes] = []
    size = 0
    for block in blocks:
        pending.append(block)
        size += len(block)
        if size >= piece_bytes:
            yield b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _compressed_lines(content: Iterator[bytes]) -> Iterator[bytes]:
    """Yield blocks of whole lines. A problem line replaces a truncated line."""
    rest: list[bytes] = []  # of an incomplete line
    try:
        for data in content:
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


def _json_lines(name: str, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from record_lines(name, ValueReader(decoded(content)))
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

    def elements(self) -> Iterator[tuple[Any, str]]:
        """Yield the elements of the array at the current position, and their texts."""
        self.skip()
        if self.peek() == "]":
            self.skip()
            return
        while True:
            self.peek()
            yield self.value()
            following = self.peek()
            if following not in (",", "]"):
                raise self.broken("expected , or ] after a record" if following else "the array ends in the middle")
            self.skip()
            if following == "]":
                return

    def members(self) -> Iterator[str]:
        """Yield the keys of the object at the current position. The caller reads each value before the next key."""
        self.skip()
        following = self.peek()
        while following != "}":
            key = self.value()[0] if following == '"' else None
            if key is None or self.peek() != ":":
                raise self.broken("expected a key and a colon" if following else "the object ends in the middle")
            self.skip()
            self.peek()
            yield key
            following = self.peek()
            if following not in (",", "}"):
                raise self.broken("expected , or } after a value" if following else "the object ends in the middle")
            if following == ",":
                self.skip()
                following = self.peek()
        self.skip()

    def head(self) -> str:
        """Return the text that was read ahead."""
        return self._window[self._at :]

    def whole_value(self, max_chars: int) -> tuple[Any, str] | None:
        """Return the next value and its text, or None without reading it if it is longer than the limit."""
        limit = self._max_chars
        self._max_chars = max_chars if limit is None else min(limit, max_chars)
        try:
            return self.value()
        except LongValueError:
            return None
        finally:
            self._max_chars = limit


def _broken(error: BrokenStreamError) -> Iterator[str]:
    """Raise the error again after the data before the break was consumed."""
    raise error
    yield ""


def record_lines(name: str, reader: ValueReader) -> Iterator[bytes]:
    """Yield the records of a JSON file as lines. name: of the file, for errors.

    Raise JsonBreakError at a break, and DataError for an object that cannot be read as records.
    """
    match reader.peek():
        case "":
            return
        case "[":
            yield from _array(reader)
        case "{":
            yield from _objects(name, reader)
        case _:
            yield _encode(reader.value()[1])
    while reader.peek():  # a sequence of values
        yield _encode(reader.value()[1])


def _array(reader: ValueReader) -> Iterator[bytes]:
    """Yield the elements of an array. An array of turns is one record, and others may follow."""
    elements = reader.elements()
    for value, text in elements:
        if is_turn(value):
            yield _conversation(reader, text, elements)
            return
        yield _encode(text)
        yield from (_encode(text) for _, text in elements)
    if reader.peek():
        raise reader.broken("more text after the array")


def _conversation(reader: ValueReader, first: str, others: Iterator[tuple[Any, str]]) -> bytes:
    """Return the line of the turns of a whole file."""
    texts, size = [first], len(first)
    for _, text in others:
        texts.append(text)
        size += len(text)
        if size > MAX_CONVERSATION_CHARS:
            raise reader.broken(f"the file is one conversation of more than {MAX_CONVERSATION_CHARS:,} characters")
    return _encode(f"[{','.join(texts)}]")


def _objects(name: str, reader: ValueReader) -> Iterator[bytes]:
    """Yield the lines of an object: one record, the rows of its columns, or the records of the list that it wraps."""
    try:
        whole = reader.whole_value(MAX_OBJECT_CHARS)
    except JsonBreakError:  # records of a wrapped list before the break are good
        whole = None
    if whole is None:
        keys = wrapper_keys(first_members(reader.head()))
        if len(keys) == 1:
            yield from _wrapped(name, reader, keys[0])
            return
        whole = reader.value()
    value, text = whole
    rows = None if reader.peek() else rows_of(name, value)
    yield from [_encode(text)] if rows is None else (_encode(row) for row in rows)


def _wrapped(name: str, reader: ValueReader, wanted: str) -> Iterator[bytes]:
    """Yield the elements of one value of an object, and pass over the others."""
    for key in reader.members():
        if key == wanted and reader.peek() == "[":
            yield from (_encode(text) for _, text in reader.elements())
        elif wrapper_keys({key: reader.value()[0]}):
            raise ambiguous_wrapper(name, [wanted, key])
    if reader.peek():
        raise reader.broken("more text after the object")
