"""Keep copies of drivers' logs in a folder, because a cluster loses its logs with its head.

Ray returns a log as one JSON object, `{"logs": "..."}`. `unescaped` decodes it block by block, without keeping it in
memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qtune_service.errors import LaunchError

BLOCK_BYTES = 1 << 16
COPY_EVERY_S = 60.0
"""Largest age of the copy of a log while its driver runs."""
_HEAD = re.compile(rb'\s*\{\s*"logs"\s*:\s*"')
_WHOLE = re.compile(
    rb"(?:"
    rb'[^"\\]++'
    rb"|\\[^u]"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a surrogate pair stays together
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    rb")*+"  # possessive: no backtracking
)
_log = logging.getLogger(__name__)


def unescaped(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a log from blocks of Ray's JSON. An incomplete escape waits for the next block.

    Ray escapes all characters outside of ASCII, so a block can split only escapes.
    """
    buffer, is_inside = b"", False
    for block in blocks:
        buffer += block
        if not is_inside:
            if (head := _HEAD.match(buffer)) is None:
                continue
            buffer, is_inside = buffer[head.end() :], True
        match = _WHOLE.match(buffer)
        end = match.end() if match else 0
        if end:
            yield json.loads(b'"%s"' % buffer[:end]).encode()
        buffer = buffer[end:]
        if buffer.startswith(b'"'):
            return


class LogCopies:
    """Copies of logs, one file for each submission."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied_s: dict[str, float] = {}

    def refresh(self, name: str, fetch: Callable[[], Iterable[bytes]], max_age_s: float) -> None:
        """Copy a log unless its copy is newer than max_age_s. Log a failure as a warning."""
        if time.monotonic() - self._copied_s.get(name, -math.inf) < max_age_s:
            return
        self._copied_s[name] = time.monotonic()
        path = self._path(name)
        fresh = path.with_suffix(f".{time.monotonic_ns()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.writelines(fetch())
            fresh.replace(path)
        except (LaunchError, OSError) as error:
            _log.warning("the log of %s could not be copied: %s", name, error)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def finish(self, name: str, fetch: Callable[[], Iterable[bytes]]) -> None:
        """Copy the log of a driver that has ended."""
        self.refresh(name, fetch, 0.0)
        self._copied_s.pop(name, None)

    def has(self, name: str) -> bool:
        """Return whether there is a copy."""
        return self._path(name).exists()

    def read(self, names: Iterable[str], start: int = 0) -> Iterator[bytes]:
        """Yield the copies one after the other, from byte `start` of all on."""
        for name in names:
            path = self._path(name)
            size = path.stat().st_size if path.exists() else 0
            if start <= size:
                yield from self._read_one(name, start)
            start = max(start - size, 0)

    def remove(self, name: str) -> None:
        """Remove a copy if it exists."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _read_one(self, name: str, start: int) -> Iterator[bytes]:
        try:
            with self._path(name).open("rb") as file:
                file.seek(start)
                while block := file.read(BLOCK_BYTES):
                    yield block
        except FileNotFoundError:
            yield f"[the cluster does not have the log of {name} now]\n".encode()
