"""SIGTERM: save the work in progress, then exit within a grace period.

The first signal requests a stop. A second one, or a signal while nothing needs saving, exits immediately.
While scoring, a thread stops new work, waits until each shard in progress is written or checkpointed, and then sends
the second signal itself.
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
SECOND_SIGNAL_S = 5.0


class Stop:
    """A stop request, made by a signal handler."""

    def __init__(self) -> None:
        self._save: Callable[[], None] | None = None
        self._is_requested = False
        self._is_installed = False
        self._error: Exception | None = None

    def install(self) -> None:
        """Handle SIGTERM of this process. Call it in the main thread."""
        signal.signal(signal.SIGTERM, self.handle)
        self._is_installed = True

    def install_again(self) -> None:
        """Reinstall the handler, because Ray replaces it with one that aborts when it joins a cluster."""
        if self._is_installed:
            self.install()

    def fail(self, error: Exception) -> None:
        """Raise an error in the main thread, wherever it waits. Call it in any other thread."""
        self._error = error
        if self._is_installed:
            os.kill(os.getpid(), signal.SIGTERM)

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle a signal. Raise SystemExit where there is nothing to wait for, or the error given to `fail`."""
        if self._error is not None:
            raise self._error
        is_second, self._is_requested = self._is_requested, True
        if self._save is None or is_second:
            raise SystemExit(EXIT_CODE)
        threading.Thread(target=self._save_and_exit, args=(self._save,), daemon=True).start()

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Raise what the handler raised within the block. `ray.get` replaces it with `SystemExit(1)`."""
        try:
            yield
        except SystemExit as replaced:
            if self._error is not None:
                raise self._error from None
            if self._is_requested and replaced.code != EXIT_CODE:
                raise SystemExit(EXIT_CODE) from None
            raise

    @contextlib.contextmanager
    def saving(
        self, stop_workers: Callable[[], AbstractSet[int]], arrived: AbstractSet[int], grace_s: float
    ) -> Iterator[None]:
        """Make a signal within the block stop the workers and wait for the shards in progress.

        stop_workers: returns the shards in progress. arrived: the shards that the block has received; the block extends
        it.
        """

        def save() -> None:
            deadline_s = time.monotonic() + grace_s
            in_progress = stop_workers()
            while not in_progress <= arrived and time.monotonic() < deadline_s:
                time.sleep(POLL_S)

        self._save = save
        try:
            yield
        finally:
            self._save = None

    def wait_for_exit(self) -> None:
        """Wait for the second signal, then exit. Call it in the main thread once all shards arrived after a stop."""
        time.sleep(SECOND_SIGNAL_S)
        raise SystemExit(EXIT_CODE)

    @staticmethod
    def _save_and_exit(save: Callable[[], None]) -> None:
        try:
            save()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
