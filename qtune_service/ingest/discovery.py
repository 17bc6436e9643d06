"""Find the input files behind paths, patterns, folders and URIs, and decompress them.

In a folder, files with a known suffix are read, except hidden ones and those that start with `_`. Content takes
precedence over the name: the first bytes distinguish Parquet, gzip, zstd, JSON arrays and JSON lines. So a `.json` file
of JSON lines is read as such, and a file with an unknown suffix is accepted if it is named itself and its content is
recognized.

Decompression yields all recoverable data before it reports a damaged stream. Arrow's streams hold back data of a
truncated file, so the decompressors are used directly. Files with several gzip
members or zstd frames are one stream, as for the command line tools.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import orjson
import zstandard

from qtune_service.errors import DataError, NotAllowedError, StorageError
from qtune_service.ingest.jsonl import BOM
from qtune_service.storage import file_io
from qtune_service.storage.confined import is_really_below

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


Kind = Literal["jsonl", "json", "parquet"]
HEAD_BYTES = 64 << 10
SUPPORTED = "Supported: .jsonl, .ndjson, .json (array, or object of columns), each also .gz or .zst, and .parquet."
INPUT_ROOTS = "QTUNE_INPUT_ROOTS"
"""Environment variable with a JSON list of folders; see `input_roots`."""
ENDING = re.compile(r"\.(jsonl|ndjson|json|parquet|pq)(?:\.(gz|gzip|zst|zstd))?$", re.IGNORECASE)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An input file at the time of planning."""

    uri: str
    kind: Kind
    compression: Compression | None
    size_bytes: int
    version: str

    @property
    def name(self) -> str:
        """Return the URI without options."""
        return file_io.display(self.uri)


def discover(paths: Iterable[str]) -> tuple[SourceFile, ...]:
    """Return the files behind paths, globs, folders and URIs, in the given order and without duplicates.

    Raises DataError if a path matches no file or a file cannot be read.
    """
    found = dict.fromkeys(uri for path in paths for uri in _expand(path))
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="discover") as pool:
        return tuple(pool.map(_inspect, found))


def each_file(paths: Iterable[str]) -> Iterator[SourceFile]:
    """Yield the files of `discover` one by one, inspecting each when it is reached."""
    return map(_inspect, dict.fromkeys(uri for path in paths for uri in _expand(path)))


def _expand(path: str) -> list[str]:
    location = file_io.resolve(path)
    if file_io.stat(path) is not None:
        return [location.path if location.is_local else path]
    if file_io.is_folder(path):
        return _files_of_folder(path)
    if file_io.is_glob(path):
        found = file_io.glob(path)
        if not found:
            raise DataError(f"no file matches {file_io.display(path)}", "Check the pattern, and quote it in a shell.")
        return found
    raise DataError(f"no such file or folder: {file_io.display(path)}", "Check the path.")


def _files_of_folder(folder: str) -> list[str]:
    files = [uri for uri in file_io.list_files(folder) if not _is_hidden(file_io.relative(uri, folder))]
    known = [uri for uri in files if ENDING.search(file_io.display(uri))]
    if not known:
        others = ", ".join(file_io.relative(uri, folder) for uri in files[:5])
        what = f"it holds only {others}{', ...' if len(files) > 5 else ''}" if files else "it is empty"
        raise DataError(f"no data files in {file_io.display(folder)}: {what}", SUPPORTED)
    return known


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def input_roots() -> tuple[str, ...] | None:
    """Return the folders that must contain local input files after links are resolved; None for no limit.

    A server sets them for its drivers, because only the machine of a job knows the files behind a pattern or folder.
    """
    text = os.environ.get(INPUT_ROOTS)
    return None if text is None else tuple(json.loads(text))


def _check_roots(uri: str) -> None:
    """Raise NotAllowedError for a local file outside of the input roots, with links resolved."""
    at, roots = file_io.resolve(uri), input_roots()
    if roots is not None and at.is_local and not is_really_below(Path(at.path), roots):
        raise NotAllowedError(
            f"{file_io.display(uri)} is a link to a folder that jobs may not read",
            "Ask the administrator to add its target to QTUNE_ALLOWED_INPUTS.",
        )


def _inspect(uri: str) -> SourceFile:
    _check_roots(uri)
    entry = file_io.stat(uri)
    if entry is None:
        raise StorageError(f"cannot read {file_io.display(uri)}: it does not exist any more", "Check the path.")
    head = file_io.read_range(uri, 0, HEAD_BYTES)
    kind, compression = identify(file_io.display(uri), head, is_whole=entry.size_bytes <= len(head))
    return SourceFile(uri, kind, compression, entry.size_bytes, entry.version)


def identify(name: str, head: bytes, *, is_whole: bool) -> tuple[Kind, Compression | None]:
    """Return kind and compression of a file, by its first bytes and then its name."""
    compression = compression_of(head)
    if compression is not None:
        head, is_whole = _inflate(head, compression)
    ending = ENDING.search(name)
    named = ending.group(1).lower() if ending else ""
    if head.startswith(b"PAR1") and compression is None:
        return "parquet", None
    _refuse_foreign(name, named, head, compression)
    return _kind_of_text(name, named, head.removeprefix(BOM).lstrip(), is_whole=is_whole), compression


def _refuse_foreign(name: str, named: str, head: bytes, compression: Compression | None) -> None:
    foreign = next((what for magic, what in _FOREIGN if head.startswith(magic)), None)
    if head.startswith(b"PAR1"):
        foreign = f"Parquet inside .{compression}; Parquet compresses by itself"
    if foreign is None and named in ("parquet", "pq"):
        foreign = "not Parquet: its first bytes are not PAR1"
    if foreign is not None:
        raise DataError(f"cannot read {name}: it is {foreign}", SUPPORTED)


def _kind_of_text(name: str, named: str, text: bytes, *, is_whole: bool) -> Kind:
    is_array, is_object = text.startswith(b"["), text.startswith(b"{")
    first, newline, rest = text.partition(b"\n")
    goes_on = bool(rest.strip()) or (bool(newline) and not is_whole)
    if (is_array or is_object) and newline and goes_on and _is_json(first):
        return "jsonl"
    if named in ("jsonl", "ndjson") and not is_array:
        return "jsonl"
    if is_array or is_object or named == "json":
        return "json"
    raise DataError(f"cannot detect the format of {name}", SUPPORTED)


def _inflate(head: bytes, compression: Compression) -> tuple[bytes, bool]:
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


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def changes(planned: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """Return the differences between planned and current files, one sentence each."""
    before, after = {file.uri: file for file in planned}, {file.uri: file for file in now}
    found = [f"{file.name} is gone" for file in planned if file.uri not in after]
    found += [f"{file.name} is new" for file in now if file.uri not in before]
    found += [f"{file.name} has changed" for uri, file in before.items() if uri in after and after[uri] != file]
    if not found and list(before) != list(after):
        found.append("the files are named in another order")
    return found
