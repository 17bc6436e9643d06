"""Exact ranks of a column that no process holds: a sample sort over groups of samples.

    1. Each group sorts its values, keeps the distinct ones with their counts (a run), and shows every k-th of them.
    2. From all that is shown, splitters cut the line of values into ranges of nearly equal size. Who ranks a range
       reads only its part of each run, merges the parts, and gives each of their values its doubled mid-rank.
    3. Each group hands the ranks of its distinct values to its samples.

What is shown is also an index: it says where in a run a range begins and ends to within k values, so no round is
spent on counting. A run carries the number of samples up to each value, so a range learns from its own parts how many
samples of the population lie below it, and tied samples, be they half of all, are one value and one count a group.

Bounds, for runs of D values in all over G groups: whatever the data are, one of R ranges gets at most
D / R + (3 G + 1) k of them, and D / k + G are shown. Source: Shi and Schaeffer, Parallel sorting by regular sampling,
1992; there each processor shows as many values as there are processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.ranks import DoubleRanks, rank_type

RUN = np.dtype([("value", "<f8"), ("end", "<u4")])
"""An item of a run: a distinct value, and how many samples of the group are at most as large. 12 bytes."""

Run = NDArray[np.void]
"""(D,) items of RUN, ascending."""

Column = NDArray[np.float64]  # (n,) nats


def sorted_run(values: Column) -> Run:
    """The distinct values of a group with their cumulative counts."""
    ordered = np.sort(values)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))  # where each distinct value ends
    run = np.empty(len(last), RUN)
    run["value"], run["end"] = ordered[last], last + 1
    return run


def shown_values(run: Run, step: int) -> Column:
    """Every step-th value of a run, its first one included."""
    return run["value"][::step].copy()


def splitters(shown: Iterable[Column], num_ranges: int) -> Column:
    """Ascending distinct values (R,) that end the ranges (low, high]; the last is infinite, and the first begins there.

    There are fewer than `num_ranges` where so few values differ.
    """
    pooled = np.sort(np.concatenate(list(shown)))
    picks = pooled[np.arange(1, num_ranges) * len(pooled) // num_ranges]
    return np.append(np.unique(picks), np.inf)


def part_to_read(shown: Column, size: int, step: int, low: float, high: float) -> slice:
    """Which items of a run of `size`, known by what it showed, to read for the range (low, high].

    At most `step` items too many at each end; the one before the range is always among them, if there is one.
    """
    before = int(np.searchsorted(shown, low, side="right")) - 1  # the last shown value outside
    after = int(np.searchsorted(shown, high, side="right"))  # the first shown value beyond
    return slice(max(before * step, 0), min(after * step, size))


@dataclass(frozen=True, slots=True)
class Part:
    """What a run has in a range."""

    values: Column  # (D,) ascending, distinct
    counts: NDArray[np.int64]  # (D,) samples of each
    below: int
    """Samples of the group below the range."""


def part_within(items: Run, low: float, high: float) -> Part:
    """Cut what was read for a range down to it."""
    values, ends = items["value"], items["end"].astype(np.int64)
    first, stop = (int(np.searchsorted(values, edge, side="right")) for edge in (low, high))
    below = int(ends[first - 1]) if first else 0
    return Part(values[first:stop].copy(), np.diff(ends[first:stop], prepend=below), below)


@dataclass(frozen=True, slots=True)
class RankedRange:
    """All samples of a range, ranked."""

    values: Column  # (D,) ascending, distinct
    ends: NDArray[np.int64]  # (D,) samples of the population that are at most as large
    below: int
    """Samples of the population below the range."""
    ranks: tuple[DoubleRanks, ...]
    """Doubled mid-ranks of each part's values."""


def rank_range(parts: Sequence[Part], num_samples: int) -> RankedRange:
    """Merge the parts of all runs in one range: the same as ranking the whole column."""
    values, counts = np.concatenate([p.values for p in parts]), np.concatenate([p.counts for p in parts])
    below = sum(p.below for p in parts)
    order = np.argsort(values)
    ordered = values[order]
    first = _starts(ordered)
    sizes = np.add.reduceat(counts[order], first) if len(first) else counts
    ends = below + np.cumsum(sizes)
    ranks: DoubleRanks = np.empty(len(values), rank_type(num_samples))
    midranks = (2 * ends - sizes).astype(ranks.dtype)  # 0-based places from end - size to end - 1
    ranks[order] = np.repeat(midranks, np.diff(first, append=len(ordered)))
    pieces = np.split(ranks, np.cumsum([len(p.values) for p in parts])[:-1])
    return RankedRange(ordered[first], ends, below, tuple(pieces))


def hand_out(values: Column, run_ranks: DoubleRanks) -> DoubleRanks:
    """The ranks of a group's samples (n,), from those of its distinct values in ascending order."""
    order = np.argsort(values)
    sizes = np.diff(_starts(values[order]), append=len(values))
    ranks: DoubleRanks = np.empty(len(values), run_ranks.dtype)
    ranks[order] = np.repeat(run_ranks, sizes)
    return ranks


def _starts(ordered: Column) -> NDArray[np.int64]:
    """Where each distinct value of an ascending column starts."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
