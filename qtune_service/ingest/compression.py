"""Decompress gzip, zstd, bzip2 and xz streams: all recoverable data before a break, in bounded memory.

Decompression yields all recoverable data before it reports a damaged stream. Arrow's streams hold back data of a
truncated file, so the decompressors are used directly. Files with several gzip members, zstd frames, or bzip2 or xz
streams are one stream, as for the command line tools.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import zstandard

from qtune_service.storage import file_io

Compression = Literal["gz", "zst", "bz2", "xz"]
SUFFIXES: dict[str, Compression] = {
    "gz": "gz", "gzip": "gz", "zst": "zst", "zstd": "zst", "bz2": "bz2", "xz": "xz",
}  # fmt: skip
"""Suffixes of files, and what they stand for."""
NAMES: dict[Compression, str] = {"gz": "gzip", "zst": "zstd", "bz2": "bzip2", "xz": "xz"}
_MAGIC: dict[Compression, bytes] = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
SKIPPED_FRAMES = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
"""First bytes of zstd frames without content. pzstd writes one before each frame, with its size."""
_OUTPUT_STEP = 8 << 10
"""Output of a call for bzip2 and xz: the most that a failing call loses."""
HEAD_BYTES = 64 << 10
BZIP2_HEAD_BYTES = 1 << 20
"""bzip2 yields nothing before the end of its first block, of up to 900 kB."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Memory limits of a stream. For gzip and zstd, the size of the input steps bounds the size of the output."""

    gzip_bytes: int = 64 << 10
    zstd_bytes: int = 4 << 10
    """Input step. A frame yields blocks of up to 128 KiB, and small steps lose little data to a failing call."""
    window_bytes: int = 1 << 31
    """Largest window of a zstd frame, and largest memory of an xz decoder."""


WIDE = Bounds()
NARROW = Bounds(gzip_bytes=4 << 10, zstd_bytes=256, window_bytes=1 << 27)
"""Limits for untrusted files: at most 4 and 8 MiB of output a step, and the default window limit of zstd."""


class BrokenStreamError(Exception):
    """The compressed stream is truncated or damaged. All data before the break was yielded."""


def compression_of(head: bytes) -> Compression | None:
    """Detect the compression from the first bytes of a file."""
    if head[:4] in SKIPPED_FRAMES:
        return "zst"
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


def head_bytes(head: bytes) -> int:
    """Return the number of first bytes that identify the content of a file. head: at least its first ten bytes."""
    return BZIP2_HEAD_BYTES if compression_of(head) == "bz2" else HEAD_BYTES


def iter_bytes(uri: str, compression: Compression | None) -> Iterator[bytes]:
    """Yield the decompressed content of a file."""
    blocks = file_io.iter_blocks(uri)
    yield from blocks if compression is None else decompress(blocks, compression)


def decompress(blocks: Iterator[bytes], compression: Compression, bounds: Bounds = WIDE) -> Iterator[bytes]:
    """Decompress a stream. Raises BrokenStreamError at a break."""
    current, position = decoder(compression, bounds), 0
    for block in blocks:
        for start in range(0, len(block), bounds.gzip_bytes):
            data = block[start : start + bounds.gzip_bytes]
            position += len(data)
            while data:
                if current.eof:
                    data = data.lstrip(b"\0")  # padding between and after members
                    if not data:
                        break
                    current = decoder(compression, bounds)
                try:
                    yield from current.feed(data)
                except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:  # bz2 raises OSError
                    what = f"the .{compression} stream is damaged before byte {position}"
                    raise BrokenStreamError(f"{what}: {error}") from error
                data = current.unused
    if position and not current.eof:
        raise BrokenStreamError(f"the .{compression} stream ends in the middle, at byte {position}")


def inflate_head(head: bytes, compression: Compression) -> tuple[bytes, bool]:
    """Decompress the head of a file up to HEAD_BYTES; return the text and whether it is complete."""
    text = b""
    try:
        for piece in decompress(iter([head]), compression, NARROW):
            text += piece
            if len(text) > HEAD_BYTES:
                return text[:HEAD_BYTES], False
    except BrokenStreamError:  # expected: the head is a part of the stream
        return text, False
    return text, True


class Decoder(Protocol):
    """Decompressor of one member, frame or stream."""

    @property
    def eof(self) -> bool:
        """Return whether its end was read."""
        ...

    @property
    def unused(self) -> bytes:
        """Return the bytes behind its end."""
        ...

    def feed(self, data: bytes, /) -> Iterator[bytes]:
        """Yield the content of the next bytes."""
        ...


def decoder(compression: Compression, bounds: Bounds = WIDE) -> Decoder:
    """Return a decompressor of one member, frame or stream."""
    if compression == "gz":
        return _Gzip()
    return _Zstd(bounds) if compression == "zst" else _Stepwise(compression, bounds)


class _Stream:
    """The end of a stream of the standard library's decompressors."""

    _inner: Any

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self._inner.unused_data) if self._inner.eof else b""


class _Gzip(_Stream):
    """Decompressor of a gzip member. zlib loses the output of a failing call, so its input is retried byte by byte."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        before = self._inner.copy()
        try:
            text = self._inner.decompress(data)
        except zlib.error:
            for index in range(len(data)):
                yield before.decompress(data[index : index + 1])
            raise
        yield text


class _Zstd:
    """Decompressor of a zstd frame, fed in small steps."""

    def __init__(self, bounds: Bounds) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=bounds.window_bytes).decompressobj()
        self._step = bounds.zstd_bytes
        self.unused = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self._step):
            yield self._inner.decompress(data[start : start + self._step])
            if self._inner.eof:
                self.unused = self._inner.unused_data + data[start + self._step :]
                return


class _Stepwise(_Stream):
    """Decompressor of a bzip2 or xz stream, with output in small steps."""

    def __init__(self, compression: Compression, bounds: Bounds) -> None:
        if compression == "bz2":
            self._inner = bz2.BZ2Decompressor()
        else:
            self._inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=bounds.window_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._inner.decompress(data, _OUTPUT_STEP)
        while not self._inner.eof and not self._inner.needs_input:
            yield self._inner.decompress(b"", _OUTPUT_STEP)
