"""selection/distributed.py: ranks and scaled alphas by groups are those of the whole population."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.selection.distributed import (
    MAX_IN_MEMORY_SAMPLES,
    EntryBins,
    EntryList,
    candidates_of,
    part_within,
    rank_range,
    ranks_of_samples,
    slice_to_read,
    smallest_in_bins,
    sorted_run,
    splitters,
    target_bins,
)
from qtune_service.selection.ranks import DoubleRanks, double_midranks
from qtune_service.selection.thresholds import smallest_scaled_alphas

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0, 1.0, 2.5, -1e308, 5e-324])
DOCS = Path(__file__).resolve().parents[3] / "docs"
GROUPS = st.lists(st.lists(FINITE | TIED, min_size=1, max_size=30), min_size=1, max_size=6)


def by_ranges(
    groups: list[NDArray[np.float64]], num_ranges: int, step: int
) -> tuple[list[DoubleRanks], list[int], list[int]]:
    """Ranks of each group's samples; the items that each range got, and how many it read in vain."""
    total = sum(len(group) for group in groups)
    runs = [sorted_run(group) for group in groups]
    candidates = [candidates_of(run, step) for run in runs]
    run_ranks: list[list[DoubleRanks]] = [[] for _ in groups]
    sizes: list[int] = []
    in_vain: list[int] = []
    covered = 0
    for low, high in itertools.pairwise([-math.inf, *splitters(candidates, num_ranges)]):
        reads = [slice_to_read(s, len(run), step, low, high) for s, run in zip(candidates, runs, strict=True)]
        parts = [part_within(run[read], low, high) for run, read in zip(runs, reads, strict=True)]
        ranked = rank_range(parts, total)
        assert ranked.below == covered, "a range begins where the last one ended"
        covered = int(ranked.ends[-1]) if len(ranked.ends) else covered
        for found, ranks in zip(run_ranks, ranked.ranks, strict=True):
            found.append(ranks)
        sizes.append(sum(len(part.values) for part in parts))
        in_vain.append(max(r.stop - r.start - len(p.values) for r, p in zip(reads, parts, strict=True)))
    assert covered == total
    by_group = [ranks_of_samples(group, np.concatenate(found)) for group, found in zip(groups, run_ranks, strict=True)]
    return by_group, sizes, in_vain


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


def by_bins(groups: list[NDArray[np.unsignedinteger]], num_samples: int, targets: list[int]) -> list[int]:
    """Scaled alphas of the targets from counts and lists of each group."""
    bins = EntryBins(num_samples)
    counts = np.sum([bins.count(group) for group in groups], axis=0)
    wanted = target_bins(counts, targets)
    found = EntryList.merged([EntryList.within(bins, wanted, group) for group in groups])
    assert set(bins.bins_of(found.scaled_alphas.astype(np.uint64)).tolist()) <= set(wanted.tolist())
    alphas: list[int] = smallest_in_bins(bins, counts, found, targets).tolist()
    return alphas


@given(st.lists(st.integers(1, 199), min_size=1, max_size=100), st.data())
def test_scaled_alphas_are_order_statistics_of_the_entry_alphas(entries: list[int], data: st.DataObject) -> None:
    """However the samples are divided into groups, and for any number of targets."""
    targets = data.draw(st.lists(st.integers(1, len(entries)), min_size=1, max_size=5))
    cut = data.draw(st.integers(0, len(entries)))
    entry = np.array(entries, dtype=np.uint32)
    want = [sorted(entries)[target - 1] for target in targets]
    assert by_bins([entry[:cut], entry[cut:]], 100, targets) == want
    assert smallest_scaled_alphas(entry, targets).tolist() == want


@pytest.mark.parametrize("num_samples", [40_000, 10**9, 2**31 - 1, 2**31 + 5, 10**12])
def test_scaled_alphas_of_large_populations_are_exact(num_samples: int) -> None:
    """Entry alphas over the whole range, at its ends, close to each other and tied."""
    rng = np.random.default_rng(0)
    spread = rng.integers(1, 2 * num_samples, 5_000)
    crowd = num_samples + np.arange(-500, 500)
    ties = np.full(1_000, num_samples // 3)
    dtype = np.uint32 if 2 * num_samples < 1 << 32 else np.uint64
    entry = np.concatenate([[1, 2 * num_samples - 1], spread, crowd, ties]).astype(dtype)
    ordered = np.sort(entry)
    targets = [1, 2_000, 2_501, 3_000, 3_500, 6_001, len(entry)]
    want = [int(ordered[target - 1]) for target in targets]
    assert by_bins(np.array_split(entry, 5), num_samples, targets) == want
    assert EntryBins(num_samples).size <= 1 << 16


def test_ties_cost_a_group_one_item() -> None:
    """A list holds distinct entry alphas, however many samples share them."""
    found = EntryList.within(EntryBins(10_000), np.array([9_999]), np.full(10_000, 10_000, np.uint32))
    assert (found.scaled_alphas.tolist(), found.counts.tolist()) == ([10_000], [10_000])


def test_docs_state_the_limit_of_selection_in_memory() -> None:
    """The method page has the constant's value."""
    pages = [page.read_text(encoding="utf-8") for page in DOCS.rglob("method.md")]
    assert pages
    assert all(f"more than {MAX_IN_MEMORY_SAMPLES:,} samples" in page for page in pages)
