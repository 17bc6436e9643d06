"""Read JSON lines from the middle of a compressed file: gzip in blocks (bgzip), and zstd in several frames.

A part of a file owns the frames that start in its range of bytes. A frame is found by its first bytes, so that no index
is needed: the BC field of a bgzip block and the chain to the next block, or the magic number of a zstd frame that can
be decoded. A part reports where its frames begin and end. Parts are used only where each one begins at the end of the
one before, which proves that no frame was missed or invented. Otherwise the file is read as one stream (planner.py).

Lines cross frames. A part leaves out what comes before its first line end, and reads on in the frames of the next part
until its last line ends.

Formats: https://samtools.github.io/hts-specs/SAMv1.pdf (section 4.1), https://datatracker.ietf.org/doc/html/rfc8878
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard

from qtune_service.ingest.compression import SKIPPED_FRAMES, BrokenStreamError, Compression, decoder
from qtune_service.storage.file_io import Ranges

STEP_BYTES = 64 << 10
FETCH_BYTES, BEYOND_BYTES = 1 << 20, 128 << 10
"""Bytes of a request, in the range of a part and behind it."""
PROBE_BYTES = 16 << 20
"""A zstd file without a table of its frames is split only if its first frame is smaller. Many files share the limit."""
PROBED_FILES, MIN_PROBE_BYTES = 8, 1 << 20
_BGZIP = b"\x1f\x8b\x08\x04"
_ZSTD, _SEEK_TABLE = b"\x28\xb5\x2f\xfd", b"\xb1\xea\x92\x8f"


class _Cursor:
    """A position in a file, with the bytes behind it in a buffer."""

    def __init__(self, read: Ranges, at: int, stop: int) -> None:
        self._read, self.at, self._stop = read, at, stop
        self._data, self._start = b"", at
        self._beyond = BEYOND_BYTES

    def ahead(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        offset = self.at - self._start
        if offset + size > len(self._data):
            self._data, self._start, offset = self._data[offset:], self.at, 0
            end = self._start + len(self._data)
            if end < self._read.size_bytes:
                self._data += self._read(end, max(end + size, self._end_of_request(end)))
        return self._data[offset : offset + size]

    def _end_of_request(self, start: int) -> int:
        if start < self._stop:
            return min(start + FETCH_BYTES, self._stop)
        self._beyond = min(2 * self._beyond, FETCH_BYTES)
        return start + self._beyond // 2

    def skip(self, size: int) -> None:
        """Move forward."""
        self.at += size


@dataclass(slots=True)
class Part:
    """The lines that a range [start, stop) of a compressed file owns.

    Positions are known when all lines have been read.
    """

    read: Ranges
    compression: Compression
    start: int
    stop: int
    began: int = -1
    """Position of its first frame. -1: it has none."""
    ended: int = -1
    """Position behind its last frame."""
    _cursor: _Cursor = field(init=False, repr=False)

    def lines(self) -> Iterator[bytes]:
        """Yield blocks of whole lines. Raise BrokenStreamError for damage, also in frames that were not found."""
        self.began = 0 if self.start == 0 else _find(self.read, self.compression, self.start, self.stop)
        if self.began < 0:
            return
        self._cursor = _Cursor(self.read, self.began, self.stop)
        rest: list[bytes] = []
        is_first_line = self.start > 0  # it belongs to the part before
        for text in self._own_text():
            head, newline, tail = text.rpartition(b"\n")
            if newline:
                whole = b"".join([*rest, head, newline])
                rest.clear()
                yield whole.partition(b"\n")[2] if is_first_line else whole
                is_first_line = False
            if not is_first_line:
                rest.append(tail)
        if not is_first_line:
            yield from self._last_line(rest)

    def _own_text(self) -> Iterator[bytes]:
        while self.ended < 0:
            yield from self._frame()
            if self._cursor.at >= self.stop or not self._cursor.ahead(1):
                self.ended = self._cursor.at

    def _last_line(self, rest: list[bytes]) -> Iterator[bytes]:
        """Yield the line that begins in the frames of this part and ends behind them, or begins at their end."""
        while self._cursor.ahead(1):
            for text in self._frame():
                head, newline, _ = text.partition(b"\n")
                rest.append(head + newline)
                if newline:
                    yield b"".join(rest)
                    return
        if any(rest):
            yield b"".join([*rest, b"\n"])

    def _frame(self) -> Iterator[bytes]:
        """Yield the content of the next frame, and skip frames without content behind it."""
        self._skip()
        if not self._cursor.ahead(1):
            return
        frame = decoder(self.compression)
        while not frame.eof:
            data = self._cursor.ahead(STEP_BYTES)
            if not data:
                raise BrokenStreamError(f"the .{self.compression} stream ends in the middle, at byte {self._cursor.at}")
            try:
                yield from frame.feed(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise BrokenStreamError(f"the frame before byte {self._cursor.at} is damaged: {error}") from error
            self._cursor.skip(len(data) - len(frame.unused))
        self._skip()

    def _skip(self) -> None:
        while self.compression == "zst" and (head := self._cursor.ahead(8))[:4] in SKIPPED_FRAMES and len(head) == 8:
            self._cursor.skip(8 + int.from_bytes(head[4:], "little"))


def _find(read: Ranges, compression: Compression, start: int, stop: int) -> int:
    """Return the position of the first frame that starts in a range, -1 if there is none."""
    magic = _BGZIP if compression == "gz" else _ZSTD
    begins = _begins_block if compression == "gz" else _begins_frame
    end = min(stop + len(magic) - 1, read.size_bytes)
    at, tail, step = start, b"", BEYOND_BYTES
    while at < end:
        block = read(at, min(at + step, end))
        data, first = tail + block, at - len(tail)
        found = data.find(magic)
        while found >= 0:
            if begins(read, first + found):
                return first + found
            found = data.find(magic, found + 1)
        at, step = at + len(block), min(2 * step, FETCH_BYTES)
        tail = data[-(len(magic) - 1) :]
    return -1


def _begins_block(read: Ranges, at: int) -> bool:
    """Return whether a bgzip block is at a position, and another one or the end of the file behind it."""
    following = at + _block_bytes(read(at, at + 18))
    return following > at and (following == read.size_bytes or _block_bytes(read(following, following + 18)) > 0)


def _block_bytes(head: bytes) -> int:
    """Return the size of a bgzip block by its first 18 bytes, 0 for other data."""
    is_block = len(head) == 18 and head.startswith(_BGZIP) and head[10:16] == b"\x06\0BC\x02\0"
    return int.from_bytes(head[16:18], "little") + 1 if is_block else 0


def _begins_frame(read: Ranges, at: int) -> bool:
    try:
        for _ in decoder("zst").feed(read(at, at + STEP_BYTES)):
            pass
    except zstandard.ZstdError:
        return False
    return True


def can_split(read: Ranges, compression: Compression | None, probe_bytes: int = PROBE_BYTES) -> bool:
    """Return whether a file has blocks or frames that can be read on their own. At most `probe_bytes` are read."""
    if compression == "gz":
        return _block_bytes(read(0, 18)) > 0
    if compression != "zst":
        return False
    size = read.size_bytes
    if read(max(size - 4, 0), size) == _SEEK_TABLE or read(0, 4) in SKIPPED_FRAMES:
        return True
    end = _first_frame_end(read, probe_bytes)
    return 0 < end < size


def _first_frame_end(read: Ranges, probe_bytes: int) -> int:
    """Return the end of the first zstd frame, by the heads of its blocks; 0 if it is longer than `probe_bytes`."""
    cursor = _Cursor(read, 0, probe_bytes)
    head = cursor.ahead(18)
    if not head.startswith(_ZSTD) or len(head) < 18:
        return 0
    cursor.skip(zstandard.frame_header_size(head))
    while cursor.at < probe_bytes and len(block := cursor.ahead(3)) == 3:
        about = int.from_bytes(block, "little")
        is_last, is_repeated = about & 1, about >> 1 & 3 == 1
        cursor.skip(3 + (1 if is_repeated else about >> 3))
        if is_last:
            return cursor.at + (4 if head[4] & 4 else 0)  # a checksum
    return 0
