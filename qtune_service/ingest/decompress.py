"""Streaming decompression that gives out what can be recovered before it reports a break.

Arrow's streams hold data back when the end is missing; the decompressors themselves need not. Files of several gzip
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
    """How much memory a stream may take: what is given in at once bounds what comes out at once."""

    gzip_bytes: int = 64 << 10
    zstd_bytes: int = 4 << 10
    """A frame comes out in blocks of up to 128 KiB; small steps lose little to a call that fails."""
    window_bytes: int = 1 << 31
    """Of a zstd frame."""


WIDE = Bounds()
NARROW = Bounds(gzip_bytes=4 << 10, zstd_bytes=256, window_bytes=1 << 27)
"""For strangers' files: at most 4 and 8 MiB at once; the windows that zstd itself allows by default."""


class BrokenStreamError(Exception):
    """The compressed stream ends too early or is damaged; what came before it was given out."""


def compression_of(head: bytes) -> Compression | None:
    """The compression that a file's first bytes show."""
    if head.startswith(_MAGIC["gz"]):
        return "gz"
    return "zst" if head.startswith(_MAGIC["zst"]) else None


def iter_bytes(uri: str, compression: Compression | None) -> Iterator[bytes]:
    """The file's content, decompressed."""
    blocks = file_io.iter_blocks(uri)
    yield from blocks if compression is None else decompress(blocks, compression)


def decompress(blocks: Iterator[bytes], compression: Compression, bounds: Bounds = WIDE) -> Iterator[bytes]:
    """Decompress a stream. Raises BrokenStreamError where it breaks."""
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
    """Decompresses one member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused(self) -> bytes: ...
    def feed(self, data: bytes, /) -> Iterator[bytes]: ...


def _decoder(compression: Compression, bounds: Bounds) -> _Decoder:
    return _Gzip() if compression == "gz" else _Zstd(bounds)


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
    """Frames, step by step."""

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
