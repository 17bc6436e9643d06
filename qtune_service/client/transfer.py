"""Upload datasets and download files of jobs.

Downloads run in parallel, resume partial files, verify SHA-256, and become visible by a rename. Files in the manifest
have a SHA-256, which is also their ETag, so complete files are verified and partial ones resumed. The others (manifest,
report) have none and are downloaded again. A partial file has the expected digest in its name, so it is only resumed
with the same content.

An upload reads the file twice: once for the SHA-256, which the server verifies, and once to send it.
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

BLOCK_BYTES = 1 << 20
PRODUCT = ("pruned/*", "manifest.json", "report.html", "summary_statistics.json", "tokenizer/*")
"""Files for training, and the report. Not scores/, quadrants/ and rejected/."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Progress of a transfer. Bytes that are already on disk count as done."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


Watcher = Callable[[Transfer], None]
"""Progress callback. Several threads call it, one at a time."""


class Counter:
    """Thread-safe progress of a transfer. Every change calls the watcher."""

    def __init__(self, files_total: int, bytes_total: int, watcher: Watcher | None) -> None:
        self._transfer = Transfer(0, files_total, 0, bytes_total)
        self._watcher = watcher or (lambda _: None)
        self._lock = threading.Lock()

    def add(self, num_bytes: int, files: int = 0) -> None:
        """Add bytes and files; negative bytes if something has to be downloaded again."""
        with self._lock:
            now = self._transfer
            self._transfer = replace(now, bytes_done=now.bytes_done + num_bytes, files_done=now.files_done + files)
            self._watcher(self._transfer)


class PartialFile:
    """Partial file beside its target, with the SHA-256 so far. It resumes only if the expected digest is known."""

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
        """Append a block. Raises StorageError."""
        with _writing(self.target):
            self._file.write(block)
        self._digest.update(block)
        self.size_bytes += len(block)

    def clear(self) -> None:
        """Discard the content."""
        with _writing(self.target):
            self._file.seek(0)
            self._file.truncate()
        self._digest, self.size_bytes = hashlib.sha256(), 0

    def matches(self) -> bool:
        """Return whether the digest is the expected one, or none is known."""
        return self.sha256 is None or self._digest.hexdigest() == self.sha256

    def finish(self) -> None:
        """Rename the file to its target. Raises ChecksumMismatchError and StorageError."""
        with _writing(self.target):
            self._file.close()
        if not self.matches():
            self.path.unlink()
            raise ChecksumMismatchError(
                f"{self.target.name} arrived with SHA-256 {self._digest.hexdigest()}, not {self.sha256}",
                "Two downloads were corrupt, in transit or in the server's storage. The file was removed.",
            )
        with _writing(self.target):
            self.path.replace(self.target)


def is_complete(target: Path, size_bytes: int, sha256: str | None) -> bool:
    """Return whether the file on disk has the given size and digest; False if no digest is known."""
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
            raise DiskFullError(message, "Free disk space and repeat the command. It resumes.") from error
        raise StorageError(message) from error


def choose(listed: Sequence[FileView], patterns: Sequence[str] | None) -> tuple[FileView, ...]:
    """Return the files that match a pattern; all for None. Raises NotFoundError for a pattern without a match.

    The patterns in PRODUCT may match nothing: a job that only scored has no pruned/.
    """
    if patterns is None:
        return tuple(listed)
    chosen: dict[str, FileView] = {}
    for pattern in patterns:
        found = {file.path: file for file in listed if fnmatch.fnmatchcase(file.path, pattern)}
        if not found and pattern not in PRODUCT:
            some = ", ".join(file.path for file in listed[:5])
            raise NotFoundError(f"the job has no file {pattern!r}", f"It has {len(listed)} files, such as {some}.")
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
    """Download files into a folder and return their paths. The first error stops all; partial files are kept."""
    stopped = threading.Event()
    counter = Counter(len(files), sum(file.size_bytes for file in files), watcher)
    jobs = [
        _Download(
            connection, f"{job_path}/files/{quote(file.path)}", file, _target_path(folder, file.path), counter, stopped
        )
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


def _target_path(folder: Path, path: str) -> Path:
    """Return the target of a file. Raises ApiError for a path outside of the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(sign in path for sign in "\\:\0"):
        raise ApiError(f"the server lists the file {path!r}, which is outside of the folder", code="unsafe_path")
    return folder.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class _Download:
    """Download of one file."""

    connection: Connection
    path: str
    file: FileView
    target: Path
    counter: Counter
    stopped: threading.Event

    def run(self) -> None:
        """Download the file, unless it is complete."""
        if is_complete(self.target, self.file.size_bytes, self.file.sha256):
            self.counter.add(self.file.size_bytes, files=1)
            return
        with PartialFile(self.target, self.file.sha256) as part:
            self.counter.add(part.size_bytes)
            self._complete(part)
            if not part.matches():  # the resumed part may be corrupt: retry from scratch
                self._restart(part)
                self._complete(part)
            part.finish()
        self.counter.add(0, files=1)

    def _complete(self, part: PartialFile) -> None:
        """Download the rest over as many connections as needed. Only those without progress count as retries."""
        if part.size_bytes > self.file.size_bytes:
            self._restart(part)
        is_whole = part.sha256 is not None and part.size_bytes == self.file.size_bytes
        while not is_whole:
            with self.connection.translated():
                for attempt in self.connection.attempts(may_repeat=True, goes_on=lambda: not self.stopped.is_set()):
                    with attempt:
                        is_whole = self._fetch(part)

    def _fetch(self, part: PartialFile) -> bool:
        """Download over one connection. Return whether it delivered the rest; a break after progress is no error."""
        before = part.size_bytes
        headers, store_headers = {"Accept-Encoding": "identity"}, {"Accept-Encoding": "identity"}
        if before and self.file.sha256:
            store_headers["Range"] = headers["Range"] = f"bytes={before}-"
            headers["If-Range"] = f'"{self.file.sha256}"'  # an object store has other ETags: there the digest decides
        try:
            with self.connection.open_file(self.path, headers, store_headers) as response:
                if before and not _continues(response, before):
                    self._restart(part)
                for block in response.iter_raw():  # raw blocks: buffered bytes would be lost with the connection
                    self._append(part, block)
        except httpx.TransportError:
            if part.size_bytes <= before or self.stopped.is_set():
                raise
            return False
        return True

    def _append(self, part: PartialFile, block: bytes) -> None:
        if self.stopped.is_set():
            raise UnreachableError(f"{self.file.path} was not downloaded: another file failed")
        part.write(block)
        self.counter.add(len(block))

    def _restart(self, part: PartialFile) -> None:
        self.counter.add(-part.size_bytes)
        part.clear()


def _continues(response: httpx.Response, offset: int) -> bool:
    """Return whether the response continues at the offset."""
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {offset}-")


def upload(connection: Connection, path: Path, name: str | None, watcher: Watcher | None) -> httpx.Response:
    """Upload a file. Retry only requests that never reached the server: two uploads would be two datasets."""
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
