"""Downloading files of a job: several at a time, each from where it was cut off, checked, and put in place by a rename.

Files of the manifest have a SHA-256, which is also their ETag: what is there of them is checked or continued. The few
beside it (manifest, report) have none and are fetched anew.

How far an upload or download is, counted from several threads.

A file that is being fetched: bytes on disk beside its place, and their SHA-256 so far.

Its name holds the digest that it is to have, so that what an earlier attempt left is only ever continued to the same
content. It becomes the file by a rename, once it is whole and right.

Uploading a dataset: read twice, first for its SHA-256, by which the server checks what it got, then to be sent.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from qtune_service.client.transport import Connection, error_of
from qtune_service.errors import (
    ApiError,
    ChecksumMismatchError,
    DataError,
    DiskFullError,
    NotFoundError,
    StorageError,
    UnreachableError,
)
from qtune_service.wire import FileView


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that are there already count as done."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


Watcher = Callable[[Transfer], None]
"""Called from several threads, one at a time."""


class Counter:
    """The state of a transfer, told at every change."""

    def __init__(self, files_total: int, bytes_total: int, tell: Watcher | None) -> None:
        self._transfer = Transfer(0, files_total, 0, bytes_total)
        self._tell = tell or (lambda _: None)
        self._lock = threading.Lock()

    def add(self, num_bytes: int, files: int = 0) -> None:
        """More of it is done; less, where something has to be fetched again."""
        with self._lock:
            now = self._transfer
            self._transfer = replace(now, bytes_done=now.bytes_done + num_bytes, files_done=now.files_done + files)
            self._tell(self._transfer)


BLOCK_BYTES = 1 << 20


class Part:
    """Opened with what an earlier attempt left, if the content's digest is known; else empty."""

    def __init__(self, target: Path, sha256: str | None) -> None:
        self.target, self.sha256 = target, sha256
        self.path = target.with_name(f".{target.name}.{sha256[:16] if sha256 else 'new'}.part")
        self.size_bytes = 0

    def __enter__(self) -> Self:
        with _writing(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b" if self.sha256 else "w+b")
            self._file.seek(0)
            self._digest = hashlib.sha256()
            while block := self._file.read(BLOCK_BYTES):
                self._digest.update(block)
                self.size_bytes += len(block)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _writing(self.target):
            self._file.close()

    def write(self, block: bytes) -> None:
        """At its end. Raises StorageError."""
        with _writing(self.target):
            self._file.write(block)
        self._digest.update(block)
        self.size_bytes += len(block)

    def clear(self) -> None:
        """Begin anew."""
        with _writing(self.target):
            self._file.seek(0)
            self._file.truncate()
        self._digest, self.size_bytes = hashlib.sha256(), 0

    def is_right(self) -> bool:
        """Whether the whole is here, as far as is known what it is to be."""
        return self.sha256 is None or self._digest.hexdigest() == self.sha256

    def finish(self) -> None:
        """Put it in its place. Raises ChecksumMismatchError and StorageError."""
        with _writing(self.target):
            self._file.close()
        if not self.is_right():
            self.path.unlink()
            raise ChecksumMismatchError(
                f"{self.target.name} arrived with SHA-256 {self._digest.hexdigest()}, not {self.sha256}",
                "Its bytes were changed on the way or in the server's storage, twice; what arrived was removed.",
            )
        with _writing(self.target):
            self.path.replace(self.target)


def is_there(target: Path, size_bytes: int, sha256: str | None) -> bool:
    """Whether a file is complete and right; never, where its digest is not known."""
    if sha256 is None or not target.is_file() or target.stat().st_size != size_bytes:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write {target}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(message, "Make room, and do the same again: it goes on where it was.") from error
        raise StorageError(message) from error


PRODUCT = ("pruned/*", "manifest.json", "report.html", "summary_statistics.json", "tokenizer/*")
"""Without scores/, quadrants/ and rejected/: what a trainer reads, and what explains it."""


def choose(listed: Sequence[FileView], patterns: Sequence[str] | None) -> tuple[FileView, ...]:
    """Files whose path matches one of the patterns; all for None. Raises NotFoundError for a pattern without files.

    Those of PRODUCT may have none: a job that only scored has no pruned/.
    """
    if patterns is None:
        return tuple(listed)
    chosen: dict[str, FileView] = {}
    for pattern in patterns:
        found = {file.path: file for file in listed if fnmatch.fnmatchcase(file.path, pattern)}
        if not found and pattern not in PRODUCT:
            some = ", ".join(file.path for file in listed[:5])
            raise NotFoundError(f"the job has no file {pattern!r}", f"It has {len(listed)}, such as {some}.")
        chosen |= found
    return tuple(chosen.values())


def download(
    connection: Connection,
    job_path: str,
    files: Sequence[FileView],
    folder: Path,
    *,
    parallel: int,
    watcher: Watcher | None,
) -> tuple[Path, ...]:
    """Fetch files into a folder: their places in it. The first error ends all; what came so far is kept."""
    stopped = threading.Event()
    counter = Counter(len(files), sum(file.size_bytes for file in files), watcher)
    jobs = [
        _Download(connection, f"{job_path}/files/{quote(file.path)}", file, _place(folder, file.path), counter, stopped)
        for file in files
    ]
    with ThreadPoolExecutor(parallel, thread_name_prefix="download") as pool:
        futures = [pool.submit(job.run) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return tuple(job.target for job in jobs)


def _place(folder: Path, path: str) -> Path:
    """Where a file goes. Raises ApiError for a path that leaves the folder: no server of ours says such a thing."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(sign in path for sign in "\\:\0"):
        raise ApiError(f"the server names a file {path!r}, which would lie outside of the folder", code="unsafe_path")
    return folder.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class _Download:
    """One file."""

    connection: Connection
    path: str
    file: FileView
    target: Path
    counter: Counter
    stopped: threading.Event

    def run(self) -> None:
        """Fetch it, unless it is there."""
        if is_there(self.target, self.file.size_bytes, self.file.sha256):
            self.counter.add(self.file.size_bytes, files=1)
            return
        with Part(self.target, self.file.sha256) as part:
            self.counter.add(part.size_bytes)
            self._complete(part)
            if not part.is_right():  # what an earlier attempt left may be damaged: once more, from the beginning
                self._begin_anew(part)
                self._complete(part)
            part.finish()
        self.counter.add(0, files=1)

    def _complete(self, part: Part) -> None:
        """As many connections as it takes: patience is for those that bring nothing."""
        if part.size_bytes > self.file.size_bytes:
            self._begin_anew(part)
        is_whole = part.sha256 is not None and part.size_bytes == self.file.size_bytes
        while not is_whole:
            with self.connection.translated():
                for attempt in self.connection.attempts(may_repeat=True, goes_on=lambda: not self.stopped.is_set()):
                    with attempt:
                        is_whole = self._fetch(part)

    def _fetch(self, part: Part) -> bool:
        """One connection: whether it brought the rest. One that breaks off after it brought something is no failure."""
        before = part.size_bytes
        ask, strange = {"Accept-Encoding": "identity"}, {"Accept-Encoding": "identity"}
        if before and self.file.sha256:
            strange["Range"] = ask["Range"] = f"bytes={before}-"
            ask["If-Range"] = f'"{self.file.sha256}"'  # a store's own ETag is another: there the digest decides
        try:
            with self.connection.open_file(self.path, ask, strange) as response:
                if before and not _continues(response, before):
                    self._begin_anew(part)
                for block in response.iter_raw():  # as they come: a gathered block would be lost in a cut
                    self._take(part, block)
        except httpx.TransportError:
            if part.size_bytes <= before or self.stopped.is_set():
                raise
            return False
        return True

    def _take(self, part: Part, block: bytes) -> None:
        if self.stopped.is_set():
            raise UnreachableError(f"{self.file.path} was left off: another file failed")
        part.write(block)
        self.counter.add(len(block))

    def _begin_anew(self, part: Part) -> None:
        self.counter.add(-part.size_bytes)
        part.clear()


def _continues(response: httpx.Response, offset: int) -> bool:
    """Whether the answer goes on from there, and does not begin anew."""
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {offset}-")


def upload(connection: Connection, path: Path, name: str | None, watcher: Watcher | None) -> httpx.Response:
    """The server's answer. Sent again only where it never arrived: twice sent would be two datasets."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "Give the path of a file on this machine.") from error
    headers = {"Content-Length": str(size_bytes), "X-Checksum-Sha256": sha256}
    params = {"name": name or path.name}
    with connection.translated():
        for attempt in connection.attempts(may_repeat=False):
            with attempt:
                counter = Counter(1, size_bytes, watcher)
                content = _blocks(path, counter)
                response = connection.send("POST", "/datasets", params=params, headers=headers, content=content)
    if not response.is_success:
        raise error_of(response)
    counter.add(0, files=1)
    return response


def _blocks(path: Path, counter: Counter) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
            counter.add(len(block))
