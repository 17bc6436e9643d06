"""Checking, merging and splitting of samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.samples import Sample
from qtune_service.scoring.scorer import (
    EngineInfo,
    check_samples,
    distinct_prompts,
    scored_positions,
    scores_of,
    spans_of,
)

INFO = EngineInfo("fake", "1", "cpu", "float32", "FakeForCausalLM", max_model_len=4, vocab_size=10)


def make(ids: list[int], mask: list[int]) -> Sample:
    """Build a sample."""
    return Sample(np.array(ids, np.int32), np.array(mask, np.int8))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (make([1, 2], [0]), "2 tokens, but a loss mask of 1"),
        (make([], []), "no tokens"),
        (make([1] * 5, [1] * 5), "5 tokens, and the limit is 4"),
        (make([1, 10], [0, 1]), "token id 10 is outside the model's vocabulary of 10"),
        (make([-3, 1], [0, 1]), "token id -3"),
    ],
)
def test_a_bad_sample_is_named_with_its_fault(bad: Sample, reason: str) -> None:
    """The error says which sample it was among several, and what is wrong with it."""
    good = make([1, 2, 3, 9], [0, 1, 1, 1])
    check_samples([good], INFO)
    with pytest.raises(DataError, match=f"^{reason}"):
        check_samples([bad], INFO)
    with pytest.raises(DataError, match=f"sample 1 of 2: {reason}"):
        check_samples([good, bad], INFO)


def test_position_zero_is_never_scored() -> None:
    """The first token has no prediction, whatever the mask says."""
    assert scored_positions(make([5, 6, 7], [1, 0, 1])).tolist() == [2]


sample_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=5).map(
        lambda pairs: make([token for token, _ in pairs], [bit for _, bit in pairs])
    ),
    max_size=12,
)


@given(samples=sample_lists)
def test_each_sample_gets_back_its_own_scores(samples: list[Sample]) -> None:
    """Sequences that no other continues are run once, in lexicographic order, and every sample finds the scores of its
    own mask.
    """
    prompts, index = distinct_prompts(samples)
    sequences = [prompt.input_ids.tolist() for prompt in prompts]
    given = sorted({tuple(s.input_ids.tolist()) for s in samples})
    begun = {other[:n] for other in given for n in range(len(other))}
    assert sequences == [list(ids) for ids in given if ids not in begun]
    for member, i in zip(samples, index, strict=True):
        assert prompts[i].input_ids[: len(member.input_ids)].tolist() == member.input_ids.tolist()
        rows = np.stack((prompts[i].positions, -prompts[i].positions), 1).astype(np.float32)
        scores = scores_of(member, prompts[i], rows)
        assert scores.nll.tolist() == scored_positions(member).tolist()
        assert scores.entropy.tolist() == (-scored_positions(member)).tolist()


@given(st.lists(st.sets(st.integers(1, 40)), max_size=6))
def test_spans_hold_exactly_the_positions(sets: list[set[int]]) -> None:
    """Spans of each array are plain integers, disjoint, not adjacent, and cover its positions."""
    found = spans_of([np.array(sorted(positions), np.int64) for positions in sets])
    assert len(found) == len(sets)
    for spans, positions in zip(found, sets, strict=True):
        assert all(type(bound) is int for bound in spans)
        pairs = list(zip(spans[::2], spans[1::2], strict=True))
        assert [p for start, end in pairs for p in range(start, end)] == sorted(positions)
        assert all(end < start for (_, end), (start, _) in pairwise(pairs))
