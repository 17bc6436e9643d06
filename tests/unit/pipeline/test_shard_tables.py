"""The tables of an output."""

from __future__ import annotations

import numpy as np

from qtune_service.pipeline.shard_tables import partial_bytes, partial_scores
from qtune_service.samples import TokenScores


def test_partial_scores_come_back_as_they_were() -> None:
    """Scores of a stopped shard survive their file bit for bit, by sample."""
    scores = {
        4: TokenScores(np.array([0.5, 1.25], np.float32), np.array([0.1, 0.2], np.float32)),
        1: TokenScores(np.empty(0, np.float32), np.empty(0, np.float32)),
        9: TokenScores(np.array([3.0], np.float32), np.array([2.0], np.float32)),
    }
    back = partial_scores(partial_bytes(scores, "vllm 1").to_pybytes(), "vllm 1")
    assert list(back) == [4, 1, 9]
    for i, expected in scores.items():
        np.testing.assert_array_equal(back[i].nll, expected.nll)
        np.testing.assert_array_equal(back[i].entropy, expected.entropy)
    assert partial_scores(partial_bytes({}, "vllm 1").to_pybytes(), "vllm 1") == {}


def test_partial_scores_of_another_engine_are_not_used() -> None:
    """A shard is scored by one engine: what another one left is scored again."""
    scores = {0: TokenScores(np.ones(1, np.float32), np.ones(1, np.float32))}
    assert partial_scores(partial_bytes(scores, "vllm 1").to_pybytes(), "reference 1") == {}
