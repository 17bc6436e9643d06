"""How fast a job was over time, in a few numbers however long it takes: beside progress, for a chart of it.

At most MAX_POINTS points are kept. When they are full every second one goes, and from then on points are taken half as
often; so a job of a minute has one every two seconds, and a job of a day one every several minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_POINTS = 240
FIRST_STEP_S = 1.0

Columns = dict[str, list[float]]


@dataclass(slots=True)
class History:
    """Points of one attempt; times are seconds since 1970."""

    clock: Callable[[], float] = time.time
    step_s: float = FIRST_STEP_S
    _points: list[tuple[float, int, int, float]] = field(default_factory=list)

    def note(self, samples_done: int, tokens_done: int, tokens_per_s: float) -> None:
        """Take a point, if it is time."""
        now = self.clock()
        if self._points and now - self._points[-1][0] < self.step_s:
            return
        if len(self._points) == MAX_POINTS:
            self._points = self._points[::2]
            self.step_s *= 2
        self._points.append((now, samples_done, tokens_done, tokens_per_s))

    def columns(self) -> Columns:
        """Plain data. Another thread may ask for it."""
        points = list(self._points)
        return {
            "at_s": [round(point[0], 1) for point in points],
            "samples_done": [point[1] for point in points],
            "tokens_done": [point[2] for point in points],
            "tokens_per_s": [round(point[3], 1) for point in points],
        }
