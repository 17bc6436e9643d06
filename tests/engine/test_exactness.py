"""Scores of both engines against the float64 softmax of full logits."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import InterruptedScoring, Scorer
from tests.engine.engine_worker import EngineWorker, cached_tokens
from tests.engine.exactness import (
    MAX_MODEL_LEN,
    NAN_TOKEN,
    all_cases,
    difference,
    exact_all,
    exact_cases,
    hard_cases,
    sample,
)

EXACT, SAME = 1e-4, 1e-5  # nats: to the exact score; between two ways of computing it


@pytest.mark.parametrize("case", hard_cases(100))
@pytest.mark.parametrize("name", ["vllm_qwen2", "vllm_stories", "reference_qwen2", "reference_stories"])
def test_scores_are_exact(
    name: str, case: str, request: pytest.FixtureRequest, model_folder: Callable[[str], str]
) -> None:
    """Each hard case scores within 1e-4 nats of the exact NLL and entropy, on both engines and both models."""
    scorer: Scorer = request.getfixturevalue(name)
    folder = model_folder(name)
    samples = hard_cases(scorer.info.vocab_size)[case]
    assert difference(scorer.score(samples), exact_cases(folder, scorer.info.vocab_size)[case]) < EXACT


@pytest.mark.parametrize("name", ["vllm_qwen2", "vllm_stories", "reference_qwen2", "reference_stories"])
def test_all_cases_at_once_are_exact(
    name: str, request: pytest.FixtureRequest, model_folder: Callable[[str], str]
) -> None:
    """Cases that share batches and a cache with each other are as exact as alone."""
    scorer: Scorer = request.getfixturevalue(name)
    folder = model_folder(name)
    samples = all_cases(scorer.info.vocab_size)
    assert difference(scorer.score(samples), exact_all(folder, scorer.info.vocab_size)) < EXACT


def test_scores_do_not_depend_on_order_or_grouping(scorer: Scorer) -> None:
    """Shuffled calls and calls in pairs and larger groups agree within 1e-5 nats."""
    samples = all_cases(scorer.info.vocab_size)
    together = scorer.score(samples)
    order = np.random.default_rng(1).permutation(len(samples))
    shuffled = scorer.score([samples[i] for i in order])
    assert difference(shuffled, [together[i] for i in order]) < SAME
    for size in (2, 11):
        split = [s for i in range(0, len(samples), size) for s in scorer.score(samples[i : i + size])]
        assert difference(split, together) < SAME


def test_stopping_keeps_what_is_scored(scorer: Scorer) -> None:
    """A call that its watch stops gives the scores it has, which are right, and leaves an engine that goes on."""
    samples = all_cases(scorer.info.vocab_size)
    with pytest.raises(InterruptedScoring) as stopped:
        scorer.score(samples, functools.partial(operator.lt, 0))  # as soon as a token is scored
    done: dict[int, TokenScores] = dict(stopped.value.scores)
    assert 0 < len(done) < len(samples)
    whole = scorer.score(samples)
    assert difference(list(done.values()), [whole[i] for i in done]) < SAME


def test_a_repeated_call_gives_the_same_bits(scorer: Scorer) -> None:
    """What was scored before leaves no trace in a call's result."""
    samples = all_cases(scorer.info.vocab_size)
    first = scorer.score(samples)
    scorer.score(samples[::-1][:9])
    again = scorer.score(samples)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.nll, b.nll)
        np.testing.assert_array_equal(a.entropy, b.entropy)


@pytest.mark.parametrize(
    ("case", "least"),
    [("shared prompts", 2 * 288), ("shared response starts", 2 * 416), ("chunked prefill", 0)],
)
def test_the_prefix_cache_is_used(vllm_qwen2: EngineWorker, case: str, least: int) -> None:
    """Shared prompts, and response starts that another sample has scored, are computed once."""
    vllm_qwen2.score(hard_cases(vllm_qwen2.info.vocab_size)[case])
    assert vllm_qwen2.call(cached_tokens) == least


def test_a_genuine_nan_is_returned_and_stays_alone(scorer: Scorer, random_qwen2: Path) -> None:
    """A sample whose logits are NaN says so from that token on, and no other sample is touched, then or later."""
    vocab_size = scorer.info.vocab_size
    rng = np.random.default_rng(2)
    poison = rng.integers(NAN_TOKEN + 1, vocab_size, 300, dtype=np.int32)
    poison[200] = NAN_TOKEN
    samples = all_cases(vocab_size)
    exact = exact_all(str(random_qwen2), vocab_size)
    scores = scorer.score([*samples, sample(poison, (150, 300))])
    assert np.isnan(scores[-1].nll[51:]).all()
    assert np.isnan(scores[-1].entropy[51:]).all()
    assert difference(scores[:-1], exact) < EXACT
    assert difference(scorer.score(samples), exact) < EXACT


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (np.array([10, 99_999, 12], np.int32), "99999"),
        (np.array([10, -1, 12], np.int32), "-1"),
        (np.full(MAX_MODEL_LEN + 1, 9, np.int32), "513 tokens"),
        (np.empty(0, np.int32), "no tokens"),
    ],
)
def test_an_impossible_sample_is_refused_and_the_engine_lives(
    scorer: Scorer, ids: np.ndarray[tuple[int], np.dtype[np.int32]], reason: str
) -> None:
    """A token outside the vocabulary, or too long or empty a sample, is named; the next call works."""
    good = hard_cases(scorer.info.vocab_size)["several spans"]
    before = scorer.score(good)
    with pytest.raises(ValueError, match=reason):
        scorer.score([good[0], Sample(ids, np.ones(len(ids), np.int8)), good[1]])
    assert difference(scorer.score(good), before) == 0
