"""Streaming decompression that gives out all that can be recovered before it reports a break.

Arrow's streams and the gzip module hold data back when the end is missing; the decompressors themselves do not.
Files of several gzip members or zstd frames are one stream, as for the command line tools.
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


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


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
    is_fresh = True  # nothing was given to this decoder yet
    for block in blocks:
        for start in range(0, len(block), FEED_BYTES):
            data = block[start : start + FEED_BYTES]
            position += len(data)
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")  # padding between and after members
                    if not data:
                        break
                    decoder, is_fresh = _decoder(compression), True
                try:
                    yield decoder.decompress(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    what = f"the .{compression} stream is damaged before byte {position}"
                    raise BrokenStreamError(f"{what}: {error}") from error
                is_fresh = False
                data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof and not is_fresh:
        raise BrokenStreamError(f"the .{compression} stream ends in the middle, at byte {position}")


def _decoder(compression: Compression) -> _Decoder:
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
