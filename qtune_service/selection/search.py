"""Find the smallest bound that keeps enough samples, by counts that add up over any cut of the population.

keep(a) grows with a, so the bound is found by bisection over |keep(a)|. Here sixteen halvings are taken at once: a
window of bounds is cut into 2^16 bins, each group of samples counts its corner entries (see plane.py) by bin, the
counts of all groups are added, and the bin in which the sum reaches the target is the next window. Two rounds
settle 2^32 bounds exactly, that is 2e9 samples, and each needs 512 KiB of counters wherever the samples are.

A bisection that is told to stop early needs no count of its own: it asks only whether a bound is at or above the
smallest one, which is known by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.selection.ranks import DoubleRanks, blocks

BITS = 16
BINS = 1 << BITS

BinCounts = NDArray[np.int64]
"""(BINS,) samples that enter within each bin of a window."""


@dataclass(frozen=True, slots=True)
class Window:
    """The bounds A = 2N a that are still possible: low < A <= low + (BINS << shift)."""

    low: int
    shift: int
    """A bin is 2^shift bounds wide."""
    below: int
    """Samples that have entered at `low`."""

    @classmethod
    def whole(cls, num_samples: int) -> Window:
        """All bounds of a population."""
        return cls(0, max((2 * num_samples).bit_length() - BITS, 0), 0)

    def count(self, entry: DoubleRanks) -> BinCounts:
        """Count the entries (n,) of some samples by bin. Counts of all samples are the sums over any cut."""
        counts = np.zeros(BINS, dtype=np.int64)
        high = self.low + (BINS << self.shift)
        for block in blocks(len(entry)):
            part = entry[block]
            inside = part[(part > self.low) & (part <= high)].astype(np.int64)
            counts += np.bincount((inside - (self.low + 1)) >> self.shift, minlength=BINS)
        return counts

    def narrowed(self, counts: BinCounts, target: int) -> Window:
        """The window that begins with the bin in which the target is reached."""
        reached = self.below + np.cumsum(counts)
        place = int(np.searchsorted(reached, target))
        below = int(reached[place] - counts[place])
        return Window(self.low + (place << self.shift), max(self.shift - BITS, 0), below)


def smallest_bound(num_samples: int, target: int, count: Callable[[Window], BinCounts]) -> int:
    """The smallest A with at least `target` (1 to N) entries <= A. `count` counts all samples' entries in a window."""
    window = Window.whole(num_samples)
    while True:
        narrower = window.narrowed(count(window), target)
        if window.shift == 0:
            return narrower.low + 1
        window = narrower


def stopped_early(smallest: int, num_samples: int, max_iter: int | None) -> int:
    """Where a bisection for `smallest` stands after `max_iter` halvings: at most 2N / 2^max_iter above; None is exact.

    It returns the upper end, so the count is never below the target.
    """
    if max_iter is None:
        return smallest
    if max_iter < 1:
        raise SpecError(f"bisect_max_iter is {max_iter}", "Choose at least 1, or leave it out to search until exact.")
    below, bound = 0, 2 * num_samples  # nothing has entered at 0, everything at 2N
    for _ in range(min(max_iter, bound.bit_length())):
        middle = (below + bound) // 2
        below, bound = (below, middle) if middle >= smallest else (middle, bound)
    return bound
