"""selection/partition.py: ranks by groups and ranges are the ranks of the whole column."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.selection.partition import (
    hand_out,
    part_to_read,
    part_within,
    rank_range,
    shown_values,
    sorted_run,
    splitters,
)
from qtune_service.selection.ranks import DoubleRanks, double_midranks

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0, 1.0, 2.5, -1e308, 5e-324])
GROUPS = st.lists(st.lists(FINITE | TIED, min_size=1, max_size=30), min_size=1, max_size=6)


def by_ranges(
    groups: list[NDArray[np.float64]], num_ranges: int, step: int
) -> tuple[list[DoubleRanks], list[int], list[int]]:
    """Ranks of each group's samples; the items that each range got, and how many it read in vain."""
    total = sum(len(group) for group in groups)
    runs = [sorted_run(group) for group in groups]
    shown = [shown_values(run, step) for run in runs]
    run_ranks: list[list[DoubleRanks]] = [[] for _ in groups]
    sizes: list[int] = []
    in_vain: list[int] = []
    covered = 0
    for low, high in itertools.pairwise([-math.inf, *splitters(shown, num_ranges)]):
        reads = [part_to_read(s, len(run), step, low, high) for s, run in zip(shown, runs, strict=True)]
        parts = [part_within(run[read], low, high) for run, read in zip(runs, reads, strict=True)]
        ranked = rank_range(parts, total)
        assert ranked.below == covered, "a range begins where the last one ended"
        covered = int(ranked.ends[-1]) if len(ranked.ends) else covered
        for found, ranks in zip(run_ranks, ranked.ranks, strict=True):
            found.append(ranks)
        sizes.append(sum(len(part.values) for part in parts))
        in_vain.append(max(r.stop - r.start - len(p.values) for r, p in zip(reads, parts, strict=True)))
    assert covered == total
    handed_out = [hand_out(group, np.concatenate(found)) for group, found in zip(groups, run_ranks, strict=True)]
    return handed_out, sizes, in_vain


@settings(max_examples=200)
@given(GROUPS, st.integers(1, 8), st.integers(1, 5))
def test_ranks_by_ranges_are_those_of_the_whole(groups: list[list[float]], num_ranges: int, step: int) -> None:
    """Counting smaller and equal values over all groups gives the same, with ties across groups and signed zeros."""
    everything = [value for group in groups for value in group]
    ranks, _, _ = by_ranges([np.array(group) for group in groups], num_ranges, step)
    counted = [2 * sum(v < value for v in everything) + everything.count(value) for value in everything]
    assert np.concatenate(ranks).tolist() == counted


@pytest.mark.parametrize("kind", ["mixed", "sorted", "half equal", "all equal", "tenths"])
def test_no_range_is_larger_than_promised(kind: str) -> None:
    """However the values lie over groups, ranges and what is read for them stay within the stated bounds."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=60_000)
    column = {
        "mixed": values,
        "sorted": np.sort(values),  # each group has values of its own
        "half equal": np.where(rng.random(60_000) < 0.5, 1.0, values),
        "all equal": np.ones(60_000),
        "tenths": values.round(1),
    }[kind]
    groups = np.array_split(column, 12)
    ranks, sizes, in_vain = by_ranges(groups, 12, step=50)
    np.testing.assert_array_equal(np.concatenate(ranks), double_midranks(column))
    distinct = sum(len(np.unique(group)) for group in groups)
    assert max(sizes) <= distinct / 12 + (3 * 12 + 1) * 50
    assert max(in_vain) <= 2 * 50
    if kind == "mixed":
        assert max(sizes) < 1.2 * distinct / 12


def test_a_run_is_the_distinct_values_with_the_samples_up_to_each() -> None:
    """So that the number of samples below any value can be read off."""
    run = sorted_run(np.array([2.0, 1.0, 2.0, 3.0, 2.0]))
    assert run["value"].tolist() == [1.0, 2.0, 3.0]
    assert run["end"].tolist() == [1, 4, 5]
    assert len(sorted_run(np.empty(0))) == 0


def test_ranks_of_more_samples_than_32_bits_hold() -> None:
    """Above 2^31 samples doubled ranks need 64 bits, and get them."""
    billions = part_within(sorted_run(np.array([1.0])), -math.inf, math.inf)
    ranked = rank_range([type(billions)(billions.values, np.array([3_000_000_000]), 500)], 3_000_000_500)
    assert ranked.ranks[0].tolist() == [2 * 500 + 3_000_000_000]
    assert ranked.ends.tolist() == [3_000_000_500]
