"""selection/search.py: the smallest bound from counts that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.selection.search import BINS, BinCounts, Window, smallest_bound, stopped_early


@given(st.lists(st.integers(1, 199), min_size=1, max_size=100), st.data())
def test_the_bound_is_the_targets_entry(entries: list[int], data: st.DataObject) -> None:
    """With the entries in order, the bound is the one at the target's place, however they lie over groups."""
    target = data.draw(st.integers(1, len(entries)))
    entry = np.array(entries, dtype=np.uint32)
    cut = data.draw(st.integers(0, len(entries)))

    def count(window: Window) -> BinCounts:
        return window.count(entry[:cut]) + window.count(entry[cut:])

    assert smallest_bound(100, target, count) == sorted(entries)[target - 1]


@pytest.mark.parametrize("num_samples", [40_000, 10**9, 2**31 - 1, 2**31 + 5, 10**12])
def test_large_populations_take_a_round_for_each_16_bits(num_samples: int) -> None:
    """Entries over the whole line, at its ends, and side by side around the bound."""
    rng = np.random.default_rng(0)
    spread = rng.integers(1, 2 * num_samples, 5_000)
    crowd = num_samples + np.arange(-500, 500)
    dtype = np.uint32 if 2 * num_samples < 1 << 32 else np.uint64
    entry: NDArray[np.integer] = np.concatenate([[1, 2 * num_samples - 1], spread, crowd]).astype(dtype)
    ordered = np.sort(entry)
    for target in (1, 2_000, 2_501, 3_000, 3_500, len(entry)):
        windows: list[Window] = []

        def count(window: Window, seen: list[Window] = windows) -> BinCounts:
            seen.append(window)
            return window.count(entry)  # type: ignore[arg-type]

        assert smallest_bound(num_samples, target, count) == ordered[target - 1]
        assert len(windows) == -(-(2 * num_samples).bit_length() // 16)
        assert all(len(w.count(entry)) == BINS for w in windows)  # type: ignore[arg-type]


@given(st.integers(1, 10_000), st.integers(1, 20), st.data())
def test_stopping_early_is_a_bisection_step_by_step(num_samples: int, max_iter: int, data: st.DataObject) -> None:
    """A bisection that counts at each halving ends at the same bound."""
    entry = np.array(data.draw(st.lists(st.integers(1, 2 * num_samples - 1), min_size=1, max_size=30)))
    target = data.draw(st.integers(1, len(entry)))
    below, bound = 0, 2 * num_samples
    for _ in range(max_iter):
        if bound - below > 1:
            middle = (below + bound) // 2
            if np.count_nonzero(entry <= middle) >= target:
                bound = middle
            else:
                below = middle
    smallest = int(np.sort(entry)[target - 1])
    assert stopped_early(smallest, num_samples, max_iter) == bound
    assert stopped_early(smallest, num_samples, None) == smallest == stopped_early(smallest, num_samples, 64)


def test_no_halving_at_all_is_refused() -> None:
    """Alpha would be 1."""
    with pytest.raises(SpecError, match="bisect_max_iter is 0"):
        stopped_early(1, 1, 0)
