"""Read, write and list files on any filesystem that `filesystems.resolve` supports.

Writes are atomic and idempotent. On a local disk, a hidden temporary file in the same folder is synced and renamed. An
object store shows an object only after its upload is complete. HDFS writes a temporary file and moves it. A file is
held in memory before it is written, which is affordable for bounded shards. Unbounded content uses `write_chunks`.

Reads use byte ranges, so that a retry repeats one block and not the whole file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from qtune_service.errors import StorageError
from qtune_service.storage.filesystems import (
    Location,
    TransientError,
    display,
    explain,
    first_line,
    join,
    resolve,
    retrying,
    uri_of,
)

__all__ = [
    "Entry", "Ranges", "WrittenFile", "display", "exists", "explained_parquet", "glob", "is_folder", "is_glob",
    "iter_blocks", "join", "json_bytes", "list_entries", "list_files", "list_folders", "match_entries",
    "move_in", "open_input", "open_parquet", "open_ranges", "read_bytes", "read_json", "read_range", "relative",
    "remove_file", "resolve", "retrying", "stat", "sync_folder", "table_bytes", "write_bytes", "write_chunks",
    "write_json", "write_synced", "write_table",
]  # fmt: skip

BLOCK_BYTES = 4 << 20
HEAD_BYTES = 64 << 10
"""Largest first read of a file that is kept while it is open."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Metadata of a file. `version` changes with the content: an ETag, else the modification time in ns.

    A listing knows no ETag, so its entries have the modification time, which S3 rounds to seconds.
    """

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """Metadata of a written file."""

    uri: str
    size_bytes: int
    sha256: str


# --- metadata and listing


def stat(uri: str) -> Entry | None:
    """Return the metadata of a file, or None if it does not exist."""
    at = resolve(uri)
    if at.is_local:
        return retrying(uri, "read", lambda: _stat_local(uri, Path(at.path)))
    try:
        return retrying(uri, "read", lambda: _stat_remote(at))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _stat_local(uri: str, path: Path) -> Entry | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Entry(uri, found.st_size, str(found.st_mtime_ns)) if not path.is_dir() else None


def _stat_remote(at: Location) -> Entry | None:
    info = at.filesystem.get_file_info(at.path)
    if info.type != pafs.FileType.File:
        return None
    if isinstance(at.filesystem, pafs.S3FileSystem):
        with at.filesystem.open_input_file(at.path) as file:
            return Entry(at.uri, info.size, _etag(file))
    return Entry(at.uri, info.size, _hub_version(at) or _modified(info))


def _etag(file: Any) -> str:
    """Return the ETag of an open S3 object, whose modification time has seconds only."""
    metadata: dict[Any, Any] = dict(file.metadata() or {})
    tag = metadata.get(b"ETag") or metadata.get("ETag") or b""
    return (tag.decode() if isinstance(tag, bytes) else str(tag)).strip('"')


def _hub_version(at: Location) -> str:
    """Return the id of a file of the hub, and nothing for another file."""
    if not at.is_hub:
        return ""
    from qtune_service.storage.hub import version_of

    return version_of(at.path)


def _modified(info: pafs.FileInfo) -> str:
    return str(info.mtime_ns or info.size)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    return is_folder(uri) or stat(uri) is not None


def is_folder(uri: str) -> bool:
    """Return whether a folder exists; on an object store, whether any object has the prefix."""
    at = resolve(uri)
    return retrying(uri, "read", lambda: at.filesystem.get_file_info(at.path).type == pafs.FileType.Directory)


def list_files(folder: str, *, recursive: bool = True) -> list[str]:
    """Return the sorted URIs of the files in a folder; empty if the folder does not exist."""
    return [entry.uri for entry in list_entries(folder, recursive=recursive).values()]


def list_entries(folder: str, *, recursive: bool = True) -> dict[str, Entry]:
    """Return the files in a folder by their relative paths, sorted by URI. No request is sent for a single file."""
    at = resolve(folder)
    selector = pafs.FileSelector(at.path, recursive=recursive, allow_not_found=True)
    infos = retrying(folder, "list", lambda: at.filesystem.get_file_info(selector))
    prefix = at.path.rstrip("/") + "/"
    found = [
        (info.path.removeprefix(prefix), Entry(uri_of(at, info.path), info.size, _modified(info)))
        for info in infos
        if info.type == pafs.FileType.File and info.path.startswith(prefix)
    ]
    return dict(sorted(found, key=lambda item: item[1].uri))


def list_folders(folder: str) -> list[str]:
    """Return the sorted URIs of the subfolders; on an object store, of the prefixes that end with `/`."""
    at = resolve(folder)
    infos = retrying(folder, "list", lambda: at.filesystem.get_file_info(pafs.FileSelector(at.path)))
    return sorted(uri_of(at, info.path) for info in infos if info.type == pafs.FileType.Directory)


def relative(uri: str, folder: str) -> str:
    """Return the path of a file relative to a folder that contains it."""
    return str(PurePosixPath(resolve(uri).path).relative_to(resolve(folder).path))


def is_glob(uri: str) -> bool:
    """Return whether the path has glob characters. A `?` in a URI starts its options."""
    return any(sign in display(uri) for sign in ("*?[" if "://" not in uri else "*["))


def glob(pattern: str) -> list[str]:
    """Return the sorted URIs of the matching files. `*` does not match a slash, `**` does."""
    return [entry.uri for entry in match_entries(pattern).values()]


def match_entries(pattern: str) -> dict[str, Entry]:
    """Return the matching files as `list_entries` does, by their paths from the first segment with a glob character."""
    at = resolve(pattern)
    segments = at.path.split("/")
    fixed = next(i for i, segment in enumerate(segments) if any(sign in segment for sign in "*?["))
    base, rest = "/".join(segments[:fixed]) or "/", "/".join(segments[fixed:])
    matches = re.compile(_glob_regex(rest)).fullmatch
    found = list_entries(uri_of(at, base), recursive="/" in rest or "**" in rest)
    return {path: entry for path, entry in found.items() if matches(path)}


def _glob_regex(pattern: str) -> str:
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern)
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(signs.get(t) or ("[" + t[1:].replace("!", "^", 1) if len(t) > 1 else re.escape(t)) for t in tokens)


# --- reading


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Return bytes [start, stop), fewer at the end of the file."""
    return b"".join(iter_blocks(uri, start, stop))


def read_bytes(uri: str) -> bytes:
    """Return the content of a file."""
    return read_range(uri, 0, 1 << 62)


def iter_blocks(uri: str, start: int = 0, stop: int = 1 << 62, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield bytes [start, stop) in blocks. A failed block is retried alone."""
    with open_ranges(uri) as read:
        yield from read.blocks(start, stop, block_bytes)


@contextlib.contextmanager
def open_input(uri: str) -> Iterator[Any]:
    """Open a file of pyarrow for random access."""
    at = resolve(uri)
    with retrying(uri, "read", lambda: at.filesystem.open_input_file(at.path)) as file:
        yield file


class Ranges:
    """An open file that is read by ranges: `ranges(start, stop)` returns bytes [start, stop), fewer at its end.

    A failed read is retried alone. The head of a small file is read once.
    """

    def __init__(self, at: Location, file: Any) -> None:
        self._at, self.file = at, file
        self._head = b""

    def __call__(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), fewer at the end of the file."""
        if self._head and (stop <= len(self._head) or len(self._head) == self.size_bytes):
            return self._head[start:stop]
        data: bytes = retrying(self._at.uri, "read", functools.partial(self.file.read_at, stop - start, start))
        if start == 0 and len(data) <= HEAD_BYTES:
            self._head = data
        return data

    def blocks(self, start: int, stop: int, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield bytes [start, stop) in blocks."""
        while start < stop and (block := self(start, min(start + block_bytes, stop))):
            yield block
            start += len(block)

    @property
    def size_bytes(self) -> int:
        """Return the size of the file."""
        return int(self.file.size())

    @property
    def knows_version(self) -> bool:
        """Return whether `version` needs no request."""
        return self._at.is_local or isinstance(self._at.filesystem, pafs.S3FileSystem)

    @functools.cached_property
    def version(self) -> str:
        """Return the version of the file as `stat` does. S3 reports it when a file is opened."""
        if isinstance(self._at.filesystem, pafs.S3FileSystem):
            return _etag(self.file)
        found = stat(self._at.uri)
        return "" if found is None else found.version


@contextlib.contextmanager
def open_ranges(uri: str) -> Iterator[Ranges]:
    """Open a file for reads of ranges."""
    with open_input(uri) as file:
        yield Ranges(resolve(uri), file)


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and read its footer. Raises StorageError, also for other content."""
    at = resolve(uri)
    with explained_parquet(uri, lambda: pq.ParquetFile(at.path, filesystem=at.filesystem)) as file:
        yield file


@contextlib.contextmanager
def explained_parquet(uri: str, open_file: Callable[[], pq.ParquetFile]) -> Iterator[pq.ParquetFile]:
    """Open and close a Parquet file. Failures become StorageErrors."""
    try:
        file = retrying(uri, "read", open_file)
    except pa.ArrowException as error:
        raise StorageError(f"{display(uri)} is not a readable Parquet file: {first_line(error)}") from error
    try:
        yield file
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, StorageError):
            raise
        if isinstance(error, TransientError):
            raise StorageError(error.message, error.hint) from error
        raise explain(OSError(str(error)), uri, "read") from error
    finally:
        file.close()


def read_json(uri: str) -> Any:
    """Parse a JSON file. Raises StorageError."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{display(uri)} is not valid JSON: {error}", "The file is damaged. Remove it.") from error


# --- writing


def write_bytes(uri: str, data: bytes | memoryview | pa.Buffer) -> WrittenFile:
    """Write a file atomically, and create its folders."""
    at = resolve(uri)
    body = memoryview(data)
    if at.is_local:
        retrying(uri, "write", lambda: _replace(Path(at.path), lambda temporary: write_synced(temporary, body)))
    elif at.writes == "put":
        retrying(uri, "write", lambda: _put(at.filesystem, at.path, body))
    else:
        retrying(uri, "write", lambda: _put_and_move(at.filesystem, at.path, body))
    return WrittenFile(uri, body.nbytes, hashlib.sha256(body).hexdigest())


def write_chunks(uri: str, chunks: Iterable[bytes]) -> WrittenFile:
    """Write a file atomically from chunks, without holding it in memory. If `chunks` raises, nothing is written.

    For an object store, chunks are first collected in a local temporary file, so that the upload can be retried.
    """
    at = resolve(uri)
    if at.is_local:
        written: list[WrittenFile] = []
        try:
            _replace(Path(at.path), lambda temporary: written.append(_write_chunks(uri, temporary, chunks)))
        except StorageError:
            raise
        except OSError as error:
            raise explain(error, uri, "write") from error
        return written[0]
    with tempfile.TemporaryDirectory(prefix="qtune-") as folder:
        gathered = write_chunks(str(Path(folder) / "chunks"), chunks)
        if not gathered.size_bytes:
            return write_bytes(uri, b"")
        with pa.memory_map(gathered.uri) as file:
            return write_bytes(uri, file.read_buffer())


def move_in(path: Path, uri: str) -> None:
    """Move a synced local file to a URI: by a rename on the same disk, else by an upload.

    Raises OSError for a local target, else StorageError.
    """
    at = resolve(uri)
    if at.is_local:
        goal = Path(at.path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        path.replace(goal)
        sync_folder(goal.parent)
        sync_folder(goal.parent.parent)
        return
    retrying(uri, "write", lambda: _send(at, str(path)))
    path.unlink()


def _send(at: Location, path: str) -> None:
    """Upload a file as a stream. A failure leaves no partial object."""
    stream = at.filesystem.open_output_stream(at.path)
    try:
        for block in iter_blocks(path):
            stream.write(block)
    except BaseException:
        with contextlib.suppress(OSError):
            stream.close()
            at.filesystem.delete_file(at.path)
        raise
    stream.close()


def write_json(uri: str, value: Any) -> WrittenFile:
    """Write a JSON file atomically. Raises as `json_bytes` does."""
    return write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as a JSON file. Raises ValueError for non-finite numbers, which JSON lacks."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def write_table(uri: str, table: pa.Table, *, row_group_size: int | None = None) -> WrittenFile:
    """Write a Parquet file (zstd) atomically."""
    return write_bytes(uri, table_bytes(table, row_group_size=row_group_size))


def table_bytes(table: pa.Table, *, row_group_size: int | None = None) -> pa.Buffer:
    """Return a table as a Parquet file (zstd)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue()


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_synced(path: Path, body: bytes | memoryview) -> None:
    """Write a new local file and sync it."""
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _write_chunks(uri: str, path: Path, chunks: Iterable[bytes]) -> WrittenFile:
    size, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for chunk in chunks:
            size += file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(uri, size, digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it is durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(filesystem: pafs.FileSystem, path: str, body: memoryview) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(body)


def _put_and_move(filesystem: pafs.FileSystem, path: str, body: memoryview) -> None:
    folder, _, name = path.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
    _put(filesystem, temporary, body)
    if filesystem.get_file_info(path).type == pafs.FileType.File:
        filesystem.delete_file(path)
    filesystem.move(temporary, path)


def remove_file(uri: str) -> None:
    """Remove a file, if it exists."""
    at = resolve(uri)
    if stat(uri) is not None:
        retrying(uri, "remove", lambda: at.filesystem.delete_file(at.path))
