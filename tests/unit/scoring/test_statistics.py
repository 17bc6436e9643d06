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
    CompiledPartials,
    Statistics,
    eager_partials,
    merge,
    nll_and_entropy,
    row_partials,
    statistics_for,
)

BOTH = (row_partials, eager_partials)


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
    for statistics in BOTH:
        scores = nll_and_entropy(statistics(logits, labels))
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
    assert (nll_and_entropy(eager_partials(logits, labels)) - exact(logits, labels)).abs().max() < 2e-5


def test_bfloat16_logits_lose_nothing_more() -> None:
    """Half-precision logits are read as they are, and reduced in float32."""
    logits = torch.randn(5, 1000).bfloat16()
    labels = torch.arange(5)
    assert (nll_and_entropy(eager_partials(logits, labels)) - exact(logits.float(), labels)).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), widths=st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_partials_of_shards_make_those_of_the_whole(seed: int, rows: int, widths: list[int]) -> None:
    """However a vocabulary is cut, empty and fully masked parts included, the scores are the exact ones."""
    generator = torch.Generator().manual_seed(seed)
    vocab = sum(widths) + 1
    logits = torch.randn(rows, vocab, generator=generator) * 8 + 300
    labels = torch.randint(vocab, (rows,), generator=generator)
    masked = torch.rand(rows, vocab, generator=generator) < 0.5
    logits[masked.scatter(1, labels[:, None], False)] = -math.inf
    parts, first = [], 0
    for width in [*widths, 1]:
        parts.append(shard_partials(logits[:, first : first + width], labels - first))
        first += width
    torch.testing.assert_close(
        nll_and_entropy(merge(torch.stack(parts))).double(), exact(logits, labels), atol=2e-4, rtol=1e-6
    )


def shard_partials(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return partials (n, 4) of a part of a vocabulary that may be empty and need not hold the labels."""
    width = logits.shape[1]
    if width == 0:
        return torch.tensor([-math.inf, 0.0, 0.0, -math.inf]).repeat(len(logits), 1)
    partials = row_partials(logits, labels.clamp(0, width - 1))
    partials[(labels < 0) | (labels >= width), 3] = -math.inf
    return partials


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 5])
def test_a_broken_shard_makes_nan_of_its_row_only(bad: float, at: int) -> None:
    """NaN and +inf in one part of the vocabulary are not lost when the parts are merged."""
    logits = torch.zeros(3, 8)
    logits[1, at] = bad
    labels = torch.tensor([0, 7, 3])
    parts = [shard_partials(logits[:, :4], labels), shard_partials(logits[:, 4:], labels - 4)]
    scores = nll_and_entropy(merge(torch.stack(parts)))
    assert torch.isnan(scores[1]).all()
    torch.testing.assert_close(scores[[0, 2]], torch.full((2, 2), math.log(8)))


@pytest.mark.parametrize("statistics", BOTH)
def test_masked_tokens_have_no_part_in_the_entropy(statistics: Statistics) -> None:
    """A logit of -inf is probability 0; as a label it costs infinity."""
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]])
    scores = nll_and_entropy(statistics(logits, torch.tensor([0, 2])))
    np.testing.assert_allclose(scores[:, 1], math.log(2), rtol=1e-6)
    np.testing.assert_allclose(scores[:, 0], [math.log(2), math.inf], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_make_nan_of_their_own_row_only(bad: float) -> None:
    """A score is never made up for a row whose softmax does not exist."""
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    scores = nll_and_entropy(eager_partials(logits, torch.tensor([0, 1, 2])))
    assert torch.isnan(scores[1]).all()
    assert torch.isfinite(scores[[0, 2]]).all()


@pytest.mark.parametrize("statistics", BOTH)
def test_a_row_without_any_finite_logit_is_nan(statistics: Statistics) -> None:
    """Where all tokens are impossible there is no distribution to score."""
    scores = nll_and_entropy(statistics(torch.full((1, 5), -math.inf), torch.tensor([2])))
    assert torch.isnan(scores).all()


def test_a_failing_compiler_is_reported_once_and_replaced() -> None:
    """Without a working compiler the first call warns, and every call gives the eager result."""

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no C++ compiler\nlong trace")

    statistics = CompiledPartials()
    statistics._fused = broken
    logits, labels = torch.randn(3, 50), torch.arange(3)
    with pytest.warns(UserWarning, match="run eagerly: no C\\+\\+ compiler$"):
        scores = statistics(logits, labels)
    assert torch.equal(scores, eager_partials(logits, labels))
    assert torch.equal(statistics(logits, labels), scores)  # pytest would fail on a second warning


def test_auto_is_eager_on_a_cpu() -> None:
    """Compilation must be asked for on a CPU, and a wrong mode is an error."""
    assert statistics_for(torch.device("cpu")) is eager_partials
    assert isinstance(statistics_for(torch.device("cpu"), "compiled"), CompiledPartials)
    with pytest.raises(ValueError, match="fast"):
        statistics_for(torch.device("cpu"), "fast")
