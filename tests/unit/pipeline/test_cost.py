"""pipeline/cost.py: operations and bytes by hand."""

from __future__ import annotations

import pytest

from qtune_service.pipeline.cost import Lengths, ModelCost, ModelShape, devices_of, needs_of
from qtune_service.selection.distributed import MAX_IN_MEMORY_SAMPLES

SMALL = ModelShape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, vocab=10, mlp=3 * 8 * 16)


def test_operations_by_hand() -> None:
    """A model whose every matrix can be written down, on one sample of three tokens, two of them trained."""
    query = output = 8 * 8
    key = value = 8 * 4
    gate = up = down = 8 * 16
    layer = query + output + key + value + gate + up + down
    body = 2 * (2 * layer) * 3
    pairs = 2 * (2 * 8 + 2 * 8) * 9 / 2  # layers x (weights and values) x half of all pairs
    head = 2 * (8 * 10) * 2
    assert SMALL.cost.flops(3, 9, 2) == body + pairs + head


def test_weights_that_are_held() -> None:
    """Embeddings count twice unless they are tied; experts that a token does not meet lie in memory, too."""
    layers = 2 * (2 * 64 + 2 * 32 + 384)
    assert SMALL.cost.held == layers + 2 * 80
    tied = ModelShape(2, 8, 2, 1, 4, 10, mlp=384, mlp_held=4 * 384, ties_embeddings=True)
    assert tied.cost.held == 2 * (192 + 4 * 384) + 80
    assert tied.cost.body == SMALL.cost.body


def test_the_mean_of_a_sample_and_how_sure_it_is() -> None:
    """Two standard errors of the mean; of one sample nothing is known."""
    one_each = ModelCost(body=0.5)  # a token is one operation
    mean, error = Lengths([1, 3, 5, 7], [1, 1, 1, 1]).flops_per_sample(one_each)
    deviation = ((9 + 1 + 1 + 9) / 3) ** 0.5
    assert mean == 4
    assert error == pytest.approx(2 * deviation / 2)
    assert Lengths([4], [1]).flops_per_sample(one_each) == (4, 0)


def test_needs_follow_the_figures_of_the_docs() -> None:
    """The table `A billion samples` of docs/reference/performance.md: 1e9 samples of 500 tokens, half of them kept."""
    needs = needs_of(1e9, 500e9, 0.5)
    assert needs.scores_bytes == pytest.approx(2.2e12)
    assert needs.product_bytes == pytest.approx(1.4e12)
    assert needs.cpu_core_hours == pytest.approx(210, rel=0.02)
    assert needs.threshold_file_bytes == 32e9


def test_memory_of_the_driver_is_bounded() -> None:
    """It grows with the samples until thresholds are found over files, and no further."""
    bound = needs_of(MAX_IN_MEMORY_SAMPLES, 1, 0.5)
    assert needs_of(1, 1, 0.5).driver_bytes < bound.driver_bytes == needs_of(1e10, 1, 0.5).driver_bytes
    assert bound.threshold_file_bytes == 0 < needs_of(MAX_IN_MEMORY_SAMPLES + 1, 1, 0.5).threshold_file_bytes
    assert bound.driver_bytes < 1 << 30


@pytest.mark.parametrize(("weights_gib", "together"), [(1, 1), (60, 1), (61, 2), (121, 4), (241, 8)])
def test_a_model_that_is_too_large_is_shared(weights_gib: float, together: int) -> None:
    """By a power of two of devices of 80 GiB, of which three quarters hold weights."""
    assert devices_of(weights_gib * 2**30, 80 * 2**30) == together
