"""samples.py: means of ragged rows, perplexity, shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.samples import check_offsets, count_of_share, perplexity, sample_means

ROWS = st.lists(st.lists(st.floats(0, 100, width=32), max_size=40), max_size=12)


def flat(rows: list[list[float]]) -> tuple[np.ndarray[tuple[int], np.dtype[np.float32]], list[int]]:
    """Values and offsets of a ragged array."""
    offsets = [0, *np.cumsum([len(row) for row in rows], dtype=int).tolist()]
    return np.array([value for row in rows for value in row], dtype=np.float32), offsets


@given(ROWS)
def test_means_are_those_of_each_row_and_nan_for_empty_ones(rows: list[list[float]]) -> None:
    """Each mean equals an exactly rounded sum over its row, wherever empty rows lie."""
    values, offsets = flat(rows)
    means = sample_means(values, np.array(offsets))
    assert means.dtype == np.float64
    assert means.shape == (len(rows),)
    for row, mean in zip(rows, means, strict=True):
        if row:
            assert mean == pytest.approx(math.fsum(row) / len(row), rel=1e-13)
        else:
            assert math.isnan(mean)


@given(ROWS)
def test_a_mean_does_not_depend_on_the_rows_beside_it(rows: list[list[float]]) -> None:
    """Bit for bit the same alone and among others, so resuming with other shards changes no rank."""
    values, offsets = flat(rows)
    alone = [float(sample_means(*map(np.array, flat([row])))[0]) for row in rows]
    np.testing.assert_array_equal(sample_means(values, np.array(offsets)), np.array(alone, dtype=np.float64))


def test_long_rows_are_summed_in_float64() -> None:
    """A float32 accumulator would lose the small terms beside the large one."""
    values = np.concatenate(([np.float32(2**25)], np.ones(100_000, dtype=np.float32)))
    assert sample_means(values, np.array([0, len(values)]))[0] == (2**25 + 100_000) / 100_001


@pytest.mark.parametrize("offsets", [[], [0], [1, 3], [0, 2], [0, 2, 1, 3], [[0, 3]]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    """Offsets must rise from 0 to the number of values."""
    with pytest.raises(DataError, match="rise from 0 to its length, 3"):
        sample_means(np.zeros(3), np.array(offsets, dtype=np.int32))


def test_offsets_come_back_as_int64() -> None:
    """Arrow's int32 offsets serve as they are."""
    assert check_offsets(np.array([0, 0, 3], dtype=np.int32), 3, "x").dtype == np.int64


@pytest.mark.filterwarnings("error")
def test_perplexity_is_the_exponential_and_overflows_quietly() -> None:
    """Shown values may be inf; nothing warns."""
    assert perplexity([0.0, math.log(8), 1000.0]).tolist() == [1.0, pytest.approx(8), math.inf]
    assert float(perplexity(-math.inf)) == 0.0


@given(st.integers(1, 1000), st.integers(1, 100_000))
@example(70, 100)
def test_a_share_is_the_ceiling_in_decimal(per_mille: int, count: int) -> None:
    """Binary rounding of the ratio never adds one: 0.07 of 100 is 7, though the product is above it."""
    assert count_of_share(per_mille / 1000, count) == -(-per_mille * count // 1000)


@pytest.mark.parametrize(
    ("ratio", "count", "share"), [(0.07, 100, 7), (1e-12, 5, 1), (1.0, 7, 7), (0.5, 1, 1), (0.7, 10, 7)]
)
def test_a_share_is_at_least_one(ratio: float, count: int, share: int) -> None:
    """Even the smallest ratio keeps one."""
    assert count_of_share(ratio, count) == share
