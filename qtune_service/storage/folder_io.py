"""Read, list and remove files inside a folder, on any storage, without ever leaving it.

What names the files comes from places that others can write to: manifests, markers, plans, a request. Each path passes
the one check of `confined.segments`; on the local disk it is then opened by descriptors (see `confined.py`), on an
object store its shape is all that matters. Sizes are limited by the caller.
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
    """Return the URI of a file. Raise OutputConflictError where the path is not plain."""
    return file_io.join(root.uri, *confined.segments(*path))


def stat(root: Root, *path: str) -> file_io.Entry | None:
    """Return size and version of a regular file; None where there is none. Raise OutputConflictError for a link."""
    uri, names = uri_of(root, *path), confined.segments(*path)
    if (local := _local(root)) is None:
        return file_io.stat(uri)
    try:
        with _explained(uri):
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
    """Open a regular file: (file, its URI for messages).

    Raise StorageError where it cannot be read, and OutputConflictError where it is a link, no regular file, outside
    of the folder, or larger than `max_bytes`.
    """
    uri, names = uri_of(root, *path), confined.segments(*path)
    with contextlib.ExitStack() as stack:
        with _explained(uri):
            file = _open(root, uri, names)
        stack.callback(file.close)
        if max_bytes is not None and (size := file.size()) > max_bytes:
            raise OutputConflictError(
                f"{file_io.display(uri)} has {size:,} bytes, more than the {max_bytes:,} that it may have",
                "Somebody changed the output. Run the job again with another output.",
            )
        yield file, uri


def _open(root: Root, uri: str, names: tuple[str, ...]) -> Any:
    """Open a file for arrow. Its stubs lack the offset of `read_at`."""
    if (local := _local(root)) is None:
        at = file_io.resolve(uri)
        return file_io.retrying(uri, "read", lambda: at.filesystem.open_input_file(at.path))
    descriptor = confined.open_file(local, *names)
    try:  # the same inode by its descriptor: no path is looked up again
        return pa.OSFile(f"{_DESCRIPTORS}/{descriptor}", "rb")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a file, to be read in blocks."""

    start: int = 0
    stop: int = 1 << 62
    block_bytes: int = file_io.BLOCK_BYTES


WHOLE = Span()


def blocks(root: Root, *path: str, span: Span = WHOLE) -> Iterator[bytes]:
    """Stream bytes of a file, fewer where it ends before."""
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
    """Return the whole file. Raise as `opened` does."""
    with opened(root, *path, max_bytes=max_bytes) as (file, uri):
        return b"".join(_blocks(file, uri, Span(stop=max_bytes)))


def read_json(root: Root, *path: str, max_bytes: int) -> Any:
    """Parse a JSON file. Raise DamagedFileError where it is none, also where it is nested too deep."""
    body = read_bytes(root, *path, max_bytes=max_bytes)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        where = file_io.display(uri_of(root, *path))
        raise DamagedFileError(f"{where} is not valid JSON: {error}", "The file is damaged; remove it.") from error


@contextlib.contextmanager
def open_parquet(root: Root, *path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, its footer read. Raise as `opened` does, and StorageError where it is not Parquet."""
    with opened(root, *path) as (file, uri), file_io.explained_parquet(uri, lambda: pq.ParquetFile(file)) as parquet:
        yield parquet


def link_or_copy(source: Root, target: Root, path: str) -> None:
    """Give a file of one folder the same place in another: a hard link where possible, else a copy.

    Raise OutputConflictError where the path leads out of either folder.
    """
    names, uri = confined.segments(path), uri_of(target, path)
    from_local, to_local = _local(source), _local(target)
    if to_local is not None:
        with _explained(uri, "write"):
            confined.make_folders(to_local, *names[:-1])
    if from_local is not None and to_local is not None:
        with _explained(uri, "write"):
            if confined.link(from_local, to_local, *names):
                return
    origin, goal = file_io.resolve(uri_of(source, path)), file_io.resolve(uri)
    if from_local is None and origin.filesystem == goal.filesystem:
        file_io.retrying(uri, "write", lambda: origin.filesystem.copy_file(origin.path, goal.path))
        return
    file_io.write_chunks(uri, blocks(source, path))


def list_files(root: Root, *path: str) -> list[str]:
    """Return the names of the files in a folder, sorted; no links, nothing below its subfolders."""
    if (local := _local(root)) is not None:
        with _explained(root.uri):
            return [name for name, is_folder in confined.list_names(local, *path) if not is_folder]
    folder = file_io.join(root.uri, *path)
    return [file_io.relative(uri, folder) for uri in file_io.list_files(folder, recursive=False)]


def remove_file(root: Root, *path: str) -> None:
    """Remove a file, or a link itself, if it is there."""
    uri, names = uri_of(root, *path), confined.segments(*path)
    if (local := _local(root)) is None:
        file_io.remove_file(uri)
        return
    with _explained(uri, "remove"):
        confined.remove_file(local, *names)


def remove_folder_if_empty(root: Root, *path: str) -> None:
    """Remove a local folder, if it is there and empty. Object stores have no folders."""
    if (local := _local(root)) is not None:
        with _explained(uri_of(root, *path), "remove"):
            confined.remove_folder_if_empty(local, *confined.segments(*path))


def _local(root: Root) -> Root | None:
    """The root as a path of this machine; None where it is on another storage."""
    at = file_io.resolve(root.uri)
    return Root(at.path, root.may_be_link) if at.is_local else None


@contextlib.contextmanager
def _explained(uri: str, action: str = "read") -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, uri, action) from error
