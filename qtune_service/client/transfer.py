"""Downloading files of a job: several at a time, each from where it was cut off, checked, and put in place by a rename.

Files of the manifest have a SHA-256, which is also their ETag: what is there of them is checked or continued. The few
beside it (manifest, report) have none and are fetched anew.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx

from qtune_service.client.part import Part, is_there
from qtune_service.client.transfers import Counter, Watcher
from qtune_service.client.transport import Connection
from qtune_service.errors import ApiError, NotFoundError, UnreachableError
from qtune_service.wire import FileView

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
