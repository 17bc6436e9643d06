"""Streaming decompression that gives out what can be recovered before it reports a break.

Arrow's streams hold data back when the end is missing; the decompressors themselves need not. Files of several gzip
members or zstd frames are one stream, as for the command line tools.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, Protocol

import zstandard

from qtune_service.data import storage

Compression = Literal["gz", "zst"]
FEED_BYTES = 64 << 10  # input given at once, which bounds what comes out at once
_MAGIC = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd"}
_ZSTD_WINDOW_BYTES = 1 << 31


class BrokenStreamError(Exception):
    """The compressed stream ends too early or is damaged; what came before it was given out."""


def compression_of(head: bytes) -> Compression | None:
    """The compression that a file's first bytes show."""
    if head.startswith(_MAGIC["gz"]):
        return "gz"
    return "zst" if head.startswith(_MAGIC["zst"]) else None


def iter_bytes(uri: str, compression: Compression | None) -> Iterator[bytes]:
    """The file's content, decompressed."""
    blocks = storage.iter_blocks(uri)
    yield from blocks if compression is None else decompress(blocks, compression)


def decompress(blocks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    """Decompress a stream. Raises BrokenStreamError where it breaks."""
    decoder, position = _decoder(compression), 0
    for block in blocks:
        for start in range(0, len(block), FEED_BYTES):
            data = block[start : start + FEED_BYTES]
            position += len(data)
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")  # padding between and after members
                    if not data:
                        break
                    decoder = _decoder(compression)
                try:
                    yield from decoder.feed(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    what = f"the .{compression} stream is damaged before byte {position}"
                    raise BrokenStreamError(f"{what}: {error}") from error
                data = decoder.unused
    if position and not decoder.eof:
        raise BrokenStreamError(f"the .{compression} stream ends in the middle, at byte {position}")


class _Decoder(Protocol):
    """Decompresses one member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused(self) -> bytes: ...
    def feed(self, data: bytes, /) -> Iterator[bytes]: ...


def _decoder(compression: Compression) -> _Decoder:
    return _Gzip() if compression == "gz" else _Zstd()


class _Gzip:
    """zlib loses the output of a call that fails, so after a failure the same input is fed byte by byte."""

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
    """A frame comes out in blocks of up to 128 KiB; small steps lose little to a call that fails."""

    STEP_BYTES = 4 << 10

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        self.unused = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self.STEP_BYTES):
            yield self._inner.decompress(data[start : start + self.STEP_BYTES])
            if self._inner.eof:
                self.unused = self._inner.unused_data + data[start + self.STEP_BYTES :]
                return
