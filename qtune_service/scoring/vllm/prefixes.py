"""Rules that keep prefix caching exact.

If an engine finds the first h tokens of a sequence in its cache, it computes no hidden states for them, so the tokens
up to h have no logits. If such a token is scored, there are three options: skip the cache for that sequence, compute
the sequence again, or copy the scores from the sequence that filled the cache. Copying is exact, since NLL and entropy
of token t depend on tokens 0..t only, and it is free.

Sequences run in lexicographic order. So the direct predecessor shares the longest prefix of all earlier sequences, and
only earlier sequences can be in the cache. The longest possible hit is therefore known: whole cache blocks of the
prefix shared with the predecessor, without the last token. A sequence may read the cache if the predecessor scores all
tokens that such a hit leaves out. Otherwise it skips the cache. The known loss: if the shared prefix ends exactly at a
block boundary and the next token is scored, the row that predicts that token is also in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.scoring.scorer import Prompt, Scores


def shared_prefixes(prompts: Sequence[Prompt]) -> list[int]:
    """Return the length of the prefix that each prompt shares with its predecessor; 0 for the first."""
    return [0, *(_shared(a.input_ids, b.input_ids) for a, b in pairwise(prompts))][: len(prompts)]


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def may_read_cache(prompts: Sequence[Prompt], shared: Sequence[int], block_size: int) -> list[bool]:
    """Return for each prompt whether its predecessor scores all tokens that the longest possible hit leaves out."""
    allowed = []
    for i, prompt in enumerate(prompts):
        hit = min(shared[i], len(prompt.input_ids) - 1) // block_size * block_size
        left_out = prompt.positions[prompt.positions <= hit]  # row t - 1 < hit has no hidden state
        if not len(left_out):
            allowed.append(True)
            continue
        known = prompts[i - 1].positions if i else prompt.positions[:0]
        allowed.append(bool(np.isin(left_out, known[known < shared[i]]).all()))
    return allowed


def fill_from_predecessors(
    prompts: Sequence[Prompt], shared: Sequence[int], scores: Sequence[Scores], missing: Sequence[NDArray[np.bool_]]
) -> list[int]:
    """Fill missing rows of `scores` in place from the previous prompt. Return the prompts that still have missing rows.

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
