"""Prefix caching that stays exact.

An engine that finds the first h tokens of a sequence in its cache computes no hidden states for them, so the tokens
up to h have no logits of their own. Where such a token is scored, three things can be done: forgo the cache for that
sequence, compute the sequence again, or take the scores from the sequence that put the tokens there. The last is
exact, since NLL and entropy of token t depend on tokens 0..t only, and it costs nothing.

Sequences run in lexicographic order. Of all sequences before it, its predecessor then shares the longest prefix with
a sequence, and only sequences before it can be in the cache. So it is known beforehand how far a hit can reach:
whole cache blocks of the prefix shared with the predecessor, and not the last token. A sequence may read the cache
if the predecessor scores all that such a hit would leave out; else it is told to skip it, and costs what it would
without a cache. The known loss: where the shared prefix ends exactly at a block's end and the next token is scored,
the row that predicts that token is in the cache too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.scoring.scorer import Prompt, Scores


def shared_prefixes(prompts: Sequence[Prompt]) -> list[int]:
    """Length in tokens of the prefix that each prompt shares with the one before it; 0 for the first."""
    return [0, *(_shared(a.input_ids, b.input_ids) for a, b in pairwise(prompts))][: len(prompts)]


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def may_read_cache(prompts: Sequence[Prompt], shared: Sequence[int], block_size: int) -> list[bool]:
    """Tell for each prompt whether the longest possible hit leaves out only tokens that its predecessor scores."""
    allowed = []
    for i, prompt in enumerate(prompts):
        hit = min(shared[i], len(prompt.input_ids) - 1) // block_size * block_size
        left_out = prompt.positions[prompt.positions <= hit]  # row t - 1 < hit has no hidden state
        known = prompts[i - 1].positions if i else prompt.positions[:0]
        allowed.append(bool(np.isin(left_out, known[known < shared[i]]).all()))
    return allowed


def fill_from_predecessors(
    prompts: Sequence[Prompt], shared: Sequence[int], scores: Sequence[Scores], missing: Sequence[NDArray[np.bool_]]
) -> list[int]:
    """Fill missing rows of `scores` in place, each from the prompt before; returns the prompts that still lack some.

    scores[i]: (n_i, 2), missing[i]: (n_i,).
    """
    unresolved: list[int] = []
    for i, prompt in enumerate(prompts):
        rows = np.flatnonzero(missing[i])
        if len(rows) == 0:
            continue
        positions = prompt.positions[rows]
        before = prompts[i - 1]
        source = np.searchsorted(before.positions, positions)
        usable = i > 0 and i - 1 not in unresolved[-1:] and bool((positions < shared[i]).all())
        if usable and source.max() < len(before.positions) and np.array_equal(before.positions[source], positions):
            scores[i][rows] = scores[i - 1][source]
        else:
            unresolved.append(i)
    return unresolved
