"""selection/token_masks.py: the tokens that `keep_end_of_turn` protects, for every strategy."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.selection.token_masks import (
    TOKEN_STRATEGIES,
    protected_tokens,
    prune_token_masks,
    tokens_left,
    trainable,
)

SPANS = st.lists(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), max_size=20), max_size=8)


def pruned(
    mask: NDArray[np.int8],
    offsets: NDArray[np.int64],
    nll: NDArray[np.float64],
    protected: NDArray[np.bool_],
    **more: Any,
) -> NDArray[np.int8]:
    """Return the final masks of rows that are all prunable."""
    arguments = {"token_keep_ratio": 0.5, "neighbor_lambda": 0.5, **more}
    return prune_token_masks(mask, offsets, nll, np.ones(len(offsets) - 1, np.bool_), protected=protected, **arguments)


def test_golden_protected_tokens(shared_dir: Path) -> None:
    """Every worked example with protected tokens."""
    cases = json.loads((shared_dir / "golden" / "tokens_protected.json").read_text())
    assert cases
    for case in cases:
        mask = np.array([0, *(bit for length in case["spans"] for bit in [*[1] * length, 0])], np.int8)
        guarded = np.zeros(len(mask), np.bool_)
        guarded[mask == 1] = np.array(case["protected"], np.bool_)
        final = pruned(
            mask,
            np.array([0, len(mask)]),
            np.array(case["nll"]),
            guarded,
            token_keep_ratio=case["token_keep_ratio"],
            neighbor_lambda=case["neighbor_lambda"],
            token_strategy="reversed" if case["reverse"] else "neighbor",
        )
        assert final[mask == 1].tolist() == case["keep"]


def test_ends_of_spans_and_stop_tokens_are_protected() -> None:
    """Also where two rows touch, and where a row ends in a trained token. Position 0 is never trained."""
    ids = np.array([9, 1, 9, 2, 3, 9, 4, 5, 6])
    offsets = np.array([0, 5, 9])
    mask = trainable(np.array([1, 1, 1, 0, 1, 1, 1, 1, 1], np.int8), offsets)
    assert protected_tokens(ids, mask, ()).tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1]
    assert protected_tokens(ids, mask, {4, 9}).tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1]


@given(SPANS, st.floats(0.01, 1), st.sampled_from(TOKEN_STRATEGIES), st.integers(1, 6))
def test_no_strategy_removes_them_and_the_number_is_known_before(
    rows: list[list[tuple[int, int]]], ratio: float, strategy: str, min_tokens: int
) -> None:
    """They count in the budget. A sample keeps more only where more are protected."""
    offsets = np.cumsum([0, *map(len, rows)])
    flat = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2)
    mask = trainable(flat[:, 0].astype(np.int8), offsets)
    guarded = protected_tokens(flat[:, 1], mask, {5})
    nll = np.random.default_rng(0).exponential(size=int(mask.sum()))
    final = pruned(
        mask, offsets, nll, guarded, token_keep_ratio=ratio, token_strategy=strategy, min_tokens_to_prune=min_tokens
    )
    assert (final[guarded] == 1).all()
    assert (final <= mask).all()
    sizes, protected = (
        np.array([int(flags[lo:hi].sum()) for lo, hi in pairwise(offsets)]) for flags in (mask, guarded)
    )
    left = tokens_left(
        sizes, protected, token_keep_ratio=ratio, min_tokens_to_prune=min_tokens, token_strategy=strategy
    )
    assert left.tolist() == [int(final[lo:hi].sum()) for lo, hi in pairwise(offsets)]


@pytest.mark.parametrize("strategy", ["neighbor", "ppl", "reversed"])
def test_the_end_stays_and_the_next_worst_token_leaves(strategy: str) -> None:
    """With the end protected, the budget goes to it and to the best of the others."""
    nll = np.array([1.0, 0.1, 5.0])
    final = pruned(
        np.array([0, 1, 1, 1], np.int8),
        np.array([0, 4]),
        nll,
        np.array([False, False, False, True]),
        token_keep_ratio=2 / 3,
        token_strategy=strategy,
        neighbor_lambda=0.0,
    )
    assert final.tolist() == ([0, 1, 0, 1] if strategy == "reversed" else [0, 0, 1, 1])
