"""Prefix caching rules, against a simulated block cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.samples import Sample
from qtune_service.scoring.scorer import Prompt, Scores, distinct_prompts
from qtune_service.scoring.vllm.prefixes import fill_from_predecessors, may_read_cache, shared_prefixes

UNKNOWN = -1.0


def true_scores(prompt: Prompt) -> Scores:
    """Scores (n, 2) that depend on the tokens up to the scored one and on nothing else, as a causal model's do."""
    ids = prompt.input_ids.tolist()
    rows = [[sum((i + 1) * (x + 1) for i, x in enumerate(ids[: t + 1])), t] for t in prompt.positions]
    return np.array(rows, np.float32).reshape(-1, 2)


def longest_hit(prompt: Prompt, earlier: list[Prompt], block: int) -> int:
    """Tokens that a block cache filled by earlier sequences holds of this one, never the last token."""
    ids = prompt.input_ids
    held = {tuple(e.input_ids[: n * block]) for e in earlier for n in range(1, len(e.input_ids) // block + 1)}
    hits = [n for n in range(block, len(ids), block) if tuple(ids[:n]) in held]
    return max(hits, default=0)


prompt_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=14).map(
        lambda pairs: Sample(np.array([t for t, _ in pairs], np.int32), np.array([m for _, m in pairs], np.int8))
    ),
    max_size=12,
).map(lambda samples: distinct_prompts(samples)[0])


@given(prompts=prompt_lists, block=st.integers(1, 4), data=st.data())
def test_reading_the_cache_never_costs_a_score(prompts: list[Prompt], block: int, data: st.DataObject) -> None:
    """Whatever part of the longest possible hit an engine takes, every score can be had, and is the true one."""
    shared = shared_prefixes(prompts)
    reads = may_read_cache(prompts, shared, block)
    scores: list[Scores] = []
    missing: list[NDArray[np.bool_]] = []
    for i, prompt in enumerate(prompts):
        most = longest_hit(prompt, prompts[:i], block) if reads[i] else 0
        hit = data.draw(st.integers(0, most // block)) * block  # blocks may have been evicted
        rows = true_scores(prompt)
        missing.append(prompt.positions <= hit if hit else np.zeros(len(rows), np.bool_))
        rows[missing[-1]] = UNKNOWN
        scores.append(rows)
    assert fill_from_predecessors(prompts, shared, scores, missing) == []
    for prompt, rows in zip(prompts, scores, strict=True):
        np.testing.assert_array_equal(rows, true_scores(prompt))


@given(prompts=prompt_lists, data=st.data())
def test_any_missing_row_is_filled_rightly_or_reported(prompts: list[Prompt], data: st.DataObject) -> None:
    """Rows that went missing for any reason are filled with the true score, or their sequence is named."""
    shared = shared_prefixes(prompts)
    missing = [np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_) for n in map(_n, prompts)]
    scores = [true_scores(prompt) for prompt in prompts]
    for rows, gone in zip(scores, missing, strict=True):
        rows[gone] = UNKNOWN
    unresolved = fill_from_predecessors(prompts, shared, scores, missing)
    for i, prompt in enumerate(prompts):
        if i not in unresolved:
            np.testing.assert_array_equal(scores[i], true_scores(prompt))


def _n(prompt: Prompt) -> int:
    return len(prompt.positions)


def test_shared_prompts_read_the_cache_and_longer_twins_do_too() -> None:
    """The cache is used for a shared prompt, and for a shared response start that the predecessor scores."""
    prompt = list(range(10, 18))

    def made(tail: list[int], first: int) -> Prompt:
        ids = np.array(prompt + tail, np.int32)
        return Prompt(ids, np.arange(first, len(ids), dtype=np.int64))

    prompts = [made([1, 1, 1], 9), made([1, 1, 1, 1, 1], 9), made([1, 1, 1, 1, 2], 5), made([2, 2], 8)]
    shared = shared_prefixes(prompts)
    assert shared == [0, 11, 12, 8]
    # The third scores tokens that its predecessor does not; the fourth's first scored token is predicted by the last
    # row of a whole block.
    assert may_read_cache(prompts, shared, block_size=4) == [True, True, False, False]
    assert may_read_cache(prompts, shared, block_size=3) == [True, True, False, True]
