"""Read, list and remove files inside a folder on any storage, without leaving the folder.

File names come from sources that others can write: manifests, markers, plans, requests. `confined.segments` checks each
path. A local file is then opened by descriptors (see `confined.py`). On an object store only the form of the path
matters. The caller limits sizes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qtune_service.errors import DamagedFileError, OutputConflictError, StorageError
from qtune_service.storage import confined, file_io
from qtune_service.storage.confined import Root
from qtune_service.storage.filesystems import explain

_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112 - of the system


def uri_of(root: Root, *path: str) -> str:
    """Return the URI of a file. Raise OutputConflictError unless the path is plain."""
    return file_io.join(root.uri, *confined.segments(*path))


def stat(root: Root, *path: str) -> file_io.Entry | None:
    """Return the metadata of a regular file, or None if it does not exist. Raise OutputConflictError for a link."""
    uri, names = uri_of(root, *path), confined.segments(*path)
    if (local := _local(root)) is None:
        return file_io.stat(uri)
    try:
        with _storage_errors(uri):
            descriptor = confined.open_file(local, *names)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return file_io.Entry(uri, found.st_size, str(found.st_mtime_ns))


@contextlib.contextmanager
def opened(root: Root, *path: str, max_bytes: int | None = None) -> Iterator[tuple[pa.NativeFile, str]]:
    """Open a regular file; yield the file and its URI for messages.

    Raise StorageError if it cannot be read, and OutputConflictError if it is a link, not a regular file, outside of the
    folder, or larger than `max_bytes`.
    """
    uri, names = uri_of(root, *path), confined.segments(*path)
    with contextlib.ExitStack() as stack:
        with _storage_errors(uri):
            file = _open(root, uri, names)
        stack.callback(file.close)
        if max_bytes is not None and (size := file.size()) > max_bytes:
            raise OutputConflictError(
                f"{file_io.display(uri)} has {size:,} bytes, more than the limit of {max_bytes:,}",
                "The output was changed. Run the job again with another output.",
            )
        yield file, uri


def _open(root: Root, uri: str, names: tuple[str, ...]) -> Any:
    """Open a file for Arrow. Typed as Any, because its stubs lack the offset of `read_at`."""
    if (local := _local(root)) is None:
        at = file_io.resolve(uri)
        return file_io.retrying(uri, "read", lambda: at.filesystem.open_input_file(at.path))
    descriptor = confined.open_file(local, *names)
    try:  # open the same inode by its descriptor, without another path lookup
        return pa.OSFile(f"{_DESCRIPTORS}/{descriptor}", "rb")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Span:
    """Byte range [start, stop) and block size of a read."""

    start: int = 0
    stop: int = 1 << 62
    block_bytes: int = file_io.BLOCK_BYTES


WHOLE = Span()


def blocks(root: Root, *path: str, span: Span = WHOLE) -> Iterator[bytes]:
    """Yield the bytes of a span, fewer at the end of the file."""
    with opened(root, *path) as (file, uri):
        yield from _blocks(file, uri, span)


def _blocks(file: Any, uri: str, span: Span) -> Iterator[bytes]:
    at = span.start
    while at < span.stop:
        size, offset = min(span.block_bytes, span.stop - at), at
        block: bytes = file_io.retrying(uri, "read", lambda: file.read_at(size, offset))  # noqa: B023 - called here
        if not block:
            return
        yield block
        at += len(block)


def read_bytes(root: Root, *path: str, max_bytes: int) -> bytes:
    """Return the content of a file. Raise as `opened` does."""
    with opened(root, *path, max_bytes=max_bytes) as (file, uri):
        return b"".join(_blocks(file, uri, Span(stop=max_bytes)))


def read_json(root: Root, *path: str, max_bytes: int) -> Any:
    """Parse a JSON file. Raise DamagedFileError if it is invalid or nested too deep."""
    body = read_bytes(root, *path, max_bytes=max_bytes)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        where = file_io.display(uri_of(root, *path))
        raise DamagedFileError(f"{where} is not valid JSON: {error}", "The file is damaged. Remove it.") from error


@contextlib.contextmanager
def open_parquet(root: Root, *path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and read its footer. Raise as `opened` does, and StorageError for other content."""
    with opened(root, *path) as (file, uri), file_io.explained_parquet(uri, lambda: pq.ParquetFile(file)) as parquet:
        yield parquet


def link_or_copy(source: Root, target: Root, path: str) -> None:
    """Link or copy a file to the same path in another folder.

    Raise OutputConflictError if the path leaves either folder.
    """
    names, uri = confined.segments(path), uri_of(target, path)
    from_local, to_local = _local(source), _local(target)
    if to_local is not None:
        with _storage_errors(uri, "write"):
            confined.make_folders(to_local, *names[:-1])
    if from_local is not None and to_local is not None:
        with _storage_errors(uri, "write"):
            if confined.link(from_local, to_local, *names):
                return
    origin, goal = file_io.resolve(uri_of(source, path)), file_io.resolve(uri)
    if from_local is None and origin.filesystem == goal.filesystem:
        file_io.retrying(uri, "write", lambda: origin.filesystem.copy_file(origin.path, goal.path))
        return
    file_io.write_chunks(uri, blocks(source, path))


def list_files(root: Root, *path: str) -> list[str]:
    """Return the sorted names of the files in a folder, without links and subfolders."""
    if (local := _local(root)) is not None:
        with _storage_errors(root.uri):
            return [name for name, is_folder in confined.list_names(local, *path) if not is_folder]
    folder = file_io.join(root.uri, *path)
    return [file_io.relative(uri, folder) for uri in file_io.list_files(folder, recursive=False)]


def remove_file(root: Root, *path: str) -> None:
    """Remove a file or a link itself, if it exists."""
    uri, names = uri_of(root, *path), confined.segments(*path)
    if (local := _local(root)) is None:
        file_io.remove_file(uri)
        return
    with _storage_errors(uri, "remove"):
        confined.remove_file(local, *names)


def remove_folder_if_empty(root: Root, *path: str) -> None:
    """Remove a local folder, if it exists and is empty. Object stores have no folders."""
    if (local := _local(root)) is not None:
        with _storage_errors(uri_of(root, *path), "remove"):
            confined.remove_folder_if_empty(local, *confined.segments(*path))


def _local(root: Root) -> Root | None:
    """Return the root as a local path, or None on other storage."""
    at = file_io.resolve(root.uri)
    return Root(at.path, root.may_be_link) if at.is_local else None


@contextlib.contextmanager
def _storage_errors(uri: str, action: str = "read") -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, uri, action) from error
