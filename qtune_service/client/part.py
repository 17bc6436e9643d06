"""A file that is being fetched: bytes on disk beside its place, and their SHA-256 so far.

Its name holds the digest that it is to have, so that what an earlier attempt left is only ever continued to the same
content. It becomes the file by a rename, once it is whole and right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from qtune_service.errors import ChecksumMismatchError, DiskFullError, StorageError

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
