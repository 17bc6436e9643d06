"""Copies of drivers' logs in a folder: logs on a cluster live as long as its head does.

A driver's log as Ray hands it over: all of it in one JSON object, `{"logs": "..."}`; read without holding it.
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

_HEAD = re.compile(rb'\s*\{\s*"logs"\s*:\s*"')
_WHOLE = re.compile(
    rb"(?:"
    rb'[^"\\]++'
    rb"|\\[^u]"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a character of two halves stays together
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    rb")*+"  # possessive: nothing is kept to go back to
)


def unescaped(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The log's bytes. What comes at the end of a block and is not whole waits for the next one.

    Ray escapes all that is not ASCII, so no block splits a character otherwise.
    """
    buffer, is_inside = b"", False
    for block in blocks:
        buffer += block
        if not is_inside:
            if (head := _HEAD.match(buffer)) is None:
                continue
            buffer, is_inside = buffer[head.end() :], True
        end = _end(buffer)
        if end:
            yield json.loads(b'"%s"' % buffer[:end]).encode()
        buffer = buffer[end:]
        if buffer.startswith(b'"'):
            return


def _end(buffer: bytes) -> int:
    match = _WHOLE.match(buffer)
    return match.end() if match else 0


BLOCK_BYTES = 1 << 16
COPY_EVERY_S = 60.0
"""How old the copy of a log may be while its driver is at work."""

_log = logging.getLogger(__name__)


class LogCopies:
    """A file for each submission."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied_s: dict[str, float] = {}

    def refresh(self, name: str, fetch: Callable[[], Iterable[bytes]], max_age_s: float) -> None:
        """Copy a log unless there is a copy that is new enough. A failure costs the log, and no job."""
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
        """Whether there is a copy."""
        return self._path(name).exists()

    def read(self, names: Iterable[str], start: int = 0) -> Iterator[bytes]:
        """The copies one after the other, from a byte on."""
        for name in names:
            path = self._path(name)
            size = path.stat().st_size if path.exists() else 0
            if start <= size:
                yield from self._read_one(name, start)
            start = max(start - size, 0)

    def remove(self, name: str) -> None:
        """Forget a log."""
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
