"""Streaming decompression that yields all recoverable data before it reports a damaged stream.

Arrow's streams hold back data of a truncated file, so the decompressors are used directly. Files with several gzip
members or zstd frames are one stream, as for the command line tools.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import zstandard

from qtune_service.storage import file_io

Compression = Literal["gz", "zst"]
_MAGIC = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Memory limits of a stream. The size of the input steps bounds the size of the output."""

    gzip_bytes: int = 64 << 10
    zstd_bytes: int = 4 << 10
    """Input step. A frame yields blocks of up to 128 KiB, and small steps lose little data to a failing call."""
    window_bytes: int = 1 << 31
    """Largest window of a zstd frame."""


WIDE = Bounds()
NARROW = Bounds(gzip_bytes=4 << 10, zstd_bytes=256, window_bytes=1 << 27)
"""Limits for untrusted files: at most 4 and 8 MiB of output a step, and the default window limit of zstd."""


class BrokenStreamError(Exception):
    """The compressed stream is truncated or damaged. All data before the break was yielded."""


def compression_of(head: bytes) -> Compression | None:
    """Detect the compression from the first bytes of a file."""
    if head.startswith(_MAGIC["gz"]):
        return "gz"
    return "zst" if head.startswith(_MAGIC["zst"]) else None


def iter_bytes(uri: str, compression: Compression | None) -> Iterator[bytes]:
    """Yield the decompressed content of a file."""
    blocks = file_io.iter_blocks(uri)
    yield from blocks if compression is None else decompress(blocks, compression)


def decompress(blocks: Iterator[bytes], compression: Compression, bounds: Bounds = WIDE) -> Iterator[bytes]:
    """Decompress a stream. Raises BrokenStreamError at a break."""
    decoder, position = _decoder(compression, bounds), 0
    for block in blocks:
        for start in range(0, len(block), bounds.gzip_bytes):
            data = block[start : start + bounds.gzip_bytes]
            position += len(data)
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")  # padding between and after members
                    if not data:
                        break
                    decoder = _decoder(compression, bounds)
                try:
                    yield from decoder.feed(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    what = f"the .{compression} stream is damaged before byte {position}"
                    raise BrokenStreamError(f"{what}: {error}") from error
                data = decoder.unused
    if position and not decoder.eof:
        raise BrokenStreamError(f"the .{compression} stream ends in the middle, at byte {position}")


class _Decoder(Protocol):
    """Decompressor of one member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused(self) -> bytes: ...
    def feed(self, data: bytes, /) -> Iterator[bytes]: ...


def _decoder(compression: Compression, bounds: Bounds) -> _Decoder:
    return _Gzip() if compression == "gz" else _Zstd(bounds)


class _Gzip:
    """Decompressor of a gzip member. zlib loses the output of a failing call, so its input is retried byte by byte."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data if self._inner.eof else b""

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
