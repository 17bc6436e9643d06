"""How long drivers have been silent, by the watcher's own clock: clocks of other machines may be off.

A beat is known by its own time only as one that differs from the one before. What is held here may be lost: a new
server begins to wait anew.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Beats:
    """The last beat of each driver, and when it was first seen here."""

    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def silence_s(self, driver: str, beat: float) -> float:
        """Take note of a driver's last beat; for how long there has been none after it."""
        now = time.monotonic()
        last, seen_s = self._seen.get(driver, (None, now))
        if last != beat:
            seen_s = now
        self._seen[driver] = beat, seen_s
        return now - seen_s

    def keep_only(self, drivers: Collection[str]) -> None:
        """Forget those that are followed no more."""
        for gone in self._seen.keys() - drivers:
            del self._seen[gone]
