"""NLL and entropy of logits rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.scoring.statistics import (
    CPU_BLOCK_ELEMENTS,
    CompiledStatistics,
    eager_statistics,
    row_statistics,
    statistics_for,
)


def exact(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """NLL and entropy (n, 2) through a float64 softmax."""
    p = logits.double().softmax(-1)
    surprise = -p.log()
    return torch.stack((surprise.gather(-1, labels[:, None])[:, 0], torch.special.entr(p).sum(-1)), -1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 9),
    vocab=st.integers(1, 300),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    shift=st.sampled_from([-500.0, 0.0, 500.0]),
)
def test_statistics_agree_with_a_float64_softmax(seed: int, rows: int, vocab: int, scale: float, shift: float) -> None:
    """Both forms are within 1e-4 nats for logits of any size and spread."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * scale + shift
    labels = torch.randint(vocab, (rows,), generator=generator)
    for statistics in (row_statistics, eager_statistics):
        scores = statistics(logits, labels)
        assert scores.shape == (rows, 2)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.double(), exact(logits, labels), atol=1e-4, rtol=1e-6)


def test_statistics_of_a_large_vocabulary_in_blocks() -> None:
    """Rows that do not fit one block come out in order, to 2e-5 nats at 152k tokens."""
    generator = torch.Generator().manual_seed(0)
    vocab = 151_936
    rows = 2 * (CPU_BLOCK_ELEMENTS // vocab) + 1
    logits = torch.randn(rows, vocab, generator=generator) * 2
    labels = torch.randint(vocab, (rows,), generator=generator)
    assert (eager_statistics(logits, labels) - exact(logits, labels)).abs().max() < 2e-5


def test_bfloat16_logits_lose_nothing_more() -> None:
    """Half-precision logits are read as they are, and reduced in float32."""
    logits = torch.randn(5, 1000).bfloat16()
    labels = torch.arange(5)
    assert (eager_statistics(logits, labels) - exact(logits.float(), labels)).abs().max() < 1e-5


@pytest.mark.parametrize("statistics", [row_statistics, eager_statistics])
def test_masked_tokens_have_no_part_in_the_entropy(statistics: object) -> None:
    """A logit of -inf is probability 0; as a label it costs infinity."""
    assert callable(statistics)
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]])
    scores = statistics(logits, torch.tensor([0, 2]))
    np.testing.assert_allclose(scores[:, 1], math.log(2), rtol=1e-6)
    np.testing.assert_allclose(scores[:, 0], [math.log(2), math.inf], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_make_nan_of_their_own_row_only(bad: float) -> None:
    """A score is never made up for a row whose softmax does not exist."""
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    scores = eager_statistics(logits, torch.tensor([0, 1, 2]))
    assert torch.isnan(scores[1]).all()
    assert torch.isfinite(scores[[0, 2]]).all()


def test_a_failing_compiler_is_reported_once_and_replaced() -> None:
    """Without a working compiler the first call warns, and every call gives the eager result."""

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no C++ compiler\nlong trace")

    statistics = CompiledStatistics()
    statistics._fused = broken
    logits, labels = torch.randn(3, 50), torch.arange(3)
    with pytest.warns(UserWarning, match="run eagerly: no C\\+\\+ compiler$"):
        scores = statistics(logits, labels)
    assert torch.equal(scores, eager_statistics(logits, labels))
    assert torch.equal(statistics(logits, labels), scores)  # pytest would fail on a second warning


def test_auto_is_eager_on_a_cpu() -> None:
    """Compilation must be asked for on a CPU, and a wrong mode is an error."""
    assert statistics_for(torch.device("cpu")) is eager_statistics
    assert isinstance(statistics_for(torch.device("cpu"), "compiled"), CompiledStatistics)
    with pytest.raises(ValueError, match="fast"):
        statistics_for(torch.device("cpu"), "fast")
