"""SIGTERM: save what is in hand, then end, within a time of grace.

The first signal asks; a second one, or one that comes where nothing has to be saved, ends the process at once. While
scoring, a thread lets nothing new begin, waits until each shard in hand is written or checkpointed, and sends the
second signal itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from types import FrameType

EXIT_CODE = 143
POLL_S = 0.1


class Stop:
    """The wish to stop, as a signal handler tells it."""

    def __init__(self) -> None:
        self._save: Callable[[], None] | None = None
        self._asked = False
        self._is_installed = False
        self._error: Exception | None = None

    def install(self) -> None:
        """Handle SIGTERM of this process; from its main thread."""
        signal.signal(signal.SIGTERM, self.handle)
        self._is_installed = True

    def install_again(self) -> None:
        """Take SIGTERM back from Ray, which on joining a cluster makes it abort the process."""
        if self._is_installed:
            self.install()

    def fail(self, error: Exception) -> None:
        """End the main thread with an error, wherever it waits. From any other thread."""
        self._error = error
        if self._is_installed:
            os.kill(os.getpid(), signal.SIGTERM)

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """For `signal.signal`. Raises SystemExit where there is nothing to wait for, or the error given to `fail`."""
        if self._error is not None:
            raise self._error
        if self._save is None or self._asked:
            raise SystemExit(EXIT_CODE)
        self._asked = True
        threading.Thread(target=self._wind_down, args=(self._save,), daemon=True).start()

    @contextlib.contextmanager
    def saving(self, ask: Callable[[], AbstractSet[int]], arrived: AbstractSet[int], grace_s: float) -> Iterator[None]:
        """Within the block a stop asks the workers, which gives the shards in hand, and waits until they arrived."""

        def save() -> None:
            deadline_s = time.monotonic() + grace_s
            in_hand = ask()
            while not in_hand <= arrived and time.monotonic() < deadline_s:
                time.sleep(POLL_S)

        self._save = save
        try:
            yield
        finally:
            self._save = None

    @staticmethod
    def _wind_down(save: Callable[[], None]) -> None:
        try:
            save()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
