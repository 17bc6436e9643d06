"""The kernel's logic against float64. Run by test_kernel.py in a process where Triton interprets kernels."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.scoring.kernel import INTERPRETED, KernelHead, Tile, tiles_for
from qtune_service.scoring.logits import Matrix, exact_scores, fastest
from qtune_service.scoring.statistics import merge, nll_and_entropy

SMALL = Tile(16, 16, 16, 4, 2)
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(
    rows: int, width: int, vocab: int, dtype: torch.dtype, *, has_bias: bool, seed: int = 0, scale: float = 2.0
) -> tuple[torch.Tensor, Matrix, torch.Tensor]:
    """Random hidden rows, head and labels; logits have about the given standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    weight = (torch.randn(vocab, width, generator=generator) * scale / width**0.5).to(dtype)
    bias = torch.randn(vocab, generator=generator).to(dtype) if has_bias else None
    return hidden, Matrix(weight, bias), torch.randint(vocab, (rows,), generator=generator)


def scores(hidden: torch.Tensor, matrix: Matrix, labels: torch.Tensor, tile: Tile = SMALL) -> torch.Tensor:
    """Scores (n, 2) by the kernel."""
    return nll_and_entropy(KernelHead(matrix.weight, matrix.bias, tile)(hidden, labels))


def test_the_kernel_is_interpreted() -> None:
    """What runs here is the kernel's own code, in Triton's interpreter."""
    assert INTERPRETED


@pytest.mark.parametrize("dtype", TYPES)
def test_tiles_have_names_of_their_own(dtype: torch.dtype) -> None:
    """The trial tells tiles by name, so none may hide another."""
    tiles = tiles_for(dtype)
    assert len({str(tile) for tile in tiles}) == len(tiles)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 40),
    width=st.integers(1, 50),
    vocab=st.integers(1, 120),
    dtype=st.sampled_from(TYPES),
    has_bias=st.booleans(),
    scale=st.sampled_from([0.0, 2.0, 30.0]),
    tile=st.sampled_from([SMALL, Tile(16, 32, 16, 4, 2), Tile(32, 16, 32, 4, 2)]),
)
def test_any_shape_agrees_with_float64(
    seed: int, rows: int, width: int, vocab: int, dtype: torch.dtype, has_bias: bool, scale: float, tile: Tile
) -> None:
    """Sizes that are no multiple of a block, no rows, one token, any type, with bias and without: within 1e-4 nats."""
    hidden, matrix, labels = made(rows, width, vocab, dtype, has_bias=has_bias, seed=seed, scale=scale)
    found = scores(hidden, matrix, labels, tile)
    assert found.shape == (rows, 2)
    torch.testing.assert_close(found.double(), exact_scores(matrix, hidden, labels), atol=1e-4, rtol=1e-6)


def test_many_runs_and_large_blocks_agree_with_float64() -> None:
    """Few rows over a larger vocabulary, cut into runs, come out within 2e-5 nats."""
    hidden, matrix, labels = made(3, 64, 5000, torch.bfloat16, has_bias=False)
    found = scores(hidden, matrix, labels, Tile(16, 128, 64, 4, 2))
    assert (found - exact_scores(matrix, hidden, labels)).abs().max() < 2e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_is_nan_and_stays_alone(bad: float) -> None:
    """NaN and infinite hidden states give NaN in their own row only."""
    hidden, matrix, labels = made(20, 16, 40, torch.float32, has_bias=False)
    good = scores(hidden, matrix, labels)
    hidden[7, 3] = bad
    found = scores(hidden, matrix, labels)
    assert torch.isnan(found[7]).all()
    rest = torch.arange(20) != 7
    assert torch.equal(found[rest], good[rest])


@pytest.mark.parametrize("at", [0, 17, 39])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_column_makes_nan(at: int, bad: float) -> None:
    """One NaN or +inf logit, in the first block of the vocabulary or the last, is never lost to a maximum."""
    hidden, matrix, labels = made(4, 16, 40, torch.float32, has_bias=True)
    assert matrix.bias is not None
    matrix.bias[at] = bad
    assert torch.isnan(scores(hidden, matrix, labels)).all()


def test_masked_columns_have_no_part_in_the_entropy() -> None:
    """A logit of -inf is probability 0, also where it fills the first blocks; as a label it costs infinity."""
    hidden = torch.zeros(2, 16)
    bias = torch.full((50,), -math.inf)
    bias[[40, 45]] = 0.0
    found = scores(hidden, Matrix(torch.zeros(50, 16), bias), torch.tensor([40, 3]))
    torch.testing.assert_close(found, torch.tensor([[math.log(2), math.log(2)], [math.inf, math.log(2)]]))


def test_a_head_that_is_all_masked_is_nan() -> None:
    """Where all tokens are impossible there is no distribution to score."""
    matrix = Matrix(torch.zeros(20, 16), torch.full((20,), -math.inf))
    assert torch.isnan(scores(torch.zeros(1, 16), matrix, torch.tensor([0]))).all()


def test_parts_of_a_vocabulary_merge() -> None:
    """The kernel on two shards of the weight gives what it gives on the whole: a label elsewhere does no harm."""
    hidden, matrix, labels = made(9, 24, 75, torch.float32, has_bias=True)
    assert matrix.bias is not None
    parts = [
        KernelHead(matrix.weight[a:b], matrix.bias[a:b], SMALL)(hidden, labels - a) for a, b in ((0, 31), (31, 75))
    ]
    whole = scores(hidden, matrix, labels)
    torch.testing.assert_close(nll_and_entropy(merge(torch.stack(parts))), whole, atol=1e-5, rtol=1e-6)


def test_rows_need_not_be_contiguous() -> None:
    """Strides of hidden states and weight are respected."""
    hidden, matrix, labels = made(10, 64, 40, torch.float32, has_bias=False)
    found = scores(hidden[:, ::2], Matrix(matrix.weight[:, :32], None), labels)
    want = exact_scores(Matrix(matrix.weight[:, :32], None), hidden[:, ::2], labels)
    assert (found - want).abs().max() < 1e-5


def test_the_trial_takes_the_kernel_where_it_is_right_and_faster() -> None:
    """With a slow alternative, the check against float64 lets the real kernel pass."""
    _, matrix, _ = made(1, 32, 200, torch.bfloat16, has_bias=False)
    kernel = KernelHead(matrix.weight, None, Tile(16, 256, 32, 4, 2))

    def slow(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        return torch.zeros(len(hidden), 4)

    choice = fastest(slow, {"kernel": kernel}, matrix, rows=16)
    assert choice.head is kernel
    assert choice.description == "kernel"
