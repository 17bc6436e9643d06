"""Receive uploaded files, check them on arrival, and publish them as datasets.

    ROOT/.ID.upload     a file in transfer, locked by the process that receives it
    ROOT/.ID.publishing a marker: the file is moved and its ID is written to the database
    ROOT/ID/NAME        a dataset, once the database has its ID

Files of a killed server are found by their lock, which the system has released, and by the marker of an ID that the
database does not have. A folder without that marker is never removed, because after the loss of a database the datasets
are all that is left. The root may be a URI. Then files arrive in a local folder and are sent on after the check.

`UploadSlots` limits the uploads that are received at a time, in total and for one owner. An owner's uploads wait for
each other before they wait for those of others, so that one token cannot hold every slot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from anyio import CapacityLimiter

from qtune_service.errors import (
    BusyError,
    ChecksumMismatchError,
    DiskFullError,
    NotFoundError,
    SpecError,
    StorageError,
    TooLargeError,
)
from qtune_service.ingest.discovery import ENDING, SUPPORTED
from qtune_service.ingest.upload_checks import check
from qtune_service.server.jobs.dataset_uris import folder_of
from qtune_service.server.jobs.datasets import Dataset, DatasetStore, NewDataset
from qtune_service.server.jobs.ids import is_id, new_id
from qtune_service.storage import file_io, folder_io
from qtune_service.storage.confined import Root
from qtune_service.storage.filesystems import explain

MAX_UPLOADS, MAX_PER_OWNER = 8, 4
MAX_WAITING = 32
"""Uploads of one owner that may wait. Further ones are refused."""
MAX_NAME_BYTES = 200
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ARRIVING = re.compile(r"\.([0-9a-z]{26})\.upload")
_PUBLISHING = re.compile(r"\.([0-9a-z]{26})\.publishing")
_FULL_HINT = "The administrator can free space on the disk of QTUNE_DATA_ROOT."


@dataclass(slots=True)
class _Owner:
    """The slots of an owner, and the number of uploads that hold or await one."""

    limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_PER_OWNER))
    users: int = 0


@dataclass(frozen=True, slots=True)
class UploadSlots:
    """The slots of a server, for use in its event loop."""

    everybody: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_UPLOADS))
    """Limiter for the threads that receive files."""
    _owners: dict[str, _Owner] = field(default_factory=dict)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Hold one of an owner's slots while the block runs. Raise BusyError where too many uploads wait."""
        owner = self._owners.setdefault(name, _Owner())
        if owner.users >= MAX_PER_OWNER + MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} uploads of {name} are waiting already", "Try again when some have ended.")
        owner.users += 1
        try:
            async with owner.limiter:
                yield
        finally:
            owner.users -= 1
            if not owner.users:
                self._owners.pop(name, None)


@dataclass(frozen=True, slots=True)
class Upload:
    """The description of a file by its sender."""

    name: str
    owner: str
    size_bytes: int | None = None
    sha256: str | None = None
    """Expected SHA-256, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Datasets:
    """Files of uploaded datasets, and their records in the database."""

    store: DatasetStore
    root: str
    """Folder or URI of the datasets."""
    arrivals: Path
    """Local folder where files arrive: the root itself where that is local."""
    max_bytes: int
    count_rows: Callable[[str, Path], int]
    """Count the rows of a Parquet or Arrow file, whose metadata may be hostile. See ingest/upload_checks.py."""

    def check_size(self, size_bytes: int) -> None:
        """Raise TooLargeError or DiskFullError for a file that will not fit."""
        if size_bytes > self.max_bytes:
            raise TooLargeError(
                f"a file may have at most {self.max_bytes:,} bytes here, and this one has more",
                "Split the file, or copy it to a path that the server may read. QTUNE_MAX_UPLOAD_BYTES sets the limit.",
            )
        self.arrivals.mkdir(parents=True, exist_ok=True)
        if size_bytes > (free := shutil.disk_usage(self.arrivals).free):
            raise DiskFullError(f"the server has {free:,} bytes left, and the file has {size_bytes:,}", _FULL_HINT)

    def receive(self, upload: Upload, blocks: Iterator[bytes]) -> Dataset:
        """Store and check a file while it arrives, and publish it. Leave nothing behind on an error.

        Raise BadDatasetError, ChecksumMismatchError, SpecError for its name, TooLargeError and DiskFullError.
        """
        name, dataset_id = clean_name(upload.name), new_id()
        self.check_size(upload.size_bytes or 0)
        path = self.arrivals / f".{dataset_id}.upload"
        with _arriving(path) as file:
            digest = hashlib.sha256()
            found = check(name, self._stored(blocks, file, digest), path, self.count_rows)
            if upload.sha256 is not None and digest.hexdigest() != upload.sha256.lower():
                raise ChecksumMismatchError(
                    f"{name} arrived with SHA-256 {digest.hexdigest()}, not {upload.sha256.lower()}", "Send it again."
                )
            with _explained(path):
                os.fsync(file.fileno())
            new = NewDataset(
                id=dataset_id,
                name=name,
                owner=upload.owner,
                size_bytes=path.stat().st_size,
                sha256=digest.hexdigest(),
                format=found.kind,
                rows=found.rows,
                num_bad_rows=found.num_bad_rows,
                first_problem=found.first_problem,
            )
            return self._publish(new, path)

    def _stored(self, blocks: Iterator[bytes], file: IO[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
        """Write blocks to a file and a digest, and pass them on."""
        size = 0
        for block in blocks:
            size += len(block)
            if size > self.max_bytes:
                self.check_size(size)
            digest.update(block)
            view = memoryview(block)
            with _explained(file.name):
                while view:
                    view = view[file.write(view) :]
            yield block

    def _publish(self, new: NewDataset, path: Path) -> Dataset:
        marker = self.arrivals / f".{new.id}.publishing"
        try:
            with _explained(path):
                marker.touch()
                file_io.move_in(path, file_io.join(folder_of(self.root, new.id), new.name))
            return self.store.create(new)
        except BaseException:
            self._remove(new.id, new.name)
            raise
        finally:
            marker.unlink(missing_ok=True)

    def _remove(self, dataset_id: str, name: str) -> None:
        """Remove a dataset's file, and its folder where nothing else is in it."""
        root = Root(self.root)
        folder_io.remove_file(root, dataset_id, name)
        folder_io.remove_folder_if_empty(root, dataset_id)

    def delete(self, dataset_id: str) -> None:
        """Remove a dataset. Raise NotFoundError, and DatasetInUseError while a job reads it."""
        if not is_id(dataset_id):
            raise NotFoundError(f"there is no dataset {dataset_id}")
        self._remove(dataset_id, self.store.delete(dataset_id).name)

    def sweep(self) -> None:
        """Remove files that killed servers have left on this machine's disk, and keep those of running servers."""
        if not self.arrivals.is_dir():
            return
        entries = list(self.arrivals.iterdir())
        for entry in entries:
            if _ARRIVING.fullmatch(entry.name) and _is_left(entry):
                entry.unlink(missing_ok=True)
        for marker, match in ((entry, _PUBLISHING.fullmatch(entry.name)) for entry in entries):
            if match and not self._is_being_published(match[1]):
                if not self.store.known([match[1]]):
                    for name in folder_io.list_files(Root(self.root), match[1]):
                        self._remove(match[1], name)
                marker.unlink(missing_ok=True)

    def _is_being_published(self, dataset_id: str) -> bool:
        """Return whether another server of this disk holds the lock of the dataset's file."""
        files = [self.arrivals / f".{dataset_id}.upload"]
        if "://" not in self.root:
            files += [Path(self.root) / dataset_id / name for name in folder_io.list_files(Root(self.root), dataset_id)]
        return any(file.exists() and not _is_left(file) for file in files)


# --- names


def clean_name(name: str) -> str:
    """Return the last part of a file's name, in characters that every file system and object store accepts.

    Raise SpecError for control characters and for an ending that no job can read.
    """
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise SpecError("name: it contains control characters", "Give the name of the file.")
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    ending = ENDING.search(last)
    if ending is None:
        raise SpecError(f"name: {last[:200]!r} has no supported suffix", SUPPORTED)
    stem = re.sub(r"[^\w .,+@()=-]", "_", last[: ending.start()]).strip().lstrip("._") or "data"
    room = MAX_NAME_BYTES - len(ending.group())
    return stem.encode()[:room].decode(errors="ignore").rstrip() + ending.group()


# --- files on this machine


@contextlib.contextmanager
def _arriving(path: Path) -> Iterator[IO[bytes]]:
    """Create and lock a new file, and remove it at the end unless it was moved."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
        finally:
            path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    """Return whether a file exists and no process holds its lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turn an OSError into DiskFullError or StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"the disk of {Path(path).parent} is full", _FULL_HINT) from error
        raise explain(error, str(path), "write") from error
