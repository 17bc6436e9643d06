"""selection/ranks.py: doubled mid-ranks, exact for any finite floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.selection.ranks import BLOCK, blocks, double_midranks

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FEW = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 5e-324, -5e-324, 1.7e308, -1.7e308])


def by_counting(values: list[float]) -> list[int]:
    """2N (midrank - 1/2) / N = twice the smaller ones plus the equal ones, itself included."""
    return [2 * sum(other < value for other in values) + sum(other == value for other in values) for value in values]


def by_unique(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return mid-ranks over numpy's distinct values, for large arrays."""
    _, which, sizes = np.unique(values, return_inverse=True, return_counts=True)
    result: NDArray[np.int64] = (2 * np.cumsum(sizes) - sizes)[which]
    return result


@settings(max_examples=300)
@given(st.lists(FINITE | FEW, max_size=40))
def test_ranks_count_smaller_and_equal_values(values: list[float]) -> None:
    """Any finite floats, signed zeros, subnormals and extremes included."""
    ranks = double_midranks(np.array(values, dtype=np.float64))
    assert ranks.tolist() == by_counting(values)
    assert ranks.dtype == np.uint32


@given(st.integers(1, 40), st.integers(0, 2**63 - 50), st.randoms())
def test_neighbouring_floats_are_told_apart(count: int, start: int, random: Any) -> None:
    """Values that differ in their last bit only, beside an outlier that takes up the leading bits."""
    bits = np.arange(start, start + count, dtype=np.int64)
    values = [value for value in bits.view(np.float64).tolist() if np.isfinite(value)] + [-1e300]
    random.shuffle(values)
    assert double_midranks(np.array(values)).tolist() == by_counting(values)


def large(kind: str) -> NDArray[np.float64]:
    """Return populations of more than two blocks."""
    rng = np.random.default_rng(7)
    count = 2 * BLOCK + 12_345
    distinct = rng.normal(size=count)
    return {
        "distinct": distinct,
        "narrow": 3.0 + 1e-12 * distinct,
        "narrow with outliers": np.where(rng.random(count) < 1e-4, 1e200 * distinct, 3.0 + 1e-14 * distinct),
        "tenths": distinct.round(1),
        "half zero": np.where(rng.random(count) < 0.5, 0.0, np.abs(distinct)),
        "all equal": np.full(count, 2.5),
        "sorted": np.arange(count, dtype=np.float64),
        "reversed": -np.arange(count, dtype=np.float64),
        "strided": np.repeat(distinct, 2)[::2],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["distinct", "narrow", "narrow with outliers", "tenths", "half zero", "all equal", "sorted", "reversed", "strided"],
)
def test_ranks_of_large_arrays_do_not_break_at_block_edges(kind: str) -> None:
    """Runs of ties and of equal leading bits cross the edges of blocks."""
    values = large(kind)
    before = values.copy()
    np.testing.assert_array_equal(double_midranks(values), by_unique(values))
    np.testing.assert_array_equal(values, before)


def test_blocks_cover_all_once() -> None:
    """Nothing is left out or repeated, the short last block included."""
    length = 2 * BLOCK + 1
    parts = [range(length)[block] for block in blocks(length)]
    assert [len(part) for part in parts] == [BLOCK, BLOCK, 1]
    assert [part[0] for part in parts] == [0, BLOCK, 2 * BLOCK]
    assert not list(blocks(0))
