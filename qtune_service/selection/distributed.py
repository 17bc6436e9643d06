"""Exact ranks and scaled alphas of a population that no process holds, from groups of its samples.

Ranks come from a sample sort:

    1. Each group sorts its scores and keeps the distinct ones with cumulative counts (a run). Every k-th score of a run
       is a candidate for a splitter.
    2. From the candidates of all runs, splitters divide the scores into ranges of nearly equal size. The task that
       ranks a range reads its part of each run, merges the parts, and gives each of their scores its doubled mid-rank.
    3. Each group takes the ranks of its samples from those of its distinct scores.

The candidates are also an index: they bound a range's part of a run to within k scores, so no round is spent on
counting. Because a run holds cumulative counts, the parts of a range show how many samples of the population are below
it. Tied samples are one score and one count a group, however many they are.

Bounds, for runs of D scores in all over G groups: whatever the data are, one of R ranges has at most
D / R + (3 G + 1) k of them, and there are D / k + G candidates.

Scaled alphas of any number of targets come from two rounds. Groups count their samples' entry alphas in 2^16 bins; the
counts add up and show in which bin each target is reached. Then groups list the distinct entry alphas in these bins
with their counts, and the lists together give the order statistics.

Source: Shi and Schaeffer, Parallel sorting by regular sampling, 1992; there each processor gives as many candidates as
there are processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.ranks import DoubleRanks, blocks, rank_type, tie_starts

MAX_IN_MEMORY_SAMPLES = 1 << 22
"""Samples that one process selects from, or holds as a group: about 100 bytes each. Larger populations are selected
group by group."""

RUN = np.dtype([("value", "<f8"), ("end", "<u4")])
"""An item of a run: a distinct score, and the number of samples of the group that are at most as large. 12 bytes."""

Run = NDArray[np.void]
"""(D,) items of RUN, ascending."""

Column = NDArray[np.float64]  # (n,) nats


# --- ranks


def sorted_run(values: Column) -> Run:
    """Return the distinct values of a group (n,) with their cumulative counts."""
    ordered = np.sort(values)
    first = tie_starts(ordered)
    run = np.empty(len(first), RUN)
    run["value"], run["end"] = ordered[first], np.append(first[1:], len(ordered))[: len(first)]
    return run


def candidates_of(run: Run, step: int) -> Column:
    """Return every step-th value of a run, its first one included."""
    return run["value"][::step].copy()


def splitters(candidates: Iterable[Column], num_ranges: int) -> Column:
    """Return the upper ends (R,) of the ranges (low, high] of nearly equal size, ascending; the last is infinite.

    There are fewer than `num_ranges` where so few values differ.
    """
    pooled = np.sort(np.concatenate(list(candidates)))
    picks = pooled[np.arange(1, num_ranges) * len(pooled) // num_ranges]
    return np.append(np.unique(picks), np.inf)


def slice_to_read(candidates: Column, size: int, step: int, low: float, high: float) -> slice:
    """Return which items of a run of `size`, known by its candidates, to read for the range (low, high].

    The slice has at most `step` items too many at each end. It includes the item before the range, if there is one.
    """
    before = int(np.searchsorted(candidates, low, side="right")) - 1  # the last candidate below the range
    after = int(np.searchsorted(candidates, high, side="right"))  # the first candidate above it
    return slice(max(before * step, 0), min(after * step, size))


@dataclass(frozen=True, slots=True)
class RunPart:
    """The part of a run in a range."""

    values: Column  # (D,) ascending, distinct
    counts: NDArray[np.int64]  # (D,) samples of each
    below: int
    """Samples of the group below the range."""


def part_within(items: Run, low: float, high: float) -> RunPart:
    """Return what the items that were read for a range (low, high] have in it."""
    values, ends = items["value"], items["end"].astype(np.int64)
    first, stop = (int(np.searchsorted(values, edge, side="right")) for edge in (low, high))
    below = int(ends[first - 1]) if first else 0
    return RunPart(values[first:stop].copy(), np.diff(ends[first:stop], prepend=below), below)


@dataclass(frozen=True, slots=True)
class RankedRange:
    """All samples of a range, ranked."""

    values: Column  # (D,) ascending, distinct
    ends: NDArray[np.int64]  # (D,) samples of the population that are at most as large
    below: int
    """Samples of the population below the range."""
    ranks: tuple[DoubleRanks, ...]
    """Doubled mid-ranks of the values of each part."""


def rank_range(parts: Sequence[RunPart], num_samples: int) -> RankedRange:
    """Merge the parts of all runs in one range. The ranks are those among the whole population."""
    values, counts = np.concatenate([p.values for p in parts]), np.concatenate([p.counts for p in parts])
    below = sum(p.below for p in parts)
    order = np.argsort(values)
    ordered = values[order]
    first = tie_starts(ordered)
    sizes = np.add.reduceat(counts[order], first) if len(first) else counts
    ends = below + np.cumsum(sizes)
    ranks: DoubleRanks = np.empty(len(values), rank_type(num_samples))
    midranks = (2 * ends - sizes).astype(ranks.dtype)  # 0-based positions from end - size to end - 1
    ranks[order] = np.repeat(midranks, np.diff(first, append=len(ordered)))
    pieces = np.split(ranks, np.cumsum([len(p.values) for p in parts])[:-1])
    return RankedRange(ordered[first], ends, below, tuple(pieces))


def ranks_of_samples(values: Column, run_ranks: DoubleRanks) -> DoubleRanks:
    """Return the ranks of a group's samples (n,), from those of its distinct values in ascending order."""
    order = np.argsort(values)
    sizes = np.diff(tie_starts(values[order]), append=len(values))
    ranks: DoubleRanks = np.empty(len(values), run_ranks.dtype)
    ranks[order] = np.repeat(run_ranks, sizes)
    return ranks


# --- scaled alphas


@dataclass(frozen=True, slots=True)
class EntryBins:
    """Bins of equal width over the scaled alphas of a population, 1 to 2N: at most 2^16."""

    num_samples: int

    @property
    def shift(self) -> int:
        """A bin holds 2^shift scaled alphas."""
        return max((2 * self.num_samples).bit_length() - 16, 0)

    @property
    def size(self) -> int:
        """Number of bins."""
        return ((2 * self.num_samples - 1) >> self.shift) + 1

    def bins_of(self, entry: DoubleRanks) -> NDArray[np.int64]:
        """Return the bin of each scaled entry alpha (n,)."""
        return (entry.astype(np.int64) - 1) >> self.shift

    def count(self, entry: DoubleRanks) -> NDArray[np.int64]:
        """Return the samples in each bin (B,), from scaled entry alphas (n,). Counts of groups add up."""
        counts = np.zeros(self.size, np.int64)
        for block in blocks(len(entry)):
            counts += np.bincount(self.bins_of(entry[block]), minlength=self.size)
        return counts


@dataclass(frozen=True, slots=True, eq=False)
class EntryList:
    """Distinct scaled entry alphas in some bins, with their samples."""

    scaled_alphas: NDArray[np.int64]  # (D,) ascending
    counts: NDArray[np.int64]  # (D,)

    @classmethod
    def within(cls, bins: EntryBins, wanted: NDArray[np.int64], entry: DoubleRanks) -> EntryList:
        """List the entry alphas (n,) of a group that are in the wanted bins (W,)."""
        is_wanted = np.zeros(bins.size, np.bool_)
        is_wanted[wanted] = True
        parts = (entry[block] for block in blocks(len(entry)))
        found = [part[is_wanted[bins.bins_of(part)]] for part in parts]
        values, counts = np.unique(np.concatenate([entry[:0], *found]), return_counts=True)
        return cls(values.astype(np.int64), counts)

    @classmethod
    def merged(cls, parts: Sequence[EntryList]) -> EntryList:
        """Return the list of several groups together."""
        values, which = np.unique(np.concatenate([part.scaled_alphas for part in parts]), return_inverse=True)
        counts = np.bincount(which, weights=np.concatenate([part.counts for part in parts]), minlength=len(values))
        return cls(values, counts.astype(np.int64))  # float64: exact below 2^53


def target_bins(counts: NDArray[np.int64], targets: Sequence[int]) -> NDArray[np.int64]:
    """Return the distinct bins (W,) in which the targets (1 to N) are reached, from the counts of all bins (B,)."""
    return np.unique(np.searchsorted(np.cumsum(counts), targets))


def smallest_in_bins(
    bins: EntryBins, counts: NDArray[np.int64], found: EntryList, targets: Sequence[int]
) -> NDArray[np.int64]:
    """Return the smallest scaled alpha (T,) that keeps each target, as `thresholds.smallest_scaled_alphas` would.

    `counts` are those of all bins (B,); `found` lists the population's entry alphas in the targets' bins.
    """
    bin_of = (found.scaled_alphas - 1) >> bins.shift
    is_first = np.diff(bin_of, prepend=-1) != 0
    first = np.flatnonzero(is_first)
    upto = np.cumsum(found.counts)
    below_bin = (np.cumsum(counts) - counts)[bin_of[first]]  # samples of the population before each bin
    listed_before = (upto - found.counts)[first]
    upto += np.repeat(below_bin - listed_before, np.diff(first, append=len(upto)))
    return found.scaled_alphas[np.searchsorted(upto, targets)]
