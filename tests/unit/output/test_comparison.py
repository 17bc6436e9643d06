"""output/compare.py: strategies and ratios side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qtune_service.config import PruneSpec, SampleStrategy
from qtune_service.output.compare import Candidate, ScoredColumns, compare
from qtune_service.selection.plane import PlaneView, Quadrant
from qtune_service.selection.thresholds import select

RNG = np.random.default_rng(1)
NLL, ENTROPY = np.exp(RNG.normal(size=(2, 400)))
TOKENS = RNG.integers(1, 40, 400).astype(np.int32)
COLUMNS = ScoredColumns(
    NLL, ENTROPY, TOKENS, (np.arange(400) % 3).astype(np.int32), ("a", "b", "c"), np.ones(400, np.int32)
)


def candidate(strategy: SampleStrategy, **more: Any) -> Candidate:
    """Return a strategy at its defaults."""
    return Candidate(strategy, PruneSpec(strategy=strategy, **more))


def test_the_method_keeps_what_a_job_would_keep() -> None:
    """Samples, and of Q2 samples the share of tokens that stage 2 leaves."""
    (one,) = compare(COLUMNS, [candidate("q_tuning", min_tokens_to_prune=10)], [0.3])
    (choice,) = one.choices
    want = select(NLL, ENTROPY, sample_keep_ratio=0.3)
    np.testing.assert_array_equal(choice.kept, want.is_kept)
    pruned = (want.labels == Quadrant.Q2) & (TOKENS >= 10)
    left = np.where(pruned, np.ceil(np.round(0.7 * TOKENS, 9)), TOKENS)
    assert choice.tokens == left[want.is_kept].sum()
    assert choice.kept_by_group.tolist() == np.bincount(COLUMNS.group[want.is_kept], minlength=3).tolist()


def test_other_strategies_prune_tokens_of_every_kept_sample() -> None:
    """They have no Q2."""
    (one,) = compare(COLUMNS, [candidate("longest")], [0.25])
    assert one.choices[0].tokens == np.ceil(np.round(0.7 * np.sort(TOKENS)[-100:], 9)).sum()


def test_overlap_is_the_share_of_the_rows_choice() -> None:
    """One with itself is 1, opposite ends of one order at half of the data share nothing."""
    ends = [candidate("perplexity"), candidate("perplexity", strategy_order="lowest"), candidate("random")]
    (one,) = compare(COLUMNS, ends, [0.5])
    assert one.overlap.diagonal().tolist() == [1, 1, 1]
    assert one.overlap[0, 1] == one.overlap[1, 0] == 0
    assert one.overlap[2, 0] + one.overlap[2, 1] == pytest.approx(1)


def test_every_ratio_gets_its_own_choices() -> None:
    """In the order asked for."""
    got = compare(COLUMNS, [candidate("random"), candidate("infobatch")], [0.5, 0.125])
    assert [(c.sample_keep_ratio, [choice.num_kept for choice in c.choices]) for c in got] == [
        (0.5, [200, 200]),
        (0.125, [50, 50]),
    ]


def test_a_users_rule_decides_by_itself() -> None:
    """Its labels are what is kept."""

    def easy(plane: PlaneView) -> Any:
        return np.where(plane.p < 0.1, 4, 3)

    (one,) = compare(COLUMNS, [Candidate("mine:easy", PruneSpec(), easy)], [0.5])
    assert one.choices[0].num_kept == 40
    assert one.choices[0].tokens == TOKENS[np.argsort(NLL)[:40]].sum()
