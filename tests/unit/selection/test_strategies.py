"""selection/strategies.py: the baselines from the same scores."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service import config
from qtune_service.errors import SpecError
from qtune_service.selection import strategies, token_masks
from qtune_service.selection.strategies import Priority, Weighing, WeightedSides, loss_sum, mean_of
from qtune_service.selection.thresholds import select

RNG = np.random.default_rng(5)
NLL, ENTROPY = np.exp(RNG.normal(size=(2, 500)))
TOKENS = RNG.integers(1, 20, 500)


def kept(priority: Priority, ratio: float) -> NDArray[np.bool_]:
    """Return the samples that a strategy keeps of the population above."""
    keys = priority.keys(NLL, ENTROPY, TOKENS, 0)
    return select(NLL, ENTROPY, sample_keep_ratio=ratio, priority=keys).is_kept


def infobatch(seed: int = 0) -> Priority:
    """Return InfoBatch's priority with the population's mean loss."""
    return Priority("infobatch", seed=seed, mean_loss=mean_of(loss_sum(NLL), len(NLL)))


def test_the_spec_has_exactly_these_names() -> None:
    """One list a layer, and they agree."""
    assert get_args(config.SampleStrategy) == ("q_tuning", *strategies.NAMES)
    assert get_args(config.TokenStrategy) == token_masks.TOKEN_STRATEGIES


@pytest.mark.parametrize("strategy", strategies.NAMES)
@pytest.mark.parametrize("ratio", [0.125, 0.25, 0.5, 1.0])
def test_targets_are_met_exactly(strategy: str, ratio: float) -> None:
    """No top-up, no rounding down; lengths tie by the dozen and are told apart by the draw."""
    priority = infobatch() if strategy == "infobatch" else Priority(strategy)
    assert int(kept(priority, ratio).sum()) == int(np.ceil(500 * ratio))


@pytest.mark.parametrize(("strategy", "column"), [("longest", TOKENS), ("perplexity", NLL), ("entropy", ENTROPY)])
def test_an_order_keeps_its_end(strategy: str, column: NDArray[np.float64]) -> None:
    """The least of what is kept is at least the most of what is not; and the other way round."""
    highest = kept(Priority(strategy), 0.3)
    assert column[highest].min() >= column[~highest].max()
    lowest = kept(Priority(strategy, order="lowest"), 0.3)
    assert column[lowest].max() <= column[~lowest].min()


def test_a_draw_is_uniform_and_its_seed_decides() -> None:
    """The same seed the same samples; another one others, with no liking for any score."""
    first, again, other = (kept(Priority("random", seed=s), 0.5) for s in (1, 1, 2))
    assert (first == again).all()
    assert 0.4 < (first == other).mean() < 0.6
    assert abs(np.log(NLL[first]).mean() - np.log(NLL).mean()) < 0.15
    drawn = Priority("random").keys(NLL, ENTROPY, TOKENS, 0)
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1


@given(st.lists(st.integers(0, 500), max_size=4))
def test_parts_know_their_own_keys(cuts: list[int]) -> None:
    """Keys depend on the sample's place in the population, so groups give what the whole gives."""
    bounds = sorted({0, *cuts, 500})
    for priority in (*map(Priority, strategies.NAMES[:-1]), infobatch()):
        parts = [priority.keys(NLL[a:b], ENTROPY[a:b], TOKENS[a:b], a) for a, b in pairwise(bounds)]
        np.testing.assert_array_equal(np.concatenate(parts), priority.keys(NLL, ENTROPY, TOKENS, 0))
    assert sum(loss_sum(NLL[a:b]) for a, b in pairwise(bounds)) == loss_sum(NLL)


def test_the_mean_loss_is_the_mean() -> None:
    """Fixed point costs 2^-32 nats a sample."""
    assert mean_of(loss_sum(NLL), len(NLL)) == pytest.approx(NLL.mean(), abs=2**-32)


def test_infobatch_keeps_the_hard_and_weighs_the_easy() -> None:
    """All samples at or above the mean stay with weight 1; the weighted number of the easy ones is the full one."""
    priority = infobatch()
    chosen, below = kept(priority, 0.6), priority.below_mean(NLL)
    assert chosen[~below].all()
    sides = priority.sides(NLL, chosen)
    assert sides is not None
    assert sides.is_unbiased
    weights = Weighing(priority.mean_loss, sides).of(NLL[chosen])
    assert set(weights[~below[chosen]]) == {1.0}
    assert weights.sum() == pytest.approx(500)


def test_infobatch_below_its_range_says_so() -> None:
    """A target under the share at or above the mean leaves nothing of the easy side, which no weight makes up for."""
    priority = infobatch()
    sides = priority.sides(NLL, kept(priority, 0.05))
    assert sides is not None
    assert (sides.kept_below, sides.is_unbiased) == (0, False)
    assert sides.weights[1] == pytest.approx(sides.above / 25)


def test_sides_add_up() -> None:
    """Groups give what the whole gives."""
    priority, chosen = infobatch(), kept(infobatch(), 0.6)
    parts = [priority.sides(NLL[a:b], chosen[a:b]) for a, b in pairwise([0, 100, 333, 500])]
    assert WeightedSides.merged(part for part in parts if part) == priority.sides(NLL, chosen)


def test_other_strategies_have_no_weights() -> None:
    """Their samples count once."""
    assert Priority("random").sides(NLL, kept(Priority("random"), 0.5)) is None


def test_unknown_strategies_are_refused() -> None:
    """With the names that there are."""
    with pytest.raises(SpecError, match="strategy is 'best'"):
        Priority("best")
