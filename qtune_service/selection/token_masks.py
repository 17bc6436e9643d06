"""Stage 2: within Q2 samples, remove the tokens whose own and neighbouring perplexities are high.

    ppl_i = exp(min(nll_i, 50));  score_i = (1 - lambda) ppl_i + lambda (ppl_{i-1} + ppl_{i+1}) / 2

Neighbours are the adjacent scored tokens of the same contiguous span of the loss mask; where one is missing, ppl_i
stands in. Of a sample's n scored tokens the max(1, ceil(ratio * n)) with the lowest scores keep their loss, equal
scores in order of position. Protected tokens come first, whatever their score, and all of them keep their loss: the
ends of turns, because smoothing gives the end token its neighbour's perplexity, and a model that is not trained to
stop does not stop. Tokens leave the loss, never the context: `input_ids` is read for stop tokens alone.

A whole shard is pruned in one pass over flat arrays: one lexicographic sort by (sample, score) instead of a loop over
samples. It takes some 24 bytes a scored Q2 token. Spans need no bookkeeping: position 0 of every row is never trained
on, so neighbours are the trained positions that differ by 1.

Source: Wang et al., arXiv:2509.23873. Its project page writes the neighbours' sum without the half; the mean is
right for lambda in [0, 1]. The paper's baselines are strategies too: tokens by their own perplexity (lambda 0), at
random, in the reversed order (its worst ablation), or none removed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.samples import check_offsets, count_of_share
from qtune_service.selection.hashing import uniform

TOKEN_STRATEGIES = ("neighbor", "ppl", "random", "reversed", "none")
MAX_NLL_NATS = 50.0  # exp of more would drown its neighbours in rounding, and overflow at 709

Mask = NDArray[np.int8]


def prune_token_masks(
    loss_mask_flat: Mask,
    row_offsets: NDArray[np.integer[Any]],
    nll_flat: NDArray[np.floating[Any]],
    prunable: NDArray[np.bool_],
    *,
    token_keep_ratio: float,
    neighbor_lambda: float,
    min_tokens_to_prune: int = 1,
    token_strategy: str = "neighbor",
    seed: int = 0,
    row_index: NDArray[np.int64] | None = None,
    protected: NDArray[np.bool_] | None = None,
) -> Mask:
    """Return the final masks (L,) of S samples: the loss mask without the tokens that stage 2 removes.

    Row s of `loss_mask_flat` (L,) is [row_offsets[s], row_offsets[s + 1]); `nll_flat` (M,) holds the scored tokens
    of all rows in order, so M is the number of trained positions beyond each row's first. Rows with `prunable` (S,)
    false, or with fewer than `min_tokens_to_prune` scored tokens, keep every one. The strategy `random` draws by
    `seed`, `row_index` (S,) (population indices of the rows; by default their indices here) and position.
    `protected` (L,): tokens that no strategy removes, see `protected_tokens`. Raise SpecError for arguments out of
    range and DataError for arrays whose lengths or scores do not fit.
    """
    _check_arguments(token_keep_ratio, neighbor_lambda, min_tokens_to_prune, token_strategy)
    bounds = check_offsets(row_offsets, len(loss_mask_flat), "loss_mask_flat")
    mask = trainable(loss_mask_flat, bounds)
    before = np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))[bounds]  # scored tokens ahead of each row
    sizes = np.diff(before)
    _check_lengths(before[-1], len(nll_flat), len(sizes), len(prunable))
    pruned_rows = np.asarray(prunable, dtype=np.bool_) & (sizes >= max(1, min_tokens_to_prune))
    if token_strategy == "none" or not pruned_rows.any():
        return mask
    chosen = np.repeat(pruned_rows, sizes)  # (M,)
    positions = np.flatnonzero(mask)[chosen]
    if token_strategy == "random":
        rows = np.arange(len(sizes)) if row_index is None else row_index
        within = positions - np.repeat(bounds[:-1], sizes)[chosen]
        scores = uniform(seed, np.repeat(rows, sizes)[chosen], within)
    else:
        nll = np.asarray(nll_flat)[chosen].astype(np.float64)
        if not np.isfinite(nll).all():
            raise DataError("a sample to prune holds a non-finite token score", "Reject such samples first.")
        scores = neighbor_scores(nll, positions, 0.0 if token_strategy == "ppl" else neighbor_lambda)
        if token_strategy == "reversed":
            scores = -scores
    first = None if protected is None else protected[positions]
    mask[positions[~lowest_of_each(scores, sizes[pruned_rows], token_keep_ratio, first)]] = 0
    return mask


def trainable(loss_mask_flat: Mask, row_offsets: NDArray[np.integer[Any]]) -> Mask:
    """Return the loss masks (L,) as 0 and 1. Position 0 of each row, which has no prediction, is 0."""
    mask: Mask = np.not_equal(loss_mask_flat, 0).astype(np.int8)
    starts, ends = row_offsets[:-1], row_offsets[1:]
    mask[starts[starts < ends]] = 0
    return mask


def protected_tokens(
    input_ids_flat: NDArray[np.integer[Any]], mask: Mask, stop_ids: Collection[int]
) -> NDArray[np.bool_]:
    """Return which tokens (L,) end a trained span or are trained stop tokens. mask (L,): see `trainable`.

    A span never crosses a row, because position 0 of a row is not trained.
    """
    trained: NDArray[np.bool_] = mask != 0
    ends = trained.copy()
    ends[:-1] &= ~trained[1:]
    ends |= trained & np.isin(input_ids_flat, np.array(sorted(stop_ids), np.int64))
    return ends


def neighbor_scores(
    nll: NDArray[np.float64], positions: NDArray[np.integer[Any]], neighbor_lambda: float
) -> NDArray[np.float64]:
    """Return each scored token's perplexity mixed with its neighbours' mean (n,). Neighbours are 1 apart."""
    ppl = np.exp(np.minimum(nll, MAX_NLL_NATS))
    adjacent = np.diff(positions) == 1
    left, right = ppl.copy(), ppl.copy()
    left[1:][adjacent] = ppl[:-1][adjacent]
    right[:-1][adjacent] = ppl[1:][adjacent]
    mixed: NDArray[np.float64] = (1 - neighbor_lambda) * ppl + neighbor_lambda * (left + right) / 2
    return mixed


def lowest_of_each(
    scores: NDArray[np.float64],
    sizes: NDArray[np.int64],
    keep_ratio: float,
    first: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return which scores (n,) are the lowest share of their run of `sizes` (R,). Ties go to the earlier ones.

    first (n,): these come before all others of their run, and each is among the lowest.
    """
    runs = np.repeat(np.arange(len(sizes)), sizes)
    keys = (scores, runs) if first is None else (scores, ~first, runs)
    order = np.lexsort(keys)  # stable, and runs stay where they are
    place = np.arange(len(scores)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    distinct, which = np.unique(sizes, return_inverse=True)
    budgets = np.array([count_of_share(keep_ratio, int(size)) for size in distinct], dtype=np.int64)[which]
    if first is not None:
        budgets = np.maximum(budgets, np.bincount(runs, weights=first, minlength=len(sizes)).astype(np.int64))
    keep = np.empty(len(scores), dtype=np.bool_)
    keep[order] = place < np.repeat(budgets, sizes)
    return keep


def tokens_left(
    num_tokens: NDArray[np.integer[Any]],
    num_protected: NDArray[np.integer[Any]] | None = None,
    *,
    token_keep_ratio: float,
    min_tokens_to_prune: int,
    token_strategy: str,
) -> NDArray[np.int64]:
    """Return how many of its trained tokens (S,) each sample keeps if stage 2 prunes it, (S,).

    num_protected (S,): trained tokens that stay, if there are any.
    """
    if token_strategy == "none":
        return num_tokens.astype(np.int64)
    distinct, which = np.unique(num_tokens, return_inverse=True)
    left = [count_of_share(token_keep_ratio, n) if n >= max(1, min_tokens_to_prune) else n for n in distinct.tolist()]
    by_ratio = np.array(left, np.int64)[which]
    return by_ratio if num_protected is None else np.maximum(by_ratio, num_protected)


def _check_arguments(
    token_keep_ratio: float, neighbor_lambda: float, min_tokens_to_prune: int, token_strategy: str
) -> None:
    if token_strategy not in TOKEN_STRATEGIES:
        raise SpecError(f"token_strategy is {token_strategy!r}", f"Choose one of {', '.join(TOKEN_STRATEGIES)}.")
    if not 0 < token_keep_ratio <= 1:
        raise SpecError(f"token_keep_ratio is {token_keep_ratio}", "Choose a number above 0 and at most 1.")
    if not 0 <= neighbor_lambda <= 1:
        raise SpecError(f"neighbor_lambda is {neighbor_lambda}", "Choose a number from 0 to 1.")
    if min_tokens_to_prune < 1:
        raise SpecError(f"min_tokens_to_prune is {min_tokens_to_prune}", "Choose at least 1.")


def _check_lengths(scored: int, num_nll: int, rows: int, num_flags: int) -> None:
    if num_nll != scored:
        raise DataError(
            f"{num_nll} token scores for {scored} scored positions",
            "Pass one NLL for each position that the loss mask trains on, except each row's first.",
        )
    if num_flags != rows:
        raise DataError(f"prunable has {num_flags} entries for {rows} rows", "Pass one flag a sample.")
