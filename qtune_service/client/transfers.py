"""How far an upload or download is, counted from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace


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
